"""Small demonstrations of every kind, and a full disk."""

import io
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_drive import FakeDrive

from lapo_cli.core.data.store import Split, store_path
from lapo_cli.core.data.store_writer import StoreWriter

Arrays = dict[str, np.ndarray]


@pytest.fixture
def make_chunk() -> Callable[..., Arrays]:
    """Arrays of a valid chunk of ``n`` frames; keyword arguments replace arrays, None removes one."""

    def make(n: int = 40, seed: int = 0, **changes: Any) -> Arrays:
        rng = np.random.default_rng(seed)
        arrays = {
            "obs": rng.integers(0, 256, (n, 64, 64, 3), dtype=np.uint8),
            "ta": rng.integers(0, 15, n),
            "done": rng.random(n) < 0.15,
            "rewards": rng.normal(size=n).astype(np.float32),
            "ep_returns": np.zeros(n, np.float32),
            "logprobs": np.zeros((n, 15), np.float32),
        } | changes
        return {name: array for name, array in arrays.items() if array is not None}

    return make


@pytest.fixture
def chunk_folder(tmp_path: Path, make_chunk: Callable[..., Arrays]) -> Path:
    """A folder as the published zip unpacks: bigfish, three train chunks of 40 frames, one test chunk of 24."""
    folder = tmp_path / "given"
    for split, count, n in (("train", 3, 40), ("test", 1, 24)):
        (folder / "bigfish" / split).mkdir(parents=True)
        for number in range(count):
            save = np.savez_compressed if number % 2 else np.savez
            save(folder / "bigfish" / split / f"{number}.npz", **make_chunk(n, seed=number))
    return folder


@pytest.fixture
def chunk_zip(chunk_folder: Path) -> bytes:
    """The same as the bytes of a zip file."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(chunk_folder.rglob("*.npz")):
            archive.write(path, path.relative_to(chunk_folder))
    return buffer.getvalue()


@pytest.fixture
def make_store() -> Callable[..., Path]:
    """Make a store of ``n`` frames, each filled with its number modulo 251; returns its folder."""

    def make(data_dir: Path, game: str = "bigfish", split: Split = "train", n: int = 50, every: int = 10) -> Path:
        path = store_path(data_dir, game, split)
        with StoreWriter(path, game, split, (64, 64, 3), 15) as writer:
            at = writer.reserve(n)
            numbers = (np.arange(n) % 251).astype(np.uint8)
            writer.put_frames(at, np.broadcast_to(numbers[:, None, None, None], (n, 64, 64, 3)))
            writer.put_columns(at, numbers % 15, numbers.astype(np.float32), np.arange(n) % every == 0)
            writer.finish(source=f"{n} frames", made_by="test", episode_returns=[])
        return path

    return make


@pytest.fixture
def drive(chunk_zip: bytes) -> Iterator[FakeDrive]:
    server = FakeDrive(chunk_zip)
    yield server
    server.close()
