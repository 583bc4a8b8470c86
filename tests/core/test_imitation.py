"""The loss of imitation: what the next frames add equals a plain loop, and processes share it evenly."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor

from lapo_cli.core.compute import Compute
from lapo_cli.core.data.store import Video
from lapo_cli.core.models.policy import Policy
from lapo_cli.core.models.policy_targets.latent import LatentTarget
from lapo_cli.core.training.context import Context
from lapo_cli.core.training.imitation import Imitation
from lapo_cli.core.training.networks import load_policy
from tests.core.tiny_config import run
from tests.reference.plain_models import plain_normalize

_CPU = Compute(torch.device("cpu"), bf16=False)
_OUTPUTS = 3


def _video(lengths: list[int]) -> Video:
    rng = np.random.default_rng(len(lengths))
    first = np.concatenate([np.arange(length) == 0 for length in lengths])
    return Video(rng.integers(0, 256, (len(first), 16, 16, 3), np.uint8), first, "noise")


def _imitation(video: Video, lookahead: int) -> tuple[Imitation, NDArray[np.int64], NDArray[np.float16]]:
    torch.manual_seed(0)
    windows = video.windows()
    targets = np.random.default_rng(0).random((len(windows), _OUTPUTS)).astype(np.float16)
    policy = Policy(1, 16, _OUTPUTS)
    return Imitation(policy, windows, targets, F.cross_entropy, lookahead, _CPU), windows, targets


def _plain(
    imitation: Imitation, video: Video, centres: NDArray[np.int64], target_of: dict[int, Tensor], lookahead: int
) -> Tensor:
    """Cross-entropy of the present frames, and half the mean of those to come; what does not come costs nothing."""
    episode = np.cumsum(video.episode_starts)
    present, ahead = torch.zeros(()), torch.zeros(())
    for t in map(int, centres):
        hidden = imitation.policy.embed(plain_normalize(torch.from_numpy(video.frames[t : t + 1])))
        present += F.cross_entropy(imitation.policy.head(hidden), target_of[t][None])
        assert imitation.ahead is not None
        logits = imitation.ahead(hidden).view(lookahead, _OUTPUTS)
        for k in range(1, lookahead + 1):
            if t + k in target_of and episode[t + k] == episode[t]:
                ahead += F.cross_entropy(logits[k - 1 : k], target_of[t + k][None])
    return present / len(centres) + 0.5 * ahead / (len(centres) * lookahead)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=6).filter(lambda lengths: max(lengths) > 2), st.integers(1, 5))
def test_the_next_frames_count_as_in_a_plain_loop(lengths: list[int], lookahead: int) -> None:
    video = _video(lengths)
    imitation, windows, targets = _imitation(video, lookahead)
    centres = np.random.default_rng(1).choice(windows, 5)
    target_of = dict(zip(windows.tolist(), torch.from_numpy(targets).float(), strict=True))
    total, metrics = imitation(torch.from_numpy(video.frames[centres, None]), centres)
    torch.testing.assert_close(total, _plain(imitation, video, centres, target_of, lookahead))
    assert metrics["losses/imitation"] <= total


def test_the_shares_of_two_processes_average_to_the_whole() -> None:
    video = _video([20, 4, 3, 11])
    imitation, windows, _ = _imitation(video, 4)
    centres = windows[[0, 5, -1, 17, 18, -2]]
    one, other, whole = (
        imitation(torch.from_numpy(video.frames[part, None]), part)[0] for part in (centres[:3], centres[3:], centres)
    )
    torch.testing.assert_close((one + other) / 2, whole)


def test_without_next_frames_there_is_a_gradient_of_zero_for_their_heads() -> None:
    video = _video([3, 3])
    imitation, windows, _ = _imitation(video, 2)
    imitation(torch.from_numpy(video.frames[windows, None]), windows)[0].backward()
    assert imitation.ahead is not None
    assert imitation.ahead.weight.grad is not None
    assert not imitation.ahead.weight.grad.any()


def test_without_lookahead_the_present_is_all() -> None:
    video = _video([9])
    imitation, windows, _ = _imitation(video, 0)
    total, metrics = imitation(torch.from_numpy(video.frames[windows, None]), windows)
    assert metrics == {"losses/imitation": total}
    assert {name.partition(".")[0] for name, _ in imitation.named_parameters()} == {"policy"}


@pytest.mark.parametrize("scale", [1e-3, 30.0])
def test_in_units_of_their_deviation_latent_actions_of_any_size_are_learnt_alike(scale: float) -> None:
    torch.manual_seed(0)
    z = torch.randn(200, 4) * torch.tensor([1.0, 2.0, 3.0, 4.0])
    plain, standardized = LatentTarget(4), LatentTarget(4, standardize=True)
    plain.fit(z)
    standardized.fit(z * scale)
    predicted = torch.randn(200, 4)
    unit = (z.var(0).mean()) ** 0.5
    torch.testing.assert_close(plain.loss(predicted, z), F.mse_loss(predicted, z))
    torch.testing.assert_close(standardized.loss(predicted, z * scale), F.mse_loss(predicted, z / unit))
    torch.testing.assert_close(standardized.latent_action(z / unit), z * scale)


@pytest.mark.parametrize("z", [torch.full((1, 4), 0.3), torch.full((9, 4), 0.3)])
def test_the_unit_of_latent_actions_that_do_not_vary_is_one(z: Tensor) -> None:
    target = LatentTarget(4, standardize=True)
    target.fit(z)
    assert torch.equal(target.latent_action(z), z)


def test_a_standardized_policy_acts_by_what_it_learnt_after_it_is_loaded(context: Callable[..., Context]) -> None:
    ctx = context("stage2.target.standardize=true", "stage2.warmup=2", "model.policy_size=16")
    run(ctx, "idm")
    run(ctx, "policy")
    policy = load_policy(ctx)
    assert isinstance(policy.target, LatentTarget)
    assert 0 < policy.target.scale != 1
    features = torch.rand(2, policy.trunk.num_features)
    plain = policy.head(policy.hidden(features).relu())
    torch.testing.assert_close(policy.latent_action(features), plain * policy.target.scale)


@pytest.mark.parametrize("stage", ["policy", "bc"])
def test_the_heads_are_not_kept_and_the_policy_learns_from_them(context: Callable[..., Context], stage: str) -> None:
    weights = []
    for lookahead in (0, 3):
        ctx = context(f"stage2.lookahead={lookahead}", "stage2.warmup=2", "model.policy_size=16")
        run(ctx, "idm")
        run(ctx, stage)
        weights.append(load_file(ctx.seed_dir.path / stage / "model.safetensors"))
    without, with_lookahead = weights
    assert without.keys() == with_lookahead.keys()
    assert all(value.shape == with_lookahead[name].shape for name, value in without.items())
    assert not any(torch.equal(value, with_lookahead[name]) for name, value in without.items() if "hidden" in name)
