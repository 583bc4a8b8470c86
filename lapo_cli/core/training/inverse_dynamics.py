"""Supervised inverse dynamics: a model of stage 1's trunk and budget that is trained on true actions."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from lapo_cli.core.data.batches import BatchSampler, FrameLoader
from lapo_cli.core.data.store import FrameStore
from lapo_cli.core.models.frames import normalize
from lapo_cli.core.models.idm import InverseDynamics
from lapo_cli.core.run_dir import StageDir
from lapo_cli.core.training.checkpoints import build_supervised_idm
from lapo_cli.core.training.context import Context
from lapo_cli.core.training.latent_labels import CHUNK, gather_batches
from lapo_cli.core.training.loop import Stateful, TrainingLoop, set_learning_rate
from lapo_cli.core.training.optimizers import build_optimizer
from lapo_cli.core.training.probe import split_by_episode
from lapo_cli.core.training.stage import stage_seed


def train_inverse_dynamics(
    ctx: Context, folder: StageDir, title: str, store: FrameStore, windows: NDArray[np.int64], steps: int
) -> tuple[InverseDynamics, dict[str, Any]]:
    """Train on the true actions of these windows by cross-entropy, as stage 1 is trained.

    Args:
        folder: of checkpoints and metrics.
        title: shown beside the progress bar.
        windows: labelled centres (W,).
        steps: updates; the learning rate decays over them.

    Returns:
        The model, frozen, and its ``val/accuracy`` on the pairs that the probe of stage 1 is tested on, if any.
    """
    assert store.actions is not None
    config, compute = ctx.config.stage1.of_steps(steps), ctx.compute
    idm = build_supervised_idm(ctx.config.model, ctx.env.require_actions())
    compute.place(idm)
    optimizer = build_optimizer(idm.parameters(), config)
    state: dict[str, Stateful] = {"idm": idm, "optimizer": optimizer}
    loop = TrainingLoop(folder, ctx, title, steps, state, show=("losses/actions", "val/accuracy"))
    sampler = BatchSampler(np.sort(windows), config.batch_size, stage_seed(ctx, "windows"))
    batches = FrameLoader(store.video(), compute.device).batches(sampler, loop.start, steps - loop.start)
    held_out = ctx.open_store("test")
    latest: dict[str, float] = {}
    for step in loop:
        set_learning_rate(optimizer, config.learning_rate(step))
        with compute.autocast():
            logits = idm.infer(normalize(next(batches), idm.size)).float()
        true = torch.from_numpy(store.actions[sampler.indices(step)].astype(np.int64)).to(compute.device)
        loss = F.cross_entropy(logits, true)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(idm.parameters(), config.grad_norm)
        optimizer.step()
        loop.record({"losses/actions": loss})
        if (step + 1) % config.eval_every == 0 or step + 1 == steps:
            latest = _accuracy(ctx, idm, held_out)
            loop.log(step, latest)
    idm.requires_grad_(False)
    return idm, {"steps": steps, **(latest or _accuracy(ctx, idm, held_out))}


def action_probabilities(
    ctx: Context, idm: InverseDynamics, store: FrameStore, windows: NDArray[np.int64]
) -> NDArray[np.float16]:
    """The probabilities that the model gives the actions at these windows (W,): (W, num_actions) float16."""
    found: list[Tensor] = []
    with ctx.progress.task(ctx.title("actions of all frames"), len(windows), "frame") as task:
        for logits in _logits(ctx, idm, store, windows):
            found.append(logits.softmax(1).to(torch.float16).cpu())
            task.update(min(len(found) * CHUNK, len(windows)))
    return np.asarray(torch.cat(found).numpy(), np.float16)


@torch.no_grad()
def _logits(ctx: Context, idm: InverseDynamics, store: FrameStore, windows: NDArray[np.int64]) -> Iterator[Tensor]:
    loader = FrameLoader(store.video(), ctx.compute.device, resident=False)
    for batch in gather_batches(loader, windows):
        with ctx.compute.autocast():
            logits = idm.infer(normalize(batch, idm.size))
        yield logits.float()


def _accuracy(ctx: Context, idm: InverseDynamics, store: FrameStore) -> dict[str, float]:
    assert store.actions is not None
    most, seed = ctx.config.stage1.probe_pairs, stage_seed(ctx, "probe")
    _, pairs = split_by_episode(store.labelled(store.video().windows()), store.episode_starts, most=most, seed=seed)
    if len(pairs) == 0:
        return {}
    inferred = torch.cat([logits.argmax(1).cpu() for logits in _logits(ctx, idm, store, pairs)])
    return {"val/accuracy": float((inferred.numpy() == store.actions[pairs]).mean())}
