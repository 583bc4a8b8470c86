"""The compact trunk of policies."""

from collections.abc import Callable

import pytest
import safetensors.torch
import torch

from lapo_cli.core.models.impala import CompactTrunk
from lapo_cli.core.training.context import Context
from lapo_cli.core.training.networks import direct_agent_of
from tests.core.tiny_config import run


@pytest.mark.parametrize("size", [16, 32, 64])
def test_the_compact_trunk_has_as_many_features_as_the_papers(size: int) -> None:
    trunk = CompactTrunk(3, 1, size)
    assert trunk(torch.rand(2, 3, size, size)).shape == (2, trunk.num_features) == (2, 32 * (size // 8) ** 2)


def test_normalized_features_of_each_frame_have_mean_0_and_variance_1() -> None:
    trunk = CompactTrunk(3, 1, 32)
    frames = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        features, alone = trunk(frames), trunk(frames[:1])
    assert features.mean(1) == pytest.approx([0, 0], abs=1e-5)
    assert features.var(1, unbiased=False) == pytest.approx([1, 1], rel=1e-2)
    assert torch.allclose(alone[0], features[0], atol=1e-5)  # whatever else is in the batch


def test_a_compact_policy_is_built_again_from_its_weights_file(context: Callable[..., Context]) -> None:
    ctx = context("model.policy_trunk=compact", "model.policy_size=16")
    result = run(ctx, "bc")
    about = {"model": ctx.config.model.model_dump(mode="json"), "num_actions": 15}
    agent = direct_agent_of(about, ctx.compute)
    assert isinstance(agent.policy.trunk, CompactTrunk)
    result_weights = safetensors.torch.load_file(result.path / "model.safetensors")
    assert {f"agent.{name}" for name in agent.state_dict()} == set(result_weights)
