"""Runs pieces of work: one after another in this process, or several at a time in processes of their own.

A process does one piece. When the one that started it is interrupted, terminated or killed, the work is interrupted
too, writes its checkpoint and releases its locks, and the process ends within a minute.
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
from collections.abc import Callable, Collection, Iterator, Sequence
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from lapo_cli.core.errors import WorkerKilledError, sendable
from lapo_cli.core.interrupts import INTERRUPTED, deliver, exit_at_once, interrupting, postponed
from lapo_cli.core.plugins import load_plugin, loaded_plugins
from lapo_cli.core.progress import Progress, Relay, Replay

_CHECKPOINT_SECONDS = 60.0
_POLL_SECONDS = 0.2  # An engine may interrupt this thread in a way that does not end a wait.


class Work(Protocol):
    """A piece of work that can be pickled; all it makes are files.

    Attributes:
        title: what messages call it.
    """

    @property
    def title(self) -> str: ...

    def __call__(self, device: str, progress: Progress) -> None:
        """Do it on ``device``, as :func:`lapo_cli.core.compute.resolve` takes it."""


_W = TypeVar("_W", bound=Work)


def side_by_side(
    works: Sequence[_W],
    devices: Sequence[str],
    progress: Progress,
    after: Callable[[_W], Collection[str]] = lambda work: (),
    threads: Callable[[_W], int] | None = None,
) -> Iterator[tuple[_W, Exception | None]]:
    """Do all of it, as many pieces at a time as there are devices; what fails stops nothing that does not need it.

    With one device in this process, else in processes of their own. When the iterator is closed, or KeyboardInterrupt
    is raised in it, what is under way is stopped and gets the time to write a checkpoint.

    Args:
        works: what is to be done, a piece after those that it needs; other processes load
            :func:`lapo_cli.core.plugins.loaded_plugins` before.
        devices: for each that is done at a time; the same one may be named again.
        progress: to which all of it reports.
        after: titles of the pieces that a piece needs. It is not done if one of them fails.
        threads: how many a piece has in its process, since the last digits of what is trained depend on that; equal
            shares of this one's if nothing else is said.

    Yields:
        Each piece as it ends, and what it failed with, or None.
    """
    waiting = _Queue(works, after)
    if len(devices) == 1:
        yield from _one_by_one(waiting, devices[0], progress)
    else:
        yield from _in_processes(waiting, devices, progress, threads or (lambda work: _threads() // len(devices)))


def _threads() -> int:
    import torch  # Late, because it is slow to load and the command line lists launchers.

    return torch.get_num_threads()


class _Queue(Generic[_W]):
    """Pieces that are still to be started."""

    def __init__(self, works: Sequence[_W], after: Callable[[_W], Collection[str]]) -> None:
        self._waiting = list(works)
        self._after = after
        self._unfinished = {work.title for work in works}

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def take(self, most: int) -> list[_W]:
        """The first of those whose needs are met; no longer waiting then."""
        ready = [work for work in self._waiting if self._unfinished.isdisjoint(self._after(work))][:most]
        self._waiting = [work for work in self._waiting if work not in ready]
        return ready

    def end(self, work: _W, error: Exception | None) -> None:
        """Note that a piece has ended; those that need one that failed are dropped."""
        if error is None:
            self._unfinished.discard(work.title)
            return
        failed = {work.title}
        for other in list(self._waiting):
            if not failed.isdisjoint(self._after(other)):
                failed.add(other.title)
                self._waiting.remove(other)


def _one_by_one(works: _Queue[_W], device: str, progress: Progress) -> Iterator[tuple[_W, Exception | None]]:
    while works:
        (work,) = works.take(1)
        error = None
        try:
            work(device, progress)
        except Exception as caught:
            error = caught
        works.end(work, error)
        yield work, error


def _in_processes(
    works: _Queue[_W], devices: Sequence[str], progress: Progress, threads: Callable[[_W], int]
) -> Iterator[tuple[_W, Exception | None]]:
    free = deque(devices)
    working: dict[Connection, _Worker[_W]] = {}
    resource_tracker.ensure_running()  # Else it is started with the first process, and ends the postponement below.
    try:
        while works or working:
            for work in works.take(len(free)):
                with postponed():  # Else one that comes before the worker is noted would leave it behind.
                    worker = _Worker(work, free.popleft(), max(1, threads(work)), progress)
                    working[worker.events] = worker
            for events in wait(list(working), _POLL_SECONDS):
                assert isinstance(events, Connection)
                worker = working[events]
                if not worker.receive():
                    del working[events]
                    free.append(worker.device)
                    works.end(worker.work, worker.outcome)
                    yield worker.work, worker.outcome
    finally:
        _stop(list(working.values()))


class _Worker(Generic[_W]):
    """A process with its work, as the process that started it sees it.

    Attributes:
        events: what it sends; at its end when the process has ended.
        outcome: what it failed with, or None; valid once the process has ended.
    """

    def __init__(self, work: _W, device: str, threads: int, progress: Progress) -> None:
        self.work, self.device = work, device
        self.replay = Replay(progress)
        self.outcome: Exception | None = WorkerKilledError(
            "A process was killed, perhaps for lack of memory: run the same command with --serial or with fewer --jobs."
        )
        self.events, theirs = multiprocessing.Pipe(duplex=False)
        arguments = (theirs, loaded_plugins(), pickle.dumps(work), device, threads)
        context = multiprocessing.get_context("spawn")
        self.process = context.Process(target=_work, args=arguments, name=work.title)
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


def _stop(workers: Sequence[_Worker[_W]]) -> None:
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


def _work(events: Connection, plugins: list[Path], work: bytes, device: str, threads: int) -> None:
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

                torch.set_num_threads(threads)
                pickle.loads(work)(device, Relay(sender.send))
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
