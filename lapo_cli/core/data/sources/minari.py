"""Minari data sets on this machine, with image observations: by their folder, or by their id as Minari keeps them.

An episode of T actions has T + 1 frames, of which the last has no action. Discrete actions are kept, others left out.
About a tenth of the frames, by whole episodes, is for test.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from lapo_cli.core.data.sources.base import (
    SOURCES,
    TEST_FRACTION,
    Bounds,
    Importer,
    Offer,
    Source,
    bounded,
    held_out,
)
from lapo_cli.core.data.store import SPLITS, UNLABELLED, FrameShape, Manifest, Split, store_path
from lapo_cli.core.data.store_writer import StoreWriter
from lapo_cli.core.errors import CorruptDataError, UsageError, describe, one_line
from lapo_cli.core.extras import require_extra
from lapo_cli.core.progress import Progress

_METADATA = Path("data", "metadata.json")


class MinariSource(Source):
    """See the module."""

    name = "minari"
    description = "A Minari data set with image observations: its folder, or its id where Minari has downloaded it."

    def open(self, game: str, location: str | None, scratch: Path) -> Importer | None:
        """See :meth:`Source.open`."""
        path = self.require(location, "a folder or an id")
        kept = os.environ.get("MINARI_DATASETS_PATH") or Path.home() / ".minari" / "datasets"
        for folder in (path, Path(kept, path)):
            if (folder / _METADATA).is_file():
                return MinariImporter(game, folder)
        return None


@dataclass(frozen=True)
class MinariImporter(Importer):
    """A data set in a folder."""

    game: str
    folder: Path

    @cached_property
    def _dataset(self) -> Any:
        minari = require_extra("minari", "minari", "Reading Minari data sets")
        try:
            return minari.MinariDataset(self.folder / _METADATA.parent)
        except Exception as error:  # Whatever Minari and HDF5 raise on damaged files.
            raise self._corrupt(error) from error

    @cached_property
    def _image(self) -> tuple[str | None, FrameShape]:
        """The key of the images in observations, None where these are images themselves, and the shape of a frame."""
        space = self._dataset.observation_space
        parts = dict(space.spaces) if hasattr(space, "spaces") and isinstance(space.spaces, dict) else {None: space}
        images = {
            key: part.shape
            for key, part in parts.items()
            if getattr(part, "dtype", None) == np.uint8 and len(part.shape or ()) == 3 and part.shape[2] == 3
        }
        if len(images) != 1:
            raise UsageError(
                f"The observations of {self.folder} are {one_line(str(space), 100)}: lapo learns from images, uint8 "
                "(H, W, 3), of which there must be one."
            )
        ((key, (height, width, channels)),) = images.items()
        return key, (height, width, channels)

    @cached_property
    def _num_actions(self) -> int | None:
        """How many discrete actions there are; None where they are not discrete."""
        space = self._dataset.action_space
        return int(space.n) if hasattr(space, "n") and space.n < UNLABELLED and space.shape == () else None

    @cached_property
    def _episodes(self) -> dict[Split, list[int]]:
        """Split -> numbers of its episodes."""
        found = self._dataset.total_episodes
        if found < 2:
            raise UsageError(f"{self.folder} has {found} episodes: one for training and one for test are needed.")
        numbers = self._dataset.episode_indices.tolist()
        lengths = self._lengths
        test = held_out([lengths[number] for number in numbers], TEST_FRACTION)
        return {
            "train": [number for place, number in enumerate(numbers) if place not in test],
            "test": [number for place, number in enumerate(numbers) if place in test],
        }

    @cached_property
    def _lengths(self) -> dict[int, int]:
        """Number of an episode -> its frames."""
        try:
            metadata = self._dataset.storage.get_episode_metadata(self._dataset.episode_indices)
            numbers = self._dataset.episode_indices.tolist()
            return {number: int(about["total_steps"]) + 1 for number, about in zip(numbers, metadata, strict=True)}
        except Exception as error:
            raise self._corrupt(error) from error

    def offers(self, bounds: Bounds) -> dict[Split, Offer]:
        """See :meth:`Importer.offers`."""
        _, (height, width, channels) = self._image
        size = height * width * channels
        return {
            split: Offer(self._source(bounds[split]), bounded(self._count(split), bounds[split]), size)
            for split in SPLITS
        }

    def store(self, split: Split, data_dir: Path, bound: int | None, progress: Progress) -> Manifest:
        """See :meth:`Importer.store`; a bound cuts the last episode taken."""
        total = bounded(self._count(split), bound)
        _, shape = self._image
        if self._num_actions is None:
            progress.log(f"The actions of {self.folder} are {self._dataset.action_space}, not discrete: left out.")
        returns: list[float] = []
        target = store_path(data_dir, self.game, split)
        with StoreWriter(target, self.game, split, shape, self._num_actions) as writer:
            with progress.task(f"Storing {self.game} {split}", total, "frames") as task:
                done = 0
                for episode in self._read(split):
                    if done == total:
                        break
                    count, whole = self._put(writer, episode, total - done)
                    returns += whole
                    done += count
                    task.update(done)
            return writer.finish(source=self._source(bound), made_by="minari", episode_returns=returns)

    def _put(self, writer: StoreWriter, episode: Any, most: int) -> tuple[int, list[float]]:
        """Append an episode's first ``most`` frames; how many there are, and its return if it is there whole."""
        key, shape = self._image
        frames = episode.observations if key is None else episode.observations[key]
        length, rewards = len(frames), np.asarray(episode.rewards, np.float32)
        if frames.dtype != np.uint8 or frames.shape[1:] != shape or len(rewards) != length - 1:
            raise CorruptDataError(f"{self.folder}, episode {episode.id}, does not have the frames that are announced.")
        count = min(length, most)
        actions = None
        if self._num_actions is not None:
            taken = np.asarray(episode.actions) - self._dataset.action_space.start
            if taken.shape != (length - 1,) or not ((taken >= 0) & (taken < self._num_actions)).all():
                raise CorruptDataError(f"{self.folder}, episode {episode.id}, has actions that are not announced.")
            actions = np.append(taken, UNLABELLED)[:count]
        at = writer.reserve(count)
        writer.put_frames(at, frames[:count])
        if not np.isfinite(rewards).all():
            raise CorruptDataError(f"{self.folder}, episode {episode.id}, has rewards that are not finite.")
        writer.put_columns(at, actions, np.append(rewards, np.float32(0))[:count], np.arange(count) == 0)
        ended = count == length and bool(episode.terminations[-1] or episode.truncations[-1])
        return count, [float(rewards.sum(dtype=np.float64))] if ended else []

    def _read(self, split: Split) -> Iterator[Any]:
        try:
            for number in self._episodes[split]:
                yield from self._dataset.iterate_episodes([number])
        except (OSError, KeyError, ValueError, RuntimeError) as error:
            raise self._corrupt(error) from error

    def _count(self, split: Split) -> int:
        return sum(self._lengths[number] for number in self._episodes[split])

    def _source(self, bound: int | None) -> str:
        cut = "" if bound is None else f", at most {bound} frames"
        data = (self.folder / _METADATA).parent
        changed = max((file.stat().st_mtime_ns for file in data.iterdir()), default=0)
        return f"Minari data set {self._dataset.id} in {self.folder.absolute()} ({changed}){cut}"

    def _corrupt(self, error: Exception) -> CorruptDataError:
        return CorruptDataError(f"{self.folder} cannot be read ({describe(error)}): get it again.")


SOURCES.register(MinariSource())
