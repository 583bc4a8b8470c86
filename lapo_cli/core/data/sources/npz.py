"""The published demonstrations: numbered npz chunks, in a folder or still inside their zip file.

A chunk of N frames holds ``obs`` (N, 64, 64, 3) uint8, ``ta`` (N,) integer in [0, 15), the action taken at that
frame, ``done`` (N,) bool, ``rewards`` (N,) float; its other arrays are ignored. The published chunks have N = 32,768
in ``train`` and 4,096 in ``test``; any N is accepted here.

The documents do not say which side of an episode's end ``done`` marks. In the research code's PPO it is the first
frame of the new episode; were it the last of the old one, the break would lie one frame later. Both are stored as
breaks, which costs one window an episode. Chunks do not continue one another, so every chunk starts with a break.

Frames are streamed from the archive into the store a few megabytes at a time, two chunks side by side because
inflating takes longer than writing: a chunk is never in memory whole.
"""

import itertools
import re
import shutil
import tempfile
import zipfile
import zlib
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any, cast

import numpy as np
from numpy.typing import NDArray

from lapo_cli.core.data.store import FRAME_BYTES, FRAME_SHAPE, Manifest, Split, store_path
from lapo_cli.core.data.store_writer import StoreWriter
from lapo_cli.core.errors import CorruptDataError, MissingInputError, UsageError
from lapo_cli.core.files import disk_full_as_error
from lapo_cli.core.games import NUM_ACTIONS
from lapo_cli.core.progress import Progress, Silent

_PIECE_FRAMES = 1024
_READERS = 2
_npy: Any = np.lib.format  # Public and documented, but without type hints.
_CHUNK_NAME = re.compile(r"(0|[1-9]\d*)\.npz")
# All that zipfile and numpy raise on damaged bytes.
_UNREADABLE = (
    OSError,
    ValueError,
    EOFError,
    KeyError,
    zipfile.BadZipFile,
    zlib.error,
    NotImplementedError,
    RuntimeError,
)


@dataclass(frozen=True)
class Chunk:
    """One numbered npz file.

    Attributes:
        origin: the file itself, or the zip file that holds it.
        member: its name in that zip file, None for a plain file.
    """

    origin: Path
    member: str | None = None

    def __str__(self) -> str:
        return str(self.origin) if self.member is None else f"{self.origin}:{self.member}"

    @contextmanager
    def open(self, scratch: Path) -> Iterator[zipfile.ZipFile]:
        """The chunk's arrays as members of an open npz archive.

        Args:
            scratch: a folder for the unpacked chunk if it lies in a zip file; it is gone on leaving, even when killed.

        Raises:
            CorruptDataError: on opening, or inside the block, the archive turned out damaged.
            DiskFullError: no room for the unpacked chunk.
        """
        try:
            if self.member is None:
                with zipfile.ZipFile(self.origin) as npz:
                    yield npz
            else:
                # Unpacked first: seeking backwards in a compressed member starts it over each time.
                with disk_full_as_error(scratch), tempfile.TemporaryFile(dir=scratch) as plain:
                    with zipfile.ZipFile(self.origin) as outer, outer.open(self.member) as packed:
                        shutil.copyfileobj(packed, plain, 2**20)
                    with zipfile.ZipFile(plain) as npz:
                        yield npz
        except _UNREADABLE as error:
            raise CorruptDataError(f"{self} is truncated or altered ({error}): get it again.") from error

    def num_frames(self, scratch: Path) -> int:
        """N, as the header of ``obs`` says; raises as :meth:`open` does."""
        with self.open(scratch) as npz:
            return _open_obs(self, npz)[1]


def find_chunks(source: Path, game: str, split: Split) -> list[Chunk]:
    """The chunks of a game and split in a folder or zip file, in order.

    They lie in ``<game>/<split>/`` or in ``<split>/``.

    Raises:
        MissingInputError: there is no such file or folder, or no such chunk in it.
        CorruptDataError: a number is missing, the zip file is damaged, or a name in it leads out of it.
    """
    if not source.exists():
        raise MissingInputError(f"There is no file or folder {source}: check the path.")
    members = None if source.is_dir() else _safe_names(source)
    for folder in (f"{game}/{split}", split):
        if members is None:
            names = [path.name for path in (source / folder).glob("*.npz")]
        else:
            names = [name.removeprefix(f"{folder}/") for name in members if name.startswith(f"{folder}/")]
        found = {int(match[1]): match[0] for name in names if (match := _CHUNK_NAME.fullmatch(name))}
        if found:
            break
    else:
        raise MissingInputError(
            f"{source} holds no {split} chunks of {game}: they are expected as {game}/{split}/0.npz or {split}/0.npz "
            "and so on."
        )
    missing = [f"{number}.npz" for number in range(max(found)) if number not in found]
    if missing:
        more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        raise CorruptDataError(f"{source} lacks {', '.join(missing[:5])}{more} in {folder}: get the set again.")
    ordered = [f"{folder}/{found[number]}" for number in sorted(found)]
    return [Chunk(source / name) if members is None else Chunk(source, name) for name in ordered]


def import_chunks(
    source: Path,
    data_dir: Path,
    game: str,
    split: Split,
    *,
    max_frames: int | None = None,
    description: str | None = None,
    progress: Progress | None = None,
) -> Manifest:
    """Make the store of a game and split from npz chunks.

    Args:
        source: folder or zip file; see :func:`find_chunks`.
        max_frames: take the first so many frames, cutting the last chunk taken.
        description: the manifest's ``source``; by default the path of ``source``.

    Raises:
        UsageError: ``max_frames`` leaves no window of three frames.
        MissingInputError, CorruptDataError: as in :func:`find_chunks`.
        CorruptDataError: a chunk is damaged, or an array of it missing, or not of the type, shape or range above.
        DiskFullError, DownloadError: as in :class:`StoreWriter`.
    """
    if max_frames is not None and max_frames < 3:
        raise UsageError(f"{max_frames} frames hold no window: ask for 3 or more.")
    chunks = find_chunks(source, game, split)
    returns: list[float] = []
    left = max_frames
    with StoreWriter(store_path(data_dir, game, split), game, split) as writer:
        with (
            (progress or Silent()).task(f"Storing {game} {split}", len(chunks), "chunks") as task,
            ThreadPoolExecutor(_READERS) as readers,
        ):
            underway: deque[Future[None]] = deque()
            for number, chunk in enumerate(chunks):
                if left == 0:
                    break
                if len(underway) == _READERS:
                    underway.popleft().result()
                    task.update(number + 1 - _READERS)
                reading, taken, chunk_returns = _start_chunk(chunk, writer, left, readers)
                underway.append(reading)
                returns += chunk_returns
                left = None if left is None else left - taken
            for reading in underway:
                reading.result()
            task.update(len(chunks))
        return writer.finish(
            source=description or chunks_source(str(source.absolute()), max_frames),
            made_by="chunks",
            num_episodes=len(returns),
            mean_return=float(np.mean(returns)) if returns else None,
        )


def chunks_source(name: str, max_frames: int | None) -> str:
    """The words by which a store made from these chunks is known; ``name`` is their path or address."""
    cut = "" if max_frames is None else f", at most {max_frames} frames"
    return f"npz chunks of {name}{cut}"


def _start_chunk(
    chunk: Chunk, writer: StoreWriter, limit: int | None, readers: ThreadPoolExecutor
) -> tuple[Future[None], int, list[float]]:
    """Append a chunk's first ``limit`` frames: rows and columns now, the frames themselves by one of the readers.

    Returns:
        the reading under way, the number of frames, and the returns of the whole episodes in them.
    """
    with ExitStack() as stack:
        npz = stack.enter_context(chunk.open(writer.scratch))
        stream, num_frames = _open_obs(chunk, npz)
        stack.enter_context(stream)
        actions = _column(chunk, npz, "ta", num_frames)
        done = _column(chunk, npz, "done", num_frames)
        rewards = _column(chunk, npz, "rewards", num_frames)
        _check_columns(chunk, actions, done, rewards)
        taken = num_frames if limit is None else min(num_frames, limit)
        base = writer.reserve(taken)
        starts = done.copy()
        starts[1:] |= done[:-1]
        starts[0] = True
        writer.put_columns(base, actions[:taken], rewards[:taken], starts[:taken])
        # The reader closes what is open from here on.
        reading = readers.submit(_store_frames, stack.pop_all(), stream, writer, base, taken)
    bounds = np.flatnonzero(done[:taken])
    return reading, taken, [float(rewards[start:end].sum()) for start, end in itertools.pairwise(bounds)]


def _store_frames(opened: ExitStack, stream: IO[bytes], writer: StoreWriter, base: int, count: int) -> None:
    """Bring ``count`` frames from the stream into the rows from ``base`` on, and close what is ``opened``."""
    with opened:
        piece = np.empty((min(_PIECE_FRAMES, count), *FRAME_SHAPE), np.uint8)
        for start in range(0, count, _PIECE_FRAMES):
            part = piece[: count - start]
            _read_fully(stream, part)
            writer.put_frames(base + start, part)


def _open_obs(chunk: Chunk, npz: zipfile.ZipFile) -> tuple[IO[bytes], int]:
    """The stream of ``obs``, standing at its first frame, and N."""
    info = _member(chunk, npz, "obs")
    stream = npz.open(info)
    version = _npy.read_magic(stream)
    if version == (1, 0):
        shape, fortran, dtype = _npy.read_array_header_1_0(stream)
    elif version == (2, 0):
        shape, fortran, dtype = _npy.read_array_header_2_0(stream)
    else:
        raise ValueError(f"obs is of npy version {version}")
    if dtype != np.uint8 or len(shape) != 4 or shape[1:] != FRAME_SHAPE or shape[0] < 1 or fortran:
        layout = " in Fortran order" if fortran else ""
        raise _wrong(chunk, "obs", f"{dtype} {shape}{layout}", f"uint8 (N, {', '.join(map(str, FRAME_SHAPE))})")
    if info.file_size != stream.tell() + shape[0] * FRAME_BYTES:
        raise _wrong(chunk, "obs", f"{info.file_size:,} bytes", f"those of {shape[0]:,} frames")
    return stream, shape[0]


def _column(chunk: Chunk, npz: zipfile.ZipFile, name: str, num_frames: int) -> NDArray[Any]:
    with npz.open(_member(chunk, npz, name)) as stream:
        column = cast(NDArray[Any], _npy.read_array(stream, allow_pickle=False))
    if column.shape != (num_frames,):
        raise _wrong(chunk, name, f"shape {column.shape}", f"({num_frames},), one entry a frame")
    return column


def _member(chunk: Chunk, npz: zipfile.ZipFile, name: str) -> zipfile.ZipInfo:
    try:
        return npz.getinfo(f"{name}.npy")
    except KeyError as error:
        raise CorruptDataError(f"{chunk} has no array {name}: it is no chunk of demonstrations.") from error


def _check_columns(chunk: Chunk, actions: NDArray[Any], done: NDArray[Any], rewards: NDArray[Any]) -> None:
    if actions.dtype.kind not in "iu":
        raise _wrong(chunk, "ta", str(actions.dtype), "integers")
    if actions.min() < 0 or actions.max() >= NUM_ACTIONS:
        raise _wrong(chunk, "ta", f"values from {actions.min()} to {actions.max()}", f"actions in [0, {NUM_ACTIONS})")
    if done.dtype != np.bool_:
        raise _wrong(chunk, "done", str(done.dtype), "bool")
    if rewards.dtype.kind != "f" or not np.isfinite(rewards).all():
        raise _wrong(chunk, "rewards", f"{rewards.dtype}, or values that are not finite", "finite float32")


def _wrong(chunk: Chunk, name: str, found: str, expected: str) -> CorruptDataError:
    return CorruptDataError(f"{chunk}: array {name} holds {found} where {expected} are expected: get it again.")


def _read_fully(stream: IO[bytes], part: NDArray[np.uint8]) -> None:
    rest = part.reshape(-1).data
    while rest:
        count = stream.readinto(rest)  # type: ignore[attr-defined]  # ZipExtFile is a BufferedIOBase.
        if not count:
            raise EOFError("obs ends early")
        rest = rest[count:]


def _safe_names(source: Path) -> list[str]:
    """Names of the members of a zip file.

    Nothing is ever unpacked under these names; an archive with such names is refused all the same, because it is not
    what it says it is.
    """
    try:
        with zipfile.ZipFile(source) as archive:
            names = archive.namelist()
    except _UNREADABLE as error:
        raise CorruptDataError(f"{source} is truncated or no zip file: get it again.") from error
    for name in names:
        path = PurePosixPath(name.replace("\\", "/"))
        if path.is_absolute() or ".." in path.parts or re.match("[A-Za-z]:", name):
            raise CorruptDataError(f"{source} holds a file named {name!r}, which leads out of it: it is not used.")
    return names
