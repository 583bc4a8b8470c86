"""Decoders of a few labels: the linear one against its plain formulation, its limits, and the stages that use it."""

from collections.abc import Callable

import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lapo_cli.core.config import DecoderConfig
from lapo_cli.core.config_loading import load_config
from lapo_cli.core.models.policy import Decoder
from lapo_cli.core.training import decoding
from lapo_cli.core.training.context import Context
from tests.core.tiny_config import run

MakeContext = Callable[..., Context]


def _pairs(count: int, noise: float = 1.0, seed: int = 0) -> tuple[Tensor, Tensor]:
    """z (count, 32) of which four directions depend on the action (count,), one of five."""
    generator = torch.Generator().manual_seed(seed)
    actions = torch.randint(0, 5, (count,), generator=generator)
    means = torch.randn(5, 4, generator=torch.Generator().manual_seed(99)) * 2
    z = torch.randn(count, 32, generator=generator) * noise
    z[:, :4] += means[actions]
    return z, actions


def test_the_linear_decoder_is_the_optimum_that_plain_gradient_descent_finds() -> None:
    z, actions = _pairs(40)
    decoder = decoding.fit_linear(z, actions, 5, l2=10.0)
    scale = (z - z.mean(0)).square().mean().sqrt()
    x = ((z - z.mean(0)) / scale).double()
    weight = torch.zeros(5, 32, dtype=torch.double, requires_grad=True)
    bias = torch.zeros(5, dtype=torch.double, requires_grad=True)
    for _ in range(20_000):
        loss = F.cross_entropy(x @ weight.T + bias, actions, reduction="sum")
        loss = loss + 10 * weight.square().sum() + 0.1 * bias.square().sum()
        gradients = torch.autograd.grad(loss, [weight, bias])
        with torch.no_grad():
            weight -= 0.01 * gradients[0]
            bias -= 0.01 * gradients[1]
    with torch.no_grad():
        assert torch.allclose(decoder(z), (x @ weight.T + bias).float(), atol=1e-3)


@settings(max_examples=20, deadline=None)
@given(st.floats(0.01, 100), st.floats(-10, 10))
def test_the_scale_and_place_of_latent_actions_do_not_matter(scale: float, shift: float) -> None:
    z, actions = _pairs(30)
    one, other = (decoding.fit_linear(x, actions, 5, l2=1.0) for x in (z, z * scale + shift))
    assert torch.allclose(one(z), other(z * scale + shift), atol=2e-3)


def test_from_few_noisy_labels_the_linear_decoder_is_right_more_often_than_the_mlp_and_less_sure() -> None:
    z, actions = _pairs(64, noise=2)
    test_z, test_actions = _pairs(2000, noise=2, seed=1)
    torch.manual_seed(0)
    mlp = Decoder(32, 5)
    decoding.fit(mlp, z, actions, DecoderConfig(), steps=1000)
    linear = decoding.fit_linear(z, actions, 5, l2=10.0)
    accuracy = [(decoder(test_z).argmax(1) == test_actions).float().mean() for decoder in (linear, mlp)]
    errors = [F.cross_entropy(decoder(test_z), test_actions) for decoder in (linear, mlp)]
    assert accuracy[0] > accuracy[1]
    assert errors[0] < errors[1]
    assert not any(parameter.requires_grad for parameter in linear.parameters())


def test_the_configured_decoder_and_penalty_are_used() -> None:
    z, actions = _pairs(40)
    words = ["offline.decoder=linear", "offline.l2=2.5"]
    found = decoding.fit_to_labels(z, actions, 5, load_config("paper", overrides=words))
    assert torch.equal(found(z), decoding.fit_linear(z, actions, 5, l2=2.5)(z))
    assert not torch.equal(found(z), decoding.fit_linear(z, actions, 5, l2=10.0)(z))
    assert isinstance(decoding.fit_to_labels(z, actions, 5, load_config("paper")), Decoder)


def test_an_action_without_a_label_keeps_a_small_probability() -> None:
    z, actions = _pairs(200)
    probabilities = decoding.fit_linear(z, actions, 6, l2=10.0)(z).softmax(1)[:, 5]
    assert probabilities.min() > 0
    assert probabilities.max() < 0.02


def test_latent_actions_that_are_all_the_same_give_how_common_actions_are() -> None:
    actions = torch.tensor([0] * 60 + [1] * 30 + [2] * 10)
    decoder = decoding.fit_linear(torch.full((100, 8), 3.0), actions, 3, l2=10.0)
    found = decoder(torch.full((1, 8), 3.0)).softmax(1)[0]
    assert torch.allclose(found, torch.tensor([0.6, 0.3, 0.1]), atol=0.01)


@pytest.mark.parametrize("kind", ["mlp", "linear"])
def test_offline_decoders_are_of_the_configured_kind_and_read_as_they_were_saved(
    context: MakeContext, kind: str
) -> None:
    ctx = context(f"offline.decoder={kind}")
    for stage_before in ("idm", "policy"):
        run(ctx, stage_before)
    result = run(ctx, "offline")
    stage = ctx.seed_dir.stage("offline")
    saved = safetensors.torch.load_file(stage.path / "model.safetensors")
    assert len(saved) == 2 * (8 if kind == "mlp" else 2)
    decoders = decoding.load_decoders(ctx, stage, ctx.config.model.quantizer.la_dim)
    assert sorted(decoders) == [4, 64]
    assert set(result.results["test_accuracy"]) == {"4", "64"}
    for count, decoder in decoders.items():
        for name, value in decoder.state_dict().items():
            assert torch.equal(value, saved[f"decoder_{count}.{name}"])
