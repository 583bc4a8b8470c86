"""Random shifts against plain padding and cropping."""

from collections.abc import Callable

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st

from lapo_cli.core.models.frames import shifted
from lapo_cli.core.models.impala import CompactTrunk
from lapo_cli.core.training.checkpoints import direct_agent_of
from lapo_cli.core.training.context import Context
from tests.core.tiny_config import run


@given(st.integers(1, 5), st.integers(1, 3), st.integers(3, 9), st.integers(1, 6), st.integers(0, 99))
def test_windows_are_moved_as_a_whole_and_their_border_is_repeated(
    batch: int, length: int, size: int, most: int, seed: int
) -> None:
    frames = np.random.default_rng(seed).integers(0, 256, (batch, length, size, size + 1, 3), dtype=np.uint8)
    moved = shifted(torch.from_numpy(frames), most, seed, 7).numpy()
    padded = np.pad(frames, ((0, 0), (0, 0), (most, most), (most, most), (0, 0)), mode="edge")
    for window, result in zip(padded, moved, strict=True):
        crops = [window[:, y : y + size, x : x + size + 1] for y in range(2 * most + 1) for x in range(2 * most + 1)]
        assert any(np.array_equal(crop, result) for crop in crops)
    assert np.array_equal(moved, shifted(torch.from_numpy(frames), most, seed, 7).numpy())


def test_every_shift_occurs_and_every_step_draws_its_own() -> None:
    row = torch.arange(9, dtype=torch.uint8).expand(400, 1, 9, 9)[..., None]
    moved = [shifted(row, 2, 0, step)[:, 0, 4, 4, 0] for step in range(2)]
    assert set(moved[0].tolist()) == {2, 3, 4, 5, 6}
    assert not torch.equal(*moved)


def test_no_shift_leaves_frames_as_they_are() -> None:
    frames = torch.zeros(2, 1, 4, 4, 3, dtype=torch.uint8)
    assert shifted(frames, 0, 0, 0) is frames


@pytest.mark.parametrize("size", [16, 32, 64])
def test_the_compact_trunk_has_as_many_features_as_the_papers(size: int) -> None:
    trunk = CompactTrunk(3, 1, size)
    assert trunk(torch.rand(2, 3, size, size)).shape == (2, trunk.num_features) == (2, 32 * (size // 8) ** 2)


def test_a_compact_policy_is_built_again_from_its_weights_file(context: Callable[..., Context]) -> None:
    ctx = context("model.policy_trunk=compact", "stage2.shift=4", "model.policy_size=16")
    result = run(ctx, "bc")
    about = {"model": ctx.config.model.model_dump(mode="json"), "num_actions": 15}
    agent = direct_agent_of(about, ctx.compute)
    assert isinstance(agent.policy.trunk, CompactTrunk)
    result_weights = safetensors.torch.load_file(result.path / "model.safetensors")
    assert {f"agent.{name}" for name in agent.state_dict()} == set(result_weights)
