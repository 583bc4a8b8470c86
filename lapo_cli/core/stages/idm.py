"""Stage 1: the inverse dynamics model and the world model, jointly (paper, section 4.1)."""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from lapo_cli.core.compute import Compute
from lapo_cli.core.data.batches import BatchSampler, FrameLoader
from lapo_cli.core.data.store import FrameStore, Video, open_store
from lapo_cli.core.models.frames import normalize
from lapo_cli.core.models.idm import InverseDynamicsModel
from lapo_cli.core.models.world_model import WorldModel
from lapo_cli.core.run_dir import StageDir
from lapo_cli.core.training.checkpoints import IDM, about, build_idm, training_windows
from lapo_cli.core.training.context import Context
from lapo_cli.core.training.loop import TrainingLoop, set_learning_rate
from lapo_cli.core.training.probe import commonest_accuracy, probe_accuracy
from lapo_cli.core.training.stage import StageResult, run_stage, stage_seed

_HELD_OUT_WINDOWS = 4096
_CHUNK = 512


def joint_loss(
    idm: InverseDynamicsModel, world_model: WorldModel, frames: Tensor, compute: Compute, change_weight: float
) -> tuple[Tensor, dict[str, Tensor]]:
    """mse(predicted o_{t+1}, o_{t+1}) + quantizer loss, and what there is to log.

    Args:
        frames: normalized windows (B, 3, 3, size, size).
        change_weight: see :func:`change_weights`; 0 is the paper's plain mean.
    """
    target = frames[:, 2]
    with compute.autocast():
        _, quantized = idm(frames)
        prediction = world_model(frames[:, :2], quantized.latent)
    error = (prediction.float() - target).square()
    world_model_loss = error.mean()
    weighted = (error * change_weights(frames, change_weight)).mean() if change_weight else world_model_loss
    loss = weighted + quantized.loss
    return loss, {
        "losses/total": loss,
        "losses/world_model": world_model_loss,
        "losses/quantizer": quantized.loss,
        "quantizer/perplexity": quantized.perplexity,
    }


def change_weights(frames: Tensor, change_weight: float) -> Tensor:
    """Weights (B, 1, size, size) of mean 1 that are ``1 + change_weight`` times higher around what changes.

    Around: within size / 8 pixels, so that something painted beside where it went costs as much as its absence where
    it is, and only the latent action tells which.
    """
    changed = (frames[:, 2] - frames[:, 1]).abs().amax(1, keepdim=True) > 0.02
    reach = frames.shape[-1] // 8
    near = F.max_pool2d(changed.to(frames.dtype), 2 * reach + 1, stride=1, padding=reach)
    weights = 1 + change_weight * near
    return weights / weights.mean()


def train_idm(ctx: Context) -> StageResult:
    """Train both models on frames alone; actions are used by the probe, which measures.

    Raises:
        MissingInputError: there are no demonstrations of the game yet.
    """
    train = open_store(ctx.data_dir, ctx.seed_dir.game, "train")
    held_out = open_store(ctx.data_dir, ctx.seed_dir.game, "test")
    inputs = {"train": train.manifest.fingerprint, "test": held_out.manifest.fingerprint}
    return run_stage(
        ctx,
        IDM,
        sections=("data", "model", "stage1"),
        inputs=inputs,
        work=lambda stage: _train(ctx, stage, train.video(), held_out),
    )


def _train(ctx: Context, stage: StageDir, video: Video, held_out: FrameStore) -> dict[str, Any]:
    config, model, compute = ctx.config.stage1, ctx.config.model, ctx.compute
    idm = build_idm(model)
    world_model = WorldModel(model.world_model_base, model.frame_size, model.la_dim)
    if model.motion_init:
        world_model.start_from_copying()
    measure = _HeldOut(ctx, held_out)
    compute.place(idm)
    compute.place(world_model)
    untrained = measure.probe(idm)
    parameters = [*idm.parameters(), *world_model.parameters()]
    optimizer = torch.optim.Adam(parameters, config.lr, fused=True)
    loop = TrainingLoop(
        stage,
        ctx,
        "stage 1: inverse dynamics and world model",
        config.steps,
        {"idm": idm, "world_model": world_model, "optimizer": optimizer},
        show=("losses/world_model", "quantizer/perplexity", "probe/accuracy"),
    )
    sampler = BatchSampler(
        training_windows(video, ctx.config.data.max_frames), config.batch_size, stage_seed(ctx, "windows")
    )
    batches = FrameLoader(video, compute.device).batches(sampler, loop.start, config.steps - loop.start)
    measured: dict[str, float] = {}
    for step in loop:
        set_learning_rate(optimizer, config.learning_rate(step))
        frames = normalize(next(batches), model.frame_size)
        loss, metrics = joint_loss(idm, world_model, frames, compute, config.change_weight)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, config.grad_norm)
        optimizer.step()
        loop.record(metrics)
        if (step + 1) % config.eval_every == 0 or step + 1 == config.steps:
            measured = measure(idm, world_model)
            loop.measure(step, measured)
    stage.save_weights({"idm": idm, "world_model": world_model}, about(ctx, IDM))
    measured = measured or measure(idm, world_model)
    return {"steps": config.steps, **measured, "probe/untrained": untrained}


class _HeldOut:
    """Measurements on the test store. The only place in stage 1 that sees actions."""

    def __init__(self, ctx: Context, store: FrameStore) -> None:
        self._ctx = ctx
        windows = np.random.default_rng(stage_seed(ctx, "held out")).permutation(store.video().windows())
        self._windows = windows[:_HELD_OUT_WINDOWS]
        pairs = windows[: 2 * ctx.config.stage1.probe_pairs]
        self._pairs = pairs[: len(pairs) // 2 * 2]
        self._actions = store.actions[self._pairs]
        self._loader = FrameLoader(store.video(), ctx.compute.device)

    def _frames(self, windows: NDArray[np.int64]) -> Tensor:
        return normalize(self._loader.gather(windows), self._ctx.config.model.frame_size)

    @torch.no_grad()
    def latents(self, idm: InverseDynamicsModel) -> Tensor:
        """z (P, la_dim) float32 of the probe's windows."""
        found = []
        for start in range(0, len(self._pairs), _CHUNK):
            frames = self._frames(self._pairs[start : start + _CHUNK])
            with self._ctx.compute.autocast():
                found.append(idm.latent_action(frames).float())
        return torch.cat(found)

    def probe(self, idm: InverseDynamicsModel) -> float:
        """Accuracy of the probe on an inverse dynamics model."""
        epochs = self._ctx.config.stage1.probe_epochs
        return probe_accuracy(self.latents(idm), self._actions, epochs=epochs, seed=stage_seed(self._ctx, "probe"))

    @torch.no_grad()
    def _world_model_loss(self, idm: InverseDynamicsModel, world_model: WorldModel) -> tuple[float, float]:
        """Mean squared error of the world model, and of repeating o_t."""
        loss = copying = 0.0
        for start in range(0, len(self._windows), _CHUNK):
            frames = self._frames(self._windows[start : start + _CHUNK])
            _, metrics = joint_loss(idm, world_model, frames, self._ctx.compute, 0.0)
            loss += metrics["losses/world_model"].item() * len(frames)
            copying += F.mse_loss(frames[:, 1], frames[:, 2]).item() * len(frames)
        return loss / len(self._windows), copying / len(self._windows)

    def __call__(self, idm: InverseDynamicsModel, world_model: WorldModel) -> dict[str, float]:
        idm.eval()
        world_model.eval()
        loss, copying = self._world_model_loss(idm, world_model)
        accuracy = self.probe(idm)
        idm.train()
        world_model.train()
        return {
            "heldout/world_model": loss,
            "heldout/copy_last_frame": copying,
            "probe/accuracy": accuracy,
            "probe/commonest_action": commonest_accuracy(self._actions),
        }
