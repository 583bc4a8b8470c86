"""Resuming a download: two versions of a file never mix, and what has arrived is never thrown away for nothing."""

from collections.abc import Callable
from pathlib import Path

import pytest
from fake_drive import FakeDrive

from lapo_cli.core.data import fetch
from lapo_cli.core.data.fetch import fetch_zip
from lapo_cli.core.errors import DownloadError
from lapo_cli.core.progress import Silent


@pytest.fixture(autouse=True)
def without_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "RETRIES", 0)


def _fetch(drive: FakeDrive, folder: Path) -> bytes:
    return fetch_zip(f"{drive.url}/set.zip", "bigfish", folder, if_refused="wait.", progress=Silent()).read_bytes()


@pytest.fixture
def begun(drive: FakeDrive, tmp_path: Path) -> Callable[..., Path]:
    """Fetch half of the file; returns the part."""

    def begin() -> Path:
        drive.cut_after = len(drive.content) // 2
        with pytest.raises(DownloadError, match="broke off"):
            _fetch(drive, tmp_path)
        drive.cut_after = None
        drive.paths.clear()
        (part,) = tmp_path.glob("*.part")
        assert part.stat().st_size > 100_000
        return part

    return begin


@pytest.mark.parametrize("validator", ["etag", "last_modified"])
@pytest.mark.parametrize("ignores", [False, True])
def test_a_file_that_changed_is_fetched_from_the_beginning(
    drive: FakeDrive, tmp_path: Path, begun: Callable[[], Path], validator: str, ignores: bool
) -> None:
    first, second = ('"one"', '"two"') if validator == "etag" else ("Mon, 01 Jan 2024 00:00:00 GMT", "later")
    drive.etag = None
    setattr(drive, validator, first)
    begun()
    changed = drive.content[:60] + bytes(60) + drive.content[120:]  # As long as before, and another beginning.
    drive.content = changed
    setattr(drive, validator, second)
    drive.ignores_if_range = ignores and validator == "etag"
    if drive.ignores_if_range:
        with pytest.raises(DownloadError, match="same command"):
            _fetch(drive, tmp_path)
    assert _fetch(drive, tmp_path) == changed


def test_the_same_file_is_continued(drive: FakeDrive, tmp_path: Path, begun: Callable[[], Path]) -> None:
    size = begun().stat().st_size
    assert _fetch(drive, tmp_path) == drive.content
    assert drive.paths == [("/set.zip", f"bytes={size}-")]
    assert [path.suffix for path in tmp_path.glob("*.*")] == [".zip"]


@pytest.mark.parametrize("etag", [None, 'W/"weak"'])
def test_without_a_strong_validator_nothing_is_continued(
    drive: FakeDrive, tmp_path: Path, begun: Callable[[], Path], etag: str | None
) -> None:
    drive.etag = etag
    begun()
    assert _fetch(drive, tmp_path) == drive.content
    assert drive.paths == [("/set.zip", None)]


def _serve_a_page(drive: FakeDrive) -> None:
    drive.page_instead = True


def _serve_another_range(drive: FakeDrive) -> None:
    drive.shift = 7


@pytest.mark.parametrize("break_it", [_serve_a_page, _serve_another_range])
def test_a_wrong_answer_costs_nothing_and_the_same_command_resumes(
    drive: FakeDrive, tmp_path: Path, begun: Callable[[], Path], break_it: Callable[[FakeDrive], None]
) -> None:
    part = begun()
    arrived = part.read_bytes()
    break_it(drive)
    with pytest.raises(DownloadError, match="kept, and the same command resumes") as caught:
        _fetch(drive, tmp_path)
    assert "--fresh" not in str(caught.value)
    assert part.read_bytes() == arrived
    drive.page_instead, drive.shift = False, 0
    drive.paths.clear()
    assert _fetch(drive, tmp_path) == drive.content
    assert drive.paths == [("/set.zip", f"bytes={len(arrived)}-")]


def test_a_spent_quota_in_the_middle_keeps_what_arrived(
    drive: FakeDrive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drive.stand_in(monkeypatch)

    def get() -> bytes:
        url = fetch.drive_url("x" * 30)
        return fetch_zip(url, "bigfish", tmp_path, if_refused="wait.", progress=Silent()).read_bytes()

    drive.cut_after = len(drive.content) // 2
    with pytest.raises(DownloadError, match="broke off"):
        get()
    drive.cut_after, drive.quota_spent = None, True
    with pytest.raises(DownloadError, match=r"quota is spent, but what had arrived is kept.*: wait\."):
        get()
    drive.quota_spent = False
    drive.paths.clear()
    assert get() == drive.content
    assert drive.paths[-1][1] is not None


@pytest.mark.parametrize("content", ["", "{", "[]", '{"validator": "x", "size": 1}', '{"validator": 1, "total": "9"}'])
def test_a_damaged_note_about_the_part_starts_over(
    drive: FakeDrive, tmp_path: Path, begun: Callable[[], Path], content: str
) -> None:
    part = begun()
    part.with_name(f"{part.name}.json").write_text(content)
    assert _fetch(drive, tmp_path) == drive.content


def test_a_connection_that_breaks_is_tried_again(
    drive: FakeDrive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetch, "RETRIES", 9)
    monkeypatch.setattr(fetch.time, "sleep", lambda _: None)
    drive.cut_after = len(drive.content) // 3
    assert _fetch(drive, tmp_path) == drive.content
    assert len(drive.paths) > 3
