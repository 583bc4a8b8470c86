"""Launchers on jobs of a moment: outcomes, progress, plugins, and processes that are killed or interrupted."""

import _thread
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
from filelock import FileLock

import lapo_cli
from lapo_cli.core import plugins
from lapo_cli.core.config import Section
from lapo_cli.core.errors import CorruptDataError, UnknownNameError, WorkerKilledError
from lapo_cli.core.interrupts import exit_at_once, interruptible, interrupting
from lapo_cli.core.launchers.base import LAUNCHERS, Job, Launcher, run_command
from lapo_cli.core.progress import Progress, Silent, Task
from lapo_cli.core.run_dir import RunDir, StageDir
from lapo_cli.core.training.metrics import read_metrics
from tests.core.tiny_config import TINY

_LOCAL = LAUNCHERS.get("local")
_ROOT = str(Path(lapo_cli.__file__).parents[1])


class _Unreadable(Exception):
    """Can be pickled and not read back."""

    def __init__(self, one: str, two: str) -> None:
        super().__init__(f"{one} {two}")


@dataclass(frozen=True)
class _Work:
    """Does what its title says, in ``folder``."""

    title: str
    folder: Path
    devices: int = 1

    def __call__(self, device: str, progress: Progress) -> None:
        with progress.task(self.title, 3, "steps", 1) as task:
            task.update(2, loss=0.5)
            task.update(3, accuracy=1.0)
        progress.log(f"{self.title} on {device}")
        match self.title:
            case "fail":
                (self.folder / "failed").touch()
                raise CorruptDataError("It is broken.")
            case "unreadable":
                raise _Unreadable("left", "right")
            case "die":
                with progress.task("doomed", 1, "step"):
                    time.sleep(0.5)  # What it reports is sent by another thread.
                    os.kill(os.getpid(), signal.SIGKILL)
            case "last":
                while not (self.folder / "failed").exists():
                    time.sleep(0.02)
        (self.folder / self.title).write_text(f"{os.getpid()}")


@dataclass(frozen=True)
class _Hold:
    """Holds a lock until it is interrupted, then writes a checkpoint: as a training loop does, or as other code."""

    title: str
    folder: Path
    devices: int = 1

    def __call__(self, device: str, progress: Progress) -> None:
        with FileLock(self.folder / f"{self.title}.lock"):
            (self.folder / f"{self.title}.pid").write_text(str(os.getpid()))
            if self.title == "loop":
                with interruptible() as interrupted:
                    interrupted.wait()
                    time.sleep(0.3)  # An update that is under way.
                    (self.folder / "loop.checkpoint").touch()
                    raise KeyboardInterrupt
            try:
                time.sleep(1000)
            finally:
                (self.folder / f"{self.title}.checkpoint").touch()


class _Notes:
    """Progress as a list."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.open = 0

    @contextmanager
    def task(self, name: str, total: int, unit: str, done: int = 0) -> Iterator[Task]:
        notes = self

        class Noted:
            def update(self, done: int, **metrics: float) -> None:
                notes.said.append(f"{name} {done} {metrics}")

        self.said.append(f"{name} {done}/{total} {unit}")
        self.open += 1
        yield Noted()
        self.open -= 1

    def log(self, message: str) -> None:
        self.said.append(message)


def _run(jobs: list[Job], slots: int | None, progress: Progress | None = None) -> list[tuple[str, Exception | None]]:
    """Titles and outcomes of jobs, as they end."""
    outcomes = _LOCAL.run(jobs, slots=slots, device="cpu", progress=progress or Silent(), settings=Section())
    return [(job.title, error) for job, error in outcomes]


def test_one_slot_is_this_process_and_one_failure_stops_no_other(tmp_path: Path) -> None:
    jobs: list[Job] = [_Work(title, tmp_path) for title in ("a", "fail", "b")]
    outcomes = _run(jobs, None)
    assert [title for title, _ in outcomes] == ["a", "fail", "b"]
    assert isinstance(outcomes[1][1], CorruptDataError)
    assert (tmp_path / "a").read_text() == (tmp_path / "b").read_text() == str(os.getpid())


def test_a_command_ends_with_the_thread_that_waits_for_it(tmp_path: Path) -> None:
    """Also where the interruption is no signal: so a Ray task is cancelled."""
    threading.Timer(0.5, _thread.interrupt_main).start()
    with interrupting(), pytest.raises(KeyboardInterrupt):
        run_command(["sh", "-c", f"sleep 5; touch {tmp_path}/done"], os.environ, tmp_path / "log")
    assert not (tmp_path / "done").exists()


def test_processes_of_their_own_give_outcomes_and_progress_in_any_order(tmp_path: Path) -> None:
    notes = _Notes()
    jobs: list[Job] = [_Work(title, tmp_path) for title in ("last", "die", "fail", "unreadable")]
    outcomes = _run(jobs, 2, notes)
    assert outcomes[0][0] == "die"  # Two at a time, and the first one waits for the third.
    found = dict(outcomes)
    assert found.keys() == {"last", "die", "fail", "unreadable"}
    assert found["last"] is None
    assert (tmp_path / "last").read_text() != str(os.getpid())
    assert "fewer --jobs" in str(found["die"])
    assert isinstance(found["die"], WorkerKilledError)
    assert (type(found["fail"]), str(found["fail"])) == (CorruptDataError, "It is broken.")
    assert "left right" in str(found["unreadable"])
    assert [line for line in notes.said if line.startswith("last")] == [
        "last 1/3 steps",
        "last 3 {'loss': 0.5, 'accuracy': 1.0}",
        "last on cpu",
    ]
    assert "doomed 0/1 step" in notes.said
    assert notes.open == 0


def test_a_plugin_is_loaded_where_its_jobs_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "addition.py"
    file.write_text(
        "import dataclasses, pathlib\n"
        "@dataclasses.dataclass(frozen=True)\n"
        "class Touch:\n"
        "    title: str\n"
        "    folder: pathlib.Path\n"
        "    devices: int = 1\n"
        "    def __call__(self, device, progress):\n"
        "        (self.folder / self.title).touch()\n"
    )
    monkeypatch.setattr(plugins, "_LOADED", [])
    plugins.load_plugin(file)
    (module,) = [module for name, module in sys.modules.items() if name.startswith("lapo_plugin_addition")]
    jobs = [module.Touch("a", tmp_path), module.Touch("b", tmp_path)]
    assert sorted(_run(jobs, 2)) == [("a", None), ("b", None)]
    assert (tmp_path / "a").exists()
    assert (tmp_path / "b").exists()


def test_launchers_are_known_by_name() -> None:
    assert isinstance(_LOCAL, Launcher)
    with pytest.raises(UnknownNameError, match="did you mean 'local'"):
        LAUNCHERS.get("locl")


def hold(folder: str) -> None:
    """What the process does that the tests below stop: two jobs side by side, and a third one waiting."""
    exit_at_once()
    jobs = [_Hold(title, Path(folder)) for title in ("loop", "sleep", "never")]
    try:
        with interrupting():
            list(_LOCAL.run(jobs, slots=2, device="cpu", progress=Silent(), settings=Section()))
    except KeyboardInterrupt:
        sys.exit(130)


@pytest.mark.parametrize("early", [False, True], ids=["at-work", "starting"])
@pytest.mark.parametrize(
    ("numbers", "to_group"),
    [
        ([signal.SIGKILL], False),
        ([signal.SIGTERM], False),
        ([signal.SIGINT], False),
        ([signal.SIGINT], True),
        ([signal.SIGINT] * 3, True),
        ([signal.SIGTERM, signal.SIGINT, signal.SIGTERM], False),
    ],
    ids=lambda value: "-".join(n.name for n in value) if isinstance(value, list) else "group" if value else "alone",
)
def test_what_stops_the_parent_stops_its_workers_and_each_leaves_a_checkpoint(
    tmp_path: Path, numbers: list[signal.Signals], to_group: bool, early: bool
) -> None:
    process = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys, tests.core.test_launchers as t; t.hold(sys.argv[1])",
            str(tmp_path),
        ],
        env={**os.environ, "PYTHONPATH": _ROOT},
        stderr=subprocess.PIPE,
        start_new_session=True,
        # A shell starts background jobs with Ctrl-C ignored, and the tests may be part of one.
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )
    pids = [tmp_path / "loop.pid", tmp_path / "sleep.pid"]
    while not (_has_worker(process.pid) if early else all(pid.exists() and pid.read_text() for pid in pids)):
        assert process.poll() is None, process.communicate()[1].decode()
        time.sleep(0.01)
    for number in numbers:
        (os.killpg if to_group else os.kill)(process.pid, number)
        time.sleep(0.01)
    _, errors = process.communicate()  # Ends when all processes have closed their streams.
    assert process.returncode == (-signal.SIGKILL if signal.SIGKILL in numbers else 130)
    # Killed while it starts a process, a parent leaves one that finds half a message and Python's words on it.
    assert errors == b"" or (early and signal.SIGKILL in numbers)
    held = [pid.stem for pid in pids if pid.exists()]
    assert early or held == ["loop", "sleep"]
    for title in held:
        assert (tmp_path / f"{title}.checkpoint").exists()
        while _runs(int((tmp_path / f"{title}.pid").read_text())):
            time.sleep(0.01)
        FileLock(tmp_path / f"{title}.lock").acquire(timeout=0).lock.release()
    assert not (tmp_path / "never.pid").exists()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_run_that_is_stopped_leaves_checkpoints_and_no_lock(
    tmp_path: Path, data_dir: Path, number: signal.Signals
) -> None:
    settings = [word for setting in (*TINY, "stage1.steps=100000") for word in ("--set", setting)]
    words = ["--games", "maze", "--seeds", "0,1", "--jobs", "2", "--device", "cpu", "--data-dir", data_dir]
    command = [sys.executable, "-m", "lapo_cli", "run-all", *words, "--run-dir", tmp_path / "run", *settings]
    process = subprocess.Popen(
        command,
        env={**os.environ, "PYTHONPATH": _ROOT},
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )
    stages = [tmp_path / "run" / "maze" / f"seed-{seed}" / "idm" for seed in (0, 1)]
    while not all(read_metrics(stage) for stage in stages):
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.05)
    process.send_signal(number)
    _, errors = process.communicate()
    assert "Traceback" not in errors
    if number == signal.SIGINT:
        assert process.returncode == 130
        assert errors.splitlines()[-1].startswith("Error: Interrupted")
        for seed in (0, 1):
            assert f"maze/{seed} stage 1: " in errors
    run = RunDir.open(tmp_path / "run")
    for seed, stage in enumerate(stages):
        assert StageDir(stage).load_state() is not None
        with run.seed_dir("maze", seed).lock():
            pass


def _runs(pid: int) -> bool:
    """Whether there is such a process, other than one that has ended and waits to be collected."""
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


def _has_worker(pid: int) -> bool:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return any(b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes() for child in children)
