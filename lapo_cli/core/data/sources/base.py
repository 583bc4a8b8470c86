"""What a source of demonstrations is: it inspects a location, reports what it holds, and makes stores of it.

A source is one file: a subclass of :class:`Source`, its :class:`Importer`, and ``SOURCES.register(...)``. An importer
writes a store with :class:`~lapo_cli.core.data.store_writer.StoreWriter`.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lapo_cli.core.data.store import Manifest, Split
from lapo_cli.core.errors import MissingInputError, UsageError
from lapo_cli.core.progress import Progress
from lapo_cli.core.registry import Registry

TEST_FRACTION = 0.1
"""Of the frames, where a source does not say which are for test."""

Bounds = dict[Split, int | None]
"""Split -> most frames to take, None for all."""


@dataclass(frozen=True)
class Offer:
    """The store that an importer can make of one split.

    Attributes:
        source: the manifest's ``source`` of that store: an equal one that is here already need not be made again.
        num_frames: how many frames, None where that is not known yet.
        frame_bytes: bytes of one frame, None where that is not known yet.
    """

    source: str
    num_frames: int | None
    frame_bytes: int | None

    @property
    def num_bytes(self) -> int | None:
        """What the store will take on disk, None where that is not known yet."""
        return None if self.num_frames is None or self.frame_bytes is None else self.num_frames * self.frame_bytes


class Importer(ABC):
    """The demonstrations of one game at one location.

    Attributes:
        url: the address that must be fetched first; None where everything is on this machine.
    """

    url: str | None = None

    def fetch(self, progress: Progress) -> "Importer":
        """These demonstrations, on this machine. Interrupted, another call continues.

        Raises:
            DownloadError: they cannot be fetched.
            DiskFullError: there is not enough disk space.
        """
        return self

    @abstractmethod
    def offers(self, bounds: Bounds) -> dict[Split, Offer]:
        """The stores that can be made, by split; one or both.

        Raises:
            MissingInputError, CorruptDataError, UsageError: there are none, they are damaged, or a bound is too small.
        """

    @abstractmethod
    def store(self, split: Split, data_dir: Path, bound: int | None, progress: Progress) -> Manifest:
        """Make the store of a split that :meth:`offers` names, of at most ``bound`` frames.

        Raises:
            CorruptDataError: the demonstrations are damaged.
            DiskFullError: there is not enough disk space.
            BusyError: another process makes the same store.
        """


class Source(ABC):
    """A kind of place that demonstrations come from.

    Attributes:
        name: as ``--source`` and the configuration's ``data.source`` call it.
        description: what it reads, in one sentence.
    """

    name: str
    description: str

    @abstractmethod
    def open(self, game: str, location: str | None, scratch: Path) -> Importer | None:
        """Look at a location.

        Args:
            game: whose demonstrations are wanted.
            location: a path or an address; None for the source's own demonstrations of the game.
            scratch: folder for what is fetched or unpacked on the way; it need not exist, and is removed once all
                stores are made.

        Returns:
            The importer; None where the location is nothing that this source reads.

        Raises:
            MissingInputError: no location was given, and the source has none of its own for the game.
        """

    def require(self, location: str | None, what: str) -> Path:
        """The location, for a source that has no data of its own; ``what`` it can be is named in the error.

        Raises:
            MissingInputError: it was not given.
        """
        if location is None:
            raise MissingInputError(f"The source '{self.name}' has no data of its own: name {what} with --from.")
        return Path(location)


def bounded(count: int, bound: int | None) -> int:
    """At most ``bound`` of ``count`` frames.

    Raises:
        UsageError: the bound leaves no window of three frames.
    """
    if bound is not None and bound < 3:
        raise UsageError(f"{bound} frames hold no window: take 3 or more.")
    return count if bound is None else min(count, bound)


def held_out(counts: Sequence[int], fraction: float) -> set[int]:
    """Numbers of the clips or episodes that become test frames.

    Together they come near to ``fraction`` of all frames; they are at least one, and never all. The order in which they
    are tried is shuffled, always in the same way.

    Args:
        counts: frames of each, two or more.
    """
    target = fraction * sum(counts)
    chosen: set[int] = set()
    taken = 0
    for number in np.random.default_rng(0).permutation(len(counts)).tolist():
        nearer = abs(taken + counts[number] - target) < abs(taken - target)
        if nearer and len(chosen) < len(counts) - 1:
            chosen.add(number)
            taken += counts[number]
    return chosen or {int(np.argmin(counts))}


SOURCES: Registry[Source] = Registry("source", "lapo.sources", "lapo_cli.core.data.sources")
