import errno
import io
import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from lapo_cli.core import files
from lapo_cli.core.data.arrays import load_array
from lapo_cli.core.errors import CorruptDataError, DiskFullError, UsageError


def test_a_write_replaces_the_file_and_leaves_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "new" / "value.json"
    files.atomic_write_json(target, {"a": 1})
    files.atomic_write_json(target, {"a": 2})
    assert json.loads(target.read_text()) == {"a": 2}
    assert list(target.parent.iterdir()) == [target]


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "value.txt"
    files.atomic_write_text(target, "old")

    def fail_halfway() -> None:
        with files.atomic_path(target) as temporary:
            temporary.write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_halfway()
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_nan_is_refused_because_it_is_no_json(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        files.atomic_write_json(tmp_path / "value.json", float("nan"))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_a_sentence_that_names_the_folder(tmp_path: Path, number: int) -> None:
    with pytest.raises(DiskFullError, match=str(tmp_path)), files.disk_full_as_error(tmp_path):
        raise OSError(number, "no room")


def test_other_os_errors_stay_themselves(tmp_path: Path) -> None:
    with pytest.raises(PermissionError), files.disk_full_as_error(tmp_path):
        raise PermissionError(errno.EACCES, "no")


def test_free_space_is_required_of_a_folder_that_does_not_exist_yet(tmp_path: Path) -> None:
    files.require_free_space(tmp_path / "a" / "b", 1, "It")
    with pytest.raises(DiskFullError, match=r"It needs 1000000\.0 TB"):
        files.require_free_space(tmp_path / "a" / "b", 10**18, "It")


def test_sha256(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"abc")
    assert files.sha256_file(path) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_data_dir_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LAPO_DATA_DIR", str(tmp_path))
    assert files.data_dir() == tmp_path
    monkeypatch.delenv("LAPO_DATA_DIR")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert files.data_dir() == tmp_path / ".lapo" / "data"
    monkeypatch.setenv("LAPO_DATA_DIR", "~nosuchuser/x")
    with pytest.raises(UsageError, match="~nosuchuser/x"):
        files.data_dir()


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (999, "999 B"), (1536, "1.5 kB"), (999_600, "1.0 MB"), (32_212_254_720, "32.2 GB")]
)
def test_human_bytes(count: int, text: str) -> None:
    assert files.human_bytes(count) == text


_NUMBERS = TypeAdapter(dict[str, int])


def test_json_of_the_right_type_is_read(tmp_path: Path) -> None:
    (tmp_path / "f.json").write_text('{"a": 1}')
    assert files.read_json(tmp_path / "f.json", _NUMBERS, "make it again") == {"a": 1}


_NO_JSON = ["", "{", "[1]", '{"a": "1"}', '{"a": 1.5}', "[" * 100_000, "1" * 5000, '{"a": NaN}', '{"a": 1e999}', "\xff"]


@pytest.mark.parametrize("text", _NO_JSON)
def test_damaged_json_names_its_file_and_what_to_do(tmp_path: Path, text: str) -> None:
    file = tmp_path / "f.json"
    file.write_bytes(text.encode("latin-1"))
    with pytest.raises(CorruptDataError) as raised:
        files.read_json(file, _NUMBERS, "make it again")
    assert str(raised.value) == f"{file} is damaged: make it again."


_BOMB = "a: &a [x, x]\n" + "".join(
    f"{chr(98 + i)}: &{chr(98 + i)} [*{chr(97 + i)}, *{chr(97 + i)}]\n" for i in range(24)
)


@pytest.mark.parametrize(
    "text",
    [
        _BOMB,
        "&a [*a]",
        "a: &a 1",
        "!!binary x",
        "!!int ''",
        "[" * 1000,
        "1" * 5000,
        "0x" + "f" * 50,
        ".inf",
        "a: [",
        "\0",
        "2001-13-45",
        '"\\ud800"',
        "x" * 200_000,
        "{[1]: 2}",
        "a: 1\n---\nb: 2",
    ],
)
def test_yaml_that_is_not_plain_data_is_refused_in_a_short_message(text: str) -> None:
    with pytest.raises(ValueError, match=r"^.{5,200}$"):
        files.parse_yaml(text)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers(-(2**63) + 1, 2**63 - 1) | st.text(max_size=20),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
        max_leaves=10,
    )
)
def test_plain_values_come_back_from_json_and_yaml(value: Any) -> None:
    assert files.parse_json(json.dumps(value)) == value
    assert files.parse_yaml(yaml.safe_dump(value)) == value


def _npy(array: np.ndarray[Any, Any]) -> bytes:
    out = io.BytesIO()
    np.save(out, array)
    return out.getvalue()


@pytest.mark.parametrize("mapped", [True, False])
@pytest.mark.parametrize("array", [np.arange(6.0).reshape(2, 3), np.array([True, False]), np.zeros(0, np.uint8)])
def test_arrays_come_back(tmp_path: Path, array: np.ndarray[Any, Any], mapped: bool) -> None:
    np.save(tmp_path / "a.npy", array)
    found = load_array(tmp_path / "a.npy", mapped=mapped)
    assert found.dtype == array.dtype
    np.testing.assert_array_equal(found, array)


_WHOLE = _npy(np.zeros(1000, np.float32))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x93NUMPY",
        _WHOLE[:-1],
        _WHOLE + b"x",
        _WHOLE.replace(b"(1000,)", b"(1000000000000,)"),
        _WHOLE.replace(b"(1000,)", b"(-1000,)"),
        _WHOLE.replace(b"(1000,)", b"(" * 7),
        _WHOLE.replace(b"<f4", b"|O4"),
        _WHOLE.replace(b"'descr'", b"{}     "),
        _npy(np.asfortranarray(np.arange(6.0).reshape(2, 3))),
        _npy(np.array([None, 1], object)),
    ],
)
def test_damaged_arrays_are_refused_without_a_word_of_pickles(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "a.npy"
    file.write_bytes(content)
    for mapped in (True, False):
        with pytest.raises(CorruptDataError) as raised:
            load_array(file, mapped=mapped)
        assert str(file) in str(raised.value)
        assert "pickle" not in str(raised.value)


def test_what_a_killed_writer_left_is_removed_later(tmp_path: Path) -> None:
    target, hour = tmp_path / "state [1].pt", 3600
    left, busy, other = (
        tmp_path / f".{name}" for name in ("state [1].0a1b2c3d.tmp.pt", "state [1].ffffffff.tmp.pt", "x")
    )
    for file, age in ((left, 1.5 * hour), (busy, 0), (other, 2 * hour)):
        file.touch()
        os.utime(file, (time.time() - age,) * 2)
    files.atomic_write_text(target, "new")
    assert sorted(tmp_path.iterdir()) == sorted([target, busy, other])


def test_what_cannot_be_removed_stops_no_write(tmp_path: Path) -> None:
    left = tmp_path / ".state.0a1b2c3d.tmp.pt"
    left.mkdir()
    os.utime(left, (0, 0))
    files.atomic_write_text(tmp_path / "state.pt", "new")
    assert (tmp_path / "state.pt").read_text() == "new"
