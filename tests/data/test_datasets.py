"""Minari data sets and parquet files as sources of demonstrations."""

import itertools
import json
import sys
import warnings
from pathlib import Path
from typing import Any

import gymnasium
import minari
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from minari.data_collector import EpisodeBuffer

from lapo_cli.core.data.download import download
from lapo_cli.core.data.store import UNLABELLED, open_store
from lapo_cli.core.errors import CorruptDataError, LapoError, UsageError
from tests.videos import number_of, numbered

_IMAGES = gymnasium.spaces.Box(0, 255, (64, 64, 3), np.uint8)
_LENGTHS = [9, 14, 5, 30]  # actions


def _minari(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    observations: Any = _IMAGES,
    actions: Any = None,
    key: str | None = None,
) -> Path:
    """A data set whose frame t of episode e shows 100 e + t, with action t modulo 4 and reward t."""
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(folder))
    buffers = []
    for episode, length in enumerate(_LENGTHS):
        frames = numbered(length + 1, first=100 * episode)
        if observations.shape == (3,):
            frames = frames[:, 0, 0].astype(np.float32)
        taken: Any = 2 + np.arange(length) % 4 if actions is None else np.zeros((length, 2), np.float32)
        buffers.append(
            EpisodeBuffer(
                id=episode,
                observations=list(frames) if key is None else {key: list(frames), "more": [0] * (length + 1)},
                actions=list(taken),
                rewards=np.arange(length, dtype=float).tolist(),
                terminations=[False] * (length - 1) + [episode != 1],
                truncations=[False] * length,
                infos={},
            )
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        minari.create_dataset_from_buffers(
            "test/frames-v0",
            buffers,
            observation_space=observations,
            action_space=gymnasium.spaces.Discrete(4, start=2) if actions is None else actions,
            data_format="hdf5",
        )
    return folder / "test" / "frames-v0"


@pytest.mark.parametrize("by_id", [True, False])
@pytest.mark.parametrize("key", [None, "rgb"])
def test_episodes_of_minari(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by_id: bool, key: str | None) -> None:
    space = _IMAGES if key is None else gymnasium.spaces.Dict({key: _IMAGES, "more": gymnasium.spaces.Discrete(3)})
    folder = _minari(tmp_path / "minari", monkeypatch, space, key=key)
    download("mine", tmp_path / "data", location="test/frames-v0" if by_id else folder)
    numbers, returns = [], []
    for split in ("train", "test"):
        store = open_store(tmp_path / "data", "mine", split)
        assert store.manifest.num_actions == 4
        assert store.actions is not None
        shown = [number_of(frame) for frame in store.frames]
        for row, number in enumerate(shown):
            episode, t = divmod(number, 100)
            last = t == _LENGTHS[episode]
            assert store.actions[row] == (UNLABELLED if last else t % 4)
            assert store.rewards[row] == (0 if last else t)
            assert store.episode_starts[row] == (t == 0)
        numbers += shown
        returns += store.episode_returns().tolist()
    assert sorted(numbers) == [100 * e + t for e, length in enumerate(_LENGTHS) for t in range(length + 1)]
    assert sorted(returns) == sorted(sum(range(length)) for e, length in enumerate(_LENGTHS) if e != 1)


def test_continuous_actions_of_minari_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = _minari(tmp_path / "minari", monkeypatch, actions=gymnasium.spaces.Box(-1, 1, (2,), np.float32))
    download("mine", tmp_path / "data", location=folder)
    assert open_store(tmp_path / "data", "mine", "train").actions is None


def test_minari_without_images_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = _minari(tmp_path / "minari", monkeypatch, gymnasium.spaces.Box(0, 255, (3,), np.float32))
    with pytest.raises(UsageError, match="lapo learns from images"):
        download("mine", tmp_path / "data", location=folder)


def test_damaged_minari_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = _minari(tmp_path / "minari", monkeypatch)
    file = folder / "data" / "main_data.hdf5"
    file.write_bytes(file.read_bytes()[:5000])
    with pytest.raises(CorruptDataError, match="cannot be read"):
        download("mine", tmp_path / "data", location=folder)
    metadata = folder / "data" / "metadata.json"
    metadata.write_text(json.dumps({"hello": 1}))
    with pytest.raises(CorruptDataError, match="cannot be read"):
        download("mine", tmp_path / "data", location=folder)


def _table(first: int, count: int, **changes: Any) -> pa.Table:
    """Rows whose frames show their number; episodes end after rows 6, 13, ..., and are truncated after row 9."""
    t = np.arange(first, first + count)
    columns = {
        "observation": pa.array(numbered(count, first=first).tolist(), pa.list_(pa.list_(pa.list_(pa.uint8())))),
        "action": pa.array(t % 15, pa.uint8()),
        "reward": pa.array(t, pa.float32()),
        "done": pa.array(t % 7 == 6),
        "truncated": pa.array(t == 9),
    } | changes
    return pa.table({name: column for name, column in columns.items() if column is not None})


def _parquet(folder: Path) -> Path:
    """Two train files of 30 rows and a test file of 20."""
    folder.mkdir(parents=True)
    pq.write_table(_table(0, 30), folder / "train-00000-of-00002.parquet", row_group_size=8)
    pq.write_table(_table(30, 30), folder / "train-00001-of-00002.parquet")
    pq.write_table(_table(100, 20), folder / "test-00000-of-00001.parquet")
    return folder


@pytest.mark.parametrize("game", ["maze", "mine"])
def test_rows_of_parquet_files(tmp_path: Path, game: str) -> None:
    _parquet(tmp_path / "given" / game)
    download(game, tmp_path / "data", location=tmp_path / "given")
    train, test = (open_store(tmp_path / "data", game, split) for split in ("train", "test"))
    assert [number_of(frame) for frame in train.frames] == list(range(60))
    assert [number_of(frame) for frame in test.frames] == list(range(100, 120))
    assert train.actions is not None
    assert train.actions.tolist() == [t % 15 for t in range(60)]
    assert train.rewards.tolist() == list(range(60))
    starts = [0, *(t for t in range(1, 60) if (t - 1) % 7 == 6 or t - 1 == 9)]
    assert np.flatnonzero(train.episode_starts).tolist() == starts
    assert train.episode_returns().tolist() == [sum(range(a, b)) for a, b in itertools.pairwise(starts)]
    assert train.manifest.num_actions == 15


def test_a_bound_cuts_parquet_files(tmp_path: Path) -> None:
    folder = _parquet(tmp_path / "given")
    download("mine", tmp_path / "data", location=folder, max_frames=33)
    store = open_store(tmp_path / "data", "mine", "train")
    assert [number_of(frame) for frame in store.frames] == list(range(33))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"action": None}, "has no column action"),
        ({"observation": None}, "has no column observation"),
        ({"action": pa.array([15] * 30, pa.uint8())}, "actions from 15 to 15"),
        ({"action": pa.array([None] * 30, pa.uint8())}, "the column action holds uint8, or values are missing"),
        ({"reward": pa.array([float("nan")] * 30, pa.float32())}, "rewards that are not finite"),
        ({"done": pa.array([0.5] * 30)}, "the column done"),
        ({"observation": pa.array([[1.0, 2.0]] * 30)}, "where uint8"),
        ({"observation": pa.array([b"x"] * 30)}, "where uint8"),
        (
            {"observation": pa.array([[[[1, 2, 3]]]] * 29 + [[[[1, 2]]]], pa.list_(pa.list_(pa.list_(pa.uint8()))))},
            "not all",
        ),
    ],
)
def test_other_columns_are_refused(tmp_path: Path, changes: dict[str, Any], sentence: str) -> None:
    pq.write_table(_table(0, 30, **changes), tmp_path / "train.parquet")
    with pytest.raises(LapoError, match=sentence):
        download("maze", tmp_path / "data", location=tmp_path)
    assert not list((tmp_path / "data").glob("maze/t*"))


def test_a_cut_parquet_file_is_refused(tmp_path: Path) -> None:
    folder = _parquet(tmp_path / "given")
    file = folder / "train-00001-of-00002.parquet"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(CorruptDataError, match="truncated or no parquet file"):
        download("mine", tmp_path / "data", location=folder)


@pytest.mark.parametrize(("module", "extra"), [("minari", "minari"), ("pyarrow.parquet", "parquet")])
def test_without_the_extra_it_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str, extra: str
) -> None:
    folder = _minari(tmp_path / "m", monkeypatch) if extra == "minari" else _parquet(tmp_path / "given")
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UsageError, match=rf"pip install 'lapo-cli\[{extra}\]'"):
        download("mine", tmp_path / "data", location=folder)
