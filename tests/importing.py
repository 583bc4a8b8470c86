"""Npz chunks made into a store by themselves, without the plan of a download."""

from pathlib import Path

from lapo_cli.core.data.sources.npz import ChunkImporter, find_chunks
from lapo_cli.core.data.store import Manifest, Split
from lapo_cli.core.progress import Silent


def import_chunks(source: Path, data_dir: Path, game: str, split: Split, *, max_frames: int | None = None) -> Manifest:
    """Make the store of a game and split from chunks in a folder or zip file."""
    importer = ChunkImporter(game, find_chunks(source, game), str(source.absolute()), data_dir)
    return importer.store(split, data_dir, max_frames, Silent())
