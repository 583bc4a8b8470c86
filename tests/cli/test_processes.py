"""The command as a process of its own: start-up, streams, terminals and signals."""

import json
import os
import pty
import signal
import subprocess
import sys
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


def test_ctrl_c_ends_with_130(environment: dict[str, str]) -> None:
    pytest.importorskip("procgen")
    command = [*_LAPO, "download", "all", "--source", "demos"]
    process = subprocess.Popen(
        command,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell starts background jobs with Ctrl-C ignored, and the tests may be part of one.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stderr is not None
    assert "nothing to fetch" in process.stderr.readline()
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert out == ""
    assert err.splitlines()[-1] == "Error: Interrupted: what was finished is kept; the same command resumes."
