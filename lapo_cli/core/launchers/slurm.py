"""Runs jobs on a SLURM cluster: as one array job, by an sbatch script that is written beside the run.

Queueing, placement, limits and requeueing are SLURM's. Before its time limit a task is told to write a checkpoint and
is requeued; one that SLURM preempts writes its checkpoint and is requeued by SLURM; one that was killed is requeued a
few times. ``RUN_DIR/slurm/N/`` holds the script, the id of the array job, and log and exit code of every task. If the
process that submitted it is lost, the array goes on, and the same command waits for it.
"""

import math
import re
import shlex
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, field_validator

from lapo_cli.core.config import Section
from lapo_cli.core.errors import LapoError, UsageError, one_line
from lapo_cli.core.files import atomic_write_text
from lapo_cli.core.interrupts import INTERRUPTED
from lapo_cli.core.launchers.base import LAUNCHERS, Job, Launcher, last_error
from lapo_cli.core.progress import Progress

_CANCEL_SECONDS = 120.0  # SLURM itself kills what does not end within its KillWait.
_EXIT_SECONDS = 90.0  # A shared file system may show the file of an exit code later than it was written (NFS: 60 s).


_Word = Annotated[str, BeforeValidator(lambda value: str(value) if isinstance(value, int) else value)]


class SlurmSettings(Section):
    """What ``--launcher-set`` sets."""

    partition: _Word | None = Field(None, description="Partition; the cluster's default if none is given.")
    account: _Word | None = Field(None, description="Account that is charged.")
    minutes: int | None = Field(None, ge=2, description="Time limit, after which a task is requeued and resumes.")
    cpus: int = Field(2, ge=1, description="CPU cores of a task, for each of its devices.")
    gpus: int | None = Field(None, ge=0, description="GPUs of a task; by default its devices; none with --device cpu.")
    memory_mb: int | None = Field(None, ge=1, description="Memory of a task in MB; by default what it needs.")
    grace: int = Field(90, ge=1, le=3600, description="Seconds before the time limit in which to write a checkpoint.")
    retries: int = Field(3, ge=0, description="How often a task that was killed is requeued.")
    options: tuple[str, ...] = Field((), description="Further options of sbatch, such as --qos=low.")
    poll: float = Field(10.0, gt=0, description="Seconds between two looks at the queue.")

    @field_validator("options", mode="before")
    @classmethod
    def _one_is_a_list(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else tuple(value) if isinstance(value, list) else value


class Slurm(Launcher):
    """An array job with a task for each job."""

    name = "slurm"
    Settings = SlurmSettings

    def require(self, settings: Section) -> None:
        """See :meth:`Launcher.require`."""
        if shutil.which("sbatch") is None:
            raise UsageError("There is no sbatch on PATH: use --launcher slurm on a machine that submits SLURM jobs.")

    def run(
        self, jobs: Sequence[Job], *, slots: int | None, device: str, progress: Progress, settings: Section
    ) -> Iterator[tuple[Job, Exception | None]]:
        """See :meth:`Launcher.run`; ``slots`` limits the tasks that run at a time."""
        assert isinstance(settings, SlurmSettings)
        array = _submitted(jobs, slots, device, settings, progress)
        left = dict(enumerate(jobs))
        gone: dict[int, float] = {}  # task -> when it was first seen to be no longer queued
        try:
            while left:
                queued = array.queued()
                for index, job in list(left.items()):
                    code = array.exit_code(index)
                    now = time.monotonic()
                    if queued is not None and index not in queued:
                        gone.setdefault(index, now)
                    else:
                        gone.pop(index, None)
                    if code is not None or now - gone.get(index, now) > _EXIT_SECONDS:
                        del left[index]
                        yield job, array.outcome(index, code)
                if left:
                    time.sleep(settings.poll)
        finally:
            if left:
                array.cancel(settings.poll)

    def preview(self, jobs: Sequence[Job], *, slots: int | None, device: str, settings: Section) -> str:
        """The sbatch script."""
        assert isinstance(settings, SlurmSettings)
        return _script(jobs, slots, device, settings, jobs[0].folder / "slurm" / "1")


LAUNCHERS.register(Slurm())


class _Array:
    """A submitted array job and its folder."""

    def __init__(self, folder: Path, number: str) -> None:
        self._folder, self._number = folder, number

    def queued(self) -> set[int] | None:
        """Tasks that wait or run; None where SLURM does not answer, which may pass."""
        words = ["squeue", "--noheader", "--array", f"--jobs={self._number}", "--format=%K"]
        asked = subprocess.run(words, capture_output=True, text=True, check=False)
        if asked.returncode == 0:
            return {int(line) for line in asked.stdout.split() if line.isdigit()}
        return set() if "Invalid job id" in asked.stderr else None

    def exit_code(self, index: int) -> int | None:
        """How a task ended for good; None if it has not, or did not get to say so."""
        try:
            return int((self._folder / f"{index}.exit").read_text())
        except (FileNotFoundError, ValueError):
            return None

    def outcome(self, index: int, code: int | None) -> LapoError | None:
        """What a task failed with, in its own words where it has said any."""
        if code == 0:
            return None
        log = self._folder / f"{index}.log"
        if code is None or code >= 128 or code == INTERRUPTED:
            why = "cancelled" if code is None or code in (INTERRUPTED, 143) else f"killed (exit code {code})"
            return LapoError(f"its SLURM task was {why}, perhaps for lack of memory or time: see {log}.")
        return LapoError(last_error(log) or f"its SLURM task failed with exit code {code}: see {log}.")

    def cancel(self, poll: float) -> None:
        """Cancel what waits, have what runs write its checkpoint, and wait for that."""
        subprocess.run(["scancel", self._number], capture_output=True, check=False)
        until = time.monotonic() + _CANCEL_SECONDS
        while self.queued() and time.monotonic() < until:
            time.sleep(min(poll, 1.0))


def _submitted(
    jobs: Sequence[Job], slots: int | None, device: str, settings: SlurmSettings, progress: Progress
) -> _Array:
    """The array job of these jobs: the last one that was submitted, if it is the same and still queued, or a new one.

    Raises:
        LapoError: sbatch refuses it.
    """
    root = jobs[0].folder / "slurm"
    numbers = [int(entry.name) for entry in root.glob("*/") if entry.name.isdigit()]
    last, new = (root / str(max(numbers, default=0) + step) for step in (0, 1))
    file = last / "array.id"
    if file.exists() and (last / "array.sh").read_text() == _script(jobs, slots, device, settings, last):
        array = _Array(last, file.read_text().strip())
        if array.queued():
            progress.log(f"The SLURM array job {file.read_text().strip()} is queued already: waiting for it.")
            return array
    script = new / "array.sh"
    atomic_write_text(script, _script(jobs, slots, device, settings, new))
    said = subprocess.run(["sbatch", "--parsable", str(script)], capture_output=True, text=True, check=False)
    number = said.stdout.strip().partition(";")[0]
    if said.returncode or not number:
        raise LapoError(
            f"sbatch refused {script} ({one_line(said.stderr, 300).rstrip('.')}): change it by --launcher-set, for "
            "example partition=NAME."
        )
    atomic_write_text(new / "array.id", f"{number}\n")
    progress.log(f"Submitted {len(jobs)} tasks as the SLURM array job {number}; logs are in {new}.")
    return _Array(new, number)


def _script(jobs: Sequence[Job], slots: int | None, device: str, settings: SlurmSettings, folder: Path) -> str:
    devices = jobs[0].devices
    gpus = settings.gpus if settings.gpus is not None else devices * (device != "cpu")
    memory = settings.memory_mb or math.ceil(max(job.needs(1 if gpus else settings.cpus).memory for job in jobs) / 1e6)
    limit = "" if slots is None else f"%{slots}"
    options = [
        "--job-name=lapo",
        f"--array=0-{len(jobs) - 1}{limit}",
        f"--cpus-per-task={settings.cpus * devices}",
        f"--mem={memory}M",
        *([f"--gres=gpu:{gpus}"] if gpus else []),
        *([f"--partition={settings.partition}"] if settings.partition else []),
        *([f"--account={settings.account}"] if settings.account else []),
        *([f"--time={settings.minutes}"] if settings.minutes else []),
        f"--signal=B:USR1@{settings.grace}",
        "--requeue",
        "--open-mode=append",
        f"--output={_pattern(folder)}/%a.log",
        *settings.options,
    ]
    tasks = "\n".join(f"{index}) set -- {shlex.join(job.command)} ;;" for index, job in enumerate(jobs))
    return _TEMPLATE.format(
        options="\n".join(f"#SBATCH {option}" for option in options),
        tasks=tasks,
        cpus=settings.cpus,
        retries=settings.retries,
        exit=shlex.quote(str(folder)),
    )


def _pattern(folder: Path) -> str:
    """A path for sbatch, in whose file names '%' has a meaning.

    Raises:
        UsageError: sbatch could not read it.
    """
    if re.search(r"[\s\"'\\]", str(folder)):
        raise UsageError(f"sbatch cannot write logs to {folder}: choose a --run-dir without spaces and quotes.")
    return str(folder).replace("%", "%%")


_TEMPLATE = """\
#!/bin/bash
{options}

case $SLURM_ARRAY_TASK_ID in
{tasks}
esac

export OMP_NUM_THREADS={cpus}
trap 'ending=limit; kill -TERM "$!"' USR1  # The time limit is near.
trap 'ending=${{ending:-stop}}; kill -TERM "$!"' TERM  # Preempted, which SLURM requeues, or cancelled.
"$@" &
task=$!
wait "$task"
code=$?
while kill -0 "$task" 2>/dev/null; do  # A signal ends only the waiting; the task is writing its checkpoint.
  wait "$task"
  code=$?
done
wait "$task" 2>/dev/null  # If it ended between a signal and the loop, this is how; else 127.
late=$?
if [ "$late" -ne 127 ]; then code=$late; fi
killed=
if [ "$code" -ge 128 ] && [ "${{SLURM_RESTART_COUNT:-0}}" -lt {retries} ]; then killed=yes; fi
if [ "$code" -ne 0 ] && {{ [ "$ending" = limit ] || {{ [ -z "$ending" ] && [ -n "$killed" ]; }}; }}; then
  scontrol requeue "${{SLURM_ARRAY_JOB_ID}}_$SLURM_ARRAY_TASK_ID" && exit "$code"
fi
if [ "$ending" != stop ]; then echo "$code" > {exit}/"$SLURM_ARRAY_TASK_ID".exit; fi
exit "$code"
"""
