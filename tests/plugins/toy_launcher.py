"""A launcher: the jobs in reverse order, one after the other."""

from collections.abc import Iterator, Sequence

from lapo_cli.core.config import Section
from lapo_cli.core.launchers.base import LAUNCHERS, Job, Launcher
from lapo_cli.core.progress import Progress


class Backwards(Launcher):
    """One job at a time in this process, the last one first."""

    name = "backwards"

    def run(
        self, jobs: Sequence[Job], *, slots: int | None, device: str, progress: Progress, settings: Section
    ) -> Iterator[tuple[Job, Exception | None]]:
        for job in reversed(jobs):
            error: Exception | None = None
            try:
                job(device, progress)
            except Exception as caught:
                error = caught
            yield job, error


LAUNCHER = Backwards()
LAUNCHERS.register(LAUNCHER)
