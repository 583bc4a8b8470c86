"""The command as a process of its own: start-up, streams, terminals and signals."""

import json
import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import lapo_cli
from lapo_cli.core.run_dir import RunDir

_LAPO = [sys.executable, "-m", "lapo_cli"]
_PLUGIN = """
from lapo_cli.core.training.stage import STAGES, Stage

STAGES.register(
    Stage(
        name="toy",
        label="Toy",
        run=lambda ctx, folder: {"steps": ctx.config.stage2.steps},
        command="lapo run-stage toy {seed_dir}",
        sections=("stage2",),
    )
)
"""


@pytest.fixture
def environment(home: Path) -> dict[str, str]:
    """Where the package is found, and nothing that would colour the output."""
    package = str(Path(lapo_cli.__file__).parents[1])
    return {**os.environ, "PYTHONPATH": package, "NO_COLOR": "1", "TERM": "xterm", "COLUMNS": "80"}


def test_help_loads_nothing_heavy(environment: dict[str, str]) -> None:
    code = (
        "import sys; from typer.testing import CliRunner; from lapo_cli.cli.main import app; "
        "assert CliRunner().invoke(app, ['run-all', '--help']).exit_code == 0; "
        "heavy = {'torch', 'numpy', 'procgen', 'gym', 'lapo_cli.core.config'} & set(sys.modules); "
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert (done.stderr, done.returncode) == ("", 0)


def test_an_error_keeps_the_streams_apart(environment: dict[str, str]) -> None:
    command = [*_LAPO, "train-idm", "bigfsh", "--json"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert json.loads(done.stdout)["error"]["type"] == "UnknownNameError"
    assert done.stderr == "Error: There is no game 'bigfsh': did you mean 'bigfish'?\n"


def test_a_stage_of_a_plugin_runs_by_its_name(environment: dict[str, str], run: RunDir) -> None:
    Path("toy.py").write_text(_PLUGIN)
    command = [*_LAPO, "run-stage", "toy", "run", "--set", "stage2.steps=7", "--json"]

    def outcome(*options: str) -> tuple[int, dict[str, Any]]:
        done = subprocess.run([*command, *options], env=environment, capture_output=True, text=True, check=False)
        return done.returncode, json.loads(done.stdout)

    for skipped in (False, True):
        code, document = outcome("--plugin", "toy.py")
        stages = [[stage[name] for name in ("game", "seed", "results", "skipped")] for stage in document["stages"]]
        assert (code, stages) == (0, [["heist", 1, {"steps": 7}, skipped], ["maze", 0, {"steps": 7}, skipped]])
    code, document = outcome()
    assert (code, document["error"]["type"]) == (2, "UnknownNameError")


def test_a_terminal_gets_lines_and_no_colour_where_none_is_wanted(environment: dict[str, str]) -> None:
    ours, theirs = pty.openpty()
    with os.fdopen(ours, "rb") as terminal:
        for words in (["download", "--list", "maze"], ["download", "mase"]):
            subprocess.run([*_LAPO, *words], env=environment, stdout=theirs, stderr=theirs, check=False)
        os.close(theirs)
        shown = b""
        while chunk := _read(terminal.fileno()):
            shown += chunk
    text = shown.decode()
    assert "───" in text
    assert "Error:" in text
    assert "\x1b[31m" not in text
    assert "\x1b[1;31m" not in text


def _read(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 65_536)
    except OSError:  # The other end of a pseudo-terminal is closed.
        return b""


def _start(words: list[str], environment: dict[str, str], **streams: Any) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [*_LAPO, *words],
        env=environment,
        text=True,
        # A shell starts background jobs with Ctrl-C ignored, and the tests may be part of one.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **streams},
    )


@pytest.mark.parametrize("as_json", [False, True], ids=["", "json"])
@pytest.mark.parametrize(
    "numbers",
    [[signal.SIGINT], [signal.SIGTERM], [signal.SIGINT] * 3, [signal.SIGTERM, signal.SIGINT, signal.SIGTERM]],
    ids=lambda numbers: "-".join(number.name for number in numbers),
)
def test_a_signal_outside_of_training_ends_with_130_and_leaves_nothing_half_made(
    environment: dict[str, str], home: Path, numbers: list[signal.Signals], as_json: bool
) -> None:
    pytest.importorskip("procgen")
    process = _start(["download", "all", "--source", "demos", *(["--json"] if as_json else [])], environment)
    while not list(home.glob("data/*/.train.partial-*")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    for number in numbers:
        process.send_signal(number)
        time.sleep(0.01)
    out, err = process.communicate()
    assert process.returncode == 130
    assert err.splitlines()[-1] == "Error: Interrupted: what was finished is kept; the same command resumes."
    assert "Traceback" not in err
    assert (json.loads(out)["error"]["exit_code"] if as_json else out) == (130 if as_json else "")
    assert list(home.glob("data/*/.*.partial-*")) == []


@pytest.mark.parametrize(
    "words", [["info", "--json"], ["download", "--list"], ["--help"], ["--version"], ["x", "--json"]]
)
def test_a_full_disk_behind_stdout_is_one_sentence(environment: dict[str, str], words: list[str]) -> None:
    with Path("/dev/full").open("w") as full:
        _, err = (process := _start(words, environment, stdout=full)).communicate()
    assert process.returncode == (2 if "x" in words else 1)
    assert err.startswith("Error: ")
    assert err.count("\n") == 1


@pytest.mark.parametrize("words", [["info", "--json"], ["download", "--list"]])
def test_a_closed_stdout_is_one_sentence(environment: dict[str, str], words: list[str]) -> None:
    command = ["bash", "-c", 'exec "$@" >&-', "bash", *_LAPO, *words]
    done = subprocess.run(command, env=environment, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("Error: The result cannot be written to standard output")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("words", [["info", "--json"], ["download", "--list"], ["run-all", "--help"]])
def test_a_reader_that_leaves_is_no_error_to_report(environment: dict[str, str], words: list[str]) -> None:
    ours, theirs = os.pipe()
    os.close(ours)
    _, err = (process := _start(words, environment, stdout=theirs)).communicate()
    os.close(theirs)
    assert (process.returncode, err) == (1, "")


def test_progress_that_cannot_be_written_stops_no_work(environment: dict[str, str]) -> None:
    pytest.importorskip("procgen")
    words = ["download", "maze", "--source", "demos", "--max-frames", "2048"]
    with Path("/dev/full").open("w") as full:
        out, _ = (process := _start(words, environment, stderr=full)).communicate()
    assert process.returncode == 0
    assert "| maze | train | 2,048 " in out


@pytest.mark.parametrize("words", [["info", "--json"], ["train-idm", "maze", "--json"], ["record", "maze", "--json"]])
def test_a_deleted_working_directory_is_one_sentence(environment: dict[str, str], home: Path, words: list[str]) -> None:
    (home / "gone").mkdir()
    command = ["bash", "-c", 'cd gone && rmdir ../gone && exec "$@"', "bash", *_LAPO, *words]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == json.loads(done.stdout)["error"]["exit_code"] == 2
    assert done.stderr == "Error: The working directory no longer exists: change to another one first.\n"


@pytest.mark.parametrize("by_variable", [False, True], ids=["option", "variable"])
def test_plugins_are_loaded_before_the_command_looks_for_what_they_add(
    environment: dict[str, str], home: Path, by_variable: bool
) -> None:
    for name in ("pong", "tetris"):
        (home / f"{name}.py").write_text(
            f"from lapo_cli.core.envs.base import ENVIRONMENTS, EnvSpec\nENVIRONMENTS.register(EnvSpec('{name}', 3))\n"
        )
    if by_variable:
        environment["LAPO_PLUGIN"] = os.pathsep.join(["pong.py", "tetris.py"])
    plugins = [] if by_variable else ["--plugin", "pong.py", "--plugin", "tetris.py"]
    words = ["run-all", "--games", "pong,tetris", "--dry-run", "--json", *plugins]
    out, err = (process := _start(words, environment)).communicate()
    assert process.returncode == 0, err
    assert {stage["game"] for stage in json.loads(out)["plan"]} == {"pong", "tetris"}


_TAKEN = {
    "game": "from lapo_cli.core.envs.base import ENVIRONMENTS, EnvSpec\nENVIRONMENTS.register(EnvSpec('maze', 3))",
    "stage": (
        "from lapo_cli.core.training.stage import STAGES, Stage\n"
        "STAGES.register(Stage('idm', 'mine', run=print, command='', sections=()))"
    ),
}


@pytest.mark.parametrize("what", _TAKEN)
def test_a_plugin_cannot_take_a_name_that_is_taken(environment: dict[str, str], home: Path, what: str) -> None:
    (home / "taken.py").write_text(_TAKEN[what])
    words = ["run-all", "--games", "maze", "--dry-run", "--plugin", "taken.py"]
    out, err = (process := _start(words, environment)).communicate()
    assert (process.returncode, out) == (1, "")
    assert err.startswith(f"Error: There are two registrations of the {what} '")
    assert err.count("\n") == 1


def test_an_interruption_during_an_import_is_not_lost_in_it(environment: dict[str, str], home: Path) -> None:
    """Libraries catch whatever is raised while they are imported, and go on without a part of themselves."""
    (home / "library.py").write_text(
        "import os, signal\ntry:\n    os.kill(os.getpid(), signal.SIGINT)\nexcept BaseException:\n    pass\n"
    )
    out, err = (process := _start(["info", "--plugin", "library.py"], environment)).communicate()
    assert (process.returncode, out) == (130, "")
    assert err == "Error: Interrupted: what was finished is kept; the same command resumes.\n"
