"""A source in one plugin file, and data of one's own: any frame shape, with and without actions, under any name."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from lapo_cli.core.data.download import download, ensure_stores, plan
from lapo_cli.core.data.sources.base import SOURCES
from lapo_cli.core.data.store import UNLABELLED, FrameStore, open_store, store_path
from lapo_cli.core.data.store_writer import StoreWriter
from lapo_cli.core.errors import CorruptDataError, MissingInputError, UnknownNameError, UsageError
from lapo_cli.core.progress import Silent

_PLUGIN = '''
"""Frames that are made up: NUMBER.toy names how many."""

import numpy as np

from lapo_cli.core.data.sources.base import SOURCES, Importer, Offer, Source, bounded
from lapo_cli.core.data.store import store_path
from lapo_cli.core.data.store_writer import StoreWriter


class ToyImporter(Importer):
    def __init__(self, game, count, num_actions):
        self.game, self.count, self.num_actions = game, count, num_actions

    def offers(self, bounds):
        sizes = {split: bounded(self.count, bound) for split, bound in bounds.items()}
        return {split: Offer(f"toy {count}", count, 8 * 12 * 3) for split, count in sizes.items()}

    def store(self, split, data_dir, bound, progress):
        count = bounded(self.count, bound)
        with StoreWriter(store_path(data_dir, self.game, split), self.game, split, (8, 12, 3), self.num_actions) as w:
            at = w.reserve(count)
            w.put_frames(at, np.full((count, 8, 12, 3), 7, np.uint8))
            actions = None if self.num_actions is None else np.where(np.arange(count) % 2, 255, 1)
            w.put_columns(at, actions, None, np.arange(count) == 0)
            return w.finish(source=f"toy {count}", made_by="toy", episode_returns=[])


class ToySource(Source):
    name = "toy"
    description = "Files that end in .toy."

    def open(self, game, location, scratch):
        if location is None:
            return ToyImporter(game, 30, None)
        return ToyImporter(game, int(location.split("/")[-1].split(".")[0]), 5) if location.endswith(".toy") else None


SOURCES.register(ToySource())
'''

_RUN = """
import sys
from pathlib import Path
from lapo_cli.core.plugins import load_plugin
load_plugin(Path(sys.argv[1]))
from lapo_cli.core.data.download import ensure_stores
from lapo_cli.core.progress import Silent
sys.argv = sys.argv[1:]
data = Path(sys.argv[1])
"""


@pytest.fixture
def plugin(tmp_path: Path) -> Path:
    file = tmp_path / "toy.py"
    file.write_text(_PLUGIN)
    return file


def _python(code: str, *words: object) -> str:
    done = subprocess.run([sys.executable, "-c", _RUN + code, *map(str, words)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_plugin_file_adds_a_source_for_download(tmp_path: Path, plugin: Path) -> None:
    code = (
        "from lapo_cli.cli.main import app\n"
        "app(['download', 'robot', '--from', '20.toy', '--data-dir', str(data)], standalone_mode=False)"
    )
    (tmp_path / "20.toy").touch()
    _python(code, plugin, tmp_path / "data")
    store = open_store(tmp_path / "data", "robot", "train")
    assert store.frames.shape == (20, 8, 12, 3)
    assert (store.manifest.num_actions, store.manifest.mean_return) == (5, None)
    assert store.labelled(np.array([1, 2, 3, 4])).tolist() == [2, 4]
    assert store.manifest.num_bytes == 20 * 8 * 12 * 3


def test_a_plugin_file_adds_a_source_for_the_configuration(tmp_path: Path, plugin: Path) -> None:
    code = "store = ensure_stores('robot', data, 'toy', 1024, Silent()); print(len(store.frames), store.actions)"
    assert _python(code, plugin, tmp_path / "data").split() == ["30", "None"]
    store = open_store(tmp_path / "data", "robot", "test")
    assert store.labelled(np.arange(5)).tolist() == []
    assert not (tmp_path / "data" / "robot" / "train" / "actions.npy").exists()


def test_every_source_describes_itself_in_one_sentence() -> None:
    assert set(SOURCES.names()) >= {"drive", "demos", "npz", "replay"}
    for source in SOURCES.values():
        assert source.description.endswith(".")


def _own_chunks(folder: Path, *, actions: bool = True, shape: tuple[int, int] = (16, 24)) -> Path:
    for split, most in (("train", 3), ("test", 6)):
        (folder / split).mkdir(parents=True)
        arrays = {
            "obs": np.zeros((10, *shape, 3), np.uint8),
            "ta": np.arange(10) % (most + 1),
            "done": np.arange(10) == 5,
            "rewards": np.zeros(10, np.float32),
        }
        if not actions:
            del arrays["ta"]
        np.savez(folder / split / "0.npz", **arrays)
    return folder


def test_chunks_of_ones_own_may_have_any_shape_and_name(tmp_path: Path) -> None:
    made = download("my.robot-1", tmp_path / "data", location=_own_chunks(tmp_path / "own"))
    # Both splits have the actions that occur in either.
    assert {split: (m.frame_shape, m.num_actions) for split, m in made.items()} == {
        "train": ((16, 24, 3), 7),
        "test": ((16, 24, 3), 7),
    }


def test_chunks_of_ones_own_may_have_no_actions(tmp_path: Path) -> None:
    made = download("robot", tmp_path / "data", location=_own_chunks(tmp_path / "own", actions=False))
    assert made["train"].num_actions is None
    assert open_store(tmp_path / "data", "robot", "train").actions is None


@pytest.mark.parametrize("name", ["../up", "a/b", ".hidden", "", "-x", "a b", "x" * 101, "näme"])
def test_a_name_must_be_a_plain_folder_name(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match="cannot be the name"):
        plan(name, tmp_path / "data", location=_own_chunks(tmp_path / "own"))


def test_a_location_that_no_source_reads_says_what_can_be_read(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("none")
    with pytest.raises(MissingInputError, match=r"nothing of heist at .*notes\.txt.* npz: Numbered npz chunks"):
        plan("heist", tmp_path, location=tmp_path / "notes.txt")
    with pytest.raises(MissingInputError, match="no file or folder"):
        plan("heist", tmp_path, location=tmp_path / "nowhere")
    with pytest.raises(MissingInputError, match="cannot be read"):
        plan("heist", tmp_path, location="x" * 5000)
    for name in ("npz", "replay"):
        with pytest.raises(MissingInputError, match="--from"):
            plan("heist", tmp_path, source=name)


def test_source_and_location_go_together(tmp_path: Path) -> None:
    own = _own_chunks(tmp_path / "own")
    assert list(plan("robot", tmp_path, source="npz", location=own).offers) == ["train", "test"]
    with pytest.raises(MissingInputError, match="replay: A replay log"):
        plan("robot", tmp_path, source="replay", location=own)


def _own_store(data: Path, game: str, split: str, shape: tuple[int, int, int] = (64, 64, 3)) -> FrameStore:
    path = store_path(data, game, split)  # type: ignore[arg-type]
    with StoreWriter(path, game, split, shape, 15) as writer:  # type: ignore[arg-type]
        at = writer.reserve(5)
        writer.put_frames(at, np.zeros((5, *shape), np.uint8))
        writer.put_columns(at, np.full(5, UNLABELLED), None, np.zeros(5, bool))
        writer.finish(source="my own", made_by="test", episode_returns=[])
    return FrameStore.open(path)


class _Log(Silent):
    def __init__(self) -> None:
        self.said: list[str] = []

    def log(self, message: str) -> None:
        self.said.append(message)


def test_a_store_of_ones_own_is_never_replaced_when_the_other_split_is_missing(tmp_path: Path) -> None:
    own = _own_store(tmp_path, "fruitbot", "train")
    log = _Log()
    assert ensure_stores("fruitbot", tmp_path, "demos", 1024, log).manifest == own.manifest
    assert open_store(tmp_path, "fruitbot", "train").manifest == own.manifest
    assert "replay log" in open_store(tmp_path, "fruitbot", "test").manifest.source
    assert "There are no test frames of fruitbot" in log.said[0]
    (tmp_path / "fruitbot" / "train" / "rewards.npy").write_bytes(b"damaged")
    (tmp_path / "fruitbot" / "test").rename(tmp_path / "elsewhere")
    before = sorted(path.name for path in (tmp_path / "fruitbot" / "train").iterdir())
    with pytest.raises(CorruptDataError, match=r"rewards\.npy"):
        ensure_stores("fruitbot", tmp_path, "demos", 1024, Silent())
    assert sorted(path.name for path in (tmp_path / "fruitbot" / "train").iterdir()) == before


def test_splits_that_do_not_fit_together_are_refused(tmp_path: Path) -> None:
    _own_store(tmp_path, "robot", "train")
    _own_store(tmp_path, "robot", "test", (8, 8, 3))
    with pytest.raises(UsageError, match="do not fit together"):
        ensure_stores("robot", tmp_path, "demos", 1024, Silent())


def test_the_configured_source_must_exist_and_be_the_one_that_is_here(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'drive'"):
        ensure_stores("maze", tmp_path, "drve", 1024, Silent())
    with pytest.raises(MissingInputError, match="No demonstrations of 'robot'"):
        ensure_stores("robot", tmp_path, "demos", 1024, Silent())
    ensure_stores("fruitbot", tmp_path, "demos", 1024, Silent())
    with pytest.raises(MissingInputError, match=r"data\.source=demos"):
        ensure_stores("fruitbot", tmp_path, "drive", 1024, Silent())
