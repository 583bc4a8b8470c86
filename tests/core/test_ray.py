"""The Ray launcher on real clusters of nodes on this machine; skipped without the extra."""

import hashlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import lapo_cli
from lapo_cli.core.config_loading import load_config
from lapo_cli.core.errors import CorruptDataError, LapoError
from lapo_cli.core.interrupts import interruptible, interrupting
from lapo_cli.core.launchers import ray as launcher
from lapo_cli.core.launchers.base import LAUNCHERS, Needs
from lapo_cli.core.pipeline import Options, run_all
from lapo_cli.core.progress import Progress, Silent
from lapo_cli.core.run_dir import RunDir
from tests.core.tiny_config import TINY

ray: Any = pytest.importorskip("ray")
pytestmark = pytest.mark.filterwarnings("ignore")

_RAY = LAUNCHERS.get("ray")
_ROOT = str(Path(lapo_cli.__file__).parents[1])
_CHAINS = 48  # of the simulated cluster run, two games
_TINIER = (  # Two seconds of one core for a chain, without an environment.
    "data.max_frames=1024",
    "model.policy_size=16",
    "stage1.steps=4",
    "stage1.batch_size=4",
    "stage2.steps=4",
    "stage2.batch_size=4",
    "offline.labels=64",
    "offline.steps=2",
)


@dataclass(frozen=True)
class _Work:
    """Does what its title says, in ``folder``; counts its attempts there."""

    title: str
    folder: Path
    devices: int = 1

    @property
    def command(self) -> list[str]:
        raise AssertionError("Ray unpickles jobs")

    def needs(self, threads: int) -> Needs:
        return Needs(disk=1, memory=50_000_000, gpu_memory=1)

    def __call__(self, device: str, progress: Progress) -> None:
        attempts = self.folder / f"{self.title}.attempts"
        with attempts.open("a") as file:
            file.write(f"{os.getpid()} {ray.get_runtime_context().get_node_id()}\n")
        attempt = len(attempts.read_text().splitlines())
        with progress.task(self.title, 2, "steps") as task:
            task.update(attempt)
            match self.title:
                case "fail":
                    raise CorruptDataError("It is broken.")
                case "die":
                    if attempt == 1:
                        os.kill(os.getpid(), signal.SIGKILL)
                case "hold-0" | "hold-1":
                    with interruptible() as interrupted:
                        while not interrupted.wait(0.05):  # Ray interrupts Python code, not a system call.
                            pass
                        (self.folder / f"{self.title}.checkpoint").touch()
                        raise KeyboardInterrupt
                case "moved":
                    while attempt == 1:
                        time.sleep(0.05)
        progress.log(f"{self.title} on {device}")


class _Said(Silent):
    """Progress that keeps its sentences."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def log(self, message: str) -> None:
        self.lines.append(message)


def _settings(**values: object) -> Any:
    assert _RAY.Settings is not None
    return _RAY.Settings.model_validate({"cpus": 1.0, **values})


@contextmanager
def _cluster(*cpus: int) -> Iterator[Any]:
    """A head that runs no task, and a node for each of these numbers of cores."""
    from ray.cluster_utils import Cluster

    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([_ROOT, *([before] if before else [])])
    os.environ.setdefault("RAY_raylet_start_wait_time_s", "120")  # Others may be using the cores.
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    for number in cpus:
        made.add_node(num_cpus=number)
    made.wait_for_nodes()
    try:
        yield made
    finally:
        made.shutdown()
        os.environ.pop("PYTHONPATH")
        if before:
            os.environ["PYTHONPATH"] = before


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    with _cluster(2) as made:
        yield made


def _run(cluster: Any, jobs: list[_Work], progress: Progress, **values: object) -> dict[str, Exception | None]:
    settings = _settings(address=cluster.address, **values)
    outcomes = _RAY.run(jobs, slots=None, device="cpu", progress=progress, settings=settings)
    return {job.title: error for job, error in outcomes}


def test_a_failure_stops_no_other_and_a_killed_worker_is_started_again(tmp_path: Path, cluster: Any) -> None:
    notes = _Said()
    found = _run(cluster, [_Work(title, tmp_path) for title in ("good", "fail", "die")], notes)
    assert (found["good"], found["die"]) == (None, None)
    assert (type(found["fail"]), str(found["fail"])) == (CorruptDataError, "It is broken.")
    assert len((tmp_path / "die.attempts").read_text().splitlines()) == 2
    assert {"good on cpu", "die on cpu"} <= set(notes.lines)


def test_a_worker_that_is_lost_for_good_is_one_sentence(tmp_path: Path, cluster: Any) -> None:
    found = _run(cluster, [_Work("die", tmp_path)], Silent(), retries=0)
    assert isinstance(found["die"], LapoError)
    assert "its Ray task was lost" in str(found["die"])
    assert "same command again" in str(found["die"])


def test_another_version_of_lapo_is_refused(tmp_path: Path, cluster: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    there = lapo_cli.__version__
    monkeypatch.setattr(lapo_cli, "__version__", "99.0")
    found = _run(cluster, [_Work("good", tmp_path)], Silent())
    assert "This is lapo 99.0, and the Ray node " in str(found["good"])
    assert f"has lapo {there}" in str(found["good"])
    assert not (tmp_path / "good.attempts").exists()


def test_the_jobs_of_a_node_that_is_removed_go_on_elsewhere(tmp_path: Path, cluster: Any) -> None:
    cluster.add_node(num_cpus=2)
    attempts = tmp_path / "moved.attempts"

    def remove() -> None:
        while not attempts.exists() or not attempts.read_text().endswith("\n"):
            time.sleep(0.05)
        at = attempts.read_text().split()[1]
        (node,) = [node for node in cluster.worker_nodes if node.node_id == at]
        cluster.remove_node(node, allow_graceful=False)

    thread = threading.Thread(target=remove)
    thread.start()
    found = _run(cluster, [_Work("moved", tmp_path)], Silent())
    thread.join()
    assert found == {"moved": None}
    nodes = [line.split()[1] for line in attempts.read_text().splitlines()]
    assert len(set(nodes)) == len(nodes) == 2


def test_an_address_where_nothing_is_is_one_sentence_and_no_wait() -> None:
    with socket.socket() as bound:  # and not listening
        bound.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{bound.getsockname()[1]}"
        with pytest.raises(LapoError, match=rf"no Ray cluster at '{address}'.*refused.*address=HOST:PORT") as error:
            _RAY.require(_settings(address=address))
    assert "\n" not in str(error.value)


def hold(folder: str, address: str) -> None:
    """What the driver does in the tests below."""
    jobs = [_Work(title, Path(folder)) for title in ("hold-0", "hold-1", "never")]
    settings = _settings(address=address)
    launcher._HEAD_SECONDS = 0.0  # Whoever is lost here does not come back.
    try:
        with interrupting():
            list(_RAY.run(jobs, slots=None, device="cpu", progress=Silent(), settings=settings))
    except KeyboardInterrupt:
        sys.exit(130)
    except LapoError as error:
        sys.exit(f"Error: {error}")


def _driver(folder: Path, address: str) -> "subprocess.Popen[str]":
    """A process with two jobs that are under way."""
    code = "import sys, tests.core.test_ray as t; t.hold(*sys.argv[1:])"
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(folder), address],
        env={**os.environ, "PYTHONPATH": _ROOT},
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    while not all((folder / f"hold-{n}.attempts").exists() for n in range(2)):
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.05)
    time.sleep(0.5)  # into the work
    return process


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_driver_that_is_interrupted_has_every_job_write_its_checkpoint(
    tmp_path: Path, cluster: Any, number: signal.Signals
) -> None:
    process = _driver(tmp_path, cluster.address)
    process.send_signal(number)
    _, errors = process.communicate()
    assert process.returncode == 130, errors
    assert all((tmp_path / f"hold-{n}.checkpoint").exists() for n in range(2))
    assert not (tmp_path / "never.attempts").exists()


def test_a_head_that_is_lost_is_one_sentence_and_every_job_writes_its_checkpoint(tmp_path: Path) -> None:
    with _cluster(2) as cluster:
        process = _driver(tmp_path, cluster.address)
        (head,) = cluster.head_node.all_processes["gcs_server"]
        os.kill(head.process.pid, signal.SIGKILL)
        _, errors = process.communicate()
    assert process.returncode == 1, errors
    assert errors.splitlines()[-1].startswith("Error: The head of the Ray cluster"), errors
    assert "same command again" in errors
    assert "Traceback" not in errors
    assert all((tmp_path / f"hold-{n}.checkpoint").exists() for n in range(2))


class _Havoc(Silent):
    """Progress that, as often as a chain ends, may kill a worker or remove a node and add another one, at random."""

    def __init__(self, cluster: Any, seed: int) -> None:
        self._cluster, self._rng = cluster, np.random.default_rng(seed)
        self.kills = self.losses = 0

    @contextmanager
    def task(self, name: str, total: int, unit: str, done: int = 0) -> Iterator[Any]:
        yield SimpleNamespace(update=self._strike if name == "games and seeds" else lambda *_, **__: None)

    def _strike(self, ended: int) -> None:
        what = self._rng.random()
        if what < 0.15:
            self._cluster.remove_node(self._any_node(), allow_graceful=False)
            self._cluster.add_node(num_cpus=1)
            self.losses += 1
        elif what < 0.65 and (pids := _working(self._any_node())):
            os.kill(pids[0], signal.SIGKILL)
            self.kills += 1

    def _any_node(self) -> Any:
        nodes = sorted(self._cluster.worker_nodes, key=lambda node: node.node_id)
        return nodes[self._rng.integers(len(nodes))]


def _working(node: Any) -> list[int]:
    """Workers of a node that have a task of the launcher."""
    (raylet,) = node.all_processes["raylet"]
    pid = raylet.process.pid
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(child) for child in children if Path(f"/proc/{child}/cmdline").read_bytes().startswith(b"ray::_work")]


def _digests(run: Path) -> dict[str, str]:
    """Of all weights; not of what a killed process had begun to write."""
    return {
        str(file.relative_to(run)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in run.rglob("[!.]*.safetensors")
    }


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_cluster_that_loses_workers_and_nodes_makes_the_weights_of_an_unbroken_local_run(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    games, seeds = ["board", "field"], list(range(_CHAINS // 2))
    source = Path(__file__).parents[1] / "plugins" / "toy_source.py"
    words = ["download", ",".join(games), "--source", "squares", "--data-dir", tmp_path / "data", "--plugin", source]
    subprocess.run([sys.executable, "-m", "lapo_cli", *words], env={**os.environ, "PYTHONPATH": _ROOT}, check=True)
    config = load_config("paper", overrides=(*TINY, *_TINIER))
    torch.set_num_threads(1)  # As in a task: one thread adds up in one order.
    alone = RunDir.create(tmp_path / "alone", config, "paper")
    assert run_all(alone, games, seeds, Options("cpu", tmp_path / "data"), Silent()).failures == []

    with _cluster(1, 1, 1) as cluster:
        havoc = _Havoc(cluster, seed=0)
        settings = (f"address={cluster.address}", "retries=-1")
        options = Options("cpu", tmp_path / "data", launcher="ray", launcher_settings=settings)
        found = run_all(RunDir.create(tmp_path / "many", config, "paper"), games, seeds, options, havoc)
    record_property("kills, nodes lost", (havoc.kills, havoc.losses))
    assert found.failures == []
    assert havoc.kills > 0
    assert havoc.losses > 0
    assert len(_digests(alone.path)) >= 3 * _CHAINS
    assert _digests(tmp_path / "many") == _digests(alone.path)
