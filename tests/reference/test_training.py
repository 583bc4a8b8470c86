"""Stages 1 and 2 as they run against plain training loops: AdamW with weight decay 0.01, schedule and clipping."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from lapo_cli.core.compute import Compute
from lapo_cli.core.config_loading import load_config, override
from lapo_cli.core.data.batches import BatchSampler
from lapo_cli.core.data.download import download
from lapo_cli.core.data.store import Video, open_store
from lapo_cli.core.progress import Silent
from lapo_cli.core.run_dir import SeedDir
from lapo_cli.core.training.context import Context
from lapo_cli.core.training.networks import (
    build_idm,
    build_latent_policy,
    build_world_model,
    load_idm,
    load_policy,
)
from lapo_cli.core.training.stage import STAGES, run_stage, stage_seed
from tests.core.tiny_config import TINY
from tests.reference.plain_models import (
    PlainEncoder,
    PlainQuantizer,
    PlainWorldModel,
    plain_normalize,
    plain_stage1_loss,
)

_STEPS = 4


@pytest.fixture(scope="module")
def ctx(tmp_path_factory: pytest.TempPathFactory) -> Context:
    """Stages 1 and 2 of a few steps, done."""
    folder = tmp_path_factory.mktemp("plain")
    download("maze", folder / "data", source="demos", max_frames=2048, progress=Silent())
    words = (*TINY, f"stage1.steps={_STEPS}", f"stage2.steps={_STEPS}", "stage1.warmup=2", "stage2.warmup=2")
    seed_dir = SeedDir(folder / "run" / "maze" / "seed-0", "maze", 0)
    made = Context(
        seed_dir, load_config("paper", overrides=words), Compute(torch.device("cpu"), bf16=False), folder / "data"
    )
    torch.set_num_threads(1)
    for stage in ("idm", "policy"):
        run_stage(made, STAGES.get(stage))
    return made


def _batches(ctx: Context, video: Video, purpose: str) -> Callable[[int], torch.Tensor]:
    sampler = BatchSampler(video.windows(2048), 16, stage_seed(ctx, purpose))
    return lambda step: torch.from_numpy(video.frames[sampler.indices(step)[:, None] + np.array([-1, 0, 1])])


def _rates(peak: float, start: float, end: float, warmup: int) -> list[float]:
    return [
        start + (peak - start) * t / warmup if t < warmup else peak + (end - peak) * (t - warmup) / (_STEPS - warmup)
        for t in range(_STEPS)
    ]


def test_stage_1_ends_at_the_weights_of_the_plain_loop(ctx: Context) -> None:
    torch.manual_seed(stage_seed(ctx, "idm"))
    fresh, fresh_world_model = build_idm(ctx.config.model), build_world_model(ctx.config.model)
    idm, world_model = PlainEncoder(9, 1, 16, 128), PlainWorldModel(4, 128, 16)
    idm.load_state_dict({k: v for k, v in fresh.state_dict().items() if not k.startswith("quantizer")})
    world_model.load_state_dict(fresh_world_model.state_dict())
    quantizer = PlainQuantizer(fresh.quantizer.get_buffer("embedding"), 4, decay=0.999, commitment=0.05)
    parameters = [*idm.parameters(), *world_model.parameters()]
    optimizer = torch.optim.AdamW(parameters, weight_decay=0.01)
    batch = _batches(ctx, open_store(ctx.data_dir, "maze", "train").video(), "windows")
    for step, rate in enumerate(_rates(3e-4, 3e-5, 3e-6, 2)):
        optimizer.param_groups[0]["lr"] = rate
        loss = plain_stage1_loss(idm, quantizer, world_model, plain_normalize(batch(step), 16))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 2.0)
        optimizer.step()
    learnt = load_idm(ctx)
    start = fresh.state_dict()
    for name, value in idm.state_dict().items():
        moved = (value - start[name]).norm()
        assert (learnt.get_parameter(name) - value).norm() < 0.05 * moved, name
    torch.testing.assert_close(learnt.quantizer.get_buffer("embedding"), quantizer.embedding, atol=1e-3, rtol=1e-2)


def test_stage_2_ends_at_the_weights_of_the_plain_loop(ctx: Context) -> None:
    policy = PlainEncoder(3, 1, 64, 128)
    torch.manual_seed(stage_seed(ctx, "policy"))
    idm = load_idm(ctx)
    from lapo_cli.core.models.policy import LatentPolicy

    fresh = LatentPolicy(1, 64, ctx.config.stage2.target.build(idm.quantizer))
    policy.load_state_dict(fresh.state_dict())
    optimizer = torch.optim.AdamW(policy.parameters(), weight_decay=0.01)
    batch = _batches(ctx, open_store(ctx.data_dir, "maze", "train").video(), "frames")
    for step, rate in enumerate(_rates(2e-4, 2e-6, 0.0, 2)):
        optimizer.param_groups[0]["lr"] = rate
        windows = batch(step)
        with torch.no_grad():
            z = idm.latent_action(plain_normalize(windows, 16))
        loss = ((policy(plain_normalize(windows[:, 1])) - z) ** 2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    learnt = load_policy(ctx)
    for name, value in policy.state_dict().items():
        moved = (value - fresh.state_dict()[name]).norm()
        assert (learnt.get_parameter(name) - value).norm() < 0.05 * moved, name


@pytest.mark.parametrize(("stage", "section"), [("idm", "stage1"), ("policy", "stage2")])
def test_the_first_update_shrinks_the_weights_by_rate_times_decay(ctx: Context, stage: str, section: str) -> None:
    """Adam's first step is of the size of the rate whatever the gradient: the rest of the difference is the decay."""
    weights = []
    for number, decay in enumerate(((), (f"{section}.weight_decay=0",))):
        words = (f"{section}.steps=1", f"{section}.warmup=0", f"{section}.lr=0.1", *decay)
        path = ctx.seed_dir.path.with_name(f"{section}-{number}")
        other = replace(ctx, seed_dir=replace(ctx.seed_dir, path=path), config=override(ctx.config, words))
        if stage == "policy":
            run_stage(replace(other, config=ctx.config), STAGES.get("idm"))
        run_stage(other, STAGES.get(stage))
        weights.append(load_file(path / stage / "model.safetensors"))
    with_decay, without = weights
    torch.manual_seed(stage_seed(ctx, stage))
    idm = load_idm(ctx) if stage == "policy" else build_idm(ctx.config.model)
    fresh = idm if stage == "idm" else build_latent_policy(ctx.config.model, ctx.config.stage2.target, idm.quantizer)
    for name, value in fresh.named_parameters():
        decayed = without[f"{stage}.{name}"] - with_decay[f"{stage}.{name}"]
        torch.testing.assert_close(decayed, 0.1 * 0.01 * value.detach(), atol=1e-6, rtol=1e-3, msg=name)
