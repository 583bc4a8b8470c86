"""How the tests of the command line call it: in this process, in a folder of their own, with an empty data folder."""

from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from lapo_cli.cli.main import app
from lapo_cli.core.config_loading import load_config
from lapo_cli.core.run_dir import RunDir

Lapo = Callable[..., Result]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder; the data folder is ``data`` in it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LAPO_DATA_DIR", str(tmp_path / "data"))
    return tmp_path


@pytest.fixture
def run(home: Path) -> RunDir:
    """The run ``run`` of the quick preset, in which no stage of heist, seed 1, and maze, seed 0, is finished."""
    created = RunDir.create(home / "run", load_config("quick"), "quick")
    for game, seed in (("maze", 0), ("heist", 1)):
        created.seed_dir(game, seed).path.mkdir(parents=True)
    return created


@pytest.fixture
def lapo(home: Path) -> Lapo:
    """Run ``lapo`` with the given words; both its streams are pipes, 80 columns wide for whoever asks."""

    def run(*words: str | Path) -> Result:
        return CliRunner(env={"COLUMNS": "80"}).invoke(app, [str(word) for word in words])

    return run
