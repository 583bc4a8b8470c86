"""What a latent action does: rollouts of the world model, and how far they can be trusted."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lapo_cli.core.data.batches import FrameLoader
from lapo_cli.core.data.store import FrameStore
from lapo_cli.core.evaluation import latents, sheets
from lapo_cli.core.models.frames import normalize
from lapo_cli.core.models.idm import InverseDynamicsModel
from lapo_cli.core.models.world_model import WorldModel
from lapo_cli.core.training.context import Context
from lapo_cli.core.training.networks import load_idm, load_world_model
from lapo_cli.core.training.stage import stage_seed

HORIZON = 12
SEQUENCES = 128
STRIPS = 4
_WHITE = 0.995
_CHANGED = 0.02  # of the range of a normalized pixel, as in stage 1


class Imagination:
    """The world model with the quantizer of its latent actions.

    Args:
        ctx: whose stage 1 is finished.
    """

    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx
        self.idm: InverseDynamicsModel = load_idm(ctx)
        self._world_model: WorldModel = load_world_model(ctx)

    @torch.no_grad()
    def latent(self, windows: Tensor) -> Tensor:
        """z_q (B, la_dim) of normalized windows (B, 3, 3, size, size)."""
        with self._ctx.compute.autocast():
            quantized: Tensor = self.idm(windows)[1].latent
        return quantized

    @torch.no_grad()
    def step(self, previous: Tensor, present: Tensor, latent: Tensor) -> Tensor:
        """The predicted next frame of normalized frames (B, 3, size, size) under z_q (B, la_dim)."""
        with self._ctx.compute.autocast():
            prediction: Tensor = self._world_model(torch.stack([previous, present], 1), latent)
        return prediction.float()

    @torch.no_grad()
    def of_clusters(self) -> Tensor:
        """z_q (k, la_dim) of the most typical latent action of each cluster of :mod:`latents`."""
        _, z, _ = latents.sample(self._ctx)
        _, medoids = latents.cluster(z, stage_seed(self._ctx, "clusters"))
        typical: Tensor = self.idm.quantizer(torch.from_numpy(z[medoids]).to(self._ctx.compute.device)).latent
        return typical

    def roll(self, previous: Tensor, present: Tensor, latent: Tensor) -> Tensor:
        """Predictions (B, H, 3, size, size) under H latent actions each (B, H, la_dim), fed back one into the next."""
        frames = [previous, present]
        for z in latent.unbind(1):
            frames.append(self.step(frames[-2], frames[-1], z))
        return torch.stack(frames[2:], 1)


def measure(ctx: Context, folder: Path) -> dict[str, Any]:
    """Rollouts under one latent action of each cluster beside what happened, strips of predictions, and errors.

    Raises:
        MissingInputError, CorruptDataError: stage 1 or the test frames are not there, or damaged.
    """
    world, store = Imagination(ctx), ctx.open_store("test")
    of_cluster = world.of_clusters()
    horizon, starts = _starts(store)
    starts = np.random.default_rng(stage_seed(ctx, "rollouts")).permutation(starts)[:SEQUENCES]
    loader = FrameLoader(store.video(), ctx.compute.device, resident=False)
    # Frame 1 is the present: two frames that are known, then what follows.
    real = normalize(loader.gather(starts, range(-1, horizon + 1)), world.idm.size)
    inferred = torch.stack([world.latent(real[:, h : h + 3]) for h in range(horizon)], 1)
    rolled = world.roll(real[:, 0], real[:, 1], inferred)
    best = _most_telling(world, real, of_cluster)
    held = of_cluster[:, None].expand(-1, horizon, -1)
    previous, present = (real[best, t].expand(len(of_cluster), -1, -1, -1) for t in (0, 1))
    imagined = world.roll(previous, present, held)
    happened = real[best, 1:]
    films = torch.cat([happened[None], torch.cat([happened[:1].expand(len(imagined), 1, -1, -1, -1), imagined], 1)])
    return {
        "horizon": horizon,
        "films": {**sheets.write(folder / "rollouts.webp", pixels(films)), "levels": len(films)},
        "strips": _strips(folder / "strips.webp", world, real, inferred),
        "sequences": len(starts),
        "errors": _errors(world, real, inferred, rolled),
        "candidates": len(starts),
    }


def _starts(store: FrameStore) -> tuple[int, NDArray[np.int64]]:
    """The longest horizon, up to 12, that some window can be followed for within its episode, and those windows."""
    breaks = np.flatnonzero(np.append(store.episode_starts, True))
    windows = store.video().windows()
    room = breaks[np.searchsorted(breaks, windows, side="right")] - 1 - windows  # frames that follow the centre
    horizon = int(min(HORIZON, room.max()))
    return horizon, windows[room >= horizon]


def _most_telling(world: Imagination, real: Tensor, of_cluster: Tensor) -> int:
    """The sequence from whose beginning the predictions under the clusters' latent actions differ most."""
    predicted = [world.step(real[:, 0], real[:, 1], z.expand(len(real), -1)) for z in of_cluster]
    return int(torch.stack(predicted).var(0, unbiased=False).mean((1, 2, 3)).argmax())


def _errors(world: Imagination, real: Tensor, inferred: Tensor, rolled: Tensor) -> dict[str, list[float]]:
    """Mean squared errors by horizon (H,), in squared units of the frames' range."""
    horizon = rolled.shape[1]
    truth = real[:, 2:]
    each = torch.stack([world.step(real[:, h], real[:, h + 1], inferred[:, h]) for h in range(horizon)], 1)
    copied = real[:, 1:2].expand_as(truth)
    mse = {"rollout": rolled, "one step": each, "copying": copied}
    return {name: (frames - truth).square().mean((0, 2, 3, 4)).tolist() for name, frames in mse.items()}


def _strips(file: Path, world: Imagination, real: Tensor, inferred: Tensor) -> dict[str, Any]:
    """Write cells of o_t, o_{t+1}, the prediction and its error, for sequences in which many pixels change.

    The error is the largest absolute one of the three colours, multiplied in all cells by ``error_gain``, which makes
    that of 0.5 % of the pixels white.
    """
    changed = ((real[:, 2] - real[:, 1]).abs().amax(1) > _CHANGED).float().mean((1, 2))
    most = max(1, len(real) // 2)
    chosen = changed.argsort(descending=True)[:most][:: max(1, most // STRIPS)][:STRIPS]
    before, after = real[chosen, 1], real[chosen, 2]
    predicted = world.step(real[chosen, 0], before, inferred[chosen, 0])
    error = (predicted - after).abs().amax(1, keepdim=True).expand_as(after)
    gain = max(1, int(1 / max(float(error.quantile(_WHITE)), 1 / 255)))
    difference = (gain * error).clamp(max=1) - 0.5
    cells = pixels(torch.stack([before, after, predicted, difference], 1))
    return {**sheets.write(file, cells), "error_gain": gain}


def pixels(frames: Tensor) -> NDArray[np.uint8]:
    """Normalized frames (..., 3, H, W) as cells (N, H, W, 3) uint8."""
    flat = frames.flatten(0, -4).permute(0, 2, 3, 1)
    cells: NDArray[np.uint8] = ((flat + 0.5) * 255).round().clamp(0, 255).to(torch.uint8).cpu().numpy()
    return cells
