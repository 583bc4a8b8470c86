"""What a launcher is: it runs jobs that do not depend on one another, somewhere.

A launcher is one file: a subclass of :class:`Launcher` and ``LAUNCHERS.register(MyLauncher())``.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Protocol

from lapo_cli.core.progress import Progress
from lapo_cli.core.registry import Registry


class Job(Protocol):
    """A piece of work that can be pickled; all it makes are files.

    Attributes:
        title: what messages call it.
    """

    @property
    def title(self) -> str: ...

    def __call__(self, device: str, progress: Progress) -> None:
        """Do the work on ``device``, as :func:`lapo_cli.core.compute.resolve` takes it."""


class Launcher(ABC):
    """Runs jobs.

    Attributes:
        name: as ``--launcher`` calls it.
    """

    name: str

    @abstractmethod
    def run(
        self, jobs: Sequence[Job], *, slots: int, device: str, progress: Progress
    ) -> Iterator[tuple[int, Exception | None]]:
        """Run every job once, at most ``slots`` at a time; one that fails stops no other.

        When the iterator is closed, or KeyboardInterrupt is raised in it, the jobs under way are stopped, and get the
        time to write a checkpoint.

        Args:
            jobs: what to run. Another process loads :func:`lapo_cli.core.plugins.loaded_plugins` before it unpickles
                a job.
            slots: at least 1.
            device: for every job; ``auto`` and ``cuda`` may be divided among the jobs.
            progress: to which the jobs report, wherever they run.

        Yields:
            As each job ends, its index and what it failed with, or None.
        """


LAUNCHERS: Registry[Launcher] = Registry("launcher", "lapo.launchers", "lapo_cli.core.launchers")
