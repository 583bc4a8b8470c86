"""Importing clips: what is stored of them, in which split, with which actions, and what survives a kill."""

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

from lapo_cli.core.data.clips import Preparation
from lapo_cli.core.data.download import carry_out, plan, plan_import, scratch_folder
from lapo_cli.core.data.sources.base import held_out
from lapo_cli.core.data.sources.video import CLIPS_FILE, VideoImporter, preparation_of
from lapo_cli.core.data.store import UNLABELLED, FrameStore, Split, open_store
from lapo_cli.core.errors import CorruptDataError, DiskFullError, LapoError, MissingInputError, UsageError
from lapo_cli.core.progress import Silent
from tests.videos import number_of, numbered, write_video

Log = list[str]


class _Logged(Silent):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def log(self, message: str) -> None:
        self.lines.append(message)


def _import(data: Path, *paths: Path, **options: object) -> tuple[FrameStore, FrameStore, list[str]]:
    progress = _Logged()
    importer = VideoImporter("mine", paths, scratch_folder(data, "mine"), **options)  # type: ignore[arg-type]
    carry_out(plan_import("mine", data, importer), progress)
    return open_store(data, "mine", "train"), open_store(data, "mine", "test"), progress.lines


def _numbers(store: FrameStore) -> list[int]:
    return [number_of(frame) for frame in store.frames]


def _clips(folder: Path, counts: list[int]) -> Path:
    for number, count in enumerate(counts):
        write_video(folder / f"{number}.mp4", numbered(count, first=100 * number))
    return folder


def test_clips_become_episodes_in_one_split_whole(tmp_path: Path) -> None:
    train, test, _ = _import(tmp_path / "data", _clips(tmp_path / "clips", [20, 30, 10, 25]))
    numbers = {number for store in (train, test) for number in _numbers(store)}
    assert numbers == {100 * clip + frame for clip, count in enumerate([20, 30, 10, 25]) for frame in range(count)}
    assert len(_numbers(train)) + len(_numbers(test)) == 85
    assert len({number // 100 for number in _numbers(test)}) == 1
    for store in (train, test):
        assert store.actions is None
        assert store.episode_starts.tolist() == [number % 100 == 0 for number in _numbers(store)]
    described = json.loads((tmp_path / "data" / "mine" / CLIPS_FILE).read_text())
    assert [(clip["frames"], clip["starts"]) for clip in described["clips"]] == [(20, 1), (30, 1), (10, 1), (25, 1)]
    assert preparation_of(tmp_path / "data", "mine") == Preparation()
    (tmp_path / "data" / "mine" / CLIPS_FILE).write_text(json.dumps({**described, "source": "another import"}))
    with pytest.raises(CorruptDataError, match="import the clips again"):  # One that was killed at its end.
        preparation_of(tmp_path / "data", "mine")
    assert not scratch_folder(tmp_path / "data", "mine").exists()


def test_the_end_of_a_single_clip_is_for_test(tmp_path: Path) -> None:
    train, test, said = _import(tmp_path / "data", write_video(tmp_path / "a.mp4", numbered(50)), test_fraction=0.2)
    assert (_numbers(train), _numbers(test)) == (list(range(40)), list(range(40, 50)))
    assert (np.flatnonzero(train.episode_starts), np.flatnonzero(test.episode_starts)) == ([0], [0])
    assert "There is one clip: its last 10 frames are for test, the others for training." in said


def test_the_same_import_is_done_once_and_another_one_is_another(tmp_path: Path) -> None:
    folder = _clips(tmp_path / "clips", [8, 8])
    _import(tmp_path / "data", folder)

    def offered(**options: object) -> set[Split]:
        importer = VideoImporter("mine", (folder,), tmp_path / "scratch", **options)  # type: ignore[arg-type]
        return set(plan_import("mine", tmp_path / "data", importer).offers)

    assert offered() == set()
    assert offered(preparation=Preparation(fps=10)) == {"train", "test"}
    assert offered(test_fraction=0.3) == {"train", "test"}
    write_video(folder / "2.mp4", numbered(8))
    assert offered() == {"train", "test"}


def test_what_cannot_be_used_is_left_out_and_said(tmp_path: Path) -> None:
    folder = _clips(tmp_path / "clips", [20, 20, 1])
    (folder / "broken.mp4").write_text("hello")
    (folder / "notes.txt").write_text("hello")
    train, test, said = _import(tmp_path / "data", folder)
    assert len(train.frames) + len(test.frames) == 40
    assert [line for line in said if "clips" in line] == [
        "Left out, since they are no clips: 1 of the files, notes.txt.",
        f"Left out: {folder / '2.mp4'} gives fewer than the three frames of a window.",
        f"Left out: {folder / 'broken.mp4'} cannot be decoded (Invalid data found when processing input): convert it, "
        "or get it again.",
    ]


@pytest.mark.parametrize(
    ("counts", "error", "sentence"),
    [
        ([1, 2], CorruptDataError, "No clip in .* has three frames"),
        ([5], UsageError, "5 frames are too few"),
    ],
)
def test_too_few_frames(tmp_path: Path, counts: list[int], error: type[LapoError], sentence: str) -> None:
    with pytest.raises(error, match=sentence):
        _import(tmp_path / "data", _clips(tmp_path / "clips", counts))
    assert not list((tmp_path / "data").glob("mine/t*"))


@pytest.mark.parametrize("threads", [1, 4])
def test_actions_stay_with_their_frames(tmp_path: Path, threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: threads)
    folder = _clips(tmp_path / "clips", [40, 30])
    known = {0: range(0, 40, 2), 1: range(5, 30)}
    lines = [f"{clip}.mp4,{frame},{(clip + frame) % 7}" for clip, frames in known.items() for frame in frames]
    (tmp_path / "actions.csv").write_text("\n".join(["clip, frame, action", *reversed(lines), ""]))
    for fps in (None, 10, 60):
        data = tmp_path / f"data-{fps}"
        stores = _import(data, folder, actions=tmp_path / "actions.csv", preparation=Preparation(fps=fps))[:2]
        for store in stores:
            assert store.actions is not None
            assert store.manifest.num_actions == 7
            numbers = _numbers(store)
            for row, number in enumerate(numbers):
                clip, frame = divmod(number, 100)
                last = row + 1 == len(numbers) or numbers[row + 1] != number
                expected = (clip + frame) % 7 if frame in known[clip] and last else UNLABELLED
                assert store.actions[row] == expected


@pytest.mark.parametrize("pairs", [False, True])
def test_actions_of_a_single_clip_as_an_array(tmp_path: Path, pairs: bool) -> None:
    path = write_video(tmp_path / "a.mp4", numbered(20))
    array = np.array([[3, 1], [4, 0], [19, 254]]) if pairs else np.arange(10)
    np.save(tmp_path / "a.npy", array)
    train, test, _ = _import(tmp_path / "data", path, actions=tmp_path / "a.npy")
    assert train.actions is not None
    assert test.actions is not None
    every = [*train.actions.tolist(), *test.actions.tolist()]
    expected = [UNLABELLED] * 20
    for frame, action in array.tolist() if pairs else enumerate(array.tolist()):
        expected[frame] = action
    assert every == expected
    assert train.manifest.num_actions == (255 if pairs else 10)


def _text(content: str) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        (folder / "actions.csv").write_text(content)
        return folder / "actions.csv"

    return write


def _array(array: object) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        np.save(folder / "actions.npy", np.asarray(array))
        return folder / "actions.npy"

    return write


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (_text("frame,action\n20,1\n"), r"has an action for frame 20 of .*a.mp4, which has 20 frames counted from 0"),
        (_text("3,-1\n"), "has an action of number -1"),
        (_text("-3,1\n"), "has a frame of number -3"),
        (_text("3,255\n"), "an action of number 255: the largest that can be stored is 254"),
        (_text("3,1\n3,2\n"), "several actions for one frame"),
        (_text("frame,action\n"), "holds no action"),
        (_text("frame,action\n3,left\n"), "line 2: 'left' is not what belongs there"),
        (_text("3\n"), "line 1: '3' is not what belongs there"),
        (_text("3,1" + "0" * 40), "line 1: '10000"),
        (_text("b.mp4,3,1\n"), "names the clip 'b.mp4', of which there is none"),
        (_text("a.mp4,3,1\n\0"), "CSV file|not what belongs"),
        (_array([0.5]), "holds float64"),
        (_array([[1, 2, 3]]), "holds int64"),
        (_array([-1]), "an action of number -1"),
        (_array([1] * 21), "frame 20"),
        (lambda folder: folder / "no.csv", "There is no file of actions"),
        (lambda folder: folder / "a.mp4", "is no file of actions"),
    ],
)
def test_wrong_actions_are_refused_with_their_place(
    tmp_path: Path, make: Callable[[Path], Path], sentence: str
) -> None:
    path = write_video(tmp_path / "a.mp4", numbered(20))
    with pytest.raises((UsageError, MissingInputError), match=sentence):
        _import(tmp_path / "data", path, actions=make(tmp_path))
    assert not list((tmp_path / "data").glob("mine/t*"))


def test_several_clips_need_their_names(tmp_path: Path) -> None:
    folder = _clips(tmp_path / "clips", [20, 20])
    with pytest.raises(UsageError, match="does not say to which of the 2 clips"):
        _import(tmp_path / "data", folder, actions=_text("3,1\n")(tmp_path))


def test_the_actions_of_a_game_are_the_game_s(tmp_path: Path) -> None:
    folder = _clips(tmp_path / "clips", [20, 20])
    (tmp_path / "a.csv").write_text("0.mp4,3,1\n")
    importer = VideoImporter("maze", (folder,), tmp_path / "scratch", actions=tmp_path / "a.csv")
    carry_out(plan_import("maze", tmp_path / "data", importer))
    assert open_store(tmp_path / "data", "maze", "train").manifest.num_actions == 15
    (tmp_path / "a.csv").write_text("0.mp4,3,15\n")
    importer = VideoImporter("maze", (folder,), tmp_path / "scratch", actions=tmp_path / "a.csv")
    with pytest.raises(UsageError, match="an action of number 15, but maze has 15"):
        carry_out(plan_import("maze", tmp_path / "data", importer, fresh=True))
    assert open_store(tmp_path / "data", "maze", "train").manifest.num_actions == 15


def test_a_location_alone_is_read_with_the_defaults(tmp_path: Path) -> None:
    folder = _clips(tmp_path / "clips", [20, 20])
    planned = plan("mine", tmp_path / "data", location=folder)
    assert isinstance(planned.importer, VideoImporter)
    carry_out(planned)
    assert open_store(tmp_path / "data", "mine", "train").manifest.made_by == "video"


def test_without_the_extra_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = _clips(tmp_path / "clips", [20, 20])
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(UsageError, match=r"Reading clips needs the extra 'video' .*pip install 'lapo-cli\[video\]'"):
        _import(tmp_path / "data", folder)


def test_a_full_disk_is_a_sentence(tmp_path: Path, small_disk: Path) -> None:
    with pytest.raises(DiskFullError, match="is full"):
        _import(small_disk / "data", _clips(tmp_path / "clips", [200, 20]))
    assert not list((small_disk / "data").glob("mine/t*"))


def test_a_killed_import_keeps_the_clips_that_were_decoded(tmp_path: Path) -> None:
    folder = _clips(tmp_path / "clips", [20, 20, 20])
    os.mkfifo(folder / "3.mp4")  # A clip that takes for ever.
    command = [sys.executable, "-m", "lapo_cli", "import", "mine", str(folder), "--data-dir", str(tmp_path / "data")]
    scratch = scratch_folder(tmp_path / "data", "mine")
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    while len(list(scratch.glob("*.clip"))) < 3 and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not list((tmp_path / "data").glob("mine/t*"))
    decoded = list(scratch.glob("*.clip"))
    assert len(decoded) == 3
    for file in decoded:
        content = bytearray(file.read_bytes())
        content[0] = 77  # Seen in the store, if the file is used again.
        file.write_bytes(content)
    decoded[0].write_bytes(decoded[0].read_bytes()[:-1])  # One that the disk has lost is made again.
    (folder / "3.mp4").unlink()
    write_video(folder / "3.mp4", numbered(20, first=300))
    train, test, _ = _import(tmp_path / "data", folder)
    numbers = {number for store in (train, test) for number in _numbers(store)}
    assert numbers == {100 * clip + frame for clip in range(4) for frame in range(20)}
    assert sum(int(frame[0, 0, 0] == 77) for store in (train, test) for frame in store.frames) == 2


def test_an_interrupted_import_ends_at_once(tmp_path: Path) -> None:
    folder = _clips(tmp_path / "clips", [20])
    np.savez(folder / "long.npz", frames=np.zeros((60_000, 16, 16, 3), np.uint8))
    command = [sys.executable, "-m", "lapo_cli", "import", "mine", str(folder), "--data-dir", str(tmp_path / "data")]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    while not list(scratch_folder(tmp_path / "data", "mine").glob("*.partial")) and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    assert "Interrupted: what was finished is kept" in process.communicate()[1]
    assert process.returncode == 130


@given(st.lists(st.integers(3, 10_000), min_size=2, max_size=40), st.floats(0.01, 0.5))
def test_the_share_of_test_frames_is_as_near_as_whole_clips_allow(counts: list[int], fraction: float) -> None:
    chosen = held_out(counts, fraction)
    assert 0 < len(chosen) < len(counts)
    assert chosen == held_out(counts, fraction)
    taken, target = sum(counts[number] for number in chosen), fraction * sum(counts)
    assert abs(taken - target) <= max(counts)
