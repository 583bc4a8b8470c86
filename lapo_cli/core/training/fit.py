"""Gradient descent on batches of frames: what stages 1 and 2, clones and supervised models have in common."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from lapo_cli.core import distributed
from lapo_cli.core.config import ScheduledConfig
from lapo_cli.core.data.batches import WINDOW, BatchSampler, FrameLoader
from lapo_cli.core.data.store import Video
from lapo_cli.core.run_dir import StageDir
from lapo_cli.core.training.context import Context
from lapo_cli.core.training.loop import TrainingLoop
from lapo_cli.core.training.optimizers import build_optimizer


@dataclass(frozen=True)
class TrainingFrames:
    """What batches are drawn from.

    Attributes:
        video: the frames.
        windows: centres (W,) int64; every epoch visits each once.
        seed: of their order.
        offsets: frames of a window, from its centre.
    """

    video: Video
    windows: NDArray[np.int64]
    seed: int
    offsets: Sequence[int] = WINDOW


def fit(
    ctx: Context,
    folder: StageDir,
    title: str,
    networks: Mapping[str, nn.Module],
    config: ScheduledConfig,
    frames: TrainingFrames,
    loss: Callable[[Tensor, NDArray[np.int64]], tuple[Tensor, Mapping[str, Tensor]]],
    evaluate: Callable[[], dict[str, float]],
    *,
    show: tuple[str, ...],
    grad_norm: float | None = None,
) -> dict[str, float]:
    """Train networks, resumably; several processes train them together, each on its share of every batch.

    Args:
        folder: of checkpoints and metrics.
        title: shown beside the progress bar.
        networks: by their names in checkpoints, on their device.
        loss: of the frames of a batch (B, offsets, H, W, 3) uint8 and their centres (B,): what is to be minimized, and
            metrics to log.
        evaluate: metrics on held-out data; called every ``config.eval_every`` updates and after the last.
        show: the metrics to be shown beside the bar.
        grad_norm: at which the gradient is clipped, if it is.

    Raises:
        CorruptDataError, TrainingDivergedError, KeyboardInterrupt: see :class:`TrainingLoop`.

    Returns:
        The number of ``steps``, and the last evaluation.
    """
    optimizer = build_optimizer(networks.values(), config)
    loop = TrainingLoop(folder, ctx, title, config.steps, {**networks, "optimizer": optimizer}, show=show)
    sampler = BatchSampler(frames.windows, config.batch_size, frames.seed)
    loader = FrameLoader(frames.video, ctx.compute.device)
    batches = loader.batches(sampler, loop.start, config.steps - loop.start, frames.offsets)
    parameters = [parameter for network in networks.values() for parameter in network.parameters()]
    latest: dict[str, float] = {}
    for step in loop:
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate(step)
        minimized, metrics = loss(next(batches), sampler.indices(step))
        optimizer.zero_grad()
        minimized.backward()
        distributed.average_gradients(parameters)
        if grad_norm is not None:
            nn.utils.clip_grad_norm_(parameters, grad_norm)
        optimizer.step()
        loop.record(metrics)
        if (step + 1) % config.eval_every == 0 or step + 1 == config.steps:
            latest = evaluate()
            loop.log(step, latest)
    return {"steps": config.steps, **(latest or evaluate())}
