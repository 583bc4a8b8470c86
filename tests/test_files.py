import errno
import json
from pathlib import Path

import pytest

from lapo_cli.core import files
from lapo_cli.core.errors import DiskFullError


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


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (999, "999 B"), (1536, "1.5 kB"), (999_600, "1.0 MB"), (32_212_254_720, "32.2 GB")]
)
def test_human_bytes(count: int, text: str) -> None:
    assert files.human_bytes(count) == text
