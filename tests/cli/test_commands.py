"""What each subcommand asks of the core, and how it shows what the core gives."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import Result

from lapo_cli.core import pipeline
from lapo_cli.core.config_loading import describe, load_config
from lapo_cli.core.data import download
from lapo_cli.core.data.store import Split
from lapo_cli.core.envs.procgen import GAMES
from lapo_cli.core.errors import DownloadError
from lapo_cli.core.evaluation.summary import Failure, Row, Summary
from lapo_cli.core.recording import demonstrations
from lapo_cli.core.recording.demonstrations import Recorded
from lapo_cli.core.run_dir import RunDir, SeedDir
from lapo_cli.core.training.stage import StageResult

Lapo = Callable[..., Result]

_LONG = "LAPO decoded offline by a method whose name is longer than a terminal of 80 columns is wide"


class _Core:
    """Stands in for a function of the pipeline and keeps what it was called with."""

    def __init__(self, result: Any) -> None:
        self.result = result
        self.calls: list[tuple[Any, ...]] = []

    def __call__(self, *args: Any) -> Any:
        self.calls.append(args)
        return self.result


def _stand_in(monkeypatch: pytest.MonkeyPatch, name: str, result: Any) -> _Core:
    core = _Core(result)
    monkeypatch.setattr(pipeline, name, core)
    return core


def _result(skipped: bool = False) -> StageResult:
    results = {
        "steps": 20,
        "probe/accuracy": 0.123456,
        "test_accuracy": {"16": 0.5},
        "curve": [1, 2],
        "bad": float("nan"),
    }
    return StageResult("maze", 0, "idm", Path("runs/maze-quick/maze/seed-0/idm"), results, skipped)


def _summary(failures: list[Failure], games: tuple[str, ...] = ("maze",)) -> Summary:
    policies = {"random policy": None, _LONG: 4096}
    rows = [
        Row(game, method, labels, None, 1.234, 1.0, 1.5, 256, 1, 0.25)
        for game in games
        for method, labels in policies.items()
    ]
    rows.append(Row(games[0], "demonstrations", None, None, None, None, None, 0, 1, 0.5))
    return Summary(rows, {}, [], failures, Path("runs/quick"), [Path("runs/quick/summary.md")])


def test_train_idm(lapo: Lapo, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    core = _stand_in(monkeypatch, "run_stage", [_result()])
    said = lapo("train-idm", "maze", "--preset", "quick", "--seed", "3", "--set", "stage1.steps=20", "--fresh")
    assert said.exit_code == 0, said.stderr
    ((made, stage, seed_dirs, options, _),) = core.calls
    assert (made.path, made.preset, stage) == (Path("runs/maze-quick"), "quick", "idm")
    assert seed_dirs == [SeedDir(Path("runs/maze-quick/maze/seed-3"), "maze", 3)]
    assert made.config == load_config("quick", overrides=["stage1.steps=20"])
    assert options == pipeline.Options(data_dir=home / "data", fresh=True)
    assert made.pending == "create"  # The stage writes run.yaml once it is clear that it can begin.
    assert "| maze | 0    | idm   | steps             | 20 " in said.stdout
    assert "| test accuracy, 16 | 0.5 " in said.stdout
    assert "curve" not in said.stdout


def test_stage_results_as_json(lapo: Lapo, monkeypatch: pytest.MonkeyPatch) -> None:
    _stand_in(monkeypatch, "run_stage", [_result(skipped=True)])
    said = lapo("train-idm", "maze", "--json", "--quiet")
    (stage,) = json.loads(said.stdout)["stages"]
    assert stage["skipped"] is True
    assert stage["results"] == {
        "steps": 20,
        "probe/accuracy": 0.123456,
        "test_accuracy": {"16": 0.5},
        "curve": [1, 2],
        "bad": None,
    }
    assert said.stderr == ""


def test_a_stage_that_was_done_says_so(lapo: Lapo, monkeypatch: pytest.MonkeyPatch) -> None:
    _stand_in(monkeypatch, "run_stage", [_result(skipped=True)])
    assert "was done already" in lapo("train-idm", "maze").stdout


@pytest.mark.parametrize(
    ("words", "stage", "key", "value"),
    [
        (["train-policy", "run"], "policy", "stage2.steps", 7),
        (["decode-offline", "run", "--labels", "16,32"], "offline", "offline.labels", (16, 32)),
        (["decode-offline", "run", "--labels", "16"], "offline", "offline.labels", (16,)),
        (["finetune-online", "run", "--steps", "9"], "online", "online.steps", 9),
        (["run-stage", "expert", "run"], "expert", "stage2.steps", 7),
        (["evaluate", "run", "--episodes", "11"], None, "evaluation.episodes", 11),
    ],
)
def test_overrides_hold_for_the_command_and_not_for_the_run(
    lapo: Lapo,
    run: RunDir,
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
    stage: str | None,
    key: str,
    value: object,
) -> None:
    of_stage = _stand_in(monkeypatch, "run_stage", [_result()])
    of_evaluate = _stand_in(monkeypatch, "evaluate", _summary([]))
    before = (run.path / "run.yaml").read_bytes()
    Path("mine.yaml").write_text("stage2: {steps: 5, lr: 2e-3}\n")
    said = lapo(*words, "--config", "mine.yaml", "--set", "stage2.steps=7")
    assert said.exit_code == 0, said.stderr
    ((opened, called_with, *_),) = of_stage.calls + of_evaluate.calls
    assert (opened.path, opened.preset) == (run.path, "quick")
    assert called_with == (Path("run") if stage is None else stage)
    found = describe(opened.config)
    assert found[key]["value"] == value
    changed = {k for k, about in found.items() if about["value"] != describe(run.config)[k]["value"]}
    assert changed == {"stage2.steps", "stage2.lr", key}
    assert (run.path / "run.yaml").read_bytes() == before


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("run", [("heist", 1), ("maze", 0)]),
        ("run/maze", [("maze", 0)]),
        ("run/heist/seed-1", [("heist", 1)]),
    ],
)
@pytest.mark.parametrize(
    "words", [("train-policy",), ("decode-offline",), ("finetune-online",), ("run-stage", "scratch")]
)
def test_a_stage_runs_for_the_games_and_seeds_below_the_path(
    lapo: Lapo,
    run: RunDir,
    monkeypatch: pytest.MonkeyPatch,
    words: tuple[str, ...],
    path: str,
    expected: list[tuple[str, int]],
) -> None:
    core = _stand_in(monkeypatch, "run_stage", [_result()])
    said = lapo(*words, path)
    assert said.exit_code == 0, said.stderr
    ((_, _, seed_dirs, _, _),) = core.calls
    assert [(seed_dir.game, seed_dir.seed) for seed_dir in seed_dirs] == expected


def test_another_configuration_needs_reconfigure_and_not_fresh(
    lapo: Lapo, run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    core = _stand_in(monkeypatch, "run_stage", [_result()])
    words = ("train-idm", "maze", "--run-dir", "run", "--preset", "quick")
    assert lapo(*words).exit_code == 0
    assert core.calls[-1][0].pending is None
    before = (run.path / "run.yaml").read_bytes()
    for fresh in ((), ("--fresh",)):
        said = lapo(*words, *fresh, "--set", "stage1.lr=2e-3")
        assert said.exit_code == 2
        assert "stage1.lr" in said.stderr
        assert "--reconfigure" in said.stderr
        assert (run.path / "run.yaml").read_bytes() == before
    said = lapo(*words, "--reconfigure", "--set", "stage1.lr=2e-3")
    assert said.exit_code == 0, said.stderr
    assert core.calls[-1][0].config.stage1.lr == 2e-3
    assert core.calls[-1][0].pending == "replace"


@pytest.mark.parametrize(
    ("words", "stage"),
    [
        ((), "online"),
        (("--init", "latent"), "online"),
        (("--init", "latent-rl-only"), "rl-only"),
        (("--init", "scratch"), "scratch"),
    ],
)
def test_where_fine_tuning_starts_decides_the_stage(
    lapo: Lapo, run: RunDir, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], stage: str
) -> None:
    core = _stand_in(monkeypatch, "run_stage", [_result()])
    said = lapo("finetune-online", "run", *words)
    assert said.exit_code == 0, said.stderr
    assert [called for _, called, *_ in core.calls] == [stage]


@pytest.mark.parametrize(
    "words",
    [
        ("train-idm", "maze"),
        ("train-policy", "run"),
        ("decode-offline", "run"),
        ("finetune-online", "run"),
        ("run-stage", "rl-only", "run"),
        ("train-expert", "maze"),
    ],
)
def test_a_stage_is_run_as_the_options_say(
    lapo: Lapo, run: RunDir, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]
) -> None:
    core = _stand_in(monkeypatch, "run_stage", [_result()])
    said = lapo(*words, "--wandb", "--device", "cpu", "--fresh")
    assert said.exit_code == 0, said.stderr
    ((*_, options, _),) = core.calls
    assert (options.wandb, options.device, options.fresh) == (True, "cpu", True)


@pytest.mark.parametrize(
    ("words", "name"),
    [
        (("train-idm", "maze"), "run_stage"),
        (("train-expert", "maze"), "run_stage"),
        (("run-all", "--games", "maze"), ""),
        (("run-chain", "maze"), "run_chain"),
    ],
)
def test_a_run_goes_on_with_its_own_preset(
    lapo: Lapo, run: RunDir, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], name: str
) -> None:
    core = _stand_in(monkeypatch, name or "run_all", [_result()] if name else _summary([]))
    said = lapo(*words, "--run-dir", "run")
    assert said.exit_code == 0, said.stderr
    assert core.calls[0][0].config == run.config
    for other in (("--preset", "paper"), ("--set", "stage1.steps=10")):
        refused = lapo(*words, "--run-dir", "run", *other)
        assert refused.exit_code == 2
        assert "is a run of another configuration" in refused.stderr


def test_evaluate_prints_the_whole_table(lapo: Lapo, run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    _stand_in(monkeypatch, "evaluate", _summary([]))
    said = lapo("evaluate", "run")
    assert said.exit_code == 0
    lines = said.stdout.splitlines()
    assert [cell.strip() for cell in lines[0].strip("| ").split("|")] == [
        *("policy", "mean return", "95 % interval", "episodes", "normalized")
    ]
    (long,) = [line for line in lines if _LONG in line]
    assert [cell.strip() for cell in long.strip("| ").split("|")] == [
        *(f"{_LONG}, 4,096 labels", "1.23", "1.00 to 1.50", "256", "0.25")
    ]
    assert "| demonstrations " in said.stdout
    assert "Written: runs/quick/summary.md" in said.stdout
    assert all(len(line) == len(lines[0]) for line in lines[:5])


def test_several_games_are_named_in_the_table(lapo: Lapo, monkeypatch: pytest.MonkeyPatch) -> None:
    _stand_in(monkeypatch, "run_all", _summary([], ("maze", "heist")))
    said = lapo("run-all", "--games", "maze,heist")
    assert said.stdout.startswith("| game  | policy")
    assert "| heist | random policy" in said.stdout


def test_run_all(lapo: Lapo, monkeypatch: pytest.MonkeyPatch) -> None:
    core = _stand_in(monkeypatch, "run_all", _summary([]))
    said = lapo(
        "run-all", "--games", "maze,heist,maze", "--seeds", "0, 2,0", "--preset", "quick", "--jobs", "2", "--json"
    )
    assert said.exit_code == 0, said.stderr
    ((made, games, seeds, options, _),) = core.calls
    assert (made.path, games, seeds, options.jobs) == (Path("runs/quick"), ["maze", "heist"], [0, 2], 2)
    rows = json.loads(said.stdout)["rows"]
    assert [(row["method"], row["labels"]) for row in rows] == [
        *(("random policy", None), (_LONG, 4096), ("demonstrations", None))
    ]


def test_run_all_reports_games_that_failed(lapo: Lapo, monkeypatch: pytest.MonkeyPatch) -> None:
    _stand_in(monkeypatch, "run_all", _summary([Failure("heist", 1, "It broke.")]))
    said = lapo("run-all", "--games", "maze,heist")
    assert said.exit_code == 1
    assert "random policy" in said.stdout
    assert "Failed: heist, seed 1: It broke." in said.stdout
    as_json = lapo("run-all", "--games", "maze,heist", "--json")
    assert as_json.exit_code == 1
    assert json.loads(as_json.stdout)["failures"] == [{"game": "heist", "seed": 1, "message": "It broke."}]


def test_a_dry_run_lists_all_and_makes_nothing(lapo: Lapo, home: Path) -> None:
    words = ("run-all", "--games", "maze,heist", "--seeds", "0,1", "--dry-run")
    said = lapo(*words)
    assert said.exit_code == 0, said.stderr
    assert "| heist | 1    | scratch | run   |" in said.stdout
    planned = json.loads(lapo(*words, "--json").stdout)["plan"]
    assert planned == [
        {"game": game, "seed": seed, "stage": stage, "state": "run"}
        for game in ("maze", "heist")
        for seed in (0, 1)
        for stage in ("idm", "policy", "offline", "online", "scratch")
    ]
    assert list(home.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("--device", "gpu"), "no device 'gpu'"),
        (("--set", "data.source=foo"), "'foo'"),
        (("--run-dir", "."), "not a run"),
    ],
)
def test_a_dry_run_refuses_what_a_run_refuses(lapo: Lapo, home: Path, words: tuple[str, ...], why: str) -> None:
    (home / "photo.jpg").touch()
    said = lapo("run-all", "--games", "maze", "--dry-run", *words)
    assert said.exit_code == 2
    assert why in said.stderr


def test_info(lapo: Lapo, home: Path) -> None:
    facts = json.loads(lapo("info", "--json").stdout)
    assert {"lapo", "python", "torch", "numpy", "procgen", "gpus", "bf16", "free_bytes"} <= facts.keys()
    assert (facts["data_dir"], facts["games"]) == (str(home / "data"), {})
    assert f"| data dir  | {home / 'data'}" in lapo("info").stdout


def test_info_lists_the_configuration(lapo: Lapo) -> None:
    keys = json.loads(lapo("info", "--config", "--preset", "quick", "--json").stdout)["config"]
    quick, paper = (load_config(preset).stage1.steps for preset in ("quick", "paper"))
    assert keys["stage1.steps"]["value"] == quick != paper
    (shown,) = [line for line in lapo("info", "--config").stdout.splitlines() if line.startswith("| stage1.lr ")]
    assert [cell.strip() for cell in shown.strip("| ").split("|")] == ["stage1.lr", "0.0003", "Peak learning rate."]


def test_download_lists_games(lapo: Lapo, home: Path) -> None:
    document = json.loads(lapo("download", "--list", "--json").stdout)
    assert [row["game"] for row in document["games"]] == list(GAMES)
    (home / "data" / "heist" / "train").mkdir(parents=True)
    said = lapo("download", "heist", "--list")
    assert said.exit_code == 0
    assert "| heist |" in said.stdout
    assert "heist train: " in said.stdout
    assert "bigfish" not in said.stdout


def test_train_expert_makes_a_run_of_its_own(lapo: Lapo, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    core = _stand_in(monkeypatch, "run_stage", [_result()])
    said = lapo("train-expert", "maze", "--preset", "quick", "--steps", "5000", "--seed", "3")
    assert said.exit_code == 0, said.stderr
    ((run, stage, seed_dirs, _, _),) = core.calls
    assert (run.path, stage) == (Path("runs/maze-expert-quick"), "expert")
    assert seed_dirs == [SeedDir(Path("runs/maze-expert-quick/maze/seed-3"), "maze", 3)]
    assert run.config.expert.steps == 5000
    assert run.pending == "create"


def test_record_hands_over_every_policy_with_its_noise(lapo: Lapo, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[dict[str, Any]] = []
    info = {"episodes": 9, "measured_episodes": 8, "mean_return": 1.5, "low": 1.0, "high": 2.0, "normalized": 0.25}
    short = {"episodes": 1, "measured_episodes": 0}

    def record(game: str, policies: list[str], epsilons: list[float], to: Path, **more: Any) -> list[object]:
        calls.append({"game": game, "policies": policies, "epsilons": epsilons, "to": to, **more})
        logs: list[tuple[Split, int, dict[str, Any]]] = [("train", 1000, info), ("test", 64, short)]
        return [Recorded(game, split, to / f"{game}-{split}.npz", frames, about) for split, frames, about in logs]

    monkeypatch.setattr(demonstrations, "record_demonstrations", record)
    words = ("--policy", "planner", "--policy", "a/b", "--epsilon", "0.5", "--epsilon", "0")
    said = lapo("record", "maze", *words, "--frames", "1000", "--test-frames", "64", "--greedy", "--to", "here")
    assert said.exit_code == 0, said.stderr
    (call,) = calls
    assert (call["policies"], call["epsilons"], call["to"]) == (["planner", "a/b"], [0.5, 0.0], Path("here"))
    assert (call["frames"], call["greedy"], call["num_envs"]) == ({"train": 1000, "test": 64}, True, 64)
    assert "8 measured of 9" in said.stdout
    assert "1.00 to 2.00" in said.stdout
    assert "lapo download maze --from here" in said.stdout
    lapo("record", "maze")
    assert (calls[1]["policies"], calls[1]["epsilons"]) == (["planner"], [0.0])
    assert list(calls[1]["frames"]) == ["train"]


def test_download_of_bundled_demonstrations(lapo: Lapo, home: Path) -> None:
    pytest.importorskip("procgen")
    game = "fruitbot"
    words = ("download", game, "--source", "demos", "--max-frames", "2048")
    said = lapo(*words)
    assert said.exit_code == 0, said.stderr
    announced = said.stderr.splitlines()[0]
    assert announced.startswith(f"{game}: nothing to fetch; store 2,048 train frames and ")
    assert announced.endswith("are free.")
    assert f"| {game} " in said.stdout
    again = lapo(*words, "--json")
    assert "is already here (2,048 frames)" in again.stderr
    assert {store["split"] for store in json.loads(again.stdout)["stores"]} == {"train", "test"}


def test_a_download_says_what_it_will_fetch_and_one_failure_stops_no_other(
    lapo: Lapo, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = []

    def carry_out(plan: download.Plan, progress: object) -> dict[str, object]:
        tried.append(plan.game)
        if plan.game == "maze":
            raise DownloadError("The quota is spent.")
        return {}

    monkeypatch.setattr(download, "carry_out", carry_out)
    said = lapo("download", "maze", "heist")
    assert said.exit_code == 1
    assert tried == ["maze", "heist"]
    assert "maze: fetch a zip file from https://drive.google.com/" in said.stderr
    assert "store 2,621,440 train frames and 65,536 test frames, about 33.0 GB" in said.stderr
    assert "Failed: maze: The quota is spent." in said.stdout
    alone = lapo("download", "maze", "--json")
    assert json.loads(alone.stdout)["error"]["type"] == "DownloadError"
