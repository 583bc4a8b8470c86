"""What inverse dynamics models infer of windows: on the fly, or of a whole data set, computed once and kept on disk."""

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lapo_cli.core import distributed
from lapo_cli.core.data.arrays import load_array
from lapo_cli.core.data.batches import FrameLoader
from lapo_cli.core.data.store import FrameStore, Video
from lapo_cli.core.errors import CorruptDataError
from lapo_cli.core.files import atomic_path, require_free_space
from lapo_cli.core.models.frames import normalize
from lapo_cli.core.models.idm import InverseDynamicsModel
from lapo_cli.core.run_dir import fingerprint
from lapo_cli.core.training.context import Context
from lapo_cli.core.training.stage import stage_seed

CHUNK = 512
_KEPT = 48  # of a game; a training with baselines makes up to eight


@torch.no_grad()
def latent_actions(ctx: Context, idm: InverseDynamicsModel, windows: Iterable[Tensor]) -> Iterator[Tensor]:
    """z before quantization, (B, la_dim) on the device, of each batch of windows (B, 3, H, W, 3) uint8 there."""
    for frames in windows:
        with ctx.compute.autocast():
            z = idm.latent_action(normalize(frames, idm.size))
        yield z


def gather_batches(loader: FrameLoader, windows: NDArray[np.int64]) -> Iterator[Tensor]:
    """The windows around ``windows``, centres (W,), in batches (B, 3, H, W, 3) uint8 on the loader's device."""
    order = _InOrder(windows)
    return loader.batches(order, 0, order.steps)


def labelled_pairs(
    ctx: Context, idm: InverseDynamicsModel, store: FrameStore, windows: NDArray[np.int64], loader: FrameLoader
) -> tuple[Tensor, Tensor]:
    """z (P, la_dim) float32 and true actions (P,) int64 of labelled windows of a store, on the device."""
    assert store.actions is not None
    latents = torch.cat([z.float() for z in latent_actions(ctx, idm, gather_batches(loader, windows))])
    actions = torch.from_numpy(store.actions[windows].astype(np.int64)).to(ctx.compute.device)
    return latents, actions


def played_pairs(
    ctx: Context,
    idm: InverseDynamicsModel,
    frames: NDArray[np.uint8],
    first: NDArray[np.bool_],
    actions: Tensor,
) -> tuple[Tensor, Tensor]:
    """Latent and true actions of the agent's own play; no window crosses an episode.

    Args:
        frames: (T + 1, N, H, W, 3).
        first: (T + 1, N), whether a frame begins an episode.
        actions: (T, N) int64, on any device.

    Returns:
        z (P, la_dim) float16 and the actions (P,) of the windows, on the devices of the model and of ``actions``.
    """
    steps, envs = np.nonzero(~first[1:-1] & ~first[2:])  # row t of these is the window around frame t + 1
    windows = (
        torch.from_numpy(np.stack([frames[steps[part] + offset, envs[part]] for offset in range(3)], axis=1)).to(
            ctx.compute.device
        )
        for part in (slice(start, start + CHUNK) for start in range(0, len(steps), CHUNK))
    )
    latents = [z.to(torch.float16) for z in latent_actions(ctx, idm, windows)]
    if not latents:  # No episode has three frames.
        latents = [torch.empty(0, idm.quantizer.la_dim, dtype=torch.float16, device=ctx.compute.device)]
    return torch.cat(latents), actions[torch.from_numpy(steps) + 1, torch.from_numpy(envs)]


def labelled_frames(ctx: Context, train: FrameStore) -> NDArray[np.int64]:
    """Centres (L,) int64 of the labelled windows in the order in which labels are granted: N labels are the first N."""
    windows = train.labelled(train.video().windows(ctx.config.data.max_frames))
    order: NDArray[np.int64] = np.random.default_rng(stage_seed(ctx, "labelled frames")).permutation(windows)
    return order


def label_counts(ctx: Context, available: int) -> list[int]:
    """The configured numbers of labels, ascending, none above what is available."""
    return sorted({min(count, available) for count in ctx.config.offline.labels})


def latent_labels(
    ctx: Context, idm: InverseDynamicsModel, idm_fingerprint: str, video: Video, windows: NDArray[np.int64]
) -> NDArray[np.float16]:
    """z_t before quantization of every window, (W, la_dim) float16; see :func:`labels_of_all`."""

    def infer(batches: Iterable[Tensor]) -> Iterator[Tensor]:
        return latent_actions(ctx, idm, batches)

    return labels_of_all(ctx, "latent actions", infer, idm.quantizer.la_dim, idm_fingerprint, video, windows)


def labels_of_all(
    ctx: Context,
    what: str,
    infer: Callable[[Iterable[Tensor]], Iterator[Tensor]],
    width: int,
    model_fingerprint: str,
    video: Video,
    windows: NDArray[np.int64],
) -> NDArray[np.float16]:
    """What a model says of every window, (W, width) float16, memory-mapped.

    The labels are cached beside the frames under a key of the model and the video; those used last are kept.

    Args:
        what: they are, for progress.
        infer: from batches of windows (B, 3, H, W, 3) uint8 to labels (B, width), on the device.
        windows: (W,) centres.

    Raises:
        DiskFullError: the cache does not fit.
        CorruptDataError: the cached file is damaged.
    """
    folder, shape = ctx.data_dir / ctx.game / "latents", (len(windows), width)
    centres = hashlib.sha256(windows.tobytes()).hexdigest()
    file = folder / f"{fingerprint([model_fingerprint, video.fingerprint, centres, ctx.compute.bf16])}.npy"

    def make_or_keep() -> None:
        try:
            os.utime(file)  # The files that are kept are those used last.
        except FileNotFoundError:
            loader = FrameLoader(video, ctx.compute.device)
            _write(ctx, what, infer(gather_batches(loader, windows)), shape, file)

    distributed.on_main(make_or_keep)
    try:
        labels: NDArray[np.float16] = load_array(file, mapped=True)
        if labels.dtype != np.float16 or labels.shape != shape:
            raise CorruptDataError(f"{file} holds something else.")
    except CorruptDataError as error:
        raise CorruptDataError(f"{file} is damaged: delete it and run the same command again.") from error
    _drop_old(folder)
    return labels


def _write(ctx: Context, what: str, labels: Iterator[Tensor], shape: tuple[int, int], file: Path) -> None:
    require_free_space(file.parent, 2 * shape[0] * shape[1], f"Caching {what}")
    header = {"descr": np.lib.format.dtype_to_descr(np.dtype(np.float16)), "fortran_order": False, "shape": shape}
    with (
        ctx.progress.task(ctx.title(f"{what} of all frames"), shape[0], "frame") as task,
        atomic_path(file) as temporary,
        temporary.open("wb") as out,
    ):
        np.lib.format.write_array_header_1_0(out, header)
        done = 0
        for of_batch in labels:
            out.write(of_batch.to(torch.float16).cpu().numpy().tobytes())
            done += len(of_batch)
            task.update(done)


class _InOrder:
    """Batches of consecutive windows; the last one may be short."""

    def __init__(self, windows: NDArray[np.int64]) -> None:
        self._windows = windows
        self.steps = -(-len(windows) // CHUNK)

    def indices(self, step: int) -> NDArray[np.int64]:
        """See :class:`Sampler`."""
        return self._windows[step * CHUNK : (step + 1) * CHUNK]


def _drop_old(folder: Path) -> None:
    """Keep those used last; other processes may be writing here (under names with a dot) and dropping too."""
    ages = []
    for file in folder.glob("[!.]*.npy"):
        with suppress(FileNotFoundError):
            ages.append((file.stat().st_mtime, file))
    for _, file in sorted(ages)[:-_KEPT]:
        file.unlink(missing_ok=True)
