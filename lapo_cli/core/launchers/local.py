"""Runs jobs on this machine: one after the other in this process, or several in processes of their own."""

from collections.abc import Iterator, Sequence

from lapo_cli.core.config import Section
from lapo_cli.core.launchers.base import LAUNCHERS, Job, Launcher
from lapo_cli.core.progress import Progress
from lapo_cli.core.workers import side_by_side


class Local(Launcher):
    """``slots`` processes, each with its GPUs or an equal share of the CPU; with one slot, this process."""

    name = "local"

    def run(
        self, jobs: Sequence[Job], *, slots: int | None, device: str, progress: Progress, settings: Section
    ) -> Iterator[tuple[Job, Exception | None]]:
        """See :meth:`Launcher.run`; ``slots`` is 1 if nothing else is said."""
        yield from side_by_side(jobs, _devices(jobs, max(1, min(slots or 1, len(jobs))), device), progress)


LAUNCHERS.register(Local())


def _devices(jobs: Sequence[Job], slots: int, device: str) -> list[str]:
    """The first device of every slot: GPUs in turn, where the choice is left to us and there are any."""
    if slots > 1 and device in ("auto", "cuda"):
        import torch  # Late, because it is slow to load and the command line lists launchers.

        if torch.cuda.is_available():
            return [f"cuda:{slot * jobs[0].devices % torch.cuda.device_count()}" for slot in range(slots)]
    return [device] * slots
