"""Runs jobs on this machine: one after the other in this process, or several in processes of their own.

A process runs one job. It never outlives the one that started it: when that is interrupted, terminated or killed, the
job is interrupted too, writes its checkpoint and releases its locks.
"""

import multiprocessing
import os
import pickle
import queue
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from lapo_cli.core.config import Section
from lapo_cli.core.errors import LapoError, sendable
from lapo_cli.core.interrupts import INTERRUPTED, deliver, exit_at_once, interrupting, postponed
from lapo_cli.core.launchers.base import LAUNCHERS, Job, Launcher
from lapo_cli.core.plugins import load_plugin, loaded_plugins
from lapo_cli.core.progress import Progress, Relay, Replay

_CHECKPOINT_SECONDS = 60.0


class Local(Launcher):
    """``slots`` processes, each with its GPUs or an equal share of the CPU; with one slot, this process."""

    name = "local"

    def run(
        self, jobs: Sequence[Job], *, slots: int | None, device: str, progress: Progress, settings: Section
    ) -> Iterator[tuple[Job, Exception | None]]:
        """See :meth:`Launcher.run`; ``slots`` is 1 if nothing else is said."""
        if slots in (None, 1):
            yield from _one_by_one(jobs, device, progress)
        else:
            yield from _side_by_side(jobs, min(slots or 1, len(jobs)), device, progress)


LAUNCHERS.register(Local())


def _one_by_one(jobs: Sequence[Job], device: str, progress: Progress) -> Iterator[tuple[Job, Exception | None]]:
    for job in jobs:
        error = None
        try:
            job(device, progress)
        except Exception as caught:
            error = caught
        yield job, error


def _side_by_side(
    jobs: Sequence[Job], slots: int, device: str, progress: Progress
) -> Iterator[tuple[Job, Exception | None]]:
    waiting = deque(jobs)
    devices = deque(_devices(slots, device, jobs[0].devices))
    working: dict[Connection, _Worker] = {}
    resource_tracker.ensure_running()  # Else it is started with the first process, and ends the postponement below.
    try:
        while waiting or working:
            while waiting and devices:
                with postponed():  # Else one that comes before the worker is noted would leave it behind.
                    worker = _Worker(waiting.popleft(), devices.popleft(), slots, progress)
                    working[worker.events] = worker
            for events in wait(list(working)):
                assert isinstance(events, Connection)
                worker = working[events]
                if not worker.receive():
                    del working[events]
                    devices.append(worker.device)
                    yield worker.job, worker.outcome
    finally:
        _stop(list(working.values()))


def _devices(slots: int, device: str, each: int) -> list[str]:
    """The first device of every slot: GPUs in turn, where the choice is left to us and there are any."""
    if device in ("auto", "cuda"):
        import torch  # Late, because it is slow to load and the command line lists launchers.

        if torch.cuda.is_available():
            return [f"cuda:{slot * each % torch.cuda.device_count()}" for slot in range(slots)]
    return [device] * slots


class _Worker:
    """A process with its job, as the process that started it sees it.

    Attributes:
        events: what it sends; at its end when the process has ended.
        outcome: what it failed with, or None; valid once the process has ended.
    """

    def __init__(self, job: Job, device: str, slots: int, progress: Progress) -> None:
        self.job, self.device = job, device
        self.replay = Replay(progress)
        self.outcome: Exception | None = LapoError(
            "a process was killed, perhaps for lack of memory: run the same command with fewer --jobs."
        )
        self.events, theirs = multiprocessing.Pipe(duplex=False)
        arguments = (theirs, loaded_plugins(), pickle.dumps(job), device, slots)
        context = multiprocessing.get_context("spawn")
        self.process = context.Process(target=_work, args=arguments, name=job.title)
        self.process.start()
        theirs.close()

    def receive(self) -> bool:
        """Take one event, or notice that the process has ended."""
        try:
            event = self.events.recv()
        except (EOFError, OSError):
            self.replay.close()
            self.events.close()
            self.process.join()
            return False
        if event[0] == "end":
            self.outcome = event[1]
        else:
            self.replay.receive(event)
        return True


def _stop(workers: Sequence[_Worker]) -> None:
    """Have workers write their checkpoints and end; if that is interrupted too, end them at once."""
    try:
        for worker in workers:
            worker.process.terminate()
        for worker in workers:
            worker.replay.close()
            worker.events.close()  # Else a worker could block on a full pipe that is no longer read.
        for worker in workers:
            worker.process.join()
    except KeyboardInterrupt:
        for worker in workers:
            worker.process.kill()
        raise


def _work(events: Connection, plugins: list[Path], job: bytes, device: str, slots: int) -> None:
    """The whole life of a worker; signals are postponed when it starts."""
    exit_at_once()
    # Threads inherit that signals are postponed, so that they interrupt the main thread and no other.
    sender = _Sender(events)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    error = None
    try:
        with interrupting():
            deliver()
            try:
                for plugin in plugins:
                    load_plugin(plugin)
                import torch

                torch.set_num_threads(max(1, torch.get_num_threads() // slots))
                pickle.loads(job)(device, Relay(sender.send))
            except Exception as caught:
                error = caught
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    sender.send(("end", None if error is None else sendable(error)))
    sender.close()


class _Sender:
    """Sends events from its own thread: interruptions cannot truncate one, and a full pipe does not block the work.

    What cannot be sent is dropped: the receiver has gone.
    """

    def __init__(self, events: Connection) -> None:
        self._events = events
        self._queue: queue.SimpleQueue[tuple[Any, ...] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def send(self, event: tuple[Any, ...]) -> None:
        self._queue.put(event)

    def close(self) -> None:
        """Wait until all is sent."""
        self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        try:
            while (event := self._queue.get()) is not None:
                self._events.send(event)
        except OSError:
            pass


def _end_with_parent() -> None:
    """When the process that started this one has ended, interrupt the work; then wait no longer than necessary."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(_CHECKPOINT_SECONDS)
    os._exit(INTERRUPTED)
