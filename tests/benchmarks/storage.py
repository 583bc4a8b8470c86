"""Memory of training on a large store, and how fast stores are made."""

import math
import subprocess
import sys
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from lapo_cli.core.data.replay_log import bundled_logs
from lapo_cli.core.data.sources.replay import import_replay
from lapo_cli.core.data.store import (
    FORMAT_VERSION,
    FRAMES_FILE,
    MANIFEST_FILE,
    RETURNS,
    Manifest,
    Split,
    fingerprint,
    map_frames,
    open_store,
    store_path,
)
from lapo_cli.core.files import atomic_write_json
from tests.benchmarks.timing import Line, seconds
from tests.importing import import_chunks

_FRAMES = 1_000_000
_FRAME_SHAPE = (64, 64, 3)
_CHUNKS = 4
_CHUNK_FRAMES = 16_384
_REPLAY_FRAMES = 65_536

_READ = """
def rss_anon():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) / 1e6 for line in status if line.startswith("RssAnon"))
"""
_BASE = "import torch\n" + _READ + "print(rss_anon())"
_TRAIN = (
    _READ
    + """
import sys, threading, time
from pathlib import Path
highest, stop = 0.0, threading.Event()
def watch():
    global highest
    while not stop.is_set():
        highest = max(highest, rss_anon())
        time.sleep(0.01)
thread = threading.Thread(target=watch)
thread.start()
from lapo_cli.core.config_loading import load_config
from lapo_cli.core.pipeline import Options, run_stage
from lapo_cli.core.progress import Silent
from lapo_cli.core.run_dir import RunDir
data, run = map(Path, sys.argv[1:])
words = ("data.max_frames=2000000", "stage1.steps=30", "stage1.eval_every=30", "stage1.probe_pairs=4096")
created = RunDir.create(run, load_config("quick", overrides=words), "quick")
run_stage(created, "idm", [created.seed_dir("bigfish", 0)], Options("cpu", data), Silent())
stop.set()
thread.join()
print(highest)
"""
)


def memory(rounds: int) -> list[Line]:
    """Highest RssAnon of a process that trains stage 1 on 1 M frames, beyond that of one that has imported torch."""
    with TemporaryDirectory() as folder:
        data = Path(folder) / "data"
        _sparse_store(data, "train", _FRAMES)
        _sparse_store(data, "test", 20_000)
        base = _last_number(_BASE)
        trained = _last_number(_TRAIN, str(data), str(Path(folder) / "run"))
    more = f"{trained - base:+.2f} GB"
    return [Line("memory, store of 1 M frames", f"{base:.2f} GB (torch)", f"{trained:.2f} GB", more, "2 GB")]


def _last_number(code: str, *arguments: str) -> float:
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr)
    return float(done.stdout.split()[-1])


def _sparse_store(data: Path, split: Split, frames: int) -> None:
    """A whole store of black frames, whose 12 GB take no disk; episodes of 100 frames."""
    path = store_path(data, "bigfish", split)
    path.mkdir(parents=True)
    with (path / FRAMES_FILE).open("wb") as file:
        file.truncate(frames * math.prod(_FRAME_SHAPE))
    columns = {
        "actions": (np.arange(frames) % 15).astype(np.uint8),
        "rewards": np.zeros(frames, np.float32),
        "episode_starts": np.arange(frames) % 100 == 0,
        RETURNS: np.empty(0),
    }
    for name, column in columns.items():
        np.save(path / f"{name}.npy", column)
    manifest = Manifest(
        format_version=FORMAT_VERSION,
        lapo_version="benchmark",
        game="bigfish",
        split=split,
        num_frames=frames,
        frame_shape=_FRAME_SHAPE,
        num_actions=15,
        num_episodes=0,
        mean_return=None,
        source="black frames",
        made_by="benchmark",
        fingerprint=fingerprint(map_frames(path / FRAMES_FILE, frames, _FRAME_SHAPE), columns, 15),
    )
    atomic_write_json(path / MANIFEST_FILE, manifest.as_dict())


def stores(rounds: int) -> list[Line]:
    """Frames a second of importing npz chunks, plain and compressed, and of replaying; real frames."""
    lines = []
    with TemporaryDirectory() as folder:
        data = Path(folder)
        game = "fruitbot"
        log = bundled_logs(game)["train"]
        took = min(
            seconds(partial(import_replay, log, data / folder, "train", max_frames=_REPLAY_FRAMES))
            for folder in ("replayed", "again")
        )
        lines.append(_rate("store by replay", open_store(data / "replayed", game, "train").manifest.num_frames / took))
        store = open_store(data / "replayed", game, "train")
        assert store.actions is not None
        arrays = {
            "obs": np.array(store.frames[:_CHUNK_FRAMES]),
            "ta": store.actions[:_CHUNK_FRAMES].astype(np.int64),
            "done": np.roll(store.episode_starts[:_CHUNK_FRAMES], -1),
            "rewards": store.rewards[:_CHUNK_FRAMES],
            "ep_returns": np.zeros(_CHUNK_FRAMES, np.float32),
            "values": np.zeros(_CHUNK_FRAMES, np.float32),
            "logprobs": np.zeros((_CHUNK_FRAMES, 15), np.float32),
        }
        for name, save in (("npz chunks", np.savez), ("compressed npz chunks", np.savez_compressed)):
            chunks = data / name / "given" / game / "train"
            chunks.mkdir(parents=True)
            save(chunks / "0.npz", **arrays)
            for number in range(1, _CHUNKS):
                (chunks / f"{number}.npz").hardlink_to(chunks / "0.npz")
            given, made = data / name / "given", data / name / "made"
            took = min(seconds(partial(import_chunks, given, made / str(n), game, "train")) for n in range(2))
            lines.append(_rate(f"store from {name}", _CHUNKS * _CHUNK_FRAMES / took))
    return lines


def _rate(name: str, rate: float) -> Line:
    return Line(name, "", "", f"{rate:,.0f} frames/s", "30,000 frames/s")
