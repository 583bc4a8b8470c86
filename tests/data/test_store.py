import errno
import hashlib
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
from lapo_cli.core.errors import BusyError, CorruptDataError, DiskFullError, MissingInputError
from tests.importing import import_chunks

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


def test_a_second_writer_of_a_store_is_refused(tmp_path: Path) -> None:
    path = store_path(tmp_path, "bigfish", "train")
    with StoreWriter(path, "bigfish", "train", (64, 64, 3), 15) as writer:
        other = (
            "import sys; from pathlib import Path\n"
            "from lapo_cli.core.data.store_writer import StoreWriter\n"
            "with StoreWriter(Path(sys.argv[1]), 'bigfish', 'train', (64, 64, 3), 15): pass"
        )
        done = subprocess.run([sys.executable, "-c", other, path], capture_output=True, text=True)
        assert BusyError.__name__ in done.stderr
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


def _version_1(path: Path, starts: list[bool], rewards: list[float], made_by: str, returns: list[float]) -> str:
    """Write a store as lapo did before stores had shapes; returns its fingerprint."""
    n = len(starts)
    path.mkdir(parents=True)
    frames = np.random.default_rng(0).integers(0, 256, (n, 64, 64, 3), dtype=np.uint8)
    (path / "frames.u8").write_bytes(frames.tobytes())
    columns = {
        "actions": (np.arange(n) % 15).astype(np.uint8),
        "rewards": np.array(rewards, np.float32),
        "episode_starts": np.array(starts),
    }
    digest = hashlib.sha256(f"lapo frame store 1: {n}".encode())
    for name, column in columns.items():
        np.save(path / f"{name}.npy", column)
        digest.update(column.tobytes())
    for frame in frames:
        digest.update(frame.tobytes())
    manifest = {
        **{"format_version": 1, "lapo_version": "0.1.0", "game": "bigfish", "split": "train", "num_frames": n},
        **{"num_episodes": len(returns), "mean_return": float(np.mean(returns)) if returns else None},
        **{"source": "here", "made_by": made_by, "fingerprint": digest.hexdigest()},
    }
    (path / "manifest.json").write_text(json.dumps(manifest))
    return digest.hexdigest()


def test_a_store_of_version_1_opens_with_its_fingerprint_and_the_returns_of_its_episodes(tmp_path: Path) -> None:
    rewards = [float(2**n) for n in range(12)]
    # Two environments of six steps: one episode that ended in the first, two in the second.
    starts = [n in (0, 4, 6, 7, 10) for n in range(12)]
    returns = [float(sum(rewards[a:b])) for a, b in ((0, 4), (6, 7), (7, 10))]
    mark = _version_1(tmp_path / "a" / "train", starts, rewards, "replay", returns)
    store = FrameStore.open(tmp_path / "a" / "train")
    assert store.manifest.fingerprint == store.video().fingerprint == mark
    assert (store.manifest.frame_shape, store.manifest.num_actions) == ((64, 64, 3), 15)
    assert store.episode_returns().tolist() == returns
    # Two chunks of six frames, in each of which `done` marks two frames, and therefore four are breaks.
    starts = [n in (0, 1, 2, 4, 5, 6, 7, 8, 10, 11) for n in range(12)]
    returns = [float(sum(rewards[a:b])) for a, b in ((1, 4), (7, 10))]
    _version_1(tmp_path / "b" / "train", starts, rewards, "chunks", returns)
    derived = FrameStore.open(tmp_path / "b" / "train").episode_returns().tolist()
    assert set(returns) <= set(derived)


def test_the_returns_of_chunks_are_those_of_episodes_and_not_of_stretches_between_breaks(tmp_path: Path) -> None:
    """Returns of 30 to 40 reported as 35.0 ± 4: two breaks at each end made every other stretch one frame long."""
    rng = np.random.default_rng(0)
    done = np.zeros(3000, bool)
    done[np.cumsum(rng.integers(8, 12, 250))] = True
    rewards = np.zeros(3000, np.float32)
    rewards[np.flatnonzero(done)[1:] - 1] = rng.uniform(30, 40, int(done.sum()) - 1)
    folder = tmp_path / "set" / "train"
    folder.mkdir(parents=True)
    obs, ta = np.zeros((3000, 4, 4, 3), np.uint8), np.zeros(3000, int)
    np.savez(folder / "0.npz", obs=obs, ta=ta, done=done, rewards=rewards)
    made = import_chunks(tmp_path / "set", tmp_path, "bigfish", "train")
    returns = open_store(tmp_path, "bigfish", "train").episode_returns()
    assert returns.dtype == np.float64
    assert len(returns) == made.num_episodes == done.sum() - 1
    assert returns.mean() == pytest.approx(made.mean_return)
    assert returns.tolist() == rewards[np.flatnonzero(done)[1:] - 1].tolist()
    assert 1.96 * returns.std() / len(returns) ** 0.5 < 0.5


@pytest.mark.parametrize(
    "changes",
    [
        {"num_frames": 0},
        {"num_frames": -5},
        {"num_frames": 10**30},
        {"num_frames": "50"},
        {"num_frames": True},
        {"num_episodes": -1},
        {"num_episodes": 0, "mean_return": 3.0},
        {"num_episodes": 5, "mean_return": None},
        {"num_episodes": 5, "mean_return": float("nan")},
        {"frame_shape": [64, 64]},
        {"frame_shape": [64, 64, 4]},
        {"frame_shape": [10**12, 1, 3]},
        {"num_actions": 0},
        {"num_actions": 256},
        {"format_version": "2"},
        {"format_version": 0},
        {"source": "x" * 10**6},
        {"game": None},
    ],
)
def test_a_manifest_that_cannot_be_is_refused_with_its_name(
    tmp_path: Path, make_store: MakeStore, changes: dict[str, object]
) -> None:
    file = make_store(tmp_path) / "manifest.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    with pytest.raises(CorruptDataError, match=r"manifest\.json") as caught:
        FrameStore.open(file.parent)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("text", ["[]", "1" * 5000, '{"format_version": ' + "1" * 5000 + "}", "[" * 100_000, "\ud800"])
def test_a_manifest_that_is_none(tmp_path: Path, make_store: MakeStore, text: str) -> None:
    file = make_store(tmp_path) / "manifest.json"
    file.write_bytes(text.encode(errors="surrogatepass"))
    with pytest.raises(CorruptDataError, match=r"manifest\.json"):
        FrameStore.open(file.parent)


def test_a_column_whose_header_promises_terabytes_is_refused_before_it_is_read(
    tmp_path: Path, make_store: MakeStore
) -> None:
    file = make_store(tmp_path) / "rewards.npy"
    content = file.read_bytes()
    file.write_bytes(content.replace(b"(50,), }".ljust(30), b"(1000000000000,), }".ljust(30)))
    assert file.read_bytes() != content
    with pytest.raises(CorruptDataError, match=r"rewards\.npy is missing, truncated or altered"):
        FrameStore.open(file.parent)


@pytest.mark.parametrize(
    ("num_actions", "actions", "rewards"),
    [(5, [0, 5], [0, 0]), (5, [-1, 0], [0, 0]), (5, None, [0, 0]), (None, [0, 1], [0, 0]), (5, [0, 1], [1e300, 0])],
)
def test_values_that_do_not_fit_are_refused(
    tmp_path: Path, num_actions: int | None, actions: list[int] | None, rewards: list[float]
) -> None:
    with StoreWriter(tmp_path / "a" / "train", "a", "train", (8, 8, 3), num_actions) as writer:
        at = writer.reserve(2)
        with pytest.raises(ValueError, match=r"actions|rewards"):
            writer.put_columns(at, None if actions is None else np.array(actions), np.array(rewards), np.ones(2, bool))
