"""The frame store: one game's frames of one split as a raw file that is memory-mapped, small arrays beside it.

``<data_dir>/<game>/<split>/`` holds

- ``frames.u8``: (N, 64, 64, 3) uint8, raw;
- ``actions.npy``: (N,) uint8, the action taken at that frame;
- ``rewards.npy``: (N,) float32, the reward which that action led to;
- ``episode_starts.npy``: (N,) bool, true where the frame does not follow the one before it;
- ``manifest.json``: counts, origin and fingerprint. It is written last, in a folder that is then renamed into place,
  so that a half-made store is never taken for a whole one.
"""

import hashlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError

from lapo_cli.core.errors import CorruptDataError, MissingInputError

Split = Literal["train", "test"]
SPLITS: tuple[Split, Split] = ("train", "test")

FORMAT_VERSION = 1
FRAME_SHAPE = (64, 64, 3)
FRAME_BYTES = 64 * 64 * 3

FRAMES_FILE = "frames.u8"
MANIFEST_FILE = "manifest.json"
COLUMNS: dict[str, np.dtype[Any]] = {
    "actions": np.dtype(np.uint8),
    "rewards": np.dtype(np.float32),
    "episode_starts": np.dtype(np.bool_),
}
_FINGERPRINT_FRAMES = 256


@dataclass(frozen=True)
class Manifest:
    """What a store says of itself.

    Attributes:
        format_version: version of the layout above.
        lapo_version: version of the tool that made it.
        game, split: what it holds.
        num_frames: N.
        num_episodes: episodes that are there from their first frame to their last.
        mean_return: mean return of those, None where there is none.
        source: where the frames came from; two stores of the same source and version are equal.
        made_by: the importer.
        fingerprint: SHA-256 of the small arrays and of frames spread over the store.
    """

    format_version: int
    lapo_version: str
    game: str
    split: str
    num_frames: int
    num_episodes: int
    mean_return: float | None
    source: str
    made_by: str
    fingerprint: str
    num_actions: int | None = 15

    @property
    def num_bytes(self) -> int:
        """Bytes of the frames on disk; the rest is negligible."""
        return self.num_frames * FRAME_BYTES

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


_MANIFEST = TypeAdapter(Manifest)


@dataclass(frozen=True, eq=False)
class Video:
    """Frames and where they break, and nothing else: what stages 1 and 2 may see. There are no actions in it.

    Attributes:
        frames: (N, 64, 64, 3) uint8, read-only, usually a memory map.
        episode_starts: (N,) bool.
        fingerprint: identifies the content.
    """

    frames: NDArray[np.uint8]
    episode_starts: NDArray[np.bool_]
    fingerprint: str

    def windows(self) -> NDArray[np.int64]:
        """Centres t, ascending, (W,) int64, of all windows (t-1, t, t+1) that lie within one episode."""
        starts = self.episode_starts
        return np.flatnonzero(~(starts[1:-1] | starts[2:])).astype(np.int64) + 1


@dataclass(frozen=True, eq=False)
class FrameStore:
    """A whole, validated store. Make one with :meth:`open`.

    Attributes:
        path: its folder.
        manifest: what it says of itself.
        frames: (N, 64, 64, 3) uint8 memory map, read-only.
        actions: (N,) uint8; rewards: (N,) float32; episode_starts: (N,) bool; in memory.
    """

    path: Path
    manifest: Manifest
    frames: NDArray[np.uint8]
    actions: NDArray[np.uint8]
    rewards: NDArray[np.float32]
    episode_starts: NDArray[np.bool_]

    @classmethod
    def open(cls, path: Path) -> "FrameStore":
        """Open a store and check that it is what its manifest says.

        Raises:
            CorruptDataError: a file is missing, altered, or of the wrong size or type.
        """
        manifest = read_manifest(path)
        frames_file = path / FRAMES_FILE
        expected = manifest.num_bytes
        found = frames_file.stat().st_size if frames_file.is_file() else 0
        if found != expected:
            raise _corrupt(frames_file, manifest.game, f"holds {found:,} bytes instead of {expected:,}")
        columns = {name: _read_column(path / f"{name}.npy", dtype, manifest) for name, dtype in COLUMNS.items()}
        frames = map_frames(frames_file, manifest.num_frames)
        if fingerprint(frames, columns) != manifest.fingerprint:
            raise _corrupt(path, manifest.game, "has been altered since it was made: its fingerprint differs")
        return cls(path, manifest, frames, **columns)

    def episode_returns(self) -> NDArray[np.float64]:
        """Stub."""
        bounds = np.flatnonzero(self.episode_starts)
        return np.add.reduceat(self.rewards.astype(np.float64), bounds) if self.manifest.num_episodes else np.zeros(0)

    def labelled(self, windows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Stub."""
        return windows

    def video(self) -> Video:
        """The frames without the actions."""
        return Video(self.frames, self.episode_starts, self.manifest.fingerprint)


def store_path(data_dir: Path, game: str, split: Split) -> Path:
    """The folder of one store."""
    return data_dir / game / split


def open_store(data_dir: Path, game: str, split: Split) -> FrameStore:
    """Open the store of a game and split.

    Raises:
        MissingInputError: it is not there; the message names the command that gets it.
        CorruptDataError: it is there and damaged.
    """
    path = store_path(data_dir, game, split)
    if not path.is_dir():
        raise MissingInputError(
            f"There are no {split} frames of {game} in {data_dir}: get the official ones with 'lapo download {game}', "
            f"or the bundled ones with 'lapo download {game} --source demos'."
        )
    return FrameStore.open(path)


def read_manifest(path: Path) -> Manifest:
    """The manifest of the store in folder ``path``; the other files are not looked at.

    Raises:
        CorruptDataError: it is missing, malformed, or of a newer format.
    """
    file = path / MANIFEST_FILE
    try:
        manifest = _MANIFEST.validate_json(file.read_bytes())
    except FileNotFoundError as error:
        raise _corrupt(path, path.parent.name, f"has no {MANIFEST_FILE}") from error
    except ValidationError as error:
        raise _corrupt(file, path.parent.name, "is no manifest of a frame store") from error
    if manifest.format_version != FORMAT_VERSION:
        found = f"is of store format {manifest.format_version} where this lapo knows {FORMAT_VERSION}"
        raise _corrupt(file, manifest.game, found)
    return manifest


def map_frames(file: Path, num_frames: int) -> NDArray[np.uint8]:
    """Map a raw frame file read-only: its pages belong to the page cache and never count as the process's own."""
    return np.memmap(file, dtype=np.uint8, mode="r", shape=(num_frames, *FRAME_SHAPE))


def fingerprint(frames: NDArray[np.uint8], columns: dict[str, NDArray[Any]]) -> str:
    """Hex SHA-256 of the number of frames, all of the columns, and up to 256 frames spread evenly.

    All of the frames would take a minute on the official data, on every open; altered columns, truncation, holes and
    exchanged files show in this.
    """
    digest = hashlib.sha256(f"lapo frame store {FORMAT_VERSION}: {len(frames)}".encode())
    for name in COLUMNS:
        digest.update(np.ascontiguousarray(columns[name]).data)
    for index in np.linspace(0, len(frames) - 1, min(len(frames), _FINGERPRINT_FRAMES)).astype(np.int64):
        digest.update(frames[index].tobytes())
    return digest.hexdigest()


def _read_column(file: Path, dtype: np.dtype[Any], manifest: Manifest) -> NDArray[Any]:
    try:
        column: NDArray[Any] = np.load(file, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise _corrupt(file, manifest.game, "is missing or cannot be read") from error
    if column.dtype != dtype or column.shape != (manifest.num_frames,):
        found = f"holds {column.dtype} {column.shape} instead of {dtype} {(manifest.num_frames,)}"
        raise _corrupt(file, manifest.game, found)
    return column


def _corrupt(file: Path, game: str, what: str) -> CorruptDataError:
    return CorruptDataError(f"{file} {what}: make it again with `lapo download {game} --fresh`.")
