"""Where demonstrations can come from: replay logs, npz chunks, or a zip file of chunks that must be fetched first."""

from dataclasses import dataclass
from pathlib import Path

from lapo_cli.core.data.replay_log import read_log
from lapo_cli.core.data.sources.npz import chunks_source, find_chunks, import_chunks
from lapo_cli.core.data.sources.replay import import_replay, log_source, steps_within
from lapo_cli.core.data.store import SPLITS, Manifest, Split
from lapo_cli.core.errors import MissingInputError, UsageError
from lapo_cli.core.files import disk_full_as_error
from lapo_cli.core.progress import Progress

Bounds = dict[Split, int | None]
"""Split -> most frames to take, None for all."""

_OFFICIAL_FRAMES: dict[Split, int] = {"train": 80 * 32_768, "test": 16 * 4_096}
"""About what a game's official zip file holds; how much exactly shows when it is here."""


@dataclass(frozen=True)
class Offer:
    """The store that an origin can make of one split.

    Attributes:
        source: the words by which the store will be known.
        num_frames: how many frames, None where that is not known yet.
    """

    source: str
    num_frames: int | None


@dataclass(frozen=True)
class LogOrigin:
    """Replay logs of a game, on this disk: split -> file."""

    game: str
    paths: dict[Split, Path]

    def offers(self, bounds: Bounds) -> dict[Split, Offer]:
        """What can be made.

        Raises:
            UsageError: a log is of another game, or a bound too small.
            MissingInputError, CorruptDataError: a log is not there or damaged.
        """
        found = {}
        for split, path in self.paths.items():
            log = read_log(path)
            if log.game != self.game:
                raise UsageError(f"{path} holds demonstrations of {log.game}, not of {self.game}: check the name.")
            frames = steps_within(log, bounds[split]) * log.num_envs
            found[split] = Offer(log_source(path, bounds[split]), frames)
        return found

    def store(self, split: Split, data_dir: Path, bound: int | None, progress: Progress | None) -> Manifest:
        """Make one store; see :func:`import_replay`."""
        return import_replay(self.paths[split], data_dir, split, max_frames=bound, progress=progress)


@dataclass(frozen=True)
class ChunkOrigin:
    """Npz chunks of a game in a folder or zip file on this disk.

    Attributes:
        game: its name.
        path: the folder or zip file.
        scratch: a folder for temporary files.
        name: what to call it in manifests, by default its path.
    """

    game: str
    path: Path
    scratch: Path
    name: str | None = None

    def offers(self, bounds: Bounds) -> dict[Split, Offer]:
        """What can be made, supposing that all chunks are as long as the first.

        Raises:
            MissingInputError: there are no chunks of the game.
            CorruptDataError: a chunk is missing or the first one damaged.
            DiskFullError: no room to look into the first one.
        """
        found: dict[Split, Offer] = {}
        missing: MissingInputError | None = None
        for split in SPLITS:
            try:
                chunks = find_chunks(self.path, self.game, split)
            except MissingInputError as error:
                missing = missing or error
                continue
            with disk_full_as_error(self.scratch):
                self.scratch.mkdir(parents=True, exist_ok=True)
            frames = _bounded(len(chunks) * chunks[0].num_frames(self.scratch), bounds[split])
            found[split] = Offer(self._words(bounds[split]), frames)
        if missing and not found:
            raise missing
        return found

    def store(self, split: Split, data_dir: Path, bound: int | None, progress: Progress | None) -> Manifest:
        """Make one store; see :func:`import_chunks`."""
        return import_chunks(
            self.path,
            data_dir,
            self.game,
            split,
            max_frames=bound,
            description=self._words(bound),
            progress=progress,
        )

    def _words(self, bound: int | None) -> str:
        return chunks_source(self.name or str(self.path.absolute()), bound)


@dataclass(frozen=True)
class RemoteOrigin:
    """A zip file of npz chunks at an address; it becomes a :class:`ChunkOrigin` once it is fetched.

    Attributes:
        game: its name.
        url: the address.
        official: whether it is the published set, whose size is roughly known.
    """

    game: str
    url: str
    official: bool

    def offers(self, bounds: Bounds) -> dict[Split, Offer]:
        """What can presumably be made; nothing is asked of the server."""
        return {
            split: Offer(
                chunks_source(self.url, bounds[split]),
                _bounded(_OFFICIAL_FRAMES[split], bounds[split]) if self.official else None,
            )
            for split in SPLITS
        }


Origin = LogOrigin | ChunkOrigin | RemoteOrigin


def _bounded(count: int, bound: int | None) -> int:
    return count if bound is None else min(count, bound)
