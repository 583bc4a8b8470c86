"""Numbered npz chunks, the format of the published demonstrations, in a folder or still inside their zip file.

A chunk of N frames holds ``obs`` (N, H, W, 3) uint8, ``ta`` (N,) integer, the action taken at that frame, ``done`` (N,)
bool, ``rewards`` (N,) float; its other arrays are ignored. Data of one's own may leave out ``ta``. The published chunks
have N = 32,768 in ``train`` and 4,096 in ``test``; any N is accepted here.

Its documentation does not specify which side of an episode's end ``done`` marks. In the research code's PPO it is the
first frame of the new episode; were it the last of the old one, the break would lie one frame later. Both are stored as
breaks, which costs one window per episode; the returns of episodes are those between two of ``done``. Chunks do not
continue one another, so every chunk starts with a break.

Frames are streamed from the archive into the store a few megabytes at a time, two chunks side by side because
inflating takes longer than writing: a chunk is never in memory whole.
"""

import itertools
import math
import re
import shutil
import tempfile
import zipfile
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from lapo_cli.core.data.arrays import UNREADABLE, Header, open_member
from lapo_cli.core.data.sources.base import SOURCES, Bounds, Importer, Offer, Source, bounded
from lapo_cli.core.data.store import SPLITS, UNLABELLED, Manifest, Split, store_path
from lapo_cli.core.data.store_writer import StoreWriter
from lapo_cli.core.envs.base import ENVIRONMENTS
from lapo_cli.core.errors import CorruptDataError, shortened
from lapo_cli.core.files import disk_full_as_error
from lapo_cli.core.progress import Progress

_PIECE_BYTES = 12 * 2**20
_READERS = 2
_CHUNK_NAME = re.compile(r"(0|[1-9]\d{0,17})\.npz")


class NpzSource(Source):
    """See the module."""

    name = "npz"
    description = "Numbered npz chunks, train/0.npz, train/1.npz, ... and test/0.npz, ..., in a folder or a zip file."

    def open(self, game: str, location: str | None, scratch: Path) -> Importer | None:
        """See :meth:`Source.open`."""
        path = self.require(location, "a folder or a zip file")
        if not (path.is_dir() or (path.is_file() and (path.suffix == ".zip" or zipfile.is_zipfile(path)))):
            return None
        found = find_chunks(path, game)
        return ChunkImporter(game, found, str(path.absolute()), scratch) if found else None


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
            DiskFullError: there is not enough disk space for the unpacked chunk.
        """
        try:
            if self.member is None:
                with zipfile.ZipFile(self.origin) as npz:
                    yield npz
            else:
                # Unpacked first: seeking backwards in a compressed member starts it over each time.
                with disk_full_as_error(scratch), tempfile.TemporaryFile(dir=scratch) as plain:
                    with (
                        zipfile.ZipFile(self.origin) as outer,
                        open_member(outer, self.member, str(self)) as (packed, _),
                        disk_full_as_error(scratch),
                    ):
                        shutil.copyfileobj(packed, plain, 2**20)
                    with zipfile.ZipFile(plain) as npz:
                        yield npz
        except UNREADABLE as error:
            raise CorruptDataError(f"{self} is truncated or altered: get it again.") from error

    @contextmanager
    def array(self, npz: zipfile.ZipFile, name: str) -> Iterator[tuple[IO[bytes], Header]]:
        """One of the chunk's arrays: the stream at its first entry, and its header.

        Raises:
            CorruptDataError: there is no such array, or it is damaged.
        """
        if f"{name}.npy" not in npz.namelist():
            raise CorruptDataError(f"{self} has no array {name}: it is no chunk of demonstrations.")
        shown = f"{self}: array {name}"
        with open_member(npz, f"{name}.npy", shown) as (stream, info):
            yield stream, Header(shown, stream, info.file_size)


def find_chunks(source: Path, game: str) -> dict[Split, list[Chunk]]:
    """The chunks of a game in a folder or zip file: split -> chunks in order; splits that are not there are left out.

    They lie in ``<game>/<split>/`` or in ``<split>/``.

    Raises:
        CorruptDataError: a number is missing, the zip file is damaged, or a name in it leads out of it.
    """
    members = None if source.is_dir() else _safe_names(source)
    found: dict[Split, list[Chunk]] = {}
    for split in SPLITS:
        for folder in (f"{game}/{split}", split):
            if members is None:
                names = [path.name for path in (source / folder).glob("*.npz")]
            else:
                names = [name.removeprefix(f"{folder}/") for name in members if name.startswith(f"{folder}/")]
            numbers = sorted({int(match[1]) for name in names if (match := _CHUNK_NAME.fullmatch(name))})
            if numbers:
                _require_all(numbers, source, folder)
                paths = [f"{folder}/{number}.npz" for number in numbers]
                found[split] = [Chunk(source / path) if members is None else Chunk(source, path) for path in paths]
                break
    return found


def _require_all(numbers: list[int], source: Path, folder: str) -> None:
    """Refuse numbers of chunks, ascending, that do not go from 0 up without a gap."""
    missing = numbers[-1] + 1 - len(numbers)
    if missing:
        there = set(numbers)
        first = itertools.islice((number for number in range(numbers[-1]) if number not in there), 5)
        more = f" and {missing - 5:,} more" if missing > 5 else ""
        raise CorruptDataError(
            f"{source} lacks {', '.join(f'{number}.npz' for number in first)}{more} in {folder}: get the set again."
        )


@dataclass(frozen=True)
class ChunkImporter(Importer):
    """Npz chunks of a game on this machine.

    Attributes:
        game: its name.
        chunks: split -> chunks in order, at least one.
        location: what manifests call the folder, zip file or address.
        scratch: a folder for temporary files.
    """

    game: str
    chunks: dict[Split, list[Chunk]]
    location: str
    scratch: Path

    def offers(self, bounds: Bounds) -> dict[Split, Offer]:
        """What can be made, supposing that all chunks are as long as the first; see :meth:`Importer.offers`."""
        found: dict[Split, Offer] = {}
        for split, chunks in self.chunks.items():
            with self._open(chunks[0]) as npz, _open_obs(chunks[0], npz) as (_, header):
                frames = bounded(len(chunks) * header.shape[0], bounds[split])
                size = math.prod(header.shape[1:])
            found[split] = Offer(chunks_source(self.location, bounds[split]), frames, size)
        return found

    def store(self, split: Split, data_dir: Path, bound: int | None, progress: Progress) -> Manifest:
        """See :meth:`Importer.store`; a bound cuts the last chunk taken."""
        chunks = self.chunks[split]
        left = bound
        with self._open(chunks[0]) as npz, _open_obs(chunks[0], npz) as (_, header):
            bounded(header.shape[0], bound)
            height, width, channels = header.shape[1:]
        returns: list[float] = []
        target = store_path(data_dir, self.game, split)
        with StoreWriter(target, self.game, split, (height, width, channels), self.num_actions) as writer:
            with (
                progress.task(f"Storing {self.game} {split}", len(chunks), "chunks") as task,
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
            return writer.finish(source=chunks_source(self.location, bound), made_by="chunks", episode_returns=returns)

    @cached_property
    def num_actions(self) -> int | None:
        """How many actions there are: as the game defines or, for data of one's own, as many as occur in any chunk."""
        if self.game in ENVIRONMENTS:
            return ENVIRONMENTS.get(self.game).num_actions
        largest = -1
        for chunk in itertools.chain.from_iterable(self.chunks.values()):
            with self._open(chunk) as npz:
                if "ta.npy" not in npz.namelist():
                    return None
                actions = _column(chunk, npz, "ta", "iu")
                largest = max(largest, int(actions.max()) if len(actions) else -1)
                if largest >= UNLABELLED:
                    raise _wrong(chunk, "ta", f"action {largest}", f"actions below {UNLABELLED}")
        return largest + 1

    @contextmanager
    def _open(self, chunk: Chunk) -> Iterator[zipfile.ZipFile]:
        with disk_full_as_error(self.scratch):
            self.scratch.mkdir(parents=True, exist_ok=True)
        with chunk.open(self.scratch) as npz:
            yield npz


def chunks_source(location: str, max_frames: int | None) -> str:
    """The manifest's ``source`` of a store made from these chunks; ``location`` is their path or address."""
    cut = "" if max_frames is None else f", at most {max_frames} frames"
    return f"npz chunks of {location}{cut}"


def _start_chunk(
    chunk: Chunk, writer: StoreWriter, limit: int | None, readers: ThreadPoolExecutor
) -> tuple[Future[None], int, list[float]]:
    """Append a chunk's first ``limit`` frames: rows and columns now, the frames themselves by one of the readers.

    Returns:
        the reading under way, the number of frames, and the returns of the whole episodes in them.
    """
    with ExitStack() as stack:
        npz = stack.enter_context(chunk.open(writer.scratch))
        stream, header = stack.enter_context(_open_obs(chunk, npz))
        if header.shape[1:] != writer.frame_shape:
            raise _wrong(chunk, "obs", str(header), f"frames of {writer.frame_shape}, as in the first chunk,")
        num_frames = header.shape[0]
        actions = None
        if writer.num_actions is not None:
            actions = _column(chunk, npz, "ta", "iu", num_frames)
            if not 0 <= actions.min() <= actions.max() < writer.num_actions:
                found = f"values from {actions.min()} to {actions.max()}"
                raise _wrong(chunk, "ta", found, f"actions in [0, {writer.num_actions})")
        done = _column(chunk, npz, "done", "b", num_frames)
        rewards = _column(chunk, npz, "rewards", "f", num_frames)
        if not (np.abs(rewards) <= np.finfo(np.float32).max).all():
            raise _wrong(chunk, "rewards", "values that are not finite as float32", "finite ones")
        taken = num_frames if limit is None else min(num_frames, limit)
        base = writer.reserve(taken)
        starts = done.copy()
        starts[1:] |= done[:-1]
        starts[0] = True
        writer.put_columns(base, None if actions is None else actions[:taken], rewards[:taken], starts[:taken])
        # The reader closes what is open from here on.
        reading = readers.submit(_store_frames, stack.pop_all(), stream, writer, base, taken)
    ends = np.flatnonzero(done[:taken])
    returns = [float(rewards[start:end].sum(dtype=np.float64)) for start, end in itertools.pairwise(ends)]
    return reading, taken, returns


def _store_frames(opened: ExitStack, stream: IO[bytes], writer: StoreWriter, base: int, count: int) -> None:
    """Bring ``count`` frames from the stream into the rows from ``base`` on, and close what is ``opened``."""
    with opened:
        piece_frames = max(1, min(count, _PIECE_BYTES // math.prod(writer.frame_shape)))
        piece = np.empty((piece_frames, *writer.frame_shape), np.uint8)
        for start in range(0, count, piece_frames):
            part = piece[: count - start]
            _read_fully(stream, part)
            writer.put_frames(base + start, part)


@contextmanager
def _open_obs(chunk: Chunk, npz: zipfile.ZipFile) -> Iterator[tuple[IO[bytes], Header]]:
    """The stream of ``obs``, standing at its first frame, and its header."""
    with chunk.array(npz, "obs") as (stream, header):
        shape = header.shape
        if header.dtype != np.uint8 or len(shape) != 4 or shape[3] != 3 or min(shape) < 1 or max(shape[1:]) > 65_535:
            raise _wrong(chunk, "obs", str(header), "uint8 (N, H, W, 3)")
        yield stream, header


def _column(chunk: Chunk, npz: zipfile.ZipFile, name: str, kinds: str, num_frames: int | None = None) -> NDArray[Any]:
    """An array with one entry per frame, of one of the ``kinds`` of dtype."""
    with chunk.array(npz, name) as (_, header):
        if len(header.shape) != 1 or (num_frames is not None and header.shape != (num_frames,)):
            expected = "one entry per frame" if num_frames is None else f"({num_frames},), one entry per frame,"
            raise _wrong(chunk, name, f"shape {shortened(str(header.shape))}", expected)
        if header.dtype.kind not in kinds:
            raise _wrong(chunk, name, str(header.dtype), {"iu": "integers", "b": "bool", "f": "finite float32"}[kinds])
        return header.read()


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
    what it claims to be.
    """
    try:
        with zipfile.ZipFile(source) as archive:
            names = archive.namelist()
    except UNREADABLE as error:
        raise CorruptDataError(f"{source} is truncated or no zip file: get it again.") from error
    for name in names:
        path = PurePosixPath(name.replace("\\", "/"))
        if path.is_absolute() or ".." in path.parts or re.match("[A-Za-z]:", name):
            raise CorruptDataError(
                f"{source} holds a file named '{shortened(name)}', which leads out of it: it is not used."
            )
    return names


SOURCES.register(NpzSource())
