"""The one interface through which the core reports progress. The CLI renders it; the core never prints."""

import itertools
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol

_RELAY_SECONDS = 0.2


class Task(Protocol):
    """One piece of long work under way."""

    def update(self, done: int, **metrics: float) -> None:
        """Report that ``done`` units in all are finished, and the latest ``metrics``."""


class Progress(Protocol):
    """What the core calls to report; implementations must be cheap to call hundreds of times per second."""

    def task(self, name: str, total: int, unit: str, done: int = 0) -> AbstractContextManager[Task]:
        """Open a task of ``total`` units, ``done`` of them finished before (a resumed run)."""

    def log(self, message: str) -> None:
        """Report one sentence."""


class _SilentTask:
    def update(self, done: int, **metrics: float) -> None:
        pass


class Silent:
    """Reports nowhere: the default when the core is used as a library."""

    @contextmanager
    def task(self, name: str, total: int, unit: str, done: int = 0) -> Iterator[Task]:
        yield _SilentTask()

    def log(self, message: str) -> None:
        pass


class Relay:
    """Progress as events, to be replayed in another process by :class:`Replay`.

    Args:
        send: takes each event, a tuple of plain types; a task sends one at most every fifth of a second, and its last.
    """

    def __init__(self, send: Callable[[tuple[Any, ...]], None]) -> None:
        self._send = send
        self._numbers = itertools.count()

    @contextmanager
    def task(self, name: str, total: int, unit: str, done: int = 0) -> Iterator[Task]:
        """Open a task; see :class:`Progress`."""
        number = next(self._numbers)
        self._send(("open", number, name, total, unit, done))
        task = _RelayedTask(lambda done, metrics: self._send(("update", number, done, metrics)))
        try:
            yield task
        finally:
            task.flush()
            self._send(("close", number))

    def log(self, message: str) -> None:
        """Report one sentence."""
        self._send(("log", message))


class _RelayedTask:
    def __init__(self, send: Callable[[int, dict[str, float]], None]) -> None:
        self._send = send
        self._latest: tuple[int, dict[str, float]] | None = None
        self._sent_at = time.monotonic()

    def update(self, done: int, **metrics: float) -> None:
        earlier = {} if self._latest is None else self._latest[1]
        self._latest = done, {**earlier, **metrics}
        if time.monotonic() - self._sent_at >= _RELAY_SECONDS:
            self.flush()

    def flush(self) -> None:
        if self._latest is not None:
            self._send(*self._latest)
            self._latest, self._sent_at = None, time.monotonic()


class Replay:
    """Reports to ``progress`` what a :class:`Relay` sends; of a task whose beginning was lost it reports nothing."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._tasks: dict[int, tuple[AbstractContextManager[Task], Task]] = {}

    def receive(self, event: tuple[Any, ...]) -> None:
        """Report one event."""
        match event:
            case ("open", number, *task):
                context = self._progress.task(*task)
                self._tasks[number] = context, context.__enter__()
            case ("update", number, done, metrics) if number in self._tasks:
                self._tasks[number][1].update(done, **metrics)
            case ("close", number) if number in self._tasks:
                self._tasks.pop(number)[0].__exit__(None, None, None)
            case ("log", message):
                self._progress.log(message)

    def close(self) -> None:
        """Close the tasks that a sender which died has left open."""
        for context, _ in reversed(self._tasks.values()):
            context.__exit__(None, None, None)
        self._tasks.clear()


def clock_time(seconds: float) -> str:
    """``468`` -> ``'7:48'``; from an hour on ``'2:07:48'``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
