"""Stage 2: behaviour cloning in the space of latent actions (paper, section 4.2)."""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from lapo_cli.core.data.batches import BatchSampler, FrameLoader
from lapo_cli.core.data.store import Video, open_store
from lapo_cli.core.models.frames import normalize
from lapo_cli.core.models.policy import Policy
from lapo_cli.core.run_dir import StageDir
from lapo_cli.core.training.checkpoints import POLICY, about, idm_fingerprint, load_idm, training_windows
from lapo_cli.core.training.context import Context
from lapo_cli.core.training.latent_labels import latent_labels
from lapo_cli.core.training.loop import TrainingLoop, set_learning_rate
from lapo_cli.core.training.stage import StageResult, run_stage, stage_seed

_PRESENT = (0,)
_HELD_OUT_WINDOWS = 4096
_CHUNK = 512


def train_policy(ctx: Context) -> StageResult:
    """Train policy(o_t) to predict the frozen IDM's z_t, on frames alone.

    Raises:
        MissingInputError: stage 1 is not finished, or the demonstrations are gone.
    """
    labeller = idm_fingerprint(ctx)
    train = open_store(ctx.data_dir, ctx.seed_dir.game, "train").video()
    held_out = open_store(ctx.data_dir, ctx.seed_dir.game, "test").video()
    return run_stage(
        ctx,
        POLICY,
        sections=("data", "model", "stage2"),
        inputs={"idm": labeller, "train": train.fingerprint, "test": held_out.fingerprint},
        work=lambda stage: _train(ctx, stage, labeller, train, held_out),
    )


def _train(ctx: Context, stage: StageDir, labeller: str, train: Video, held_out: Video) -> dict[str, Any]:
    config, model, compute = ctx.config.stage2, ctx.config.model, ctx.compute
    idm = load_idm(ctx)
    windows = training_windows(train, ctx.config.data.max_frames)
    labels = latent_labels(ctx, idm, labeller, train, windows)
    test_windows = held_out.windows()[:_HELD_OUT_WINDOWS]
    test_labels = latent_labels(ctx, idm, labeller, held_out, test_windows)
    del idm

    policy = Policy(model.policy_scale, model.policy_size, model.la_dim)
    compute.place(policy)
    optimizer = torch.optim.Adam(policy.parameters(), config.lr, fused=True)
    loop = TrainingLoop(
        stage,
        ctx,
        "stage 2: latent policy",
        config.steps,
        {"policy": policy, "optimizer": optimizer},
        show=("losses/imitation", "heldout/unexplained"),
    )
    sampler = BatchSampler(windows, config.batch_size, stage_seed(ctx, "frames"))
    batches = FrameLoader(train, compute.device).batches(sampler, loop.start, config.steps - loop.start, _PRESENT)
    test_loader = FrameLoader(held_out, compute.device, resident=False)

    def imitation_loss(frames: Tensor, z: NDArray[np.float16]) -> Tensor:
        with compute.autocast():
            predicted = policy(normalize(frames[:, 0], model.policy_size))
        return F.mse_loss(predicted.float(), torch.from_numpy(z).to(compute.device).float())

    @torch.no_grad()
    def held_out_loss() -> float:
        total = 0.0
        for start in range(0, len(test_windows), _CHUNK):
            part = slice(start, start + _CHUNK)
            loss = imitation_loss(test_loader.gather(test_windows[part], _PRESENT), np.array(test_labels[part]))
            total += loss.item() * len(test_windows[part])
        return total / len(test_windows)

    # Always predicting the mean latent action would cost this; the loss is told as a fraction of it.
    variance = float(np.var(np.asarray(test_labels, np.float32), axis=0).mean())

    def measure() -> dict[str, float]:
        loss = held_out_loss()
        return {"heldout/imitation": loss, "heldout/unexplained": loss / max(variance, 1e-12)}

    measured: dict[str, float] = {}
    for step in loop:
        set_learning_rate(optimizer, config.learning_rate(step))
        frames = next(batches)
        z = labels[np.searchsorted(windows, sampler.indices(step))]
        loss = imitation_loss(frames, z)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        loop.record({"losses/imitation": loss})
        if (step + 1) % config.eval_every == 0 or step + 1 == config.steps:
            measured = measure()
            loop.measure(step, measured)
    stage.save_weights({"policy": policy}, about(ctx, POLICY))
    return {"steps": config.steps, **(measured or measure())}
