"""Latent labels of a data set: what the frozen IDM says of every window, computed once and kept on disk."""

from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from lapo_cli.core.data.batches import FrameLoader
from lapo_cli.core.data.store import Video
from lapo_cli.core.errors import CorruptDataError
from lapo_cli.core.files import atomic_path, load_npy, require_free_space
from lapo_cli.core.models.frames import normalize
from lapo_cli.core.models.idm import InverseDynamicsModel
from lapo_cli.core.run_dir import fingerprint
from lapo_cli.core.training.context import Context

_CHUNK = 512
_KEPT = 16


def latent_labels(
    ctx: Context, idm: InverseDynamicsModel, idm_fingerprint: str, video: Video, windows: NDArray[np.int64]
) -> NDArray[np.float16]:
    """z_t before quantization of every window, (W, la_dim) float16, memory-mapped.

    The labels are cached beside the frames under a key of the IDM and the video, the newest few of them.

    Args:
        windows: (W,) centres.

    Raises:
        DiskFullError: the cache does not fit.
        CorruptDataError: the cached file is damaged.
    """
    folder = ctx.data_dir / ctx.seed_dir.game / "latents"
    key = fingerprint([idm_fingerprint, video.fingerprint, len(windows), int(windows[-1]), ctx.compute.bf16])
    file = folder / f"{key}.npy"
    if not file.exists():
        _write(ctx, idm, video, windows, file)
    labels: NDArray[np.float16] = load_npy(file, mapped=True)
    if labels.dtype != np.float16 or labels.shape != (len(windows), ctx.config.model.la_dim):
        raise CorruptDataError(f"{file} is damaged: delete it and run the same command again.")
    _drop_old(folder)
    return labels


@torch.no_grad()
def _write(ctx: Context, idm: InverseDynamicsModel, video: Video, windows: NDArray[np.int64], file: Path) -> None:
    shape = (len(windows), ctx.config.model.la_dim)
    require_free_space(file.parent, 2 * shape[0] * shape[1], "Caching latent actions")
    loader = FrameLoader(video, ctx.compute.device)
    order = _InOrder(windows)
    header = {"descr": np.lib.format.dtype_to_descr(np.dtype(np.float16)), "fortran_order": False, "shape": shape}
    with (
        ctx.progress.task(ctx.title("labelling frames with latent actions"), len(windows), "frame") as task,
        atomic_path(file) as temporary,
        temporary.open("wb") as out,
    ):
        np.lib.format.write_array_header_1_0(out, header)
        done = 0
        for frames in loader.batches(order, 0, order.steps):
            with ctx.compute.autocast():
                z = idm.latent_action(normalize(frames, ctx.config.model.frame_size))
            out.write(z.to(torch.float16).cpu().numpy().tobytes())
            done += len(frames)
            task.update(done)


class _InOrder:
    """Batches of consecutive windows; the last one may be short."""

    def __init__(self, windows: NDArray[np.int64]) -> None:
        self._windows = windows
        self.steps = -(-len(windows) // _CHUNK)

    def indices(self, step: int) -> NDArray[np.int64]:
        """See :class:`Sampler`."""
        return self._windows[step * _CHUNK : (step + 1) * _CHUNK]


def _drop_old(folder: Path) -> None:
    """Keep the newest few; other processes may be writing here (under names with a dot) and dropping too."""
    ages = []
    for file in folder.glob("[!.]*.npy"):
        with suppress(FileNotFoundError):
            ages.append((file.stat().st_mtime, file))
    for _, file in sorted(ages)[:-_KEPT]:
        file.unlink(missing_ok=True)
