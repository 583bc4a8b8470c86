"""A configuration that trains in a second, and frames of two games for it."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from lapo_cli.core.compute import Compute
from lapo_cli.core.config import Config
from lapo_cli.core.config_loading import load_config
from lapo_cli.core.data.download import download
from lapo_cli.core.progress import Silent
from lapo_cli.core.run_dir import SeedDir
from lapo_cli.core.training.context import Context
from tests.core.tiny_config import TINY


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """One thread adds up in one order, so that two runs can be compared bit for bit."""
    os.environ["OMP_NUM_THREADS"] = "1"  # for the processes that tests start
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stores of maze and fruitbot, 2,048 frames per split, from the bundled demonstrations; bigfish's are empty."""
    folder = tmp_path_factory.mktemp("data")
    for game in ("maze", "fruitbot"):
        download(game, folder, source="demos", max_frames=2048, progress=Silent())
    for split in ("train", "test"):
        (folder / "bigfish" / split).mkdir(parents=True)
    return folder


@pytest.fixture
def tiny() -> Callable[..., Config]:
    """The paper's configuration made tiny, and then ``key=value`` words applied."""
    return lambda *words: load_config("paper", overrides=(*TINY, *words))


@pytest.fixture
def context(tmp_path: Path, data_dir: Path, tiny: Callable[..., Config]) -> Callable[..., Context]:
    """A context of seed 0 of a game in ``tmp_path``, with ``key=value`` words applied."""

    def make(*words: str, game: str = "maze") -> Context:
        seed_dir = SeedDir(tmp_path / game / "seed-0", game, 0)
        return Context(seed_dir, tiny(*words), Compute(torch.device("cpu"), bf16=False), data_dir)

    return make
