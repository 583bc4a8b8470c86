"""What a stage refuses to work on, and that one which stops early leaves nothing open."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from lapo_cli.core.config import OnlineConfig, PPOConfig
from lapo_cli.core.data.store import UNLABELLED, store_path
from lapo_cli.core.data.store_writer import StoreWriter
from lapo_cli.core.envs.base import EnvSpec, VecEnv
from lapo_cli.core.errors import TrainingDivergedError, UsageError
from lapo_cli.core.training.agents import DirectAgent
from lapo_cli.core.training.context import Context
from lapo_cli.core.training.ppo_loop import PPOLoop
from lapo_cli.core.training.stage import STAGES, held_out_sample
from tests.core.tiny_config import run

MakeContext = Callable[..., Context]


def _own(context: MakeContext, tmp_path: Path, length: int, *labels: int) -> Context:
    """A data set without an environment: 60 frames per split in episodes of ``length``, all with these actions."""
    ctx = replace(context(game="own"), data_dir=tmp_path / "data")
    for split, action in zip(("train", "test"), labels, strict=True):
        with StoreWriter(store_path(ctx.data_dir, "own", split), "own", split, (16, 16, 3), 4) as writer:  # type: ignore[arg-type]
            writer.put_frames(writer.reserve(60), np.zeros((60, 16, 16, 3), np.uint8))
            writer.put_columns(0, np.full(60, action), None, np.arange(60) % length == 0)
            writer.finish(source="test", made_by="test", episode_returns=[])
    return ctx


@given(size=st.integers(0, 9000))
@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_errors_are_measured_on_windows_from_all_of_the_test_frames(context: MakeContext, size: int) -> None:
    windows = np.arange(10, 10 + size)
    sample = held_out_sample(context(), windows)
    assert np.array_equal(np.unique(sample), sample)
    assert np.isin(sample, windows).all()
    assert len(sample) == min(size, 4096)
    if size > 6000:
        assert (sample > 10 + size // 2).mean() == pytest.approx(0.5, abs=0.1)
    assert np.array_equal(held_out_sample(context(), windows), sample)


def test_episodes_of_two_frames_are_refused(context: MakeContext, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"The train frames of own .* import longer episodes"):
        run(_own(context, tmp_path, 2, 1, 1), "idm")


@pytest.mark.parametrize("split", ["train", "test"])
def test_decoding_does_not_apply_where_no_frame_is_labelled(context: MakeContext, tmp_path: Path, split: str) -> None:
    labels = (UNLABELLED, 1) if split == "train" else (1, UNLABELLED)
    applicable = STAGES.get("offline").applicable
    reason = applicable(_own(context, tmp_path / split, 10, *labels))
    assert reason == f"the true action is not known for any {split} frame of own"
    assert applicable(_own(context, tmp_path / "both", 10, 1, 1)) is None


class _Still(VecEnv):
    """Shows black frames; notes that it was closed."""

    closed = 0

    def __init__(self, num_envs: int, seed: int) -> None:
        self._n = num_envs

    def observe(self) -> tuple[NDArray[np.float32], NDArray[np.uint8], NDArray[np.bool_]]:
        frames = np.zeros((self._n, 16, 16, 3), np.uint8)
        return np.zeros(self._n, np.float32), frames, np.zeros(self._n, np.bool_)

    def act(self, actions: object) -> None:
        pass

    def close(self) -> None:
        _Still.closed += 1


def test_environments_are_freed_when_training_diverges(context: MakeContext, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Context, "env", EnvSpec("still", 3, make=_Still))
    ctx = context()
    stage = ctx.seed_dir.stage("scratch")
    stage.path.mkdir(parents=True)
    config = OnlineConfig(steps=64, ppo=PPOConfig(num_envs=4, num_steps=4, minibatches=1, env_groups=2))
    agent = DirectAgent(1, 16, 3, ctx.compute)
    torch.nn.init.constant_(agent.value.bias, float("nan"))
    with pytest.raises(TrainingDivergedError):
        PPOLoop(ctx, stage, "still", agent, agent.parameter_groups(config.scratch.at), config).run()
    assert _Still.closed == 2
