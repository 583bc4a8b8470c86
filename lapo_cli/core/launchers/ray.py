"""Runs jobs as tasks of a Ray cluster, or of a private Ray on this machine.

Placement, retries of lost workers and fractions of a GPU are Ray's, and so is PyTorch's number of threads: the cores
that a task takes. Every node needs the same version of lapo, and the same run directory and data folder. A task that
Ray starts again waits for the lock of one that is still ending.
"""

import os
import pickle
import signal
import socket
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from pydantic import Field

import lapo_cli
from lapo_cli.core.config import Section
from lapo_cli.core.errors import LapoError, one_line, sendable, shortened
from lapo_cli.core.extras import require_extra
from lapo_cli.core.files import human_bytes
from lapo_cli.core.interrupts import interrupting
from lapo_cli.core.launchers.base import LAUNCHERS, Job, Launcher
from lapo_cli.core.plugins import load_plugin, loaded_plugins
from lapo_cli.core.progress import Progress, Relay, Replay

_CHECKPOINT_SECONDS = 60.0
_WAIT_SECONDS = 1.0
_ANSWER_SECONDS = 5.0
_HEAD_SECONDS, _LAST_SECONDS = 25.0, 10.0  # Without its head Ray ends this process, in C++, after 60 seconds.
_ATTEMPTS = "RAY_gcs_server_port_wait_time_s"  # of 41 seconds each, to connect to a cluster; Ray makes 20


class RaySettings(Section):
    """What ``--launcher-set`` sets."""

    address: str | None = Field(
        None, description="Address of a running cluster; by default RAY_ADDRESS, else a private Ray is started here."
    )
    cpus: float = Field(1.0, ge=0, description="CPU cores that a task takes, for each of its devices.")
    gpus: float | None = Field(
        None, ge=0, description="GPUs that a task takes, also a fraction; by default all its devices, if there are any."
    )
    retries: int = Field(3, ge=-1, description="How often a task whose worker was lost is started again; -1: always.")


class RayLauncher(Launcher):
    """A Ray task for each job."""

    name = "ray"
    Settings = RaySettings

    def require(self, settings: Section) -> None:
        """See :meth:`Launcher.require`."""
        assert isinstance(settings, RaySettings)
        _ray()
        _require_answer(_address(settings))

    def run(
        self, jobs: Sequence[Job], *, slots: int | None, device: str, progress: Progress, settings: Section
    ) -> Iterator[tuple[Job, Exception | None]]:
        """See :meth:`Launcher.run`; ``slots`` limits the tasks that are with Ray at a time."""
        assert isinstance(settings, RaySettings)
        ray = _ray()
        _connect(ray, settings)
        try:
            yield from _run(ray, jobs, slots, device, progress, settings)
        finally:
            ray.shutdown()


LAUNCHERS.register(RayLauncher())


def _ray() -> Any:
    return require_extra("ray", "ray", "--launcher ray")


def _address(settings: RaySettings) -> str:
    return settings.address or os.environ.get("RAY_ADDRESS") or "local"


def _require_answer(address: str) -> None:
    """Ray itself would try for long, and print warnings, to reach a HOST:PORT where nothing is.

    Raises:
        LapoError: nothing answers there.
    """
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdigit() or "/" in host:
        return  # One of Ray's other forms, such as 'auto'.
    try:
        _reach(host, int(port))
    except (OSError, OverflowError) as error:
        raise _no_cluster(address, error) from error


def _reach(host: str, port: int) -> None:
    """Raises OSError where nothing answers."""
    socket.create_connection((host.strip("[]"), port), timeout=_ANSWER_SECONDS).close()


def _no_cluster(address: str, error: Exception) -> LapoError:
    why = one_line(str(error), 200).rstrip(".")
    return LapoError(
        f"There is no Ray cluster at '{shortened(address)}' that can be used ({why}): "
        "start one with 'ray start --head', or change --launcher-set address=HOST:PORT."
    )


def _connect(ray: Any, settings: RaySettings) -> None:
    """Connect to a cluster, or start a private one.

    Raises:
        LapoError: there is none at that address.
    """
    address = _address(settings)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    more = {"include_dashboard": False} if address == "local" else {}
    in_main = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGTERM)
    limited = address != "local" and _ATTEMPTS not in os.environ
    if limited:
        os.environ[_ATTEMPTS] = "1"
    try:
        ray.init(address=address, log_to_driver=False, logging_level="ERROR", **more)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise _no_cluster(address, error) from error
    finally:
        if limited:
            del os.environ[_ATTEMPTS]
        if in_main:
            signal.signal(signal.SIGTERM, handler)  # That of Ray would end this process without a checkpoint.


def _run(
    ray: Any, jobs: Sequence[Job], slots: int | None, device: str, progress: Progress, settings: RaySettings
) -> Iterator[tuple[Job, Exception | None]]:
    gpus, devices = settings.gpus, jobs[0].devices
    if gpus is None:
        gpus = devices * float(device != "cpu" and ray.cluster_resources().get("GPU", 0) > 0)
    if gpus == 0 and device == "auto":
        device = "cpu"  # Ray hides no GPU from a task that takes none.
    cpus, memory = devices * settings.cpus, max(job.needs(1 if gpus else int(settings.cpus)).memory for job in jobs)
    _say_if_none_fits(ray, {"CPU": cpus, "GPU": gpus, "memory": float(memory)}, progress)
    here = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
        ray.get_runtime_context().get_node_id(), soft=True
    )
    board = ray.remote(_Board).options(num_cpus=0, max_restarts=-1, scheduling_strategy=here).remote()
    task = ray.remote(_work).options(num_cpus=cpus, num_gpus=gpus, memory=memory, max_retries=settings.retries)
    common = lapo_cli.__version__, loaded_plugins(), device
    waiting = deque(jobs)
    working: dict[Any, Job] = {}
    replays = [Replay(progress) for _ in jobs]
    numbers = {id(job): number for number, job in enumerate(jobs)}
    head = _Head(ray.get_runtime_context().gcs_address)
    try:
        while waiting or working:
            while waiting and (slots is None or len(working) < slots):
                job = waiting.popleft()
                working[task.remote(board, numbers[id(job)], pickle.dumps(job), *common)] = job
            ended, _ = ray.wait(list(working), timeout=_WAIT_SECONDS)
            _show(ray, board, replays)
            for ref in ended:
                job = working.pop(ref)
                replays[numbers[id(job)]].close()
                yield job, _outcome(ray, ref)
            head.require()
    finally:
        for ref in working:
            ray.cancel(ref)  # Ctrl-C for the task, which then writes its checkpoint.
        if working:
            patience = _LAST_SECONDS if head.lost else _CHECKPOINT_SECONDS
            ray.wait(list(working), num_returns=len(working), timeout=patience)
            _show(ray, board, replays, patience)
        for replay in replays:
            replay.close()


class _Head:
    """The head of the cluster, which has to be there while tasks run.

    Attributes:
        lost: whether it is not.
    """

    def __init__(self, address: str) -> None:
        host, _, port = address.rpartition(":")
        self._host, self._port = host, int(port)
        self._asked = time.monotonic()
        self._silent: float | None = None  # since when
        self.lost = False

    def require(self) -> None:
        """Ask, now and then, whether it is there.

        Raises:
            LapoError: it has not answered for a while.
        """
        now = time.monotonic()
        if now - self._asked < _ANSWER_SECONDS:
            return
        self._asked = now
        try:
            _reach(self._host, self._port)
            self._silent = None
        except OSError as error:
            self._silent = self._silent or now
            self.lost = now - self._silent >= _HEAD_SECONDS
            if self.lost:
                raise LapoError(
                    f"The head of the Ray cluster, {self._host}:{self._port}, does not answer any more: start the "
                    "cluster again and run the same command again, which goes on from the last checkpoints."
                ) from error


def _say_if_none_fits(ray: Any, needed: dict[str, float], progress: Progress) -> None:
    """Where no node could ever run a task, Ray waits without end for one that an autoscaler might add."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if not any(all(node.get(name, 0) >= amount for name, amount in needed.items()) for node in nodes):
        progress.log(
            f"No node of the Ray cluster has {needed['CPU']:g} CPUs, {needed['GPU']:g} GPUs and "
            f"{human_bytes(needed['memory'])} of memory for a task: waiting for one, or change what a task takes by "
            "--launcher-set cpus=N and gpus=N."
        )


def _outcome(ray: Any, ref: Any) -> Exception | None:
    try:
        error = ray.get(ref)
    except ray.exceptions.RayError as lost:
        return LapoError(
            f"its Ray task was lost, perhaps for lack of memory ({one_line(str(lost), 200).rstrip('.')}): run the same "
            "command again, which resumes it."
        )
    assert error is None or isinstance(error, Exception)
    return error


def _show(ray: Any, board: Any, replays: list[Replay], patience: float = _CHECKPOINT_SECONDS) -> None:
    """Report what the tasks have sent since the last time; a board that is lost takes no work with it."""
    with suppress(ray.exceptions.RayError):
        for number, event in ray.get(board.take.remote(), timeout=patience):
            if event[0] == "begin":  # Perhaps not for the first time.
                replays[number].close()
            else:
                replays[number].receive(event)


class _Board:
    """An actor to which the tasks send their progress."""

    def __init__(self) -> None:
        self._events: list[tuple[int, tuple[Any, ...]]] = []

    def put(self, number: int, event: tuple[Any, ...]) -> None:
        """Note an event of a job."""
        self._events.append((number, event))

    def take(self) -> list[tuple[int, tuple[Any, ...]]]:
        """All events since the last call, in order."""
        events, self._events = self._events, []
        return events


def _work(board: Any, number: int, job: bytes, version: str, plugins: list[Path], device: str) -> Exception | None:
    """A task: what the job failed with, or None. It is interrupted by KeyboardInterrupt, which Ray knows."""
    if version != lapo_cli.__version__:
        return LapoError(
            f"This is lapo {version}, and the Ray node {socket.gethostname()} has lapo {lapo_cli.__version__}: install "
            "the same version on both."
        )
    board.put.remote(number, ("begin",))
    try:
        with interrupting():
            for plugin in plugins:
                load_plugin(plugin)
            pickle.loads(job)(device, Relay(lambda event: board.put.remote(number, event)))
    except Exception as error:
        return sendable(error)
    finally:
        ray = _ray()
        with suppress(ray.exceptions.RayError):  # The events are there before the task has ended.
            ray.get(board.put.remote(number, ("end",)), timeout=_CHECKPOINT_SECONDS)
    return None
