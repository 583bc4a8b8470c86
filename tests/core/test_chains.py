"""One game and seed as a job: several processes on one run directory, and starting over."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

import lapo_cli
from lapo_cli.core.chains import Chain, chain, thread_shares
from lapo_cli.core.config import Config
from lapo_cli.core.errors import RunDirError, UsageError
from lapo_cli.core.launchers.base import Needs
from lapo_cli.core.needs import needs
from lapo_cli.core.pipeline import Options, run_all, run_chain
from lapo_cli.core.progress import Silent, Task
from lapo_cli.core.run_dir import RunDir, SeedDir, StageDir
from lapo_cli.core.training.metrics import read_metrics
from tests.core.tiny_config import TINY

_PLUGIN = Path(__file__).parents[1] / "plugins" / "toy_source.py"
_RELABELLED_ONLINE = ("extra_stages=online-relabel", "relabel.env_steps=256", "relabel.idm_steps=4", "relabel.steps=4")
_BOARD = (*TINY, "stage1.steps=4", "stage2.steps=4", "offline.steps=2")


def _weights(run: Path) -> dict[str, bytes]:
    """What training has made, by its path in the run."""
    return {str(file.relative_to(run)): file.read_bytes() for file in run.rglob("*.safetensors")}


def _lapo(*words: str | Path, isolated: bool = False) -> "subprocess.CompletedProcess[str]":
    """The command with the source of the board; isolated: in own namespaces, as in a container, where permitted."""
    own = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--uts", "--ipc"]
    if not isolated or subprocess.run([*own, "true"], capture_output=True, check=False).returncode:
        own = []
    return subprocess.run(
        [*own, sys.executable, "-m", "lapo_cli", *words, "--plugin", _PLUGIN],
        env={**os.environ, "PYTHONPATH": str(Path(lapo_cli.__file__).parents[1])},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def board(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with the frames of a board that has no environment, so that nothing has to be played."""
    folder = tmp_path_factory.mktemp("data")
    _lapo("download", "board", "--source", "squares", "--data-dir", folder).check_returncode()
    return folder


def test_starting_over_sets_aside_once_and_not_while_another_process_works(
    tmp_path: Path, board: Path, tiny: Callable[..., Config]
) -> None:
    run = RunDir.create(tmp_path / "run", tiny(*_BOARD), "paper")
    options, fresh = Options("cpu", board), Options("cpu", board, fresh=True)
    first = run_chain(run, "board", 0, options, Silent())
    before = _weights(run.path)
    with run.seed_dir("board", 0).lock(), pytest.raises(RunDirError, match="Another lapo process"):
        run_all(run, ["board"], [0, 1], fresh, Silent())
    assert _weights(run.path) == before
    again = run_chain(run, "board", 0, fresh, Silent())
    assert [stage.results for stage in again] == [stage.results for stage in first]
    assert not any(stage.skipped for stage in again)
    folders = {folder.name for folder in run.seed_dir("board", 0).path.iterdir() if folder.is_dir()}
    assert {name for name in folders if name.endswith(".old-1")} == {
        f"{name}.old-1" for name in folders if ".old-" not in name
    }
    assert all(stage.skipped for stage in run_chain(run, "board", 0, options, Silent()))


def test_two_drivers_share_one_run_and_make_every_store_and_stage_once(
    tmp_path: Path, board: Path, tiny: Callable[..., Config]
) -> None:
    alone = RunDir.create(tmp_path / "alone", tiny(*_BOARD), "paper")
    run_chain(alone, "board", 0, Options("cpu", board), Silent())

    shutil.copytree(board, tmp_path / "data")
    shutil.rmtree(tmp_path / "data" / "board" / "test")
    settings = [word for setting in (*_BOARD, "data.source=squares") for word in ("--set", setting)]
    where = ["--device", "cpu", "--data-dir", tmp_path / "data", "--run-dir", tmp_path / "shared"]
    words = ["run-all", "--games", "board", *where, *settings]
    with ThreadPoolExecutor() as pool:
        ended = list(pool.map(lambda _: _lapo(*words, isolated=True), range(2)))
    assert [process.returncode for process in ended] == [0, 0], ended
    said = "".join(process.stderr for process in ended)
    assert said.count("getting them from") == 1
    assert said.count("board, seed 0: idm was finished before.") == 1
    assert _weights(tmp_path / "shared") == _weights(alone.path) != {}


def test_a_chain_on_scratch_copies_the_frames_once_and_ends_the_same(
    tmp_path: Path, board: Path, tiny: Callable[..., Config]
) -> None:
    run = RunDir.create(tmp_path / "run", tiny(*_BOARD), "paper")
    run_chain(run, "board", 0, Options("cpu", board), Silent())
    near = RunDir.create(tmp_path / "near", tiny(*_BOARD), "paper")
    notes = _Said()
    for seed in (0, 1):
        run_chain(near, "board", seed, Options("cpu", board, scratch=tmp_path / "scratch"), notes)
    assert _weights(near.path / "board" / "seed-0") == _weights(run.path / "board" / "seed-0") != {}
    assert sum("Copying the train frames" in line for line in notes.lines) == 1
    copy = tmp_path / "scratch" / "board" / "train"
    assert (copy / "frames.u8").read_bytes() == (board / "board" / "train" / "frames.u8").read_bytes()
    assert list((tmp_path / "scratch" / "board" / "latents").glob("*.npy"))

    manifest = copy / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"fingerprint": "', '"fingerprint": "0'))
    with pytest.raises(UsageError, match="holds other frames"):
        run_chain(near, "board", 2, Options("cpu", board, scratch=tmp_path / "scratch"), notes)
    assert (copy / "frames.u8").exists()


def test_a_folder_that_cannot_be_used_is_one_sentence(tmp_path: Path, board: Path, tiny: Callable[..., Config]) -> None:
    (tmp_path / "file").touch()
    options = Options("cpu", board, scratch=tmp_path / "file" / "scratch")
    summary = run_all(RunDir.create(tmp_path / "run", tiny(*_BOARD), "paper"), ["board"], [0], options, Silent())
    (failure,) = summary.failures
    assert "cannot be used" in failure.message
    assert "check the path and its permissions" in failure.message


def test_what_a_chain_needs_counts_the_processes_that_it_will_start(
    tmp_path: Path, tiny: Callable[..., Config]
) -> None:
    run = RunDir.prepare(tmp_path / "run", tiny(), "paper")

    def of(threads: int, **options: Any) -> int:
        return Chain(run, "maze", 0, Options(data_dir=tmp_path, **options)).needs(threads).memory

    assert of(2) == of(1) == of(1, side_by_side=True)
    assert of(1) < of(2, side_by_side=True) < of(3, side_by_side=True) == of(64, side_by_side=True)
    assert of(64, side_by_side=True, devices=2) == of(1, devices=2)


def test_a_worker_locks_its_stage_alone_and_its_game_and_seed_for_others(tmp_path: Path) -> None:
    seed_dir = SeedDir(tmp_path / "seed-0", "maze", 0)
    with seed_dir.lock_worker("online-relabel"):
        with seed_dir.lock_worker("online"):
            pass
        with pytest.raises(RunDirError, match="Another lapo process"), seed_dir.lock():
            pass
    with seed_dir.lock():
        pass


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """So many threads in this process; those that it starts have one all the same."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _evaluations(run: Path) -> dict[str, str]:
    return {file.name: file.read_text() for file in run.rglob("evaluation/*.json")}


def test_the_last_stages_side_by_side_are_those_of_one_process(
    tmp_path: Path, data_dir: Path, tiny: Callable[..., Config]
) -> None:
    alone = RunDir.create(tmp_path / "alone", tiny(*_RELABELLED_ONLINE), "paper")
    expected = run_chain(alone, "maze", 0, Options("cpu", data_dir), Silent())
    shutil.copytree(alone.path, tmp_path / "beside")
    beside = RunDir.open(tmp_path / "beside")
    shutil.rmtree(data_dir / "maze" / "latents")
    for name in ("offline", "online", "random-play", "online-relabel", "scratch", "evaluation", "measurements"):
        shutil.rmtree(beside.seed_dir("maze", 0).path / name)
    notes, options = _Said(), Options("cpu", data_dir, side_by_side=True)
    with _threads(4):
        results = run_chain(beside, "maze", 0, options, notes)
    assert _weights(beside.path) == _weights(alone.path)
    assert _evaluations(beside.path) == _evaluations(alone.path) != {}
    assert [replace(result, path=Path()) for result in results] == [
        replace(result, path=Path(), skipped=result.stage in ("idm", "policy")) for result in expected
    ]
    assert any(title.startswith("maze/0 evaluating LAPO") for title in notes.tasks)
    assert notes.most_open > 1

    with _threads(2):
        assert all(result.skipped for result in run_chain(beside, "maze", 0, options, Silent()))


def test_a_stage_begins_when_those_that_it_needs_are_done_the_longest_first(
    tmp_path: Path, data_dir: Path, tiny: Callable[..., Config]
) -> None:
    run = RunDir.create(tmp_path / "run", tiny("stage1.steps=100", *_RELABELLED_ONLINE), "paper")
    with _threads(2):
        results = run_chain(run, "maze", 0, Options("cpu", data_dir, side_by_side=True), Silent())
    order = ["idm", "policy", "offline", "online", "random-play", "online-relabel", "scratch"]
    assert [result.stage for result in results] == order
    assert not any(result.skipped for result in results)

    def time_of(stage: str, file: str) -> int:
        return (run.seed_dir("maze", 0).stage(stage).path / file).stat().st_mtime_ns

    assert time_of("random-play", "config.yaml") < time_of("idm", "done.json")
    assert time_of("idm", "done.json") < time_of("policy", "config.yaml")
    assert time_of("policy", "done.json") < time_of("online-relabel", "config.yaml")
    # The longest comes first, and there is one more stage than there are processes.
    assert time_of("online-relabel", "config.yaml") < time_of("online", "config.yaml")


def test_stages_that_may_run_at_the_same_time_share_the_threads(tiny: Callable[..., Config]) -> None:
    stages = chain(tiny("extra_stages=online-relabel"))
    assert thread_shares(stages, 12) == {
        **{"idm": 4, "policy": 4},  # beside random-play and scratch
        **{"offline": 2, "online": 2},  # beside one another, random-play, online-relabel and scratch
        "random-play": 2,  # beside all but online-relabel
        "online-relabel": 3,  # beside offline, online and scratch
        "scratch": 1,  # beside all
    }
    assert set(thread_shares(stages, 2).values()) == {1}


@pytest.mark.parametrize(
    ("damaged", "finished"), [("online", {"idm", "policy", "offline", "scratch"}), ("idm", {"scratch"})]
)
def test_a_stage_that_fails_stops_those_alone_that_need_it(
    tmp_path: Path, data_dir: Path, tiny: Callable[..., Config], damaged: str, finished: set[str]
) -> None:
    run = RunDir.create(tmp_path / "run", tiny(), "paper")
    seed_dir = run.seed_dir("maze", 0)
    (seed_dir.path / damaged).mkdir(parents=True)
    (seed_dir.path / damaged / "done.json").write_text("{}")
    with _threads(2):
        summary = run_all(run, ["maze"], [0], Options("cpu", data_dir, side_by_side=True), Silent())
    (failure,) = summary.failures
    assert f"{damaged}/done.json" in failure.message
    assert {file.parent.name for file in seed_dir.path.glob("*/done.json")} - {damaged} == finished


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_last_stages_that_are_stopped_leave_checkpoints_before_another_process_may_work(
    tmp_path: Path, data_dir: Path, number: signal.Signals
) -> None:
    settings = [word for setting in (*TINY, "online.steps=1000000") for word in ("--set", setting)]
    words = ["--games", "maze", "--device", "cpu", "--data-dir", data_dir, "--run-dir", tmp_path / "run", *settings]
    process = subprocess.Popen(
        [sys.executable, "-m", "lapo_cli", "run-all", *words],
        env={**os.environ, "PYTHONPATH": str(Path(lapo_cli.__file__).parents[1]), "OMP_NUM_THREADS": "2"},
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )
    stages = [tmp_path / "run" / "maze" / "seed-0" / name for name in ("online", "scratch")]
    while not all(read_metrics(stage) for stage in stages):
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.05)
    process.send_signal(number)
    process.wait()
    with RunDir.open(tmp_path / "run").seed_dir("maze", 0).lock(Silent()):
        assert all(StageDir(stage).load_state() is not None for stage in stages)
    assert process.stderr is not None
    assert "Traceback" not in process.stderr.read()


class _Said(Silent):
    """Progress that keeps its sentences."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.tasks: list[str] = []
        self.open = self.most_open = 0

    @contextmanager
    def task(self, name: str, total: int, unit: str, done: int = 0) -> Iterator[Task]:
        self.tasks.append(name)
        self.open += 1
        self.most_open = max(self.open, self.most_open)
        with super().task(name, total, unit, done) as task:
            yield task
        self.open -= 1

    def log(self, message: str) -> None:
        self.lines.append(message)


def test_needs_grow_with_what_is_trained(tiny: Callable[..., Config]) -> None:
    def of(*overrides: str, stores: int = 1, devices: int = 1, workers: int = 1) -> Needs:
        config = tiny(*overrides)
        return needs(config, chain(config), stores=stores, devices=devices, workers=workers)

    small, batch, wide = of(), of("stage1.batch_size=64"), of("model.world_model_base=16")
    assert small.memory < batch.memory < of("stage1.batch_size=128").memory
    assert small.memory < wide.memory
    assert of(stores=2).disk - small.disk == 2048 * 64 * 64 * 3
    assert "of memory" in str(small)
    play = "relabel.env_steps=200000"
    assert of(play, "extra_stages=online-relabel").memory > 200_000 * 64 * 64 * 3
    assert of(play) == small
    assert small.memory < of(workers=2).memory < of(workers=3).memory
    shared = of("stage1.batch_size=64", devices=2)
    assert batch.memory < shared.memory < 2 * batch.memory
    assert shared.gpu_memory < batch.gpu_memory
