"""run-all on real frames and real Procgen, at the smallest size that has every part."""

import json
import multiprocessing
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lapo_cli.core.config import Config
from lapo_cli.core.config_loading import override
from lapo_cli.core.errors import MissingInputError, RunDirError, UsageError
from lapo_cli.core.evaluation.summary import ALL_GAMES, Summary
from lapo_cli.core.pipeline import Options, chain, evaluate, plan, run_all, run_stage
from lapo_cli.core.progress import Silent
from lapo_cli.core.run_dir import RunDir, SeedDir
from lapo_cli.core.training.context import Context
from lapo_cli.core.training.stage import Stage, StageResult, stage_key

_GAMES = ["maze", "fruitbot"]


def _stage(run: RunDir, name: str, seed_dir: SeedDir, options: Options) -> StageResult:
    (result,) = run_stage(run, name, [seed_dir], options, Silent())
    return result


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory, data_dir: Path) -> tuple[RunDir, Summary]:
    """Both games with one job; bigfish between them has damaged data."""
    from lapo_cli.core.config_loading import load_config
    from tests.core.tiny_config import TINY

    run = RunDir.create(tmp_path_factory.mktemp("runs") / "one", load_config("paper", overrides=TINY), "paper")
    return run, run_all(run, ["maze", "bigfish", "fruitbot"], [0], Options("cpu", data_dir), Silent())


def _policies(summary: Summary, game: str) -> list[str]:
    return [row.title for row in summary.rows if row.game == game]


def test_every_stage_is_finished_and_every_policy_has_a_row(done: tuple[RunDir, Summary]) -> None:
    run, summary = done
    for game in _GAMES:
        for stage in chain(run.config):
            assert run.seed_dir(game, 0).stage(stage.name).done() is not None, (game, stage.name)
    played = [
        "LAPO decoded offline, 4 labels",
        "LAPO decoded offline, 64 labels",
        "LAPO fine-tuned online, 512 steps",
        "PPO from scratch, 512 steps",
    ]
    assert _policies(summary, "maze") == ["random policy", "demonstrations (expert)", *played]
    # In so few frames of fruitbot no episode ends, so there is nothing to say of its demonstrations.
    assert _policies(summary, "fruitbot") == _policies(summary, ALL_GAMES) == ["random policy", *played]
    for row in summary.rows:
        if row.low is not None and row.mean is not None and row.high is not None:
            assert row.low <= row.mean <= row.high
        if row.game in _GAMES and "demonstrations" not in row.method:
            assert row.episodes == 4


def test_a_game_that_fails_is_reported_and_stops_no_other(done: tuple[RunDir, Summary]) -> None:
    _, summary = done
    assert [(failure.game, failure.seed) for failure in summary.failures] == [("bigfish", 0)]
    assert "lapo download bigfish --fresh" in summary.failures[0].message


def test_the_summary_is_written_as_json_and_markdown(done: tuple[RunDir, Summary]) -> None:
    run, summary = done
    written = json.loads((run.path / "summary.json").read_text())
    assert [row["policy"] for row in written["rows"]] == [row.title for row in summary.rows]
    assert written["failures"][0]["game"] == "bigfish"
    text = (run.path / "summary.md").read_text()
    for row in summary.rows:
        assert row.title in text
    for file in summary.files:
        assert file.stat().st_size > 0


def test_a_second_call_skips_everything_and_gives_the_same(done: tuple[RunDir, Summary], data_dir: Path) -> None:
    run, first = done
    kept = {file: file.stat().st_mtime_ns for file in run.path.rglob("*.safetensors")}
    kept |= {file: file.stat().st_mtime_ns for file in run.path.rglob("evaluation/*.json")}
    assert len(kept) == len(_GAMES) * (len(chain(run.config)) + 5)
    again = run_all(run, ["maze", "bigfish", "fruitbot"], [0], Options("cpu", data_dir), Silent())
    assert again.rows == first.rows
    assert {file: file.stat().st_mtime_ns for file in kept} == kept
    states = {(p.game, p.state) for p in plan(run, ["maze", "bigfish"], [0], Options("cpu", data_dir))}
    assert states == {("maze", "done"), ("bigfish", "run")}


def test_jobs_side_by_side_give_the_same_table(done: tuple[RunDir, Summary], tmp_path: Path, data_dir: Path) -> None:
    run, one_job = done
    other = RunDir.create(tmp_path / "two", run.config, "paper")
    two_jobs = run_all(other, ["maze", "bigfish", "fruitbot"], [0], Options("cpu", data_dir, jobs=2), Silent())
    assert two_jobs.rows == one_job.rows
    assert two_jobs.failures == one_job.failures


def test_evaluate_takes_any_level_of_the_tree(done: tuple[RunDir, Summary], data_dir: Path) -> None:
    run, summary = done
    options = Options("cpu", data_dir)
    game = evaluate(run, run.path / "maze", options, Silent())
    assert [row for row in summary.rows if row.game == "maze"] == game.rows
    stage = evaluate(run, run.path / "maze" / "seed-0" / "scratch", options, Silent())
    assert [row.title for row in stage.rows] == [
        "random policy",
        "demonstrations (expert)",
        "PPO from scratch, 512 steps",
    ]
    with pytest.raises(RunDirError):
        evaluate(run, run.path / "nowhere", options, Silent())


def test_overrides_of_one_command_lose_nothing_and_hinder_no_other(
    done: tuple[RunDir, Summary], tmp_path: Path, data_dir: Path
) -> None:
    run, before = done
    shutil.copytree(run.path, tmp_path / "run")
    copy = RunDir.open(tmp_path / "run")
    options, maze = Options("cpu", data_dir), copy.seed_dir("maze", 0)
    asked = (copy.path / "run.yaml").read_bytes()
    weights = (maze.path / "offline" / "model.safetensors").read_bytes()

    sixteen = replace(copy, config=override(copy.config, ["offline.labels=[16]"]))
    assert set(_stage(sixteen, "offline", maze, options).results["test_accuracy"]) == {"16"}
    assert (maze.path / "offline.old-1" / "model.safetensors").read_bytes() == weights
    titles = [row.title for row in evaluate(copy, maze.path, options, Silent()).rows]
    assert [title for title in titles if "decoded" in title] == ["LAPO decoded offline, 16 labels"]

    again = RunDir.create(copy.path, run.config, "paper")  # As run-all with its first options does, without refusal.
    assert run_all(again, ["maze"], [0], options, Silent()).rows == [r for r in before.rows if r.game == "maze"]
    assert {"offline", "offline.old-1", "offline.old-2"} <= {folder.name for folder in maze.path.iterdir()}
    assert (copy.path / "run.yaml").read_bytes() == asked


def test_starting_over_with_an_option_that_is_not_here_removes_nothing(
    done: tuple[RunDir, Summary], data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, _ = done
    monkeypatch.setitem(sys.modules, "wandb", None)  # what importing it meets where it is not installed
    before = {file: file.stat().st_mtime_ns for file in run.path.rglob("*") if file.name != ".lock"}
    options = Options("cpu", data_dir, fresh=True, wandb=True)
    with pytest.raises(UsageError, match="needs Weights & Biases"):
        _stage(run, "idm", run.seed_dir("maze", 0), options)
    with pytest.raises(UsageError, match="needs Weights & Biases"):
        run_all(run, _GAMES, [0], options, Silent())
    assert {file: file.stat().st_mtime_ns for file in run.path.rglob("*") if file.name != ".lock"} == before


def test_a_stage_by_hand_is_the_stage_of_run_all(done: tuple[RunDir, Summary], tmp_path: Path, data_dir: Path) -> None:
    run, _ = done
    options = Options("cpu", data_dir)
    other = RunDir.create(tmp_path / "by-hand", run.config, "paper")
    _stage(other, "idm", other.seed_dir("maze", 0), options)
    _stage(other, "policy", other.seed_dir("maze", 0), options)
    for stage in ("idm", "policy"):
        by_hand, in_run_all = (r.seed_dir("maze", 0).stage(stage).done() for r in (other, run))
        assert by_hand is not None
        assert in_run_all is not None
        assert by_hand["results"] == in_run_all["results"]


def test_a_stage_whose_settings_changed_runs_again_and_so_do_those_that_use_it(
    tmp_path: Path, data_dir: Path, tiny: Callable[..., Config]
) -> None:
    options = Options("cpu", data_dir)
    run = RunDir.create(tmp_path / "run", tiny(), "paper")
    _stage(run, "idm", run.seed_dir("maze", 0), options)
    _stage(run, "policy", run.seed_dir("maze", 0), options)
    with pytest.raises(RunDirError, match=r"stage1\.lr"):
        RunDir.create(run.path, tiny("stage1.lr=1e-3"), "paper")
    changed = RunDir.create(run.path, tiny("stage1.lr=1e-3"), "paper", reconfigure=True)
    assert not _stage(changed, "idm", changed.seed_dir("maze", 0), options).skipped
    with pytest.raises(MissingInputError, match=r"has been replaced since: run 'lapo train-policy"):
        _stage(changed, "online", changed.seed_dir("maze", 0), options)
    assert not _stage(changed, "policy", changed.seed_dir("maze", 0), options).skipped
    stages = {folder.name for folder in (run.path / "maze" / "seed-0").iterdir() if folder.is_dir()}
    assert stages == {"idm", "idm.old-1", "policy", "policy.old-1"}
    unrelated = RunDir.create(
        run.path, tiny("stage1.lr=1e-3", "online.steps=99", "checkpoint_seconds=1"), "paper", reconfigure=True
    )
    assert _stage(unrelated, "idm", unrelated.seed_dir("maze", 0), options).skipped
    assert _stage(unrelated, "policy", unrelated.seed_dir("maze", 0), options).skipped
    larger = RunDir.create(run.path, tiny("stage1.lr=1e-3", "model.policy_size=32"), "paper", reconfigure=True)
    assert _stage(larger, "idm", larger.seed_dir("maze", 0), options).skipped
    assert not _stage(larger, "policy", larger.seed_dir("maze", 0), options).skipped


def test_a_plan_says_what_a_change_of_the_precision_repeats(
    tmp_path: Path, data_dir: Path, tiny: Callable[..., Config]
) -> None:
    options = Options("cpu", data_dir)
    run = RunDir.create(tmp_path / "run", tiny("precision=fp32"), "paper")
    _stage(run, "idm", run.seed_dir("maze", 0), options)
    for precision, state in (("fp32", "done"), ("auto", "done"), ("bf16", "run")):
        changed = RunDir.create(run.path, tiny(f"precision={precision}"), "paper", reconfigure=True)
        assert plan(changed, ["maze"], [0], options)[0].state == state


def test_a_setting_that_a_new_version_adds_repeats_no_stage_at_its_default(
    tmp_path: Path, data_dir: Path, tiny: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    def without_lookahead(ctx: Context, of: Stage) -> dict[str, Any]:
        key = stage_key(ctx, of)
        key["config"].get("stage2", {}).pop("lookahead", None)
        return key

    options = Options("cpu", data_dir)
    with monkeypatch.context() as before:
        before.setattr("lapo_cli.core.training.stage.stage_key", without_lookahead)
        run = RunDir.create(tmp_path / "run", tiny(), "paper")
        for name in ("idm", "policy"):
            _stage(run, name, run.seed_dir("maze", 0), options)
    for lookahead, done in ((0, True), (2, False), (2, True), (0, False)):  # Once it is recorded, the setting counts.
        changed = RunDir.create(run.path, tiny(f"stage2.lookahead={lookahead}"), "paper", reconfigure=True)
        assert [p.state for p in plan(changed, ["maze"], [0], options)[:2]] == ["done", "done" if done else "run"]
        assert _stage(changed, "policy", changed.seed_dir("maze", 0), options).skipped == done


def test_a_new_setting_of_another_quantizer_repeats_no_stage_at_its_default(
    tmp_path: Path, data_dir: Path, tiny: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    def without_size(ctx: Context, of: Stage) -> dict[str, Any]:
        key = stage_key(ctx, of)
        key["config"]["model.quantizer"].pop("size")
        return key

    options = Options("cpu", data_dir)
    with monkeypatch.context() as before:
        before.setattr("lapo_cli.core.training.stage.stage_key", without_size)
        run = RunDir.create(tmp_path / "run", tiny("model.quantizer={kind: none}"), "paper")
        _stage(run, "idm", run.seed_dir("maze", 0), options)
    assert _stage(run, "idm", run.seed_dir("maze", 0), options).skipped


def test_a_plan_says_that_what_was_made_from_a_replaced_stage_is_repeated(
    tmp_path: Path, data_dir: Path, tiny: Callable[..., Config]
) -> None:
    options = Options("cpu", data_dir)
    run = RunDir.create(tmp_path / "run", tiny(), "paper")
    for name in ("idm", "policy", "scratch"):
        _stage(run, name, run.seed_dir("maze", 0), options)
    changed = RunDir.create(run.path, tiny("stage1.lr=1e-3"), "paper", reconfigure=True)
    _stage(changed, "idm", run.seed_dir("maze", 0), options)
    states = {p.stage: p.state for p in plan(changed, ["maze"], [0], options)}
    assert (states["idm"], states["policy"], states["scratch"]) == ("done", "run", "done")
    (changed.seed_dir("maze", 0).path / "idm" / "config.yaml").unlink()
    fresh = replace(options, fresh=True)  # What it starts over may be damaged.
    assert {p.state for p in plan(changed, ["maze"], [0], fresh)} == {"run"}


@pytest.mark.parametrize("stage", ["idm", "scratch"])
def test_a_damaged_game_is_reported_and_the_others_are_evaluated(
    done: tuple[RunDir, Summary], tmp_path: Path, data_dir: Path, stage: str
) -> None:
    shutil.copytree(done[0].path, tmp_path / "run")
    run = RunDir.open(tmp_path / "run")
    with (run.seed_dir("fruitbot", 0).path / stage / "done.json").open("a") as file:
        file.write("more")
    summary = evaluate(run, run.path, Options("cpu", data_dir), Silent())
    assert [row for row in summary.rows if row.game == "maze"] == [r for r in done[1].rows if r.game == "maze"]
    (failure,) = summary.failures
    assert failure.game == "fruitbot"
    assert "done.json is damaged" in failure.message


def test_a_stage_without_the_one_before_it_names_the_command(
    tmp_path: Path, data_dir: Path, tiny: Callable[..., Config]
) -> None:
    run = RunDir.create(tmp_path / "run", tiny(), "paper")
    run.seed_dir("maze", 0).path.mkdir(parents=True)
    with pytest.raises(MissingInputError, match="lapo train-idm maze"):
        _stage(run, "policy", run.seed_dir("maze", 0), Options("cpu", data_dir))
    with pytest.raises(MissingInputError, match="lapo train-idm maze"):
        _stage(run, "online", run.seed_dir("maze", 0), Options("cpu", data_dir))


def test_a_killed_process_is_reported_and_the_rest_resumes(
    tmp_path: Path, data_dir: Path, tiny: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunDir.create(tmp_path / "run", tiny("stage1.steps=100000"), "paper")
    spawned: list[int] = []
    start = multiprocessing.process.BaseProcess.start

    def start_and_note(process: multiprocessing.process.BaseProcess) -> None:
        start(process)
        spawned.append(process.pid or 0)

    monkeypatch.setattr(multiprocessing.process.BaseProcess, "start", start_and_note)
    killer = threading.Thread(target=_kill_at_work, args=(run.path / "maze/seed-0/idm/metrics.jsonl", spawned))
    killer.start()
    summary = run_all(run, ["maze"], [0, 1], Options("cpu", data_dir, jobs=2), Silent())
    killer.join()
    assert [(failure.game, failure.seed) for failure in summary.failures] == [("maze", 0), ("maze", 1)]
    assert all("--jobs" in failure.message for failure in summary.failures)
    assert {p.state for p in plan(run, ["maze"], [0], Options("cpu", data_dir))} == {"resume", "run"}


def _kill_at_work(sign: Path, spawned: list[int]) -> None:
    """Kill every spawned process once the file that shows one at work is there."""
    while not sign.exists():
        time.sleep(0.05)
    for process in spawned:
        os.kill(process, signal.SIGKILL)
