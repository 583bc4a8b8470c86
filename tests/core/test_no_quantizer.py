"""Latent actions without a quantizer, the paper's ablation."""

from collections.abc import Callable

import torch

from lapo_cli.core.models.quantizers.none import NoQuantizer
from lapo_cli.core.training.checkpoints import load_idm
from lapo_cli.core.training.context import Context
from tests.core.tiny_config import run


def test_latent_actions_pass_as_they_are_with_their_gradient() -> None:
    z = torch.randn(3, 5, dtype=torch.bfloat16, requires_grad=True)
    quantized = NoQuantizer(5)(z)
    assert quantized.latent.dtype == torch.float32
    assert torch.equal(quantized.latent, z.float())
    assert (quantized.loss, quantized.codes, quantized.perplexity) == (torch.zeros(()), None, None)
    quantized.latent.sum().backward()
    assert z.grad is not None
    assert torch.equal(z.grad, torch.ones_like(z))


def test_every_stage_runs_without_a_quantizer(context: Callable[..., Context]) -> None:
    ctx = context("model.quantizer.kind=none", "model.quantizer.size=24")
    for stage in ("idm", "policy", "offline", "online"):
        run(ctx, stage)
    assert isinstance(load_idm(ctx).quantizer, NoQuantizer)
    assert load_idm(ctx).quantizer.la_dim == 24
