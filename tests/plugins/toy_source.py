"""A source: demonstrations that other code makes, here random moves of a square."""

from pathlib import Path

import numpy as np

from lapo_cli.core.data.sources.base import SOURCES, Bounds, Importer, Offer, Source
from lapo_cli.core.data.store import Manifest, Split, store_path
from lapo_cli.core.data.store_writer import StoreWriter
from lapo_cli.core.progress import Progress

_LENGTH = 64  # frames per episode


class Squares(Importer):
    """Episodes of 64 frames in which a square of 8x8 pixels moves over a board of 48x48, by one of five actions."""

    def __init__(self, game: str) -> None:
        self._game = game

    def offers(self, bounds: Bounds) -> dict[Split, Offer]:
        return {split: Offer(f"squares, {split}", self._frames(bounds[split]), 48 * 48 * 3) for split in bounds}

    def _frames(self, bound: int | None) -> int:
        return min(bound or 2048, 2048) // _LENGTH * _LENGTH

    def store(self, split: Split, data_dir: Path, bound: int | None, progress: Progress) -> Manifest:
        rng = np.random.default_rng(["train", "test"].index(split))
        count = self._frames(bound)
        actions = rng.integers(0, 5, count).astype(np.uint8)
        starts = np.arange(count) % _LENGTH == 0
        frames = np.zeros((count, 48, 48, 3), np.uint8)
        place = np.array([0, 0])
        for t in range(count):
            place = rng.integers(0, 6, 2) if starts[t] else place
            row, column = 8 * place
            frames[t, row : row + 8, column : column + 8] = 255
            place = (place + [(0, 0), (-1, 0), (1, 0), (0, -1), (0, 1)][actions[t]]).clip(0, 5)
        with StoreWriter(store_path(data_dir, self._game, split), self._game, split, (48, 48, 3), 5) as writer:
            writer.put_frames(writer.reserve(count), frames)
            writer.put_columns(0, actions, np.zeros(count, np.float32), starts)
            return writer.finish(source=f"squares, {split}", made_by="squares", episode_returns=[])


class SquaresSource(Source):
    """Makes demonstrations of any game; it reads no location."""

    name = "squares"
    description = "A square that moves at random."

    def open(self, game: str, location: str | None, scratch: Path) -> Importer | None:
        return Squares(game) if location is None else None


SOURCE = SquaresSource()
SOURCES.register(SOURCE)
