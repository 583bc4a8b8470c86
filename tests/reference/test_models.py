"""The fast networks against the plain ones: the same numbers forward and backward, in float32."""

import pytest
import torch
from torch import Tensor, nn

from lapo_cli.core.compute import Compute
from lapo_cli.core.config import ModelConfig
from lapo_cli.core.models.frames import normalize
from lapo_cli.core.models.idm import InverseDynamicsModel
from lapo_cli.core.models.policy import Policy
from lapo_cli.core.models.quantizers.vq import VectorQuantizer
from lapo_cli.core.models.world_model import ConstantChannelConv, WorldModel
from lapo_cli.core.training.joint_loss import joint_loss
from lapo_cli.core.training.networks import build_idm, build_world_model
from tests.reference.plain_models import (
    PlainEncoder,
    PlainQuantizer,
    PlainWorldModel,
    gradients,
    plain_normalize,
    plain_stage1_loss,
)

_CPU = Compute(torch.device("cpu"), bf16=False)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def _frames(*shape: int) -> Tensor:
    return torch.randint(0, 256, (*shape, 64, 64, 3), dtype=torch.uint8)


def _same_gradients(fast: nn.Module, plain: nn.Module, tolerance: float = 5e-2) -> None:
    """In float32 rounding alone moves a maximum or a relu's kink here and there, and their gradients with them."""
    names = dict(plain.named_parameters())
    # A bias before a batch norm has gradient 0, of which only rounding is seen.
    floor = 1e-3 * max(gradient.norm() for gradient in gradients(plain.parameters()))
    for name, parameter in fast.named_parameters():
        assert parameter.grad is not None
        other = names[name].grad
        assert other is not None
        difference = (parameter.grad - other).norm() / other.norm().clamp(min=floor)
        assert difference.item() < tolerance, name


@pytest.mark.parametrize("size", [16, 32, 64])
@pytest.mark.parametrize("lead", [(3,), (2, 3)])
def test_normalizing_is_dividing_and_averaging_blocks(size: int, lead: tuple[int, ...]) -> None:
    frames = _frames(*lead)
    torch.testing.assert_close(normalize(frames, size), plain_normalize(frames, size), atol=1e-6, rtol=0)
    turned = frames.transpose(-3, -2)  # whose bytes do not lie one after another
    torch.testing.assert_close(normalize(turned, size), plain_normalize(turned, size), atol=1e-6, rtol=0)


@pytest.mark.parametrize("size", [3, 4, 5, 16])
def test_constant_channels_are_a_bias(size: int) -> None:
    conv = ConstantChannelConv(6, 12, 8)
    plain = nn.Conv2d(18, 8, 3, padding=1)
    plain.load_state_dict(conv.state_dict())
    image, constant = torch.randn(2, 6, size, size + 1), torch.randn(2, 12)
    inputs = [(image.clone().requires_grad_(), constant.clone().requires_grad_()) for _ in range(2)]
    spread = inputs[1][1][:, :, None, None].repeat(1, 1, size, size + 1)
    outs = [conv(*inputs[0]), plain(torch.cat([inputs[1][0], spread], 1))]
    torch.testing.assert_close(outs[0], outs[1], atol=1e-5, rtol=1e-5)
    weights = torch.randn_like(outs[0])
    for out in outs:
        (out * weights).sum().backward()
    torch.testing.assert_close(gradients(conv.parameters()), gradients(plain.parameters()), atol=1e-4, rtol=1e-4)
    for fast, slow in zip(*inputs, strict=True):
        torch.testing.assert_close(fast.grad, slow.grad, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 5e-2), (torch.float64, 1e-9)])
@pytest.mark.parametrize("size", [16, 32, 64])
def test_the_world_model_is_the_plain_unet(size: int, dtype: torch.dtype, tolerance: float) -> None:
    fast, plain = WorldModel(4, size, 32).to(dtype), PlainWorldModel(4, 32, size).to(dtype)
    plain.load_state_dict(fast.state_dict())
    _CPU.place(fast)
    frames, latent = normalize(_frames(3, 2), size).to(dtype), torch.randn(3, 32, dtype=dtype)
    latents = [latent.clone().requires_grad_() for _ in range(2)]
    predictions = [fast(frames, latents[0]), plain(frames.flatten(1, 2), latents[1])]
    torch.testing.assert_close(predictions[0], predictions[1], atol=1e-5, rtol=1e-4)
    weights = torch.randn_like(predictions[0])
    for prediction in predictions:
        (prediction * weights).mean().backward()
    _same_gradients(fast, plain, tolerance)
    assert latents[0].grad is not None
    assert latents[1].grad is not None
    assert (latents[0].grad - latents[1].grad).norm() < tolerance * latents[1].grad.norm()
    for name, buffer in plain.named_buffers():  # the batch norms' running moments
        torch.testing.assert_close(fast.get_buffer(name), buffer, atol=1e-5, rtol=1e-4)
    fast.eval()
    plain.eval()
    torch.testing.assert_close(fast(frames, latent), plain(frames.flatten(1, 2), latent), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("size", [32, 64])
def test_the_policy_is_the_plain_encoder(size: int) -> None:
    fast, plain = Policy(1, size, 7), PlainEncoder(3, 1, size, 7)
    plain.load_state_dict(fast.state_dict())
    _CPU.place(fast)
    frames = _frames(4)
    outs = [fast(normalize(frames, size)), plain(plain_normalize(frames, size))]
    torch.testing.assert_close(outs[0], outs[1], atol=1e-5, rtol=1e-4)
    for out in outs:
        out.square().mean().backward()
    _same_gradients(fast, plain)


def test_the_quantizer_moves_its_codebooks_as_the_loops_do() -> None:
    fast = VectorQuantizer(2, 8, 4, 3, decay=0.9, commitment=0.05)
    plain = PlainQuantizer(fast.embedding, 3, decay=0.9, commitment=0.05)
    for step in range(6):
        z = torch.randn(10, 24) * (0.2 + step)
        fast.train(step != 3)  # in evaluation nothing moves
        zs = [z.clone().requires_grad_() for _ in range(2)]
        made = fast(zs[0])
        latent, loss, perplexity, codes = plain(zs[1], training=step != 3)
        assert torch.equal(made.codes, codes)
        torch.testing.assert_close(made.latent, latent, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(made.loss, loss)
        torch.testing.assert_close(made.perplexity, perplexity)
        torch.testing.assert_close(fast.ema_count, plain.count, atol=1e-6, rtol=1e-4)
        torch.testing.assert_close(fast.embedding, plain.embedding, atol=1e-5, rtol=1e-4)
        weights = torch.randn_like(latent)
        ((made.latent * weights).mean() + made.loss).backward()
        ((latent * weights).mean() + loss).backward()
        torch.testing.assert_close(zs[0].grad, zs[1].grad)


def test_the_quantizer_computes_in_float32_under_autocast() -> None:
    quantizer = VectorQuantizer(2, 8, 4, 3, decay=0.9, commitment=0.05).eval()
    z = torch.randn(5, 24)
    with torch.autocast("cpu", torch.bfloat16):
        made = quantizer(z)
    assert made.latent.dtype == torch.float32
    assert torch.equal(made.latent, quantizer(z).latent)


def test_dead_codes_are_moved_onto_latents_of_the_batch() -> None:
    quantizer = VectorQuantizer(1, 8, 4, 1, decay=0.9, commitment=0.05, revive_below=0.1)
    z = torch.randn(64, 4) + 20  # far from every embedding: one code takes all
    quantizer(z)
    distance = torch.cdist(quantizer.embedding[0], z).min(1).values
    assert (distance < 1e-4).sum() >= 7
    usage = [len(quantizer(torch.randn(64, 4) + 20).codes.unique()) for _ in range(20)]
    assert usage[-1] >= 6


def _joint_models(size: int) -> tuple[InverseDynamicsModel, WorldModel]:
    quantizer = VectorQuantizer(2, 8, 4, 2, decay=0.9, commitment=0.05)
    return InverseDynamicsModel(1, size, quantizer), WorldModel(4, size, 16)


@pytest.mark.parametrize("size", [32, 64])
def test_the_loss_of_stage_1_and_its_gradients_are_the_plain_ones(size: int) -> None:
    idm, world_model = _joint_models(size)
    plain_idm, plain_world_model = PlainEncoder(9, 1, size, 16), PlainWorldModel(4, 16, size)
    plain_idm.load_state_dict({k: v for k, v in idm.state_dict().items() if not k.startswith("quantizer")})
    plain_world_model.load_state_dict(world_model.state_dict())
    quantizer = PlainQuantizer(idm.quantizer.embedding, 2, decay=0.9, commitment=0.05)
    _CPU.place(idm)
    _CPU.place(world_model)
    frames = _frames(4, 3)
    loss, metrics = joint_loss(idm, world_model, normalize(frames, size), _CPU, error_focus=0.0)
    plain_loss = plain_stage1_loss(plain_idm, quantizer, plain_world_model, plain_normalize(frames, size))
    torch.testing.assert_close(loss, plain_loss)
    torch.testing.assert_close(metrics["losses/world_model"] + metrics["losses/quantizer"], plain_loss.detach())
    loss.backward()
    plain_loss.backward()
    _same_gradients(world_model, plain_world_model)
    _same_gradients(idm, plain_idm)


def test_weights_follow_the_local_error_and_keep_the_mean_weight() -> None:
    from lapo_cli.core.training.joint_loss import error_weights

    error = torch.full((1, 3, 32, 32), 1e-4)
    error[0, :, 10, 10] = 9e-2
    for power in (0.5, 1.0, 2.0):
        weights = error_weights(error, power)
        torch.testing.assert_close(weights.mean(), torch.tensor(1.0))
        local = torch.full((32, 32), 1e-4)
        local[9:12, 9:12] = (8e-4 + 9e-2) / 9
        plain = local**power + 0.1 * (local**power).mean()
        torch.testing.assert_close(weights[0, 0], plain / plain.mean())
    torch.testing.assert_close(error_weights(torch.ones(2, 3, 8, 8), 1.0), torch.ones(2, 1, 8, 8))


def _size(module: nn.Module) -> float:
    return round(sum(parameter.numel() for parameter in module.parameters()) / 1e6, 2)


def test_the_paper_sizes_have_the_paper_numbers_of_parameters() -> None:
    model = ModelConfig()
    assert model.quantizer.la_dim == 128
    assert _size(build_idm(model)) == 3.69
    assert _size(build_world_model(model)) == 7.81
    assert _size(Policy(model.policy_scale, model.frame_size, model.quantizer.la_dim)) == 3.68
