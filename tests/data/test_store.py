import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lapo_cli.core.data.store import FrameStore, Video, open_store, store_path
from lapo_cli.core.data.store_writer import StoreWriter
from lapo_cli.core.errors import CorruptDataError, DiskFullError, DownloadError, MissingInputError

MakeStore = Callable[..., Path]


def test_what_is_put_is_read_back(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (7, 64, 64, 3), dtype=np.uint8)
    path = store_path(tmp_path, "bigfish", "train")
    with StoreWriter(path, "bigfish", "train", (64, 64, 3), 15) as writer:
        assert writer.reserve(4) == 0
        assert writer.reserve(3) == 4
        writer.put_frames(5, frames[5:])  # In any order.
        writer.put_frames(0, frames[:5])
        writer.put_columns(0, np.arange(7), np.arange(7.0), np.arange(7) == 0)
        made = writer.finish(source="here", made_by="test", episode_returns=[0.5, 1.0, 3.0])
    store = open_store(tmp_path, "bigfish", "train")
    assert store.manifest == made
    assert (made.num_frames, made.num_episodes, made.mean_return, made.source) == (7, 3, 1.5, "here")
    np.testing.assert_array_equal(store.frames, frames)
    np.testing.assert_array_equal(store.actions, np.arange(7))
    np.testing.assert_array_equal(store.rewards, np.arange(7))
    np.testing.assert_array_equal(store.episode_starts, np.arange(7) == 0)
    assert isinstance(store.frames, np.memmap)
    assert not store.frames.flags.writeable
    assert sorted(p.name for p in path.parent.iterdir()) == [".train.lock", "train"]


def test_a_video_has_no_actions(tmp_path: Path, make_store: MakeStore) -> None:
    video = FrameStore.open(make_store(tmp_path)).video()
    assert {name for name in dir(video) if not name.startswith("_")} == {
        "frames",
        "episode_starts",
        "fingerprint",
        "windows",
    }


@given(st.lists(st.booleans(), max_size=30))
def test_windows_are_all_those_within_an_episode(starts: list[bool]) -> None:
    video = Video(np.empty((len(starts), 0, 0, 3), np.uint8), np.array(starts, bool), "")
    episode = np.cumsum(starts)
    expected = [t for t in range(1, len(starts) - 1) if episode[t - 1] == episode[t] == episode[t + 1]]
    windows = video.windows()
    assert windows.dtype == np.int64
    assert windows.tolist() == expected


def test_a_missing_store_names_the_command_that_gets_it(tmp_path: Path) -> None:
    with pytest.raises(MissingInputError, match="'lapo download heist'"):
        open_store(tmp_path, "heist", "train")


def _truncate_frames(path: Path) -> None:
    os.truncate(path / "frames.u8", 1000)


def _remove_frames(path: Path) -> None:
    (path / "frames.u8").unlink()


def _shorten_actions(path: Path) -> None:
    np.save(path / "actions.npy", np.load(path / "actions.npy")[:-1])


def _widen_actions(path: Path) -> None:
    np.save(path / "actions.npy", np.load(path / "actions.npy").astype(np.int64))


def _truncate_rewards(path: Path) -> None:
    os.truncate(path / "rewards.npy", 100)


def _change_an_action(path: Path) -> None:
    actions = np.load(path / "actions.npy")
    actions[3] += 1
    np.save(path / "actions.npy", actions)


def _change_a_frame(path: Path) -> None:
    with (path / "frames.u8").open("r+b") as file:
        file.seek(20 * 12288)
        file.write(b"\xff" * 12288)


def _remove_manifest(path: Path) -> None:
    (path / "manifest.json").unlink()


def _truncate_manifest(path: Path) -> None:
    os.truncate(path / "manifest.json", 40)


def _newer_format(path: Path) -> None:
    manifest = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps(manifest | {"format_version": 99}))


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (_truncate_frames, "frames.u8"),
        (_remove_frames, "frames.u8"),
        (_shorten_actions, "actions.npy"),
        (_widen_actions, "actions.npy"),
        (_truncate_rewards, "rewards.npy"),
        (_change_an_action, "altered"),
        (_change_a_frame, "altered"),
        (_remove_manifest, "manifest.json"),
        (_truncate_manifest, "manifest.json"),
        (_newer_format, "format 99"),
    ],
)
def test_a_damaged_store_is_refused_with_the_remedy(
    tmp_path: Path, make_store: MakeStore, damage: Callable[[Path], None], named: str
) -> None:
    path = make_store(tmp_path)
    FrameStore.open(path)
    damage(path)
    with pytest.raises(CorruptDataError, match=named) as caught:
        FrameStore.open(path)
    assert "`lapo download bigfish --fresh`" in str(caught.value)


def _abandon(path: Path) -> None:
    with StoreWriter(path, "bigfish", "train", (64, 64, 3), 15) as writer:
        writer.reserve(10)
        raise RuntimeError


def test_leaving_without_finish_leaves_nothing(tmp_path: Path) -> None:
    path = store_path(tmp_path, "bigfish", "train")
    with pytest.raises(RuntimeError):
        _abandon(path)
    assert [p.name for p in path.parent.iterdir()] == [".train.lock"]


@pytest.mark.parametrize("forgotten", ["frames", "columns", "all"])
def test_a_store_with_holes_cannot_be_finished(tmp_path: Path, forgotten: str) -> None:
    path = store_path(tmp_path, "bigfish", "train")
    with StoreWriter(path, "bigfish", "train", (64, 64, 3), 15) as writer:
        if forgotten != "all":
            writer.reserve(3)
        if forgotten == "columns":
            writer.put_frames(0, np.zeros((3, 64, 64, 3), np.uint8))
        if forgotten == "frames":
            writer.put_columns(0, np.zeros(3, int), np.zeros(3), np.ones(3, bool))
        with pytest.raises(ValueError, match="rows reserved"):
            writer.finish(source="", made_by="", episode_returns=[])
    assert not path.exists()


@pytest.mark.parametrize("shape", [(4, 64, 64, 3), (2, 64, 64)])
def test_rows_that_are_not_reserved_are_refused(tmp_path: Path, shape: tuple[int, ...]) -> None:
    with StoreWriter(store_path(tmp_path, "bigfish", "train"), "bigfish", "train", (64, 64, 3), 15) as writer:
        writer.reserve(3)
        with pytest.raises(ValueError, match="cannot put"):
            writer.put_frames(0, np.zeros(shape, np.uint8))


def test_an_older_store_stays_until_the_new_one_is_whole(tmp_path: Path, make_store: MakeStore) -> None:
    path = make_store(tmp_path, n=30)
    reader = FrameStore.open(path)
    with pytest.raises(RuntimeError):
        _abandon(path)
    assert FrameStore.open(path).manifest.num_frames == 30
    make_store(tmp_path, n=40)
    assert FrameStore.open(path).manifest.num_frames == 40
    assert reader.frames[29, 0, 0, 0] == 29, "who had it open keeps reading the older one"
    assert sorted(p.name for p in path.parent.iterdir()) == [".train.lock", "train"]


def test_killed_between_the_two_renames_the_older_store_comes_back(tmp_path: Path, make_store: MakeStore) -> None:
    path = make_store(tmp_path)
    path.rename(path.with_name(".train.older"))
    with StoreWriter(path, "bigfish", "train", (64, 64, 3), 15):
        assert FrameStore.open(path).manifest.num_frames == 50


def test_two_writers_of_one_store_do_not_meet(tmp_path: Path) -> None:
    path = store_path(tmp_path, "bigfish", "train")
    with StoreWriter(path, "bigfish", "train", (64, 64, 3), 15) as writer:
        other = (
            "import sys; from pathlib import Path\n"
            "from lapo_cli.core.data.store_writer import StoreWriter\n"
            "with StoreWriter(Path(sys.argv[1]), 'bigfish', 'train', (64, 64, 3), 15): pass"
        )
        done = subprocess.run([sys.executable, "-c", other, path], capture_output=True, text=True)
        assert DownloadError.__name__ in done.stderr
        assert "Another lapo process" in done.stderr
        assert writer.scratch.exists(), "the other one did not tidy up this one's folder"


def test_killed_while_storing(tmp_path: Path, make_store: MakeStore) -> None:
    script = (
        "import sys; from pathlib import Path\n"
        "from lapo_cli.core.data.replay_log import bundled_logs\n"
        "from lapo_cli.core.data.sources.replay import import_replay\n"
        "import_replay(bundled_logs('fruitbot')['train'], Path(sys.argv[1]), 'train')"
    )
    storing = subprocess.Popen([sys.executable, "-c", script, tmp_path])
    try:
        deadline = time.monotonic() + 60
        while not list(tmp_path.glob("fruitbot/.train.partial-*/frames.u8")):
            assert storing.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        storing.send_signal(signal.SIGKILL)
        storing.wait()
    with pytest.raises(MissingInputError):
        open_store(tmp_path, "fruitbot", "train")
    assert list(tmp_path.glob("fruitbot/.train.partial-*"))
    path = make_store(tmp_path, "fruitbot")
    assert sorted(p.name for p in path.parent.iterdir()) == [".train.lock", "train"]


def test_a_full_disk_is_noticed_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    path = store_path(tmp_path, "bigfish", "train")
    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(DiskFullError, match="full"), StoreWriter(path, "bigfish", "train", (64, 64, 3), 15) as writer:
        writer.reserve(10)
    assert [p.name for p in path.parent.iterdir()] == [".train.lock"]


def test_a_disk_that_is_really_full(small_disk: Path) -> None:
    path = store_path(small_disk, "bigfish", "train")
    with StoreWriter(path, "bigfish", "train", (64, 64, 3), 15) as writer:
        writer.reserve(50)
        with pytest.raises(DiskFullError, match=str(path.parent)):
            writer.reserve(50)  # 100 frames are 1.2 MB.
    assert [p.name for p in path.parent.iterdir()] == [".train.lock"]
