"""A launcher: the jobs in reverse order, one after the other."""

from collections.abc import Iterator, Sequence

from lapo_cli.core.launchers.base import LAUNCHERS, Job, Launcher
from lapo_cli.core.progress import Progress


class Backwards(Launcher):
    """One job at a time in this process, the last one first."""

    name = "backwards"

    def run(
        self, jobs: Sequence[Job], *, slots: int, device: str, progress: Progress
    ) -> Iterator[tuple[int, Exception | None]]:
        for index in reversed(range(len(jobs))):
            error: Exception | None = None
            try:
                jobs[index](device, progress)
            except Exception as caught:
                error = caught
            yield index, error


LAUNCHER = Backwards()
LAUNCHERS.register(LAUNCHER)
