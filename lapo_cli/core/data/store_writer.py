"""Making a frame store: in a temporary folder beside it, in bounded memory, renamed into place when it is complete."""

import math
import os
import secrets
import shutil
import threading
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lapo_cli import __version__
from lapo_cli.core.data.store import (
    FORMAT_VERSION,
    FRAMES_FILE,
    MANIFEST_FILE,
    RETURNS,
    UNLABELLED,
    FrameShape,
    Manifest,
    Split,
    column_types,
    fingerprint,
    map_frames,
)
from lapo_cli.core.errors import BusyError
from lapo_cli.core.files import atomic_write_json, disk_full_as_error, exclusive, fsync_path


class StoreWriter:
    """Context manager that makes the store of a game and split at ``path``.

    ``reserve`` rows, then ``put_frames`` and ``put_columns`` for each of them once and in any order, then ``finish``.
    An older store at ``path`` stays usable until ``finish`` replaces it. Leaving without ``finish`` removes what was
    written; what a killed writer left behind is removed by the next one.

    Frames are written with pwrite and not through a map: a full disk is then an error and not a SIGBUS, and no
    page of the store ever belongs to this process.

    Args:
        path: folder of the store.
        game, split: what it will hold.
        frame_shape: (H, W, 3); an attribute too.
        num_actions: how many actions there are, 1 to 255, or None where the frames have none; an attribute too.

    Raises:
        BusyError: another process is making the same store.
        DiskFullError: (every method) the disk filled up.
    """

    def __init__(self, path: Path, game: str, split: Split, frame_shape: FrameShape, num_actions: int | None) -> None:
        self._path = path
        self._game = game
        self._split = split
        self.frame_shape = frame_shape
        self._frame_bytes = math.prod(frame_shape)
        self.num_actions = num_actions
        self._num_frames = 0
        self._frames_put = 0
        self._counting = threading.Lock()
        self._columns_put = 0
        self._columns: dict[str, NDArray[Any]] = {
            name: np.empty(0, dtype) for name, dtype in column_types(num_actions).items()
        }

    def __enter__(self) -> "StoreWriter":
        with disk_full_as_error(self._path.parent), ExitStack() as stack:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            busy = BusyError(
                f"Another lapo process is making {self._path}: wait until it has finished, then try again."
            )
            stack.enter_context(exclusive(self._path.parent / f".{self._path.name}.lock", busy))
            self._clear_leftovers()
            self._folder = self._path.with_name(f".{self._path.name}.partial-{secrets.token_hex(4)}")
            self._folder.mkdir()
            stack.callback(shutil.rmtree, self._folder, ignore_errors=True)  # After finish it is no longer there.
            self._file = os.open(self._folder / FRAMES_FILE, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
            stack.callback(os.close, self._file)
            self._leave = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._leave.close()

    @property
    def scratch(self) -> Path:
        """A folder on the same disk for an importer's temporary files; it goes with the writer."""
        return self._folder

    def reserve(self, num_frames: int) -> int:
        """Make room for ``num_frames`` more rows, on disk too, and return the index of the first.

        Asking for the disk before the work is what makes a full one an error now and not an hour later.
        """
        first = self._num_frames
        with disk_full_as_error(self._path.parent):
            os.posix_fallocate(self._file, first * self._frame_bytes, num_frames * self._frame_bytes)
        self._num_frames += num_frames
        for name, column in self._columns.items():
            self._columns[name] = np.concatenate([column, np.zeros(num_frames, column.dtype)])
        return first

    def put_frames(self, at: int, frames: NDArray[np.uint8]) -> None:
        """Write (K, H, W, 3) uint8 frames to rows ``at`` to ``at + K``, which must be reserved.

        Several threads may do so at once.

        Raises:
            ValueError: wrong shape or type, or rows that are not reserved.
        """
        if frames.dtype != np.uint8 or frames.shape[1:] != self.frame_shape or not self._reserved(at, len(frames)):
            raise ValueError(f"cannot put {frames.dtype} {frames.shape} at {at} of {self._num_frames}")
        rest = np.ascontiguousarray(frames).reshape(-1).data
        offset = at * self._frame_bytes
        with disk_full_as_error(self._path.parent):
            while rest:
                written = os.pwrite(self._file, rest, offset)
                rest, offset = rest[written:], offset + written
        with self._counting:
            self._frames_put += len(frames)

    def put_columns(
        self,
        at: int,
        actions: NDArray[np.integer[Any]] | None,
        rewards: NDArray[np.floating[Any]] | None,
        episode_starts: NDArray[np.bool_],
    ) -> None:
        """Set the small columns of rows ``at`` to ``at + K``, each (K,).

        Args:
            at: the first row.
            actions: in [0, num_actions), or :data:`UNLABELLED`; None where the store has no actions.
            rewards: finite as float32; None where there are none, which stores zeros.
            episode_starts: true where a frame does not follow the one before it.

        Raises:
            ValueError: lengths or values do not fit, or rows that are not reserved.
        """
        count = len(episode_starts)
        given = [column for column in (actions, rewards) if column is not None]
        if any(len(column) != count for column in given) or not self._reserved(at, count):
            raise ValueError(f"cannot put columns of {count} rows at {at} of {self._num_frames}")
        if (actions is None) != (self.num_actions is None):
            raise ValueError(
                f"actions are {'missing' if actions is None else 'given'} in a store of {self.num_actions}"
            )
        rows = slice(at, at + count)
        if actions is not None and self.num_actions is not None:
            known = actions[actions != UNLABELLED]
            if len(known) and not 0 <= known.min() <= known.max() < self.num_actions:
                raise ValueError(f"actions go from {known.min()} to {known.max()} in a store of {self.num_actions}")
            self._columns["actions"][rows] = actions
        if rewards is not None:
            if not (np.abs(rewards) <= np.finfo(np.float32).max).all():
                raise ValueError("rewards are not finite as float32")
            self._columns["rewards"][rows] = rewards
        self._columns["episode_starts"][rows] = episode_starts
        self._columns_put += count

    def finish(self, *, source: str, made_by: str, episode_returns: Sequence[float] | NDArray[np.float64]) -> Manifest:
        """Complete the store and put it in place of an older one.

        Args:
            source: where the frames came from; two stores of the same source are equal.
            made_by: the importer.
            episode_returns: of the episodes that are there from their first frame to their last; empty where rewards
                are not known.

        Raises:
            ValueError: rows that were reserved have not been written, or there are none.
        """
        if not 0 < self._num_frames == self._frames_put == self._columns_put:
            raise ValueError(
                f"{self._num_frames} rows reserved, {self._frames_put} frames and {self._columns_put} columns put"
            )
        returns = np.asarray(episode_returns, np.float64)
        arrays = {**self._columns, RETURNS: returns}
        with disk_full_as_error(self._path.parent):
            os.fsync(self._file)
            for name, array in arrays.items():
                file = self._folder / f"{name}.npy"
                np.save(file, array)
                fsync_path(file)
            frames = map_frames(self._folder / FRAMES_FILE, self._num_frames, self.frame_shape)
            manifest = Manifest(
                format_version=FORMAT_VERSION,
                lapo_version=__version__,
                game=self._game,
                split=self._split,
                num_frames=self._num_frames,
                frame_shape=self.frame_shape,
                num_actions=self.num_actions,
                num_episodes=len(returns),
                mean_return=float(returns.mean()) if len(returns) else None,
                source=source,
                made_by=made_by,
                fingerprint=fingerprint(frames, arrays, self.num_actions),
            )
            atomic_write_json(self._folder / MANIFEST_FILE, manifest.as_dict())
            self._move_into_place()
        return manifest

    def _reserved(self, at: int, count: int) -> bool:
        return at >= 0 and at + count <= self._num_frames

    def _move_into_place(self) -> None:
        # A folder cannot be renamed over another one: the older store steps aside first. Killed between the two
        # renames, the next writer puts it back.
        older = self._path.with_name(f".{self._path.name}.older")
        if self._path.exists():
            self._path.rename(older)
        self._folder.rename(self._path)
        fsync_path(self._path.parent)
        shutil.rmtree(older, ignore_errors=True)

    def _clear_leftovers(self) -> None:
        """Undo what a killed writer left; the lock proves that none is alive."""
        older = self._path.with_name(f".{self._path.name}.older")
        if older.exists() and not self._path.exists():
            older.rename(self._path)
        for leftover in (older, *self._path.parent.glob(f".{self._path.name}.partial-*")):
            shutil.rmtree(leftover, ignore_errors=True)
