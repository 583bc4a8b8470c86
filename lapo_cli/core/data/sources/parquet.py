"""Parquet files with a row per frame, as those of EpicPinkPenguin/procgen on Hugging Face.

A folder, or one of the name of the game in it, holds ``train*.parquet`` and ``test*.parquet``, which follow on one
another in the order of their names. Columns: ``observation`` (H, W, 3) uint8, ``action``, ``reward``, ``done`` and, if
there is one, ``truncated``; after a row in which one of these two is true, the next row starts an episode.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lapo_cli.core.data.sources.base import SOURCES, Bounds, Importer, Offer, Source, bounded
from lapo_cli.core.data.store import SPLITS, UNLABELLED, FrameShape, Manifest, Split, store_path
from lapo_cli.core.data.store_writer import StoreWriter
from lapo_cli.core.envs.base import ENVIRONMENTS
from lapo_cli.core.errors import CorruptDataError, LapoError, describe
from lapo_cli.core.extras import require_extra
from lapo_cli.core.progress import Progress

_COLUMNS = ("observation", "action", "reward", "done")
_OPTIONAL = ("truncated",)
_BATCH = 1024
_LONGEST_SIDE = 4096


class ParquetSource(Source):
    """See the module."""

    name = "parquet"
    description = "Parquet files with a row per frame, such as those of EpicPinkPenguin/procgen: a file or a folder."

    def open(self, game: str, location: str | None, scratch: Path) -> Importer | None:
        """See :meth:`Source.open`."""
        path = self.require(location, "a folder or a file")
        if path.is_file() and path.suffix == ".parquet":
            return ParquetImporter(game, {"test" if path.name.startswith("test") else "train": [path]}, path)
        for folder in (path / game, path):
            files = {split: sorted(folder.glob(f"{split}*.parquet")) for split in SPLITS}
            if any(files.values()):
                return ParquetImporter(game, {split: found for split, found in files.items() if found}, folder)
        return None


@dataclass(frozen=True)
class ParquetImporter(Importer):
    """Parquet files on this machine: split -> files in order, and where they are."""

    game: str
    files: dict[Split, list[Path]]
    location: Path

    def offers(self, bounds: Bounds) -> dict[Split, Offer]:
        """See :meth:`Importer.offers`."""
        height, width, channels = self._frame_shape
        return {
            split: Offer(
                self._source(split, bounds[split]),
                bounded(self._count(split), bounds[split]),
                height * width * channels,
            )
            for split in self.files
        }

    def store(self, split: Split, data_dir: Path, bound: int | None, progress: Progress) -> Manifest:
        """See :meth:`Importer.store`."""
        total = bounded(self._count(split), bound)
        returns: list[float] = []
        running, starts_next, done = 0.0, True, 0
        target = store_path(data_dir, self.game, split)
        with StoreWriter(target, self.game, split, self._frame_shape, self._num_actions) as writer:
            with progress.task(f"Storing {self.game} {split}", total, "frames") as task:
                for rows in self._rows(split, (*_COLUMNS, *_OPTIONAL), self._frame_shape):
                    part = slice(0, total - done)
                    frames, actions, rewards = rows["observation"][part], rows["action"][part], rows["reward"][part]
                    ends = (rows["done"] | rows.get("truncated", False))[part]
                    starts = np.append(starts_next, ends[:-1])
                    at = writer.reserve(len(frames))
                    writer.put_frames(at, frames)
                    writer.put_columns(at, actions, rewards, starts)
                    for reward, end in zip(rewards.tolist(), ends.tolist(), strict=True):
                        running += reward
                        if end:
                            returns.append(running)
                            running = 0.0
                    starts_next, done = bool(ends[-1]), done + len(frames)
                    task.update(done)
                    if done == total:
                        break
            return writer.finish(source=self._source(split, bound), made_by="parquet", episode_returns=returns)

    @cached_property
    def _num_actions(self) -> int:
        """How many actions there are: as the game defines or, for data of one's own, as many as occur."""
        if self.game in ENVIRONMENTS:
            return ENVIRONMENTS.get(self.game).require_actions()
        return 1 + max(int(rows["action"].max()) for split in self.files for rows in self._rows(split, ("action",)))

    @cached_property
    def _frame_shape(self) -> FrameShape:
        file = next(iter(self.files.values()))[0]
        batch = next(self._open(file).iter_batches(1, columns=["observation"]), None)
        if batch is None:
            raise CorruptDataError(f"{file} has no rows: get it again.")
        shape: list[int] = []
        values = batch.column(0)[0]
        while hasattr(values.type, "value_type") and len(shape) < 4:
            shape.append(len(values))
            values = values[0] if len(values) else values
            if shape[-1] == 0:
                break
        if len(shape) != 3 or shape[2] != 3 or str(values.type) != "uint8" or not 1 <= max(shape[:2]) <= _LONGEST_SIDE:
            raise CorruptDataError(
                f"{file} has observations of {batch.column(0).type} {tuple(shape)} where uint8 (H, W, 3) is expected."
            )
        return shape[0], shape[1], shape[2]

    def _rows(
        self, split: Split, names: tuple[str, ...], shape: FrameShape | None = None
    ) -> Iterator[dict[str, NDArray[Any]]]:
        """Columns of up to 1,024 rows at a time; frames as (K, H, W, 3)."""
        for file in self.files[split]:
            content = self._open(file)
            there = [name for name in names if name in content.schema_arrow.names]
            try:
                for batch in content.iter_batches(_BATCH, columns=there):
                    if batch.num_rows:
                        yield {name: self._array(file, name, batch, shape) for name in batch.schema.names}
            except LapoError:
                raise
            except Exception as error:  # Whatever pyarrow raises on damaged files.
                raise CorruptDataError(f"{file} is truncated or altered ({describe(error)}): get it again.") from error

    def _array(self, file: Path, name: str, batch: Any, shape: FrameShape | None) -> NDArray[Any]:
        values = batch.column(batch.schema.names.index(name))
        while hasattr(values.type, "value_type"):
            values = values.flatten()
        array: NDArray[Any] = values.to_numpy(zero_copy_only=False)
        if name == "observation" and shape is not None:
            if array.dtype != np.uint8 or array.size != batch.num_rows * int(np.prod(shape)):
                raise CorruptDataError(f"{file} has frames that are not all uint8 {shape}: get it again.")
            return array.reshape(batch.num_rows, *shape)
        kinds = {"action": "iu", "reward": "f"}.get(name, "b")
        if array.shape != (batch.num_rows,) or array.dtype.kind not in kinds:
            raise CorruptDataError(f"{file}: the column {name} holds {values.type}, or values are missing.")
        if name == "action" and not 0 <= array.min() <= array.max() < self._most_actions:
            raise CorruptDataError(f"{file} has actions from {array.min()} to {array.max()}: get it again.")
        if name == "reward" and not (np.abs(array) <= np.finfo(np.float32).max).all():
            raise CorruptDataError(f"{file} has rewards that are not finite: get it again.")
        return array

    @property
    def _most_actions(self) -> int:
        return self._num_actions if self.game in ENVIRONMENTS else UNLABELLED

    def _open(self, file: Path) -> Any:
        parquet = require_extra("pyarrow.parquet", "parquet", "Reading parquet files")
        try:
            content = parquet.ParquetFile(file)
        except Exception as error:
            raise CorruptDataError(
                f"{file} is truncated or no parquet file ({describe(error)}): get it again."
            ) from error
        missing = [name for name in _COLUMNS if name not in content.schema_arrow.names]
        if missing:
            raise CorruptDataError(f"{file} has no column {missing[0]}: it holds no frames of demonstrations.")
        return content

    def _count(self, split: Split) -> int:
        return sum(self._open(file).metadata.num_rows for file in self.files[split])

    def _source(self, split: Split, bound: int | None) -> str:
        cut = "" if bound is None else f", at most {bound} frames"
        size = sum(file.stat().st_size for file in self.files[split])
        return f"parquet files of {self.location.absolute()} ({len(self.files[split])} files, {size} bytes){cut}"


SOURCES.register(ParquetSource())
