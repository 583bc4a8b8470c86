"""The student of the planner: what it is taught, and that an interruption changes nothing."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from lapo_cli.core.compute import Compute
from lapo_cli.core.config import Config
from lapo_cli.core.envs.base import ENVIRONMENTS
from lapo_cli.core.envs.procgen import GAMES, ProcgenVecEnv
from lapo_cli.core.errors import UsageError
from lapo_cli.core.pipeline import Options, run_stage
from lapo_cli.core.progress import Progress, Silent, Task
from lapo_cli.core.recording.players import load_player
from lapo_cli.core.run_dir import RunDir
from lapo_cli.core.training.metrics import read_metrics

_SMALL = ("dagger.num_envs=8", "dagger.num_steps=8", "dagger.batch_size=16", "model.policy_size=16")


class _InterruptedAt(Silent):
    """Progress that interrupts the work after so many environment steps."""

    def __init__(self, at: int) -> None:
        self._at = at

    @contextmanager
    def task(self, name: str, total: int, unit: str, done: int = 0) -> Iterator[Task]:
        yield self

    def update(self, done: int, **metrics: float) -> None:
        if done == self._at:
            raise KeyboardInterrupt


def _train(folder: Path, config: Config, progress: Progress) -> Path:
    run = RunDir.create(folder, config, "paper")
    (result,) = run_stage(run, "dagger", [run.seed_dir("bigfish", 0)], Options("cpu", folder / "none"), progress)
    return result.path


def test_an_interrupted_student_ends_as_an_unbroken_one(tmp_path: Path, tiny: Callable[..., Config]) -> None:
    # A checkpoint after every round; the interruption comes before that of the third.
    config = tiny(*_SMALL, "dagger.frames=320", "dagger.steps=13", "checkpoint_seconds=0")
    whole = _train(tmp_path / "whole", config, Silent())
    with pytest.raises(KeyboardInterrupt):
        _train(tmp_path / "broken", config, _InterruptedAt(192))
    assert (tmp_path / "broken" / "bigfish" / "seed-0" / "dagger" / "state.pt").is_file()
    broken = _train(tmp_path / "broken", config, Silent())
    weights = [safetensors.torch.load_file(folder / "model.safetensors") for folder in (whole, broken)]
    for name, value in weights[0].items():
        assert torch.equal(value, weights[1][name]), name
    losses = [[(line["step"], line.get("losses/imitation")) for line in read_metrics(f)] for f in (whole, broken)]
    assert losses[0] == losses[1]
    for folder in (whole, broken):
        assert not (folder / "frames.u8").exists()


def test_a_student_learns_what_the_planner_does(tmp_path: Path, tiny: Callable[..., Config]) -> None:
    """On one round of play, repeated until it knows it by heart."""
    words = ("dagger.frames=64", "dagger.steps=200", "dagger.lr=3e-3", "dagger.warmup=10", "dagger.handover=1")
    folder = _train(tmp_path, tiny(*_SMALL, *words), Silent())
    losses = [line["losses/imitation"] for line in read_metrics(folder) if "losses/imitation" in line]
    assert losses[-1] < np.log(9) - 0.3  # what guessing among the nine moves costs


def test_a_student_is_recorded_like_any_network(tmp_path: Path, tiny: Callable[..., Config]) -> None:
    folder = _train(tmp_path, tiny(*_SMALL, "dagger.frames=64", "dagger.steps=2"), Silent())
    player = load_player(
        str(folder), ENVIRONMENTS.get("bigfish"), greedy=False, compute=Compute(torch.device("cpu"), bf16=False)
    )
    player.start(3, 0)
    assert player.act(np.zeros((3, 64, 64, 3), np.uint8), []).shape == (3,)
    assert player.describe()["policy"] == "dagger"


def test_data_without_a_planner_is_refused(tmp_path: Path, tiny: Callable[..., Config]) -> None:
    run = RunDir.create(tmp_path, tiny(), "paper")
    with pytest.raises(UsageError, match="there is no planner for mine"):
        run_stage(run, "dagger", [run.seed_dir("mine", 0)], Options("cpu", tmp_path), Silent())


@pytest.mark.parametrize("game", GAMES)
def test_what_a_planner_teaches_are_probabilities_of_which_its_action_is_the_largest(game: str) -> None:
    env = ProcgenVecEnv(game, 3, 5)
    states = env.get_state()
    env.close()
    spec = ENVIRONMENTS.get(game)
    assert spec.make_planner is not None
    taught = spec.make_planner(3, 0).probabilities(states)
    assert taught.shape == (3, 15)
    np.testing.assert_allclose(taught.sum(1), 1)
    assert (taught >= 0).all()
    assert taught.argmax(1).tolist() == spec.make_planner(3, 0).act(states).tolist()
