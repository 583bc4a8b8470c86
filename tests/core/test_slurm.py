"""The SLURM launcher: its script by itself, and on a real cluster of one node where SLURM is installed."""

import os
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from lapo_cli.core.config_loading import parse_settings
from lapo_cli.core.errors import LapoError, UsageError
from lapo_cli.core.launchers.base import LAUNCHERS, Needs
from lapo_cli.core.launchers.slurm import Slurm, SlurmSettings
from lapo_cli.core.progress import Progress, Silent

_SLURM = LAUNCHERS.get("slurm")
# Counts its attempts; writes a checkpoint when it is terminated and then ends as lapo does.
_CHECKPOINTING = 'echo x >> {0}.tries; trap "touch {0}.saved; exit 130" TERM; [ -e {0}.saved ] && exit 0; '


@dataclass(frozen=True)
class _Shell:
    """A job that is a line of shell."""

    title: str
    line: str
    folder: Path
    devices: int = 1

    @property
    def command(self) -> list[str]:
        return ["bash", "-c", self.line]

    def needs(self, threads: int) -> Needs:
        return Needs(disk=1, memory=50_000_000, gpu_memory=1)

    def __call__(self, device: str, progress: Progress) -> None:
        raise AssertionError("it was not to run here")


def _settings(**values: object) -> SlurmSettings:
    return SlurmSettings.model_validate({"poll": 0.5, "cpus": 1, "gpus": 0, **values})


def _wait_for(path: Path) -> None:
    while not path.exists():
        time.sleep(0.02)


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The script of one task, and a 'scontrol' that notes what it is asked."""
    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "scontrol").write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/scontrol\n')
    (tools / "scontrol").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "7")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "0")
    (tmp_path / "slurm" / "1").mkdir(parents=True)
    return tmp_path / "array.sh"


def _write(script: Path, line: str) -> None:
    job = _Shell("a", line, script.parent)
    script.write_text(_SLURM.preview([job], slots=None, device="cpu", settings=_settings()))


@pytest.mark.parametrize(
    ("line", "restarts", "code", "requeued", "noted"),
    [
        ("exit 0", "0", 0, False, "0"),
        ("exit 2", "0", 2, False, "2"),
        ("kill -9 $$", "0", 137, True, None),
        ("kill -9 $$", "3", 137, False, "137"),
    ],
)
def test_a_killed_task_is_requeued_a_few_times_and_one_that_failed_is_not(
    script: Path,
    monkeypatch: pytest.MonkeyPatch,
    line: str,
    restarts: str,
    code: int,
    requeued: bool,
    noted: str | None,
) -> None:
    monkeypatch.setenv("SLURM_RESTART_COUNT", restarts)
    _write(script, line)
    assert subprocess.run(["bash", script], capture_output=True, check=False).returncode == code
    exit_file = script.parent / "slurm" / "1" / "0.exit"
    assert (exit_file.read_text().strip() if exit_file.exists() else None) == noted
    asked = script.parent / "scontrol"
    assert (asked.read_text() if asked.exists() else "") == ("requeue 7_0\n" if requeued else "")


@pytest.mark.parametrize(("number", "requeued"), [(signal.SIGUSR1, True), (signal.SIGTERM, False)])
def test_a_task_that_is_signalled_writes_its_checkpoint_first(
    script: Path, number: signal.Signals, requeued: bool
) -> None:
    at = script.parent / "task"
    _write(script, f"{_CHECKPOINTING.format(at)} touch {at}; while :; do sleep 0.05; done")
    process = subprocess.Popen(["bash", script])
    _wait_for(at)
    process.send_signal(number)
    assert process.wait() == 130
    assert at.with_suffix(".saved").exists()
    assert (script.parent / "scontrol").exists() == requeued
    assert not (script.parent / "slurm" / "1" / "0.exit").exists()


def test_the_script_asks_for_what_the_jobs_need(tmp_path: Path) -> None:
    jobs = [_Shell(title, f'echo "{title}"', tmp_path) for title in ("a", "it's")]
    settings = _settings(partition="gpu", minutes=60, gpus=None, options=("--qos=low",))
    text = _SLURM.preview(jobs, slots=8, device="auto", settings=settings)
    for line in (
        "--array=0-1%8",
        "--gres=gpu:1",
        "--mem=50M",
        "--partition=gpu",
        "--time=60",
        "--qos=low",
        "--requeue",
    ):
        assert f"#SBATCH {line}\n" in text
    assert "--gres" not in _SLURM.preview(jobs, slots=None, device="cpu", settings=_settings(gpus=None))
    shared = [_Shell("a", "true", tmp_path, devices=4)]
    of_four = _SLURM.preview(shared, slots=None, device="auto", settings=_settings(gpus=None, cpus=2))
    for line in ("#SBATCH --gres=gpu:4", "#SBATCH --cpus-per-task=8", "#SBATCH --mem=50M", "export OMP_NUM_THREADS=2"):
        assert line in of_four
    file = tmp_path / "script"
    file.write_text(text)
    environment = {**os.environ, "SLURM_ARRAY_TASK_ID": "1"}
    (tmp_path / "slurm" / "1").mkdir(parents=True)
    assert subprocess.run(["bash", file], env=environment, capture_output=True, check=True).stdout == b"it's\n"
    with pytest.raises(UsageError, match="without spaces"):
        _SLURM.preview([_Shell("a", "", tmp_path / "my runs")], slots=None, device="cpu", settings=_settings())


def test_without_sbatch_one_sentence_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UsageError, match="no sbatch on PATH"):
        Slurm().require(_settings())


@pytest.mark.parametrize("words", [["options=[--qos=low, --nice]", "account=123"], ["options=--qos=low"]])
def test_settings_can_be_given_as_words(words: list[str]) -> None:
    settings = parse_settings(SlurmSettings, words)
    assert settings.options[0] == "--qos=low"
    assert settings.account in (None, "123")


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A SLURM cluster of this machine alone, with daemons of its own."""
    if os.geteuid() != 0 or not all(shutil.which(name) for name in ("munged", "slurmctld", "slurmd", "sbatch")):
        pytest.skip("a cluster needs root, slurm-wlm and munge")
    folder = tmp_path_factory.mktemp("slurm")
    folder.chmod(0o755)
    (folder / "key").write_bytes(os.urandom(1024))
    (folder / "key").chmod(0o600)
    host = socket.gethostname().partition(".")[0]
    for name in ("state", "spool"):
        (folder / name).mkdir()
    (folder / "slurm.conf").write_text(
        f"""ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={_free_port()}
SlurmdPort={_free_port()}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SlurmdParameters=config_overrides
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=batch_sched_delay=0,sched_min_interval=0,sched_interval=1
NodeName={host} NodeAddr=127.0.0.1 CPUs=4 State=UNKNOWN RealMemory=1000
PartitionName=main Nodes=ALL Default=YES State=UP
"""
    )
    before = dict(os.environ)
    os.environ["SLURM_CONF"] = str(folder / "slurm.conf")
    places = {"key-file": "key", "socket": "munge", "pid-file": "munged.pid", "log-file": "log", "seed-file": "seed"}
    options = [f"--{option}={folder / name}" for option, name in places.items()]
    daemons = [["munged", "--force", "--foreground", *options], ["slurmctld", "-D"], ["slurmd", "-D"]]
    started: list[subprocess.Popen[bytes]] = []
    try:
        for words in daemons:
            started.append(subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
            if words[0] == "munged":
                _wait_for(folder / "munge")
        while b"idle" not in subprocess.run(["sinfo", "-h"], capture_output=True, check=False).stdout:
            assert all(process.poll() is None for process in started), (folder / "slurmctld.log").read_text()
            time.sleep(0.2)
        yield folder
    finally:
        for process in reversed(started):
            process.terminate()
        for process in started:
            process.wait()
        os.environ.clear()
        os.environ.update(before)


class _Said(Silent):
    """Progress that keeps its sentences."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def log(self, message: str) -> None:
        self.lines.append(message)


@contextmanager
def _at_once() -> Iterator[None]:
    """Have tasks that were requeued start at once, where SLURM has them wait for two minutes."""
    over = threading.Event()

    def release() -> None:
        while not over.wait(0.5):
            words = ["squeue", "-h", "--states=PENDING", "--array", "--format=%A"]
            for task in subprocess.run(words, capture_output=True, text=True, check=False).stdout.split():
                change = ["scontrol", "update", f"JobId={task}", "StartTime=now"]
                subprocess.run(change, capture_output=True, check=False)

    thread = threading.Thread(target=release)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def test_a_cluster_runs_requeues_and_reports_every_job(tmp_path: Path, cluster: Path) -> None:
    killed = tmp_path / "killed"
    jobs = [
        _Shell("good", f"touch {tmp_path}/good", tmp_path),
        _Shell("bad", "echo 'Error: It is broken.' >&2; exit 1", tmp_path),
        _Shell("killed", f"echo x >> {killed}; [ $(wc -l < {killed}) = 2 ] || kill -9 $$", tmp_path),
    ]
    with _at_once():
        outcomes = _SLURM.run(jobs, slots=2, device="cpu", progress=Silent(), settings=_settings())
        found = {job.title: error for job, error in outcomes}
    assert found.keys() == {"good", "bad", "killed"}
    assert (found["good"], found["killed"]) == (None, None)
    assert isinstance(found["bad"], LapoError)
    assert str(found["bad"]) == "It is broken."
    assert (tmp_path / "good").exists()


def test_a_task_that_is_preempted_writes_its_checkpoint_and_goes_on(tmp_path: Path, cluster: Path) -> None:
    at = tmp_path / "task"
    job = _Shell("a", f"{_CHECKPOINTING.format(at)} touch {at}; while :; do sleep 0.05; done", tmp_path)

    def preempt() -> None:
        number = tmp_path / "slurm" / "1" / "array.id"
        _wait_for(at)
        _wait_for(number)
        subprocess.run(["scontrol", "requeue", f"{number.read_text().strip()}_0"], check=True)

    thread = threading.Thread(target=preempt)
    thread.start()
    with _at_once():
        outcomes = _SLURM.run([job], slots=None, device="cpu", progress=Silent(), settings=_settings(retries=0))
        assert [error for _, error in outcomes] == [None]
    thread.join()
    assert at.with_suffix(".saved").exists()
    assert at.with_suffix(".tries").read_text() == "x\nx\n"


def test_interrupted_it_cancels_all_and_each_writes_its_checkpoint(tmp_path: Path, cluster: Path) -> None:
    earlier = signal.signal(signal.SIGINT, signal.default_int_handler)  # A job in the background ignores it.
    at = [tmp_path / str(n) for n in range(3)]
    lines = [f"{_CHECKPOINTING.format(path)} touch {path}; while :; do sleep 0.05; done" for path in at]
    jobs = [_Shell(path.name, line, tmp_path) for path, line in zip(at, lines, strict=True)]
    threading.Thread(target=lambda: (_wait_for(at[1]), _wait_for(at[0]), os.kill(os.getpid(), signal.SIGINT))).start()
    try:
        with pytest.raises(KeyboardInterrupt):
            list(_SLURM.run(jobs, slots=2, device="cpu", progress=Silent(), settings=_settings()))
    finally:
        signal.signal(signal.SIGINT, earlier)
    assert [path.with_suffix(".saved").exists() for path in at] == [True, True, False]
    assert subprocess.run(["squeue", "-h"], capture_output=True, check=True).stdout == b""


def test_a_driver_that_was_lost_is_followed_by_one_that_waits_for_the_same_array(tmp_path: Path, cluster: Path) -> None:
    job = _Shell("a", f"echo x >> {tmp_path}/tries; while [ ! -e {tmp_path}/go ]; do sleep 0.05; done", tmp_path)
    pid = os.fork()
    if pid == 0:
        list(_SLURM.run([job], slots=None, device="cpu", progress=Silent(), settings=_settings()))
        os._exit(0)
    _wait_for(tmp_path / "tries")
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    notes = _Said()
    outcomes = _SLURM.run([job], slots=None, device="cpu", progress=notes, settings=_settings())
    threading.Timer(1.0, (tmp_path / "go").touch).start()
    assert [(job.title, error) for job, error in outcomes] == [("a", None)]
    assert "is queued already" in notes.lines[0]
    assert (tmp_path / "tries").read_text() == "x\n"
    assert [entry.name for entry in (tmp_path / "slurm").iterdir()] == ["1"]


def test_what_sbatch_refuses_is_one_sentence(tmp_path: Path, cluster: Path) -> None:
    job, settings = _Shell("a", "true", tmp_path), _settings(partition="absent")
    with pytest.raises(LapoError, match=r"sbatch refused .*invalid partition.*--launcher-set"):
        list(_SLURM.run([job], slots=None, device="cpu", progress=Silent(), settings=settings))
