"""What goes wrong: one sentence on stderr, the right exit code, no traceback, and with --json one document."""

import errno
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import Result

from lapo_cli.core import pipeline
from lapo_cli.core.config_loading import load_config
from lapo_cli.core.errors import LapoError
from lapo_cli.core.run_dir import RunDir

Lapo = Callable[..., Result]
_REGISTER = "from lapo_cli.core.envs.base import ENVIRONMENTS, EnvSpec\nENVIRONMENTS.register"


def _raises(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def run_stage(*args: object) -> NoReturn:
        raise error

    monkeypatch.setattr(pipeline, "run_stage", run_stage)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["train-idm", "bigfsh"], "There is no game 'bigfsh': did you mean 'bigfish'?"),
        (["run-all", "--games", "coinrum"], "There is no game 'coinrum': did you mean 'coinrun'?"),
        (["run-all", "--games", ","], "No game was named"),
        (["run-all", "--games", "maze", "--seeds", "0,x"], "'--seeds 0,x' is not a list of seeds"),
        (["run-all", "--games", "maze", "--seeds", "9" * 5000], "is not a list of seeds"),
        (["run-all", "--games", "maze", "--launcher", "locl"], "There is no launcher 'locl': did you mean 'local'?"),
        (["run-all", "--games", "maze", "--launcher-set", "gpu=1"], "There is no setting 'gpu' of this launcher"),
        (["run-all", "--games", "maze", "--launcher-set", "gpu"], "'--launcher-set gpu' has no '='"),
        (["train-idm", "all"], "Only one game can be trained at a time"),
        (["run-all", "--games", "maze", "--preset", "fast"], "There is no preset 'fast': choose one of paper, quick."),
        (
            ["train-idm", "maze", "--set", "stage1.lrr=1"],
            "no configuration key 'stage1.lrr': did you mean 'stage1.lr'?",
        ),
        (["train-idm", "maze", "--set", "stage1.steps=many"], "Configuration key 'stage1.steps' has the invalid value"),
        (["train-idm", "maze", "--config", "absent.yaml"], "absent.yaml cannot be read"),
        (["train-idm", "bigfish"], "lapo download bigfish"),
        (["train-policy", "nowhere"], "There is no folder nowhere"),
        (["decode-offline", "nowhere"], "There is no folder nowhere"),
        (["finetune-online", "nowhere"], "There is no folder nowhere"),
        (["run-stage", "policy", "nowhere"], "There is no folder nowhere"),
        (["run-stage", "polcy", "run"], "There is no stage 'polcy': did you mean 'policy'?"),
        (["evaluate", "nowhere"], "There is no folder nowhere"),
        (["download"], "No game was named: give one or more games, or 'all', or --list to see them."),
        (["download", "coinrum"], "did you mean 'coinrun'?"),
        (["train-expert", "coinrum"], "did you mean 'coinrun'?"),
        (["record", "coinrum"], "did you mean 'coinrun'?"),
        (["record", "maze", "--policy", "nowhere"], "There is no policy nowhere"),
        (["record", "maze", "--epsilon", "0.1", "--epsilon", "0.2"], "2 values of --epsilon do not fit 1 of --policy"),
        (["info", "--config", "--preset", "fast"], "There is no preset 'fast'"),
    ],
)
def test_a_request_that_does_not_fit(lapo: Lapo, run: RunDir, words: list[str], sentence: str) -> None:
    said = lapo(*words)
    assert (said.exit_code, said.stdout) == (2, "")
    assert said.stderr.startswith("Error: ")
    assert sentence in said.stderr
    assert said.stderr.count("\n") == 1
    as_json = lapo(*words, "--json")
    error = json.loads(as_json.stdout)["error"]
    assert as_json.exit_code == error["exit_code"] == 2
    assert sentence in error["message"]


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["train-idm", "maze", "--seed", "-1"], "--seed"),
        (["train-idm", "maze", "--no-such-option"], "--no-such-option"),
        (["run-all"], "--games"),
        (["run-all", "--games", "maze", "--jobs", "0"], "--jobs"),
        (["finetune-online", "run", "--init", "magic"], "'magic' is not one of 'latent', 'latent-rl-only', 'scratch'"),
        (["run-stage"], "STAGE"),
        (["run-stage", "policy"], "RUN_DIR"),
        (["no-such-command"], "no-such-command"),
    ],
)
def test_what_typer_refuses_is_named(lapo: Lapo, run: RunDir, words: list[str], named: str) -> None:
    assert named in lapo(*words).stderr
    assert named in json.loads(lapo(*words, "--json").stdout)["error"]["message"]


@pytest.mark.parametrize(
    "words",
    [
        ["train-idm", "maze", "--seed", "-1"],
        ["train-idm", "maze", "--no-such-option"],
        ["run-all"],
        ["run-all", "--games", "maze", "--jobs", "0"],
        ["finetune-online", "runs", "--init", "magic"],
        ["download", "maze", "--source", "floppy"],
        ["no-such-command"],
        ["--no-such-option"],
        ["--plugin"],
        ["info", "more"],
        ["train-idm"],
        ["train-idm", "maze", "--seed", "9" * 5000],
        ["train-idm", "maze", "--no-such-option", "x" * 1_000_000],
        ["x" * 1_000_000],
        ["run-all", "--games", "maze", "--fresh=maybe"],
        ["record", "maze", "--epsilon", "nan-ish"],
        ["evaluate", "run", "--episodes", "1"],
        ["download", "--from"],
        ["info", "\udcff\x1b[31m"],
    ],
)
def test_options_that_typer_refuses(lapo: Lapo, words: list[str]) -> None:
    _assert_refused(lapo, words)


_JUNK = st.one_of(
    st.sampled_from(["--seed=x", "--jobs", "--set", "--device", "--debug", "--games=maze", "--frames=-1", "maze"]),
    st.text(min_size=1, max_size=8).filter(lambda text: "\0" not in text and text not in ("-h", "--help")),
)


@given(command=st.sampled_from(["run-all", "train-idm", "evaluate", "record", "info", "-x", ""]), junk=st.lists(_JUNK))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_command_line_with_an_unknown_option_is_refused(lapo: Lapo, command: str, junk: list[str]) -> None:
    _assert_refused(lapo, [command, "--no-such-option", *junk])


def _assert_refused(lapo: Lapo, words: list[str]) -> None:
    """One sentence on stderr, and with ``--json`` the same on stdout."""
    plain = lapo(*words)
    assert (plain.exit_code, plain.stdout) == (2, "")
    assert plain.stderr.splitlines()[-1].startswith("Error: ")
    as_json = lapo(words[0], "--json", *words[1:])
    error = json.loads(as_json.stdout)["error"]
    assert as_json.exit_code == error["exit_code"] == 2
    assert 0 < len(error["message"]) < 1200
    assert "\n" not in error["message"]


@pytest.mark.parametrize("device", ["cpu:5", "cpu:0", "cuda:-1", "cuda:", "mps", "gpu", "", f"cuda:{'9' * 5000}"])
def test_devices_that_do_not_exist(lapo: Lapo, device: str) -> None:
    said = lapo("train-idm", "maze", "--device", device)
    assert said.exit_code == 2
    assert "use auto, cpu, cuda or cuda:N" in said.stderr


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, "There is no plugin file"),
        ("import no_such_module", "No module named 'no_such_module'"),
        ("this is no Python", "SyntaxError"),
        ("raise ValueError('x' * 1_000_000)", "failed (ValueError: xxx"),
        ("raise SystemExit(0)", "failed (SystemExit: 0)"),
        (
            "from lapo_cli.core.config import QUANTIZERS\n"
            "from lapo_cli.core.models.quantizers.vq import VQConfig\n"
            "class Mine(VQConfig): pass\n"
            "QUANTIZERS.register(Mine)",
            "There are two registrations of the quantizer 'vq'",
        ),
        (f"{_REGISTER}(EnvSpec('dots', 0))", "'dots' says that it has 0 actions: give it 1 to 255"),
        (f"{_REGISTER}(EnvSpec('dots', 300))", "'dots' says that it has 300 actions: give it 1 to 255"),
        (f"{_REGISTER}(EnvSpec('../dots', 3))", "'../dots' cannot be the name of a game"),
        (f"{_REGISTER}(EnvSpec('..', 3))", "'..' cannot be the name of a game"),
        (f"{_REGISTER}(EnvSpec('döts', 3))", "'döts' cannot be the name of a game"),
        (f"{_REGISTER}('dots')", "AttributeError"),
        (
            "from lapo_cli.core.errors import LapoError\nraise LapoError('It does not fit.')",
            "It does not fit.",
        ),
    ],
)
def test_a_plugin_that_cannot_be_loaded(
    lapo: Lapo, home: Path, monkeypatch: pytest.MonkeyPatch, content: str | None, sentence: str
) -> None:
    if content is not None:
        (home / "plugin.py").write_text(content)
    for words in (["info", "--plugin", "plugin.py"], ["train-policy", "nowhere", "--plugin", "plugin.py"]):
        said = lapo(*words)
        assert said.exit_code in (1, 2)
        assert sentence in said.stderr
        assert said.stderr.count("\n") == 1
        assert len(said.stderr) < 1200
    monkeypatch.setenv("LAPO_PLUGIN", "plugin.py")
    assert sentence in lapo("info").stderr


def test_a_message_is_one_line_of_bounded_length(lapo: Lapo, monkeypatch: pytest.MonkeyPatch) -> None:
    for error in (LapoError, ValueError):
        _raises(monkeypatch, error("first\x1b[31m " + "x\n" * 1_000_000 + " last"))
        said = lapo("train-idm", "maze", "--json")
        message = json.loads(said.stdout)["error"]["message"]
        assert said.stderr == f"Error: {message}\n"
        assert len(message) < 1200
        assert "first" in message
        assert "last" in message
        assert message.isprintable()


@pytest.mark.parametrize("words", [("info",), ("train-idm", "maze"), ("download", "maze"), ("evaluate", "run")])
def test_a_data_folder_in_an_unknown_home(lapo: Lapo, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]) -> None:
    monkeypatch.setenv("LAPO_DATA_DIR", "~nosuchuser/x")
    said = lapo(*words)
    assert said.exit_code == 2
    assert "~nosuchuser/x" in said.stderr
    assert "LAPO_DATA_DIR" in said.stderr
    assert "Traceback" not in said.stderr


_QUICK = ("--preset", "quick")
_FAILING = [
    ("train-idm", "maze", "--run-dir", "run", *_QUICK, "--device", "nonsense"),
    ("train-idm", "maze", "--run-dir", "run", *_QUICK, "--reconfigure", "--seed", "7"),
    ("train-idm", "maze", "--run-dir", "run", "--reconfigure", "--device", "nonsense"),
    ("train-policy", "run", "--set", "stage2.steps=3", "--device", "nonsense"),
    ("decode-offline", "run", "--labels", "16", "--device", "cpu:5"),
    ("finetune-online", "run", "--steps", "9", "--device", "cuda:99"),
    ("finetune-online", "run", "--steps", "9"),
    ("run-stage", "policy", "run", "--set", "stage2.steps=3", "--device", "nonsense"),
    ("run-stage", "policy", "run", "--set", "stage2.steps=3"),
    ("run-stage", "polcy", "run", "--set", "stage2.steps=3"),
    ("evaluate", "run", "--episodes", "9", "--device", "nonsense"),
    ("evaluate", "run", "--episodes", "9"),
    ("run-all", "--games", "maze", "--run-dir", "run", "--reconfigure", "--device", "nonsense"),
    ("run-all", "--games", "maze", "--run-dir", "run", "--reconfigure", "--wandb"),
    ("run-all", "--games", "maze", "--run-dir", "run", "--reconfigure", "--set", "data.source=nonsense"),
    ("train-expert", "maze", "--run-dir", "run", "--reconfigure", "--wandb"),
    ("train-expert", "maze", "--run-dir", "run", *_QUICK, "--device", "nonsense"),
]


@pytest.mark.parametrize("words", _FAILING, ids=" ".join)
def test_a_command_that_fails_leaves_the_run_as_it_was(
    lapo: Lapo, run: RunDir, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)  # what importing it meets where it is not installed
    before = _tree(run.path)
    assert lapo(*words).exit_code == 2
    assert _tree(run.path) == before


@pytest.mark.parametrize(
    "words",
    [
        ("train-idm", "maze", "--device", "nonsense"),
        ("train-idm", "maze", "--wandb"),
        ("train-idm", "maze"),  # There are no frames of it.
        ("train-expert", "maze", "--device", "nonsense"),
        ("train-expert", "maze", "--wandb"),
        ("run-all", "--games", "maze", "--device", "nonsense"),
        ("run-all", "--games", "maze", "--wandb"),
        ("run-all", "--games", "maze", "--set", "data.source=nonsense"),
        ("record", "maze", "--device", "nonsense"),
    ],
    ids=" ".join,
)
def test_a_first_command_that_fails_leaves_nothing(
    lapo: Lapo, home: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    assert lapo(*words).exit_code == 2
    assert list(home.iterdir()) == []


def _tree(folder: Path) -> dict[Path, bytes]:
    """Every path below a folder, and the content of files."""
    return {path: path.read_bytes() if path.is_file() else b"" for path in folder.rglob("*") if path.name != ".lock"}


@pytest.mark.skipif(torch.cuda.is_available(), reason="CUDA is here")
def test_cuda_requested_and_absent(lapo: Lapo) -> None:
    said = lapo("train-idm", "maze", "--device", "cuda")
    assert said.exit_code == 2
    assert "'cuda' was requested but this machine offers PyTorch no CUDA device(s)" in said.stderr


def test_a_run_without_a_game(lapo: Lapo, home: Path) -> None:
    RunDir.create(home / "empty", load_config("quick"), "quick")
    said = lapo("train-policy", "empty")
    assert said.exit_code == 2
    assert f"run 'lapo train-idm GAME --run-dir {home / 'empty'}' first" in said.stderr


@pytest.mark.parametrize("words", [("train-policy", "run/maze"), ("run-stage", "policy", "run/maze")])
def test_a_run_without_the_earlier_stage(lapo: Lapo, run: RunDir, words: tuple[str, ...]) -> None:
    said = lapo(*words)
    assert said.exit_code == 2
    assert f"lapo train-idm maze --run-dir {run.path}" in said.stderr


def test_ctrl_c(lapo: Lapo, monkeypatch: pytest.MonkeyPatch) -> None:
    _raises(monkeypatch, KeyboardInterrupt())
    said = lapo("train-idm", "maze", "--json")
    assert said.exit_code == 130
    assert said.stderr == "Error: Interrupted: what was finished is kept; the same command resumes.\n"
    assert json.loads(said.stdout)["error"]["exit_code"] == 130


def test_a_defect_of_the_tool(lapo: Lapo, monkeypatch: pytest.MonkeyPatch) -> None:
    _raises(monkeypatch, ValueError("two\n lines."))
    said = lapo("train-idm", "maze")
    assert said.exit_code == 1
    assert said.stderr == (
        "Error: ValueError: two lines. --debug shows the traceback, and 'lapo info' what to add to a bug report.\n"
    )
    debugged = lapo("train-idm", "maze", "--debug", "--json")
    assert debugged.exit_code == 1
    assert "Traceback (most recent call last)" in debugged.stderr
    assert json.loads(debugged.stdout)["error"]["type"] == "ValueError"


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "is full: free some space there"),
        (OSError(errno.ENOSPC, "No space left on device", "/some/file"), "The disk that holds /some is full"),
        (
            PermissionError(errno.EACCES, "Permission denied", "/some/file"),
            "/some/file cannot be used (Permission denied)",
        ),
    ],
)
def test_the_disk(lapo: Lapo, monkeypatch: pytest.MonkeyPatch, error: OSError, sentence: str) -> None:
    _raises(monkeypatch, error)
    said = lapo("train-idm", "maze")
    assert said.exit_code == 1
    assert sentence in said.stderr
    assert "Traceback" not in said.stderr


def test_what_libraries_print_does_not_reach_stdout(lapo: Lapo, monkeypatch: pytest.MonkeyPatch) -> None:
    def run_stage(*args: object) -> list[object]:
        print("chatter")  # noqa: T201
        return []

    monkeypatch.setattr(pipeline, "run_stage", run_stage)
    said = lapo("train-idm", "maze", "--json")
    assert json.loads(said.stdout)["stages"] == []
    assert "chatter" in said.stderr
