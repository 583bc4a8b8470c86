import io
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lapo_cli.core.data.sources.npz import NpzSource, find_chunks
from lapo_cli.core.data.store import open_store
from lapo_cli.core.errors import CorruptDataError, MissingInputError, UsageError
from tests.importing import import_chunks

MakeChunk = Callable[..., dict[str, np.ndarray]]


def _folder(tmp_path: Path, *chunks: dict[str, np.ndarray]) -> Path:
    folder = tmp_path / "set"
    (folder / "train").mkdir(parents=True)
    for number, arrays in enumerate(chunks):
        np.savez(folder / "train" / f"{number}.npz", **arrays)
    return folder


@pytest.mark.parametrize("packed", [False, True])
def test_chunks_become_a_store(
    tmp_path: Path, chunk_folder: Path, chunk_zip: bytes, make_chunk: MakeChunk, packed: bool
) -> None:
    source = chunk_folder
    if packed:
        source = tmp_path / "bigfish.zip"
        source.write_bytes(chunk_zip)
    made = import_chunks(source, tmp_path / "data", "bigfish", "train")
    store = open_store(tmp_path / "data", "bigfish", "train")
    chunks = [make_chunk(40, seed=number) for number in range(3)]
    np.testing.assert_array_equal(store.frames, np.concatenate([c["obs"] for c in chunks]))
    np.testing.assert_array_equal(store.actions, np.concatenate([c["ta"] for c in chunks]))
    np.testing.assert_array_equal(store.rewards, np.concatenate([c["rewards"] for c in chunks]))
    for number, chunk in enumerate(chunks):
        for i in range(40):
            expected = i == 0 or chunk["done"][i] or chunk["done"][i - 1]
            assert store.episode_starts[40 * number + i] == expected
    assert made == store.manifest
    assert made.num_episodes == sum(int(c["done"].sum()) - 1 for c in chunks)
    assert str(source) in made.source


def test_episodes_and_their_mean_return(tmp_path: Path, make_chunk: MakeChunk) -> None:
    done = np.isin(np.arange(10), [2, 5, 9])
    rewards = np.arange(10, dtype=np.float32)
    made = import_chunks(_folder(tmp_path, make_chunk(10, done=done, rewards=rewards)), tmp_path, "heist", "train")
    assert made.num_episodes == 2
    assert made.mean_return == ((2 + 3 + 4) + (5 + 6 + 7 + 8)) / 2


@pytest.mark.parametrize(("bound", "stored"), [(3, 3), (40, 40), (55, 55), (120, 120), (1000, 120)])
def test_max_frames_cuts(tmp_path: Path, chunk_folder: Path, bound: int, stored: int) -> None:
    import_chunks(chunk_folder, tmp_path / "all", "bigfish", "train")
    made = import_chunks(chunk_folder, tmp_path / "cut", "bigfish", "train", max_frames=bound)
    assert made.num_frames == stored
    whole, cut = (open_store(tmp_path / name, "bigfish", "train") for name in ("all", "cut"))
    np.testing.assert_array_equal(cut.frames, whole.frames[:stored])
    np.testing.assert_array_equal(cut.episode_starts, whole.episode_starts[:stored])


def test_too_few_frames_for_a_window_are_refused(tmp_path: Path, chunk_folder: Path) -> None:
    with pytest.raises(UsageError, match="3 or more"):
        import_chunks(chunk_folder, tmp_path / "data", "bigfish", "train", max_frames=2)


def test_chunks_are_ordered_by_number(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    for number in range(12):
        (tmp_path / "train" / f"{number}.npz").touch()
    (tmp_path / "train" / "notes.npz").touch()
    names = [chunk.origin.name for chunk in find_chunks(tmp_path, "bigfish")["train"]]
    assert names == [f"{number}.npz" for number in range(12)]


@pytest.mark.parametrize(("removed", "named"), [([2], "2.npz"), ([0], "0.npz"), ([1, 2], "1.npz, 2.npz")])
def test_missing_numbers_are_named(tmp_path: Path, removed: list[int], named: str) -> None:
    (tmp_path / "train").mkdir()
    for number in set(range(4)) - set(removed):
        (tmp_path / "train" / f"{number}.npz").touch()
    with pytest.raises(CorruptDataError, match=f"lacks {named} in"):
        find_chunks(tmp_path, "bigfish")


def test_a_folder_without_chunks(tmp_path: Path) -> None:
    assert find_chunks(tmp_path, "bigfish") == {}
    assert NpzSource().open("bigfish", str(tmp_path), tmp_path) is None
    assert NpzSource().open("bigfish", str(tmp_path / "nothing"), tmp_path) is None


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"obs": None}, "no array obs"),
        ({"ta": None}, "no array ta"),
        ({"done": None}, "no array done"),
        ({"rewards": None}, "no array rewards"),
        ({"obs": np.zeros((40, 64, 64, 3), np.float32)}, "obs holds float32"),
        ({"obs": np.zeros((40, 3, 64, 64), np.uint8)}, r"obs holds uint8 \(40, 3, 64, 64\)"),
        ({"obs": np.zeros((0, 64, 64, 3), np.uint8)}, r"obs holds uint8 \(0, 64, 64, 3\)"),
        ({"obs": np.asfortranarray(np.zeros((40, 64, 64, 3), np.uint8))}, "Fortran"),
        ({"ta": np.zeros(39, np.int64)}, r"ta holds shape \(39,\)"),
        ({"ta": np.zeros((40, 1), np.int64)}, r"ta holds shape \(40, 1\)"),
        ({"ta": np.full(40, 15)}, "ta holds values from 15 to 15"),
        ({"ta": np.full(40, -1)}, "ta holds values from -1"),
        ({"ta": np.zeros(40)}, "ta holds float64"),
        ({"ta": np.array([None] * 40)}, "neither numbers nor text"),
        ({"done": np.zeros(40, np.float32)}, "done holds float32"),
        ({"rewards": np.full(40, np.nan, np.float32)}, "rewards holds values that are not finite"),
        ({"rewards": np.zeros(40, np.int64)}, "rewards holds int64"),
        ({"rewards": np.full(40, 1e300)}, "rewards holds values that are not finite"),
    ],
)
def test_a_wrong_array_is_named(tmp_path: Path, make_chunk: MakeChunk, changes: dict[str, Any], named: str) -> None:
    folder = _folder(tmp_path, make_chunk(), make_chunk(**changes))
    with pytest.raises(CorruptDataError, match=named) as caught:
        import_chunks(folder, tmp_path / "data", "bigfish", "train")
    assert "1.npz" in str(caught.value)
    with pytest.raises(MissingInputError):
        open_store(tmp_path / "data", "bigfish", "train")


@pytest.mark.parametrize("kind", [np.uint8, np.int8, np.int32, np.int64])
def test_any_integer_kind_of_actions_is_taken(tmp_path: Path, make_chunk: MakeChunk, kind: type) -> None:
    folder = _folder(tmp_path, make_chunk(15, ta=np.arange(15).astype(kind)))
    import_chunks(folder, tmp_path, "bigfish", "train")
    assert open_store(tmp_path, "bigfish", "train").actions.tolist() == list(range(15))


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(keep=st.floats(0, 0.999))
def test_a_truncated_chunk_is_refused_wherever_it_was_cut(
    tmp_path_factory: pytest.TempPathFactory, make_chunk: MakeChunk, keep: float
) -> None:
    tmp_path = tmp_path_factory.mktemp("cut")
    folder = _folder(tmp_path, make_chunk(8))
    chunk = folder / "train" / "0.npz"
    os.truncate(chunk, int(chunk.stat().st_size * keep))
    with pytest.raises(CorruptDataError, match=r"0\.npz"):
        import_chunks(folder, tmp_path, "bigfish", "train")


@pytest.mark.parametrize("packed", [False, True])
def test_a_flipped_bit_in_the_frames_is_noticed(
    tmp_path: Path, chunk_folder: Path, chunk_zip: bytes, packed: bool
) -> None:
    path = tmp_path / "bigfish.zip" if packed else chunk_folder / "bigfish" / "train" / "0.npz"
    content = bytearray(chunk_zip if packed else path.read_bytes())
    content[len(content) // 3] ^= 1
    path.write_bytes(content)
    with pytest.raises(CorruptDataError, match="get it again"):
        import_chunks(path if packed else chunk_folder, tmp_path / "data", "bigfish", "train")


@pytest.mark.parametrize("keep", [0.0, 0.3, 0.99])
def test_a_truncated_zip_is_refused(tmp_path: Path, chunk_zip: bytes, keep: float) -> None:
    path = tmp_path / "bigfish.zip"
    path.write_bytes(chunk_zip[: int(len(chunk_zip) * keep)])
    with pytest.raises(CorruptDataError, match=r"bigfish\.zip"):
        import_chunks(path, tmp_path / "data", "bigfish", "train")


@pytest.mark.parametrize("name", ["../evil.npz", "bigfish/../../evil", "/etc/evil", "a\\..\\evil", "C:\\evil"])
def test_a_zip_whose_names_lead_out_of_it_is_refused(tmp_path: Path, chunk_zip: bytes, name: str) -> None:
    path = tmp_path / "bigfish.zip"
    path.write_bytes(chunk_zip)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(name, "boo")
    with pytest.raises(CorruptDataError, match="leads out of it"):
        import_chunks(path, tmp_path / "data", "bigfish", "train")


def test_memory_does_not_grow_with_the_chunk(tmp_path: Path) -> None:
    # 12,288 frames are 151 MB: held whole, even once, they would not fit into what is allowed here.
    folder = tmp_path / "set" / "train"
    folder.mkdir(parents=True)
    n = 12_288
    np.savez(
        folder / "0.npz",
        obs=np.zeros((n, 64, 64, 3), np.uint8),
        ta=np.zeros(n, np.int64),
        done=np.zeros(n, bool),
        rewards=np.zeros(n, np.float32),
    )
    script = (
        "import sys, resource; from pathlib import Path; from lapo_cli.core.data.sources.npz import NpzSource\n"
        "from lapo_cli.core.progress import Silent\n"
        "used = int(open('/proc/self/statm').read().split()[5]) * resource.getpagesize()\n"
        "limit = used + 100 * 2**20\n"
        "resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))\n"
        "data = Path(sys.argv[2])\n"
        "NpzSource().open('bigfish', sys.argv[1], data).store('train', data, None, Silent())"
    )
    done = subprocess.run([sys.executable, "-c", script, tmp_path / "set", tmp_path], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert open_store(tmp_path, "bigfish", "train").manifest.num_frames == n


def test_rewards_that_fit_one_by_one_have_a_return_that_fits_too(tmp_path: Path, make_chunk: MakeChunk) -> None:
    done, rewards = np.isin(np.arange(10), [2, 9]), np.full(10, 3e38, np.float32)
    made = import_chunks(_folder(tmp_path, make_chunk(10, done=done, rewards=rewards)), tmp_path, "heist", "train")
    assert made.mean_return == pytest.approx(7 * 3e38)


@pytest.mark.parametrize("number", ["20231124000", "99999999999999999"])
def test_a_chunk_with_a_huge_number_is_answered_at_once(tmp_path: Path, chunk_zip: bytes, number: str) -> None:
    path = tmp_path / "bigfish.zip"
    path.write_bytes(chunk_zip)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(f"bigfish/train/{number}.npz", "boo")
    with pytest.raises(
        CorruptDataError, match=r"lacks 3\.npz, 4\.npz, 5\.npz, 6\.npz, 7\.npz and [\d,]+ more"
    ) as caught:
        import_chunks(path, tmp_path / "data", "bigfish", "train")
    assert len(str(caught.value)) < 500


def _npy_header(shape: str, descr: str = "'|u1'") -> bytes:
    text = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode()


@pytest.mark.parametrize("name", ["obs", "ta", "done", "rewards"])
@pytest.mark.parametrize(
    "content",
    [
        _npy_header("(1000000000000,)"),
        _npy_header("(1000000000000, 64, 64, 3)"),
        _npy_header("(-1, 64, 64, 3)"),
        _npy_header("(1000000000000,)", "'|V0'"),
        _npy_header("(40,)", "'|O'") + b"\x80\x04." * 40,
        _npy_header("(" * 60),
        _npy_header("(40,)").replace(b"NUMPY\x01", b"NUMPY\x03"),
        b"\x93NUMPY\x02\x00\xff\xff\xff\x7f{",
        b"",
    ],
)
def test_a_header_that_lies_is_refused_with_the_name_of_its_array(
    tmp_path: Path, make_chunk: MakeChunk, name: str, content: bytes
) -> None:
    folder = _folder(tmp_path, make_chunk())
    with zipfile.ZipFile(folder / "train" / "0.npz", "w") as archive:
        for other, array in make_chunk().items():
            buffer = io.BytesIO()
            np.save(buffer, array)
            archive.writestr(f"{other}.npy", content if other == name else buffer.getvalue())
    with pytest.raises(CorruptDataError, match=rf"0\.npz: array {name} ") as caught:
        import_chunks(folder, tmp_path / "data", "bigfish", "train")
    assert "pickle" not in str(caught.value)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("declared", [True, False])
def test_a_zip_bomb_is_refused_before_it_is_unpacked(tmp_path: Path, declared: bool) -> None:
    path = tmp_path / "bomb.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("train/0.npz", bytes(64 * 2**20))
    if not declared:  # The directory claims that 64 MB are 1 MB.
        content = path.read_bytes()
        directory = content.rindex(b"PK\x01\x02")
        lie = content[directory:].replace((64 * 2**20).to_bytes(4, "little"), (2**20).to_bytes(4, "little"))
        path.write_bytes(content[:directory] + lie)
    written = []
    real = shutil.copyfileobj

    def watch(source: Any, target: Any, length: int) -> None:
        try:
            real(source, target, length)
        finally:
            written.append(target.tell())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shutil, "copyfileobj", watch)
        with pytest.raises(CorruptDataError, match=r"bomb\.zip:train/0\.npz"):
            import_chunks(path, tmp_path / "data", "bigfish", "train")
    assert sum(written) <= 2**20


def test_a_bomb_inside_a_chunk_is_refused_before_it_is_unpacked(tmp_path: Path, make_chunk: MakeChunk) -> None:
    folder = tmp_path / "set" / "train"
    folder.mkdir(parents=True)
    np.savez_compressed(folder / "0.npz", **make_chunk(6000, obs=np.zeros((6000, 64, 64, 3), np.uint8)))
    with pytest.raises(CorruptDataError, match=r"0\.npz: array obs would unpack from"):
        import_chunks(tmp_path / "set", tmp_path / "data", "bigfish", "train")


def test_all_chunks_must_have_the_same_frames(tmp_path: Path, make_chunk: MakeChunk) -> None:
    folder = _folder(tmp_path, make_chunk(), make_chunk(obs=np.zeros((40, 32, 32, 3), np.uint8)))
    with pytest.raises(CorruptDataError, match=r"1\.npz: array obs holds uint8 \(40, 32, 32, 3\)"):
        import_chunks(folder, tmp_path / "data", "bigfish", "train")
