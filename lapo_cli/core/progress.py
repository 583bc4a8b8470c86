"""The one interface through which the core reports progress. The CLI renders it; the core never prints."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol


class Task(Protocol):
    """One piece of long work under way."""

    def update(self, done: int, **metrics: float) -> None:
        """Say that ``done`` units in all are finished, and show the latest ``metrics`` beside the bar."""


class Progress(Protocol):
    """What the core calls to report; implementations must be cheap to call hundreds of times a second."""

    def task(self, name: str, total: int, unit: str, done: int = 0) -> AbstractContextManager[Task]:
        """Open a task of ``total`` units, ``done`` of them finished before (a resumed run)."""

    def log(self, message: str) -> None:
        """Tell the person one sentence."""


class _SilentTask:
    def update(self, done: int, **metrics: float) -> None:
        pass


class Silent:
    """Reports to nobody: the default when the core is used as a library."""

    @contextmanager
    def task(self, name: str, total: int, unit: str, done: int = 0) -> Iterator[Task]:
        yield _SilentTask()

    def log(self, message: str) -> None:
        pass
