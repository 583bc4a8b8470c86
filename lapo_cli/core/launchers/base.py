"""What a launcher is: it runs jobs that do not depend on one another, somewhere.

A launcher is one file: a subclass of :class:`Launcher` and ``LAUNCHERS.register(MyLauncher())``.
"""

import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from lapo_cli.core.errors import LapoError, one_line
from lapo_cli.core.files import human_bytes
from lapo_cli.core.interrupts import end_with_parent
from lapo_cli.core.progress import Progress
from lapo_cli.core.registry import Registry
from lapo_cli.core.workers import Work

if TYPE_CHECKING:  # Slow to load, and the command line lists launchers.
    from lapo_cli.core.config import Section

_POLL_SECONDS = 0.2


@dataclass(frozen=True)
class Needs:
    """What a job takes, estimated, in bytes.

    Attributes:
        disk: of what it will write.
        memory: of all its processes.
        gpu_memory: on each GPU, if it has any.
    """

    disk: int
    memory: int
    gpu_memory: int

    def __str__(self) -> str:
        return (
            f"about {human_bytes(self.disk)} of disk, {human_bytes(self.memory)} of memory and, on each GPU, "
            f"{human_bytes(self.gpu_memory)} of its memory"
        )


class Job(Work, Protocol):
    """Work that, begun again, goes on where it was.

    Attributes:
        command: the words of a command line that does the same work.
        folder: where files of the launcher itself may go, such as logs; the same for all jobs.
        devices: how many GPUs, or processes on the CPU, it trains one model on; it is called with the first of them.
    """

    @property
    def command(self) -> list[str]: ...

    @property
    def folder(self) -> Path: ...

    @property
    def devices(self) -> int: ...

    def needs(self, threads: int) -> Needs:
        """What it will take, before it starts.

        Args:
            threads: of the CPU that it computes on; 1 for a GPU.
        """


def run_command(words: Sequence[str], environment: Mapping[str, str], log: Path) -> None:
    """Run a command that does a job in a child process, which is interrupted when this one is interrupted or ends.

    Args:
        words: of the command line.
        environment: its variables.
        log: the file that gets what it prints.

    Raises:
        LapoError: it failed.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as output:
        # In a session of its own, so that it is interrupted by this process alone, and once.
        process = subprocess.Popen(
            words, env=environment, stdout=output, stderr=output, start_new_session=True, preexec_fn=end_with_parent
        )
        try:
            # Looked at again and again: an engine may interrupt this thread in a way that does not end a wait.
            while (code := process.poll()) is None:
                time.sleep(_POLL_SECONDS)
        except KeyboardInterrupt:
            process.terminate()
            process.wait()
            raise
    if code:
        raise LapoError(last_error(log) or f"its process ended with exit code {code}: see {log}.")


def last_error(log: Path) -> str | None:
    """What a command that ran a job said of its failure, by what it printed; None if nothing."""
    lines = log.read_text(errors="replace").splitlines() if log.exists() else []
    said = [line.removeprefix("Error: ") for line in lines if line.startswith("Error: ")]
    return one_line(said[-1]) if said else None


class Launcher(ABC):
    """Runs jobs.

    Attributes:
        name: as ``--launcher`` calls it.
        Settings: the class of what ``--launcher-set`` sets; None for nothing.
    """

    name: str
    Settings: "type[Section] | None" = None

    def require(self, settings: "Section") -> None:  # noqa: B027
        """Raise a LapoError if :meth:`run` could not even begin; called before anything is written."""

    @abstractmethod
    def run(
        self, jobs: Sequence[Job], *, slots: int | None, device: str, progress: Progress, settings: "Section"
    ) -> Iterator[tuple[Job, Exception | None]]:
        """Run every job, at most ``slots`` at a time; one that fails stops no other.

        When the iterator is closed, or KeyboardInterrupt is raised in it, the jobs under way are stopped, and get the
        time to write a checkpoint.

        Args:
            jobs: what to run. Another process loads :func:`lapo_cli.core.plugins.loaded_plugins` before it unpickles
                a job.
            slots: at least 1; None for what suits the launcher.
            device: for every job; ``auto`` and ``cuda`` may be divided among the jobs.
            progress: to which the jobs report, wherever they run.
            settings: an instance of :attr:`Settings`, or of ``Section``.

        Yields:
            Each job as it ends, and what it failed with, or None.

        Raises:
            LapoError: there is nothing here that could run them.
        """

    def preview(self, jobs: Sequence[Job], *, slots: int | None, device: str, settings: "Section") -> str:
        """What :meth:`run` would hand to another program, for ``--dry-run``; empty if nothing."""
        return ""


LAUNCHERS: Registry[Launcher] = Registry("launcher", "lapo.launchers", "lapo_cli.core.launchers")
