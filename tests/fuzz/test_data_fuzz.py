"""Damaged chunks, zip files, replay logs and stores: an error that names the file, or the same result as before."""

import io
import json
import random
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lapo_cli.core.data.download import download
from lapo_cli.core.data.replay_log import ReplayLog, read_log, write_log
from lapo_cli.core.data.store import FrameStore, store_path
from lapo_cli.core.data.store_writer import StoreWriter
from lapo_cli.core.errors import LapoError

_FAST, _ALL = 60, 3000
rounds = pytest.mark.parametrize(
    "seeds", [range(_FAST), pytest.param(range(_FAST, _ALL), marks=[pytest.mark.slow, pytest.mark.timeout(3600)])]
)

_TEXTS = (b"1000000000000", b"-1", b"0", b"None", b"|O8", b"<U0", b"|V0", b"True", b"<f2", b">f8", b"(((", b"'")


def _damage(content: bytes, rng: random.Random) -> bytes:
    """A few random changes, as disks, networks and text editors make them."""
    changed = bytearray(content)
    for _ in range(rng.choice((1, 1, 1, 2, 5))):
        at = rng.randrange(len(changed) + 1)
        kind = rng.randrange(6)
        if kind == 0 and at < len(changed):
            changed[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            del changed[at:]
        elif kind == 2:
            del changed[at : at + rng.randrange(1, 40)]
        elif kind == 3:
            changed[at:at] = rng.randbytes(rng.randrange(1, 40))
        elif kind == 4:
            text = rng.choice(_TEXTS)
            changed[at : at + len(text)] = text
        else:
            changed[at : at + 8] = rng.choice((b"\xff", b"\0")) * 8
    return bytes(changed)


def _damage_archive(content: bytes, rng: random.Random) -> bytes:
    """Damage to one member of a zip file, which is then packed again with a matching checksum."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    name = rng.choice(sorted(members))
    kind = rng.randrange(5)
    if kind == 0:
        del members[name]
    elif kind == 1:
        members[rng.choice(("../x", "train/7.npz", "train/99999999999.npz", "a" * 500, name + "x"))] = members.pop(name)
    elif kind == 2:
        members[name] = members[rng.choice(sorted(members))]
    else:
        # Mostly near the beginning, where the header is.
        head = members[name][: rng.choice((12, 128, 10**9))]
        members[name] = _damage(head, rng) + members[name][len(head) :]
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))) as archive:
        for member, data in members.items():
            archive.writestr(member, data)
    return buffer.getvalue()


def _check(seed: int, path: Path, work: Callable[[], Any], expected: Any) -> None:
    """``work`` gives what it gave before the damage, or an error that a person can use."""
    try:
        found = work()
    except LapoError as error:
        text = str(error)
        assert len(text) < 1000 + 3 * len(str(path)), f"seed {seed}: {text[:2000]}"
        assert path.name in text, f"seed {seed}: {text}"
        assert "pickle" not in text, f"seed {seed}: {text}"
    except Exception as error:
        raise AssertionError(f"seed {seed}: {type(error).__name__}: {error}") from error
    else:
        assert found == expected, f"seed {seed}"


def _chunk(seed: int) -> dict[str, np.ndarray[Any, Any]]:
    rng = np.random.default_rng(seed)
    return {
        "obs": rng.integers(0, 256, (9, 4, 6, 3), dtype=np.uint8),
        "ta": rng.integers(0, 5, 9),
        "done": np.arange(9) % 4 == 3,
        "rewards": rng.normal(size=9).astype(np.float32),
    }


def _packed(arrays: dict[str, np.ndarray[Any, Any]]) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()


def _imported(data: Path, source: Path) -> list[str]:
    shutil.rmtree(data, ignore_errors=True)
    made = download("robot", data, location=source)
    return [FrameStore.open(store_path(data, "robot", split)).manifest.fingerprint for split in made]


@rounds
def test_damaged_chunks(tmp_path: Path, seeds: range) -> None:
    chunk, data = tmp_path / "set" / "train" / "0.npz", tmp_path / "data"
    chunk.parent.mkdir(parents=True)
    content = _packed(_chunk(0))
    chunk.write_bytes(content)
    expected = _imported(data, tmp_path / "set")
    for seed in seeds:
        rng = random.Random(seed)
        damaged = rng.choice((_damage, _damage_archive))(content, rng)
        chunk.write_bytes(damaged)
        # What changes the content and keeps every checksum and rule is another chunk, and not a damaged one.
        if not _same_arrays(damaged, content):
            _check(seed, chunk, lambda: _imported(data, tmp_path / "set") and expected, expected)
        else:
            _check(seed, chunk, lambda: _imported(data, tmp_path / "set"), expected)


def _same_arrays(one: bytes, other: bytes) -> bool:
    try:
        with zipfile.ZipFile(io.BytesIO(one)) as a, zipfile.ZipFile(io.BytesIO(other)) as b:
            return all(a.read(name) == b.read(name) for name in b.namelist())
    except Exception:
        return False


@rounds
def test_damaged_zip_files(tmp_path: Path, seeds: range) -> None:
    path, data = tmp_path / "set.zip", tmp_path / "data"
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for number, name in enumerate(("train/0.npz", "train/1.npz", "test/0.npz")):
            archive.writestr(name, _packed(_chunk(number)))
    content = buffer.getvalue()
    path.write_bytes(content)
    for seed in seeds:
        rng = random.Random(seed)
        path.write_bytes(rng.choice((_damage, _damage_archive))(content, rng))
        _check(seed, path, lambda: _imported(data, path) and None, None)


@rounds
def test_damaged_replay_logs(tmp_path: Path, seeds: range) -> None:
    path = tmp_path / "maze-train.npz"
    actions = np.random.default_rng(0).integers(0, 15, (40, 3), dtype=np.uint8)
    write_log(path, ReplayLog("maze", "easy", 1, actions, ("0" * 64,), 64, 1.0, "1", {"settings": {"seed": 1}}))
    content = path.read_bytes()
    for seed in seeds:
        rng = random.Random(seed)
        path.write_bytes(rng.choice((_damage, _damage_archive))(content, rng))
        _check(seed, path, lambda: read_log(path).num_envs >= 1, True)


@rounds
def test_damaged_stores(tmp_path: Path, seeds: range) -> None:
    path = store_path(tmp_path, "robot", "train")
    with StoreWriter(path, "robot", "train", (4, 6, 3), 5) as writer:
        arrays = _chunk(0)
        at = writer.reserve(9)
        writer.put_frames(at, arrays["obs"])
        writer.put_columns(at, arrays["ta"], arrays["rewards"], arrays["done"])
        writer.finish(source="made up", made_by="test", episode_returns=[1.0, 2.0])
    files = {file: file.read_bytes() for file in sorted(path.iterdir())}
    expected = FrameStore.open(path).manifest.fingerprint
    for seed in seeds:
        rng = random.Random(seed)
        file = rng.choice(list(files))
        content = files[file]
        if file.suffix == ".json" and rng.random() < 0.6:
            manifest = json.loads(content)
            key = rng.choice(sorted(manifest))
            manifest[key] = rng.choice((None, 0, -1, 10**40, 1e300, "x" * 10**5, [], {}, [[[]]], True, [10**9, 4, 3]))
            file.write_text(json.dumps(manifest))
        else:
            file.write_bytes(_damage(content, rng))
        try:
            _check(seed, path, lambda: FrameStore.open(path).manifest.fingerprint, expected)
        finally:
            file.write_bytes(content)
