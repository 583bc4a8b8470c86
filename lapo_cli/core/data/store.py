"""The frame store: one game's frames of one split as a raw file that is memory-mapped, small arrays beside it.

``<data_dir>/<game>/<split>/`` holds

- ``frames.u8``: (N, H, W, 3) uint8, raw;
- ``actions.npy``: (N,) uint8, the action taken at that frame, or :data:`UNLABELLED`; absent where there are no actions;
- ``rewards.npy``: (N,) float32, the reward which that action led to;
- ``episode_starts.npy``: (N,) bool, true where the frame does not follow the one before it;
- ``returns.npy``: (num_episodes,) float64, the returns of the episodes that are there from beginning to end;
- ``manifest.json``: shapes, counts, origin and fingerprint. It is written last, in a folder that is then renamed into
  place, so that a partial store is never taken for a complete one.

Stores of version 1 have no ``returns.npy``; their frames are (64, 64, 3) and their actions 15.
"""

import hashlib
import itertools
import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict, Field, FiniteFloat, TypeAdapter, ValidationError, model_validator
from pydantic.dataclasses import dataclass as validated_dataclass

from lapo_cli.core.data.arrays import load_array
from lapo_cli.core.errors import CorruptDataError, MissingInputError, shortened
from lapo_cli.core.files import parse_json

Split = Literal["train", "test"]
SPLITS: tuple[Split, Split] = ("train", "test")

FORMAT_VERSION = 2
UNLABELLED = 255
"""Stands in the actions of a frame whose action is not known."""

FRAMES_FILE = "frames.u8"
MANIFEST_FILE = "manifest.json"
_ACTIONS = {"actions": np.dtype(np.uint8)}
_COLUMNS: dict[str, np.dtype[Any]] = {"rewards": np.dtype(np.float32), "episode_starts": np.dtype(np.bool_)}
RETURNS = "returns"
_VERSION_1 = {"frame_shape": [64, 64, 3], "num_actions": 15}
_FINGERPRINT_FRAMES = 256

FrameShape = tuple[int, int, int]
_Side = Annotated[int, Field(ge=1, le=65_535)]
_Text = Annotated[str, Field(max_length=10_000)]


@validated_dataclass(frozen=True, config=ConfigDict(strict=True))
class Manifest:
    """The description of a store.

    Attributes:
        format_version: version of the layout above.
        lapo_version: version of the tool that made it.
        game, split: what it holds.
        num_frames: N.
        frame_shape: (H, W, 3).
        num_actions: how many actions there are, None where the frames have none.
        num_episodes: episodes that are there from their first frame to their last, with their rewards.
        mean_return: mean return of those, None where there is none.
        source: where the frames came from; two stores of the same source and version are equal.
        made_by: the importer.
        fingerprint: SHA-256 of the small arrays and of frames spread over the store.
    """

    format_version: Annotated[int, Field(ge=1, le=FORMAT_VERSION)]
    lapo_version: _Text
    game: _Text
    split: _Text
    num_frames: Annotated[int, Field(ge=1, le=2**40)]
    frame_shape: tuple[_Side, _Side, Annotated[int, Field(ge=3, le=3)]]
    num_actions: Annotated[int, Field(ge=1, le=UNLABELLED)] | None
    num_episodes: Annotated[int, Field(ge=0, le=2**40)]
    mean_return: FiniteFloat | None
    source: _Text
    made_by: _Text
    fingerprint: _Text

    @model_validator(mode="after")
    def _episodes_have_a_mean(self) -> "Manifest":
        if (self.num_episodes == 0) != (self.mean_return is None):
            raise ValueError("a mean return belongs to at least one episode")
        return self

    @property
    def frame_bytes(self) -> int:
        """Bytes of one frame."""
        return math.prod(self.frame_shape)

    @property
    def num_bytes(self) -> int:
        """Bytes of the frames on disk; the rest is negligible."""
        return self.num_frames * self.frame_bytes

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


_MANIFEST = TypeAdapter(Manifest)


@dataclass(frozen=True, eq=False)
class Video:
    """Frames and where they break, and nothing else: what stages 1 and 2 may see. There are no actions in it.

    Attributes:
        frames: (N, H, W, 3) uint8, read-only, usually a memory map.
        episode_starts: (N,) bool.
        fingerprint: identifies the content.
    """

    frames: NDArray[np.uint8]
    episode_starts: NDArray[np.bool_]
    fingerprint: str

    def windows(self, max_frames: int | None = None) -> NDArray[np.int64]:
        """Centres t, ascending, (W,) int64, of all windows (t-1, t, t+1) within one episode and ``max_frames``."""
        starts = self.episode_starts[:max_frames]
        return np.flatnonzero(~(starts[1:-1] | starts[2:])).astype(np.int64) + 1


@dataclass(frozen=True, eq=False)
class FrameStore:
    """A complete, validated store. Make one with :meth:`open`.

    Attributes:
        path: its folder.
        manifest: its description.
        frames: (N, H, W, 3) uint8 memory map, read-only.
        actions: (N,) uint8, :data:`UNLABELLED` where the action is not known; None where there are no actions at all.
        rewards: (N,) float32; episode_starts: (N,) bool; in memory.
    """

    path: Path
    manifest: Manifest
    frames: NDArray[np.uint8]
    actions: NDArray[np.uint8] | None
    rewards: NDArray[np.float32]
    episode_starts: NDArray[np.bool_]
    _returns: NDArray[np.float64]

    @classmethod
    def open(cls, path: Path) -> "FrameStore":
        """Open a store and check it against its manifest.

        Raises:
            CorruptDataError: a file is missing, altered, or of the wrong size or type.
        """
        manifest = read_manifest(path)
        frames_file = path / FRAMES_FILE
        expected = manifest.num_bytes
        found = frames_file.stat().st_size if frames_file.is_file() else 0
        if found != expected:
            raise _corrupt(frames_file, f"holds {found:,} bytes instead of {expected:,}")
        columns = {
            name: _read_column(path / f"{name}.npy", dtype, manifest.num_frames)
            for name, dtype in column_types(manifest.num_actions).items()
        }
        frames = map_frames(frames_file, manifest.num_frames, manifest.frame_shape)
        arrays = dict(columns)
        if manifest.format_version > 1:
            returns = _read_column(path / f"{RETURNS}.npy", np.dtype(np.float64), manifest.num_episodes)
            arrays[RETURNS] = returns
        else:
            returns = _derived_returns(manifest, columns["rewards"], columns["episode_starts"])
        if fingerprint(frames, arrays, manifest.num_actions, manifest.format_version) != manifest.fingerprint:
            raise _corrupt(path, "has been altered since it was made: its fingerprint differs")
        return cls(path, manifest, frames, columns.pop("actions", None), **columns, _returns=returns)

    def video(self) -> Video:
        """The frames without the actions."""
        return Video(self.frames, self.episode_starts, self.manifest.fingerprint)

    def labelled(self, windows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Those of the window centres ``windows`` (W,) whose action is known; none where there are no actions."""
        return windows[:0] if self.actions is None else windows[self.actions[windows] != UNLABELLED]

    def episode_returns(self) -> NDArray[np.float64]:
        """Returns (num_episodes,) of the episodes that are there from their first frame to their last.

        In stores of version 1 they are derived from the rewards, and in rare cases a few are missing or too many.
        """
        return self._returns


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
            f"the bundled ones with 'lapo download {game} --source demos', or your own with 'lapo download {game} "
            "--from PATH'."
        )
    return FrameStore.open(path)


def read_manifest(path: Path) -> Manifest:
    """The manifest of the store in folder ``path``; the other files are not looked at.

    Raises:
        CorruptDataError: it is missing, malformed, or of a newer format.
    """
    file = path / MANIFEST_FILE
    try:
        content = parse_json(file.read_bytes())
    except FileNotFoundError as error:
        raise _corrupt(path, f"has no {MANIFEST_FILE}") from error
    except (OSError, ValueError) as error:
        raise _corrupt(file, "is no manifest of a frame store") from error
    version = content.get("format_version") if isinstance(content, dict) else None
    if isinstance(version, int) and FORMAT_VERSION < version < 10**6:
        raise _corrupt(file, f"is of store format {version} where this lapo knows {FORMAT_VERSION}")
    if version == 1:
        content = {**content, **_VERSION_1}
    try:
        # Through JSON again, because a tuple is a list there and nothing else is converted.
        return _MANIFEST.validate_json(json.dumps(content))
    except ValidationError as error:
        where = shortened(".".join(map(str, error.errors()[0]["loc"]))) or "the whole"
        raise _corrupt(file, f"is no manifest of a frame store ({where} is wrong)") from error


def map_frames(file: Path, num_frames: int, frame_shape: FrameShape) -> NDArray[np.uint8]:
    """Map a raw frame file read-only: its pages belong to the page cache and never count as the process's own."""
    return np.memmap(file, dtype=np.uint8, mode="r", shape=(num_frames, *frame_shape))


def column_types(num_actions: int | None) -> dict[str, np.dtype[Any]]:
    """The arrays with one entry per frame of a store with so many actions: name -> type."""
    return _COLUMNS if num_actions is None else _ACTIONS | _COLUMNS


def fingerprint(
    frames: NDArray[np.uint8], arrays: dict[str, NDArray[Any]], num_actions: int | None, version: int = FORMAT_VERSION
) -> str:
    """Hex SHA-256 of the sizes, all of the small arrays, and up to 256 frames spread evenly.

    All of the frames would take a minute on the official data, on every open; altered columns, truncation, holes and
    exchanged files show in this.
    """
    sizes = len(frames) if version == 1 else f"{frames.shape} {num_actions}"
    digest = hashlib.sha256(f"lapo frame store {version}: {sizes}".encode())
    for array in arrays.values():
        digest.update(np.ascontiguousarray(array).data)
    for index in np.linspace(0, len(frames) - 1, min(len(frames), _FINGERPRINT_FRAMES)).astype(np.int64):
        digest.update(frames[index].tobytes())
    return digest.hexdigest()


def _read_column(file: Path, dtype: np.dtype[Any], length: int) -> NDArray[Any]:
    try:
        column = load_array(file)
    except CorruptDataError as error:
        raise _corrupt(file, "is missing, truncated or altered") from error
    if column.dtype != dtype or column.shape != (length,):
        raise _corrupt(file, f"holds {column.dtype} {shortened(str(column.shape))} instead of {dtype} {(length,)}")
    return column


def _derived_returns(
    manifest: Manifest, rewards: NDArray[np.float32], starts: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """The returns of whole episodes in a store of version 1, which did not keep them."""
    breaks = np.flatnonzero(starts)
    if manifest.made_by == "replay":
        # Rows of one environment lie together, and each begins with a break that ends no episode.
        length = len(starts) // max(1, len(breaks) - manifest.num_episodes)
        stretches = [(a, b) for a, b in itertools.pairwise(breaks) if a // length == b // length]
    else:
        # An episode's end was stored as two breaks in a row; a break by itself is the beginning of a chunk.
        ends = breaks[:-1][np.diff(breaks) == 1]
        chunks = np.setdiff1d(breaks, np.concatenate([ends, ends + 1]))
        stretches = [(a, b) for a, b in itertools.pairwise(ends) if not ((a < chunks) & (chunks < b)).any()]
    return np.array([rewards[a:b].sum(dtype=np.float64) for a, b in stretches], np.float64)


def _corrupt(file: Path, what: str) -> CorruptDataError:
    folder = file if file.name in SPLITS else file.parent
    return CorruptDataError(
        f"{file} {what}: make it again with `lapo download {folder.parent.name} --fresh` and the --source or --from "
        "it came from."
    )
