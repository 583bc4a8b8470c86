"""Latent actions without a quantizer, the paper's ablation."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch

from lapo_cli.core.errors import MissingInputError, UsageError
from lapo_cli.core.models.quantizers.none import NoQuantizer
from lapo_cli.core.training.context import Context
from lapo_cli.core.training.networks import load_idm
from lapo_cli.core.training.stage import STAGES, stage_key
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


def test_the_ablation_is_a_run_without_a_quantizer_beside_the_stages_of_the_run(
    context: Callable[..., Context], tmp_path: Path
) -> None:
    small = ("model.policy_size=16", "online.steps=256", "stage1.eval_every=12", "stage2.eval_every=12")
    ctx = context("model.quantizer.codebooks=1", *small)
    plain = context("model.quantizer.kind=none", f"model.quantizer.size={ctx.config.model.quantizer.la_dim}", *small)
    plain = replace(plain, seed_dir=replace(plain.seed_dir, path=tmp_path / "plain"))
    with pytest.raises(MissingInputError, match="lapo run-stage idm-no-quantizer"):
        run(ctx, "policy-no-quantizer")
    for stage in ("idm", "policy", "online"):
        run(ctx, f"{stage}-no-quantizer")
        run(plain, stage)
        mine, theirs = (
            safetensors.torch.load_file(folder / "model.safetensors")
            for folder in (ctx.seed_dir.path / f"{stage}-no-quantizer", plain.seed_dir.path / stage)
        )
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(mine[name], theirs[name]) for name in mine), stage
    assert isinstance(load_idm(plain).quantizer, NoQuantizer)
    assert not ctx.seed_dir.stage("idm").path.exists()
    run(plain, "offline")


def test_the_ablation_depends_on_the_size_of_the_latent_actions_alone(context: Callable[..., Context]) -> None:
    words = ((), ("model.quantizer.commitment=0.5",), ("model.quantizer.codebooks=1",))
    same, other, smaller = (stage_key(context(*of), STAGES.get("idm-no-quantizer")) for of in words)
    assert same == other
    assert same["config"]["model.quantizer"] == {"kind": "none", "size": context().config.model.quantizer.la_dim}
    assert same != smaller


def test_a_run_without_a_quantizer_has_no_ablation(context: Callable[..., Context]) -> None:
    with pytest.raises(UsageError, match="the run has no quantizer"):
        run(context("model.quantizer.kind=none"), "idm-no-quantizer")
