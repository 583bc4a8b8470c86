import io
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from fake_drive import FakeDrive

from lapo_cli.core.data import fetch
from lapo_cli.core.data.catalogue import list_games
from lapo_cli.core.data.download import carry_out, download, plan
from lapo_cli.core.data.replay_log import bundled_logs
from lapo_cli.core.data.sources.drive import DRIVE_IDS
from lapo_cli.core.data.store import open_store
from lapo_cli.core.envs.procgen import GAMES
from lapo_cli.core.errors import (
    BusyError,
    CorruptDataError,
    DiskFullError,
    DownloadError,
    MissingInputError,
    UnknownNameError,
    UsageError,
)
from lapo_cli.core.files import exclusive
from lapo_cli.core.progress import Silent

MakeStore = Callable[..., Path]


@pytest.fixture(autouse=True)
def without_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "RETRIES", 0)


@pytest.fixture
def google(drive: FakeDrive, monkeypatch: pytest.MonkeyPatch) -> FakeDrive:
    drive.stand_in(monkeypatch)
    return drive


class Recorder(Silent):
    """Remembers the tasks that were opened."""

    def __init__(self) -> None:
        self.tasks: list[tuple[str, int, str, int]] = []

    def task(self, name: str, total: int, unit: str, done: int = 0):
        self.tasks.append((name, total, unit, done))
        return super().task(name, total, unit, done)


def test_the_official_set_from_beginning_to_end(tmp_path: Path, google: FakeDrive, chunk_folder: Path) -> None:
    data, shown = tmp_path / "data", Recorder()
    made = download("bigfish", data, max_frames=100, progress=shown)
    assert (made["train"].num_frames, made["test"].num_frames) == (100, 24)
    obs = [np.load(chunk_folder / "bigfish" / "train" / f"{number}.npz")["obs"] for number in range(3)]
    np.testing.assert_array_equal(open_store(data, "bigfish", "train").frames, np.concatenate(obs)[:100])
    assert ("Downloading bigfish", len(google.content), "bytes", 0) in shown.tasks
    assert DRIVE_IDS["bigfish"] in google.paths[0][0]
    assert "confirm=t" in google.paths[1][0], "the warning page was walked through"
    assert not (data / "bigfish" / ".download").exists(), "the zip file is not kept"
    requests = len(google.paths)
    assert download("bigfish", data, max_frames=100) == made
    assert len(google.paths) == requests, "what is here is not fetched again"
    remade = download("bigfish", data, max_frames=100, fresh=True)
    assert len(google.paths) > requests
    assert remade == made


def test_a_cut_connection_says_how_far_it_came_and_resumes(tmp_path: Path, google: FakeDrive) -> None:
    data = tmp_path / "data"
    half = google.cut_after = len(google.content) // 2
    with pytest.raises(DownloadError, match=r"broke off after .* of .*: run the same command again"):
        download("bigfish", data, max_frames=100)
    assert not (data / "bigfish" / "train").exists()
    google.cut_after = None
    google.paths.clear()
    shown = Recorder()
    assert download("bigfish", data, max_frames=100, progress=shown)["train"].num_frames == 100
    ranges = [int(header.removeprefix("bytes=").rstrip("-")) for _, header in google.paths if header]
    assert len(ranges) == 1
    assert 0 < ranges[0] <= half
    assert shown.tasks[0] == ("Downloading bigfish", len(google.content), "bytes", ranges[0])


def test_a_download_killed_before_its_last_rename_is_not_stuck(tmp_path: Path, google: FakeDrive) -> None:
    data = tmp_path / "data"
    google.cut_after = len(google.content) // 2
    with pytest.raises(DownloadError):
        download("bigfish", data, max_frames=100)
    (part,) = (data / "bigfish" / ".download").glob("*.part")
    part.write_bytes(google.content)
    google.paths.clear()
    assert download("bigfish", data, max_frames=100)["test"].num_frames == 24
    assert google.paths == []


def test_a_spent_quota_is_one_sentence_that_lists_the_alternatives(tmp_path: Path, google: FakeDrive) -> None:
    google.quota_spent = True
    with pytest.raises(DownloadError, match="quota") as caught:
        download("bigfish", tmp_path, max_frames=100)
    text = str(caught.value)
    assert "24 hours" in text
    assert f"https://drive.google.com/uc?id={DRIVE_IDS['bigfish']}" in text
    assert "`lapo download bigfish --from FILE.zip`" in text
    assert "`lapo download bigfish --source demos`" in text
    assert "\n" not in text


def test_no_network(tmp_path: Path, google: FakeDrive) -> None:
    google.close()
    with pytest.raises(DownloadError, match="cannot be reached: check the network"):
        download("bigfish", tmp_path, max_frames=100)


def test_from_a_web_server(tmp_path: Path, drive: FakeDrive) -> None:
    made = download("bigfish", tmp_path, location=f"{drive.url}/set.zip")
    assert made["train"].num_frames == 120
    assert f"{drive.url}/set.zip" in made["train"].source


@pytest.mark.parametrize(("page", "named"), [("nothing.zip", "answered 404"), ("page", "not a zip file")])
def test_a_wrong_address(tmp_path: Path, drive: FakeDrive, page: str, named: str) -> None:
    with pytest.raises(DownloadError, match=named):
        download("bigfish", tmp_path, location=f"{drive.url}/{page}")
    drive.paths.clear()
    with pytest.raises(DownloadError, match=named):
        download("bigfish", tmp_path, location=f"{drive.url}/{page}")
    assert drive.paths, "the useless answer was not kept as the file"


def test_another_address_does_not_continue_a_part_of_the_first(tmp_path: Path, drive: FakeDrive) -> None:
    drive.cut_after = 1_000_000
    with pytest.raises(DownloadError, match="broke off"):
        download("bigfish", tmp_path, location=f"{drive.url}/set.zip")
    drive.cut_after = None
    drive.paths.clear()
    download("bigfish", tmp_path, location=f"{drive.url}/set.zip?other")
    assert all(header is None for _, header in drive.paths)


def test_a_damaged_set_names_the_command_that_fetches_it_again(tmp_path: Path, drive: FakeDrive) -> None:
    whole = drive.content
    damaged = bytearray(whole)
    damaged[len(whole) // 3] ^= 1
    drive.content = bytes(damaged)
    with pytest.raises(CorruptDataError, match="--fresh"):
        download("bigfish", tmp_path, location=f"{drive.url}/set.zip")
    drive.content = whole
    assert download("bigfish", tmp_path, location=f"{drive.url}/set.zip", fresh=True)["train"].num_frames == 120


def test_from_a_zip_file_or_a_folder(tmp_path: Path, chunk_folder: Path, chunk_zip: bytes) -> None:
    path = tmp_path / "bigfish.zip"
    path.write_bytes(chunk_zip)
    packed = download("bigfish", tmp_path / "a", location=path)
    plain = download("bigfish", tmp_path / "b", location=chunk_folder)
    assert packed["train"].fingerprint == plain["train"].fingerprint
    assert packed["test"].num_frames == 24
    assert path.exists(), "a person's own file is left alone"


def test_from_a_folder_with_train_alone(tmp_path: Path, chunk_folder: Path) -> None:
    (chunk_folder / "bigfish" / "test" / "0.npz").unlink()
    assert list(download("bigfish", tmp_path / "data", location=chunk_folder)) == ["train"]


def test_from_replay_logs(tmp_path: Path) -> None:
    logs = bundled_logs("fruitbot")
    one = download("fruitbot", tmp_path / "one", location=logs["test"])
    assert list(one) == ["test"]
    both = download("fruitbot", tmp_path / "both", location=logs["test"].parent, max_frames=64 * 5)
    assert both["train"].num_frames == 64 * 5
    assert both["test"] == one["test"]
    demos = download("fruitbot", tmp_path / "both", source="demos", max_frames=64 * 5)
    assert demos == both, "the same logs by another name are the same request"
    with pytest.raises(UsageError, match="of fruitbot, not of heist"):
        download("heist", tmp_path, location=logs["test"])


def test_requests_that_do_not_fit(tmp_path: Path) -> None:
    with pytest.raises(MissingInputError, match=r"official demonstrations of 'bigfsh', only of bigfish"):
        plan("bigfsh", tmp_path)
    with pytest.raises(MissingInputError, match="No demonstrations of 'bigfsh' are bundled"):
        plan("bigfsh", tmp_path, source="demos")
    with pytest.raises(UnknownNameError, match="did you mean 'demos'"):
        plan("heist", tmp_path, source="demo")
    with pytest.raises(MissingInputError, match="nowhere"):
        plan("heist", tmp_path, location=tmp_path / "nowhere.zip")
    with pytest.raises(UsageError, match="3 or more"):
        plan("heist", tmp_path, max_frames=2)


def test_the_plan_lists_what_will_be_done(tmp_path: Path, chunk_folder: Path, make_store: MakeStore) -> None:
    data = tmp_path / "data"
    make_store(data, "bigfish", "train", n=30)
    planned = plan("bigfish", data, location=chunk_folder)
    assert planned.importer.url is None
    assert planned.store_bytes == (120 + 24) * 12288
    assert planned.replaced["train"].num_frames == 30
    assert planned.free_bytes > 0
    assert list(planned.offers) == ["train", "test"]
    carry_out(planned)
    again = plan("bigfish", data, location=chunk_folder)
    assert not again.offers
    assert again.store_bytes == 0
    assert list(again.kept) == ["train", "test"]
    assert list(plan("bigfish", data, location=chunk_folder, max_frames=50).offers) == ["train"]
    official = plan("bigfish", data)
    assert official.importer.url is not None
    assert official.store_bytes is not None
    assert official.store_bytes > 30e9
    assert plan("bigfish", data, location="https://example.org/x.zip").store_bytes is None


def test_a_damaged_store_is_made_again(tmp_path: Path, chunk_folder: Path) -> None:
    data = tmp_path / "data"
    made = download("bigfish", data, location=chunk_folder)
    (data / "bigfish" / "train" / "actions.npy").write_bytes(b"")
    assert list(plan("bigfish", data, location=chunk_folder).offers) == ["train"]
    assert download("bigfish", data, location=chunk_folder) == made
    open_store(data, "bigfish", "train")


def test_what_does_not_fit_is_refused_before_it_is_fetched(
    tmp_path: Path, google: FakeDrive, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lapo_cli.core.files.free_space", lambda _: 10**9)
    with pytest.raises(DiskFullError, match=r"Storing bigfish needs 3\d\.\d GB"):
        download("bigfish", tmp_path)
    assert google.paths == []


def test_a_zip_that_does_not_fit_is_refused_when_its_size_is_known(
    tmp_path: Path, drive: FakeDrive, small_disk
) -> None:
    drive.content = b"\0" * 3_000_000
    with pytest.raises(DiskFullError, match=r"The zip file of bigfish needs [23]\.\d MB"):
        download("bigfish", small_disk, location=f"{drive.url}/set.zip")


def test_a_disk_that_fills_up_while_storing(
    small_disk: Path, chunk_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Believing that there is room, it runs into the real end of the disk.
    monkeypatch.setattr("lapo_cli.core.files.free_space", lambda _: 10**12)
    with pytest.raises(DiskFullError, match="is full"):
        download("bigfish", small_disk, location=chunk_folder)
    with pytest.raises(MissingInputError):
        open_store(small_disk, "bigfish", "train")


def test_a_second_download_of_a_game_is_refused(tmp_path: Path, chunk_folder: Path) -> None:
    (tmp_path / "bigfish").mkdir()
    lock = exclusive(tmp_path / "bigfish" / ".download.lock", BusyError("busy"))
    with lock, pytest.raises(BusyError, match="Another lapo process is getting bigfish"):
        download("bigfish", tmp_path, location=chunk_folder)


def test_the_list_of_games(tmp_path: Path, make_store: MakeStore) -> None:
    make_store(tmp_path, "heist", "train", n=30)
    (make_store(tmp_path, "maze", "test") / "manifest.json").write_text("{")
    rows = {row.game: row for row in list_games(tmp_path)}
    assert list(rows) == list(GAMES)
    assert rows["heist"].stores["train"].num_frames == 30
    assert not rows["heist"].problems
    assert "manifest.json" in rows["maze"].problems["test"]


def test_a_part_that_ends_behind_a_chunk_is_not_taken_for_the_whole(tmp_path: Path, chunk_folder: Path) -> None:
    # Chunks are zip files themselves; stored without compression, a cut zip file can end like a whole one.
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        archive.write(chunk_folder / "bigfish" / "train" / "0.npz", "bigfish/train/0.npz")
        end = buffer.tell()
        archive.write(chunk_folder / "bigfish" / "train" / "1.npz", "bigfish/train/1.npz")
    server = FakeDrive(buffer.getvalue())
    try:
        server.cut_after = 600_000
        with pytest.raises(DownloadError, match="broke off"):
            download("bigfish", tmp_path, location=f"{server.url}/set.zip")
        (part,) = (tmp_path / "bigfish" / ".download").glob("*.part")
        part.write_bytes(server.content[:end])
        assert zipfile.is_zipfile(part)
        server.cut_after = None
        assert download("bigfish", tmp_path, location=f"{server.url}/set.zip")["train"].num_frames == 80
        assert server.paths[-1] == ("/set.zip", f"bytes={end}-")
    finally:
        server.close()


def test_cut_off_before_much_arrived_is_not_called_unreachable(tmp_path: Path, drive: FakeDrive) -> None:
    drive.cut_after = 1000
    with pytest.raises(DownloadError, match="broke off"):
        download("bigfish", tmp_path, location=f"{drive.url}/set.zip")
