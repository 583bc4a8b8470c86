"""The one training loop: resume, checkpoints, metrics, progress, divergence and interruption.

A stage brings its modules and optimizer and one line of a ``for``::

    loop = TrainingLoop(stage, ctx, "stage 1", total, {"idm": idm, "optimizer": optimizer})
    for step in loop:
        ...                                   # one update
        loop.record({"losses/total": loss})   # tensors; read back in bulk, so a GPU is not waited for
"""

import math
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor

from lapo_cli.core import distributed
from lapo_cli.core.errors import CorruptDataError, TrainingDivergedError
from lapo_cli.core.interrupts import interruptible
from lapo_cli.core.run_dir import STATE, StageDir
from lapo_cli.core.training.context import Context
from lapo_cli.core.training.metrics import MetricsLog


class Stateful(Protocol):
    """A module, an optimizer, or anything else that can be put into a checkpoint and back."""

    def state_dict(self) -> Mapping[str, Any]:
        """Plain types and tensors only."""

    def load_state_dict(self, state_dict: Any, /) -> Any:
        """Take back what :meth:`state_dict` gave."""


class TrainingLoop:
    """Iterates over the updates that are still to do.

    A run that is killed and resumed makes the updates that an unbroken one makes: the checkpoint holds all state and
    the random number generators, and everything else is a function of the step. Several processes that train one model
    stop, checkpoint and fail together, and the main one writes.

    Args:
        stage: folder of checkpoints and metrics.
        ctx: whose progress, device and settings.
        title: shown beside the progress bar, after game and seed.
        total: updates in all.
        state: what the checkpoint holds, by name; already on its device.
        show: the metrics that matter most, to be shown beside the bar.
        unit: what is counted, ``scale`` of which make an update.
        before: how many were counted before the first update.
        read_every: updates between readings of the recorded tensors.

    Raises:
        CorruptDataError: the checkpoint is damaged or of another training.
        TrainingDivergedError: while iterating, a recorded value is NaN or infinite.
        KeyboardInterrupt: while iterating, after Ctrl-C or SIGTERM and a checkpoint.
    """

    def __init__(
        self,
        stage: StageDir,
        ctx: Context,
        title: str,
        total: int,
        state: Mapping[str, Stateful],
        *,
        show: tuple[str, ...],
        unit: str = "step",
        scale: int = 1,
        before: int = 0,
        read_every: int = 25,
    ) -> None:
        self._stage, self._ctx, self._title, self.total = stage, ctx, ctx.title(title), total
        self._state, self._unit, self._read_every = state, unit, read_every
        self._scale, self._before = scale, before
        self.start = 0
        self._checkpointed = 0
        checkpoint = stage.load_state()
        if checkpoint is not None:
            self._restore(checkpoint)
        self._metrics: MetricsLog | None = None
        distributed.on_main(self._open_metrics)
        self._pending: list[Mapping[str, Tensor]] = []
        self._shown: dict[str, float] = dict.fromkeys(show, math.nan)

    def _count(self, updates: int) -> int:
        return self._before + updates * self._scale

    def _open_metrics(self) -> None:
        at = self._count(self.start) if self.start else 0  # From 0 on nothing is kept.
        self._metrics = MetricsLog(self._stage.path, self._ctx, resume_at=at)

    def _restore(self, checkpoint: dict[str, Any]) -> None:
        try:
            for name, item in self._state.items():
                item.load_state_dict(checkpoint[name])
            torch.set_rng_state(checkpoint["rng"]["cpu"])
            if self._ctx.compute.is_cuda and "cuda" in checkpoint["rng"]:
                torch.cuda.set_rng_state(checkpoint["rng"]["cuda"], self._ctx.compute.device)
            step = checkpoint["step"]
            if type(step) is not int or not 0 <= step <= self.total:
                raise ValueError(f"step {step!r} of {self.total}")
        except torch.OutOfMemoryError:
            raise
        except (KeyError, IndexError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            raise CorruptDataError(
                f"The checkpoint {self._stage.path / STATE} does not fit this stage: run the same command with --fresh "
                "to start the stage over."
            ) from error
        self.start = self._checkpointed = step

    def _checkpoint(self, step: int) -> None:
        rng = {"cpu": torch.get_rng_state()}
        if self._ctx.compute.is_cuda:
            rng["cuda"] = torch.cuda.get_rng_state(self._ctx.compute.device)
        state = {name: item.state_dict() for name, item in self._state.items()}
        distributed.on_main(lambda: self._stage.save_state({"step": step, "rng": rng, **state}))
        self._checkpointed = step

    def record(self, values: Mapping[str, Tensor]) -> None:
        """Note scalar tensors of the present update."""
        self._pending.append({name: value.detach() for name, value in values.items()})

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Log numbers of update ``step``, and show them beside the bar."""
        distributed.on_main(lambda: self._write(self._count(step + 1), values))
        self._shown.update({name: value for name, value in values.items() if name in self._shown})

    def _write(self, count: int, values: Mapping[str, float]) -> None:
        assert self._metrics is not None
        self._metrics.write(count, values)

    def __iter__(self) -> Iterator[int]:
        done = self._count(self.start)
        saved = time.monotonic()
        with (
            nullcontext() if self._metrics is None else closing(self._metrics),
            interruptible() as interrupted,
            self._ctx.progress.task(self._title, self._count(self.total), self._unit, done) as task,
        ):
            for step in range(self.start, self.total):
                yield step
                late = time.monotonic() - saved > self._ctx.config.checkpoint_seconds
                due, stop = distributed.any_of(late, interrupted.is_set())
                if due or stop or (step + 1) % self._read_every == 0 or step + 1 == self.total:
                    self._read(step)
                    task.update(self._count(step + 1), **{k: v for k, v in self._shown.items() if v == v})
                if due or stop or step + 1 == self.total:
                    self._checkpoint(step + 1)
                    saved = time.monotonic()
                if stop:
                    raise KeyboardInterrupt

    def _read(self, step: int) -> None:
        """Bring the pending tensors to the host in one transfer each, check them, log their means."""
        if not self._pending:
            return
        first = step + 1 - len(self._pending)
        means = {}
        for name in self._pending[0]:
            values = distributed.mean(torch.stack([values[name].float() for values in self._pending])).cpu()
            bad = (~values.isfinite()).nonzero()
            if len(bad):
                at = int(bad[0, 0])
                kept = (
                    f"the checkpoint of {self._unit} {self._count(self._checkpointed)} is kept in {self._stage.path}; "
                )
                raise TrainingDivergedError(
                    f"{name} became {values[at].item()} at {self._unit} {self._count(first + at + 1)} "
                    f"of {self._title}: {kept if self._checkpointed else ''}start the stage over with a lower learning "
                    "rate or precision=fp32 by --set, and with --reconfigure where the command has it."
                )
            means[name] = values.mean().item()
        self._pending.clear()
        self.log(step, means)
