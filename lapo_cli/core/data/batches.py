"""Deterministic batches of windows: which ones, gathered from where, brought to the device in time."""

import queue
import threading
from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lapo_cli.core import distributed
from lapo_cli.core.data.store import Video

WINDOW = (-1, 0, 1)
"""Offsets of a window's frames from its centre."""

_QUEUE_BATCHES = 4
_UPLOAD_FRAMES = 4096


class Sampler(Protocol):
    """Chooses the windows of a batch."""

    def indices(self, step: int) -> NDArray[np.int64]:
        """The (B,) int64 centres of batch ``step``, counted from 0."""


class BatchSampler:
    """Which windows make batch number ``step``: a pure function of (seed, step), so there is no state to save.

    Epoch e visits the windows in the order ``np.random.default_rng([seed, e]).permutation(W)``. Batches take them
    one after another and run on into the next epoch, so that every batch is full. Where several processes train one
    model, each gets its equal share of every batch.

    Args:
        windows: (W,) int64, what to draw from, W >= 1.
        batch_size: B; it may exceed W.
        seed: >= 0.

    Raises:
        ValueError: there are no windows, or ``batch_size`` is not positive.
        UsageError: several processes cannot share it evenly.
    """

    def __init__(self, windows: NDArray[np.int64], batch_size: int, seed: int) -> None:
        if len(windows) == 0 or batch_size < 1:
            raise ValueError(f"cannot draw batches of {batch_size} from {len(windows)} windows")
        self._windows = windows
        self._batch_size = batch_size
        self._seed = seed
        self._part = distributed.part(batch_size)
        self._cached: tuple[int, NDArray[np.int64]] = (-1, windows)

    def indices(self, step: int) -> NDArray[np.int64]:
        """The (B,) int64 entries of ``windows`` that batch ``step`` (from 0), or our share of it, consists of."""
        position, end = step * self._batch_size, (step + 1) * self._batch_size
        parts = []
        while position < end:
            epoch, offset = divmod(position, len(self._windows))
            part = self._order(epoch)[offset : offset + end - position]
            parts.append(part)
            position += len(part)
        batch: NDArray[np.int64] = np.concatenate(parts)[self._part]
        return batch

    def _order(self, epoch: int) -> NDArray[np.int64]:
        # Read and replaced as one object, so that two threads may share a sampler.
        cached_epoch, order = self._cached
        if cached_epoch != epoch:
            order = np.random.default_rng([self._seed, epoch]).permutation(self._windows)
            self._cached = (epoch, order)
        return order


def gather_windows(
    frames: NDArray[np.uint8],
    idx: NDArray[np.int64],
    offsets: Sequence[int] = WINDOW,
    out: NDArray[np.uint8] | None = None,
) -> NDArray[np.uint8]:
    """Copy frames ``idx + offsets`` out of a store.

    Args:
        frames: (N, H, W, 3) uint8, usually a memory map.
        idx: (B,) int64 centres.
        offsets: T offsets from the centre.
        out: (B, T, H, W, 3) uint8, contiguous, to write into.

    Returns:
        (B, T, H, W, 3) uint8, contiguous: ``out`` or a new array.

    Raises:
        IndexError: a frame would lie outside of the store.
    """
    rows = _rows(idx, offsets, len(frames))
    if out is None:
        out = np.empty((*rows.shape, *frames.shape[1:]), np.uint8)
    # mode="clip" spares np.take a second copy; the bounds have been checked.
    np.take(np.asarray(frames), rows, axis=0, out=out, mode="clip")
    return out


class FrameLoader:
    """Brings windows of a video to a device, as uint8.

    Where the device is a GPU and the video fits into half of its free memory, the video is uploaded once and windows
    are gathered there. Elsewhere a background thread gathers from the memory map, into pinned memory for a GPU.
    Both give the same values in the same order.

    Args:
        video: where the frames come from.
        device: where the batches go.
        resident: upload the video (True), never do (False), or decide as above (None).
    """

    def __init__(self, video: Video, device: torch.device | str, *, resident: bool | None = None) -> None:
        self._frames = video.frames
        self._device = torch.device(device)
        self._resident: Tensor | None = None
        if self._fits() if resident is None else resident:
            self._resident = self._upload()

    def gather(self, idx: NDArray[np.int64], offsets: Sequence[int] = WINDOW) -> Tensor:
        """The windows around ``idx`` (B,), now: (B, T, H, W, 3) uint8 on the device.

        Raises:
            IndexError: a frame would lie outside of the store.
        """
        if self._resident is None:
            return self._host_batch(idx, offsets).to(self._device, non_blocking=True)
        rows = torch.from_numpy(_rows(idx, offsets, len(self._frames)))
        # Picking rows of a matrix is one plain copy kernel, which indexing with five dimensions is not.
        picked = self._resident.index_select(0, rows.flatten().to(self._device, non_blocking=True))
        return picked.view(*rows.shape, *self._frames.shape[1:])

    def batches(
        self, sampler: Sampler, start_step: int, num_steps: int, offsets: Sequence[int] = WINDOW
    ) -> Iterator[Tensor]:
        """Batches ``start_step`` to ``start_step + num_steps`` of the sampler, each as :meth:`gather` gives it.

        The background thread ends when the iterator is exhausted, closed or dropped; what goes wrong in it is raised
        here.
        """
        steps = range(start_step, start_step + num_steps)
        if self._resident is not None:
            for step in steps:
                yield self.gather(sampler.indices(step), offsets)
            return
        ready: queue.Queue[Tensor | BaseException] = queue.Queue(_QUEUE_BATCHES)
        stop = threading.Event()

        def fill() -> None:
            try:
                for step in steps:
                    batch = self._host_batch(sampler.indices(step), offsets)
                    if not _put(ready, batch, stop):
                        return
            except BaseException as error:  # The consumer is the one who can do something about it.
                _put(ready, error, stop)

        thread = threading.Thread(target=fill, name="lapo-batches", daemon=True)
        thread.start()
        try:
            for _ in steps:
                item = ready.get()
                if isinstance(item, BaseException):
                    raise item
                yield item.to(self._device, non_blocking=True)
        finally:
            stop.set()
            thread.join()

    def _host_batch(self, idx: NDArray[np.int64], offsets: Sequence[int]) -> Tensor:
        # PyTorch keeps pinned blocks for reuse, and not before the copy from them is done.
        shape = (len(idx), len(offsets), *self._frames.shape[1:])
        batch = torch.empty(shape, dtype=torch.uint8, pin_memory=self._device.type == "cuda")
        gather_windows(self._frames, idx, offsets, out=batch.numpy())
        return batch

    def _fits(self) -> bool:
        if self._device.type != "cuda":
            return False
        free, _ = torch.cuda.mem_get_info(self._device)
        # What PyTorch keeps of freed tensors is free for the next one.
        free += torch.cuda.memory_reserved(self._device) - torch.cuda.memory_allocated(self._device)
        return self._frames.nbytes <= free // 2

    def _upload(self) -> Tensor:
        """(N, H * W * 3) uint8 on the device, copied in pieces so that the host never holds more than one."""
        flat = self._frames.reshape(len(self._frames), -1)
        resident = torch.empty(flat.shape, dtype=torch.uint8, device=self._device)
        for start in range(0, len(flat), _UPLOAD_FRAMES):
            piece = np.array(flat[start : start + _UPLOAD_FRAMES])
            resident[start : start + len(piece)].copy_(torch.from_numpy(piece))
        return resident


def _rows(idx: NDArray[np.int64], offsets: Sequence[int], num_frames: int) -> NDArray[np.int64]:
    """(B, T) int64 row numbers, all of them within the store."""
    rows = idx[:, None] + np.asarray(offsets, dtype=np.int64)
    if rows.size and not 0 <= rows.min() <= rows.max() < num_frames:
        raise IndexError(f"rows {rows.min()} to {rows.max()} of a store of {num_frames} frames")
    return rows


def _put(ready: "queue.Queue[Tensor | BaseException]", item: Tensor | BaseException, stop: threading.Event) -> bool:
    """Hand over one item; False when the consumer has gone."""
    while not stop.is_set():
        try:
            ready.put(item, timeout=0.1)
        except queue.Full:
            continue
        return True
    return False
