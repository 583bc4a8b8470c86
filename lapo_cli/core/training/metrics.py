"""Metrics of a stage: ``metrics.jsonl`` always, TensorBoard beside it, Weights & Biases on request."""

import json
import math
import secrets
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tensorboardX import SummaryWriter

from lapo_cli.core.errors import CorruptDataError, UsageError
from lapo_cli.core.files import atomic_write_text, disk_full_as_error
from lapo_cli.core.training.context import Context

EVALUATED = "eval/episodic_return"
"""Mean return of a training's policy on unseen levels, with ``_std`` (of single returns); ``eval/episodes`` of them."""


class MetricsLog:
    """Appends numbers under a step; lines past ``resume_at``, written before a kill, are dropped first, or all at 0.

    Raises:
        UsageError: Weights & Biases was requested and is not installed.
    """

    def __init__(self, folder: Path, ctx: Context, resume_at: int) -> None:
        self._file = folder / "metrics.jsonl"
        kept = [line for line in read_metrics(folder) if resume_at and line["step"] <= resume_at]
        atomic_write_text(self._file, "".join(json.dumps(line) + "\n" for line in kept))
        self._began = time.monotonic() - (kept[-1]["seconds"] if kept else 0.0)
        self._board = SummaryWriter(
            str(folder / "tensorboard"), purge_step=resume_at + 1 if resume_at else 0, write_to_disk=True
        )
        self._wandb = _wandb_run(folder, ctx) if ctx.wandb else None

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Log ``values`` at ``step``; ``seconds`` is the time spent on the stage so far, resumed runs added up."""
        line = {"step": step, "seconds": round(time.monotonic() - self._began, 3), **values}
        with disk_full_as_error(self._file.parent), self._file.open("a") as file:
            file.write(json.dumps(line) + "\n")
        for name, value in values.items():
            self._board.add_scalar(name, value, step)
        if self._wandb is not None:
            self._wandb.log(dict(values), step=step)

    def close(self) -> None:
        """Flush and close every logger."""
        self._board.close()
        if self._wandb is not None:
            self._wandb.finish()


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """Lines of a stage's ``metrics.jsonl``, oldest first: ``step``, ``seconds`` and the metrics, all of them numbers.

    What follows the last line break was cut by a kill and is left out.

    Raises:
        CorruptDataError: another line is damaged.
    """
    file = folder / "metrics.jsonl"
    lines = []
    for number, text in enumerate(file.read_bytes().split(b"\n")[:-1] if file.exists() else [], 1):
        try:
            lines.append(_parse_line(text))
        except (ValueError, RecursionError) as error:
            raise CorruptDataError(
                f"{file} is damaged in line {number}: delete that line and run the same command again."
            ) from error
    return lines


def _parse_line(text: bytes) -> dict[str, Any]:
    """One line; unlike in JSON proper a metric may be NaN, which is how a training that diverges ends."""
    line = json.loads(text.decode())
    if not isinstance(line, dict) or not {"step", "seconds"} <= line.keys():
        raise ValueError("not a line of metrics")
    for value in line.values():
        if type(value) not in (int, float) or (type(value) is int and value.bit_length() > 63):
            raise ValueError("not a number")
    if type(line["step"]) is not int or not math.isfinite(line["seconds"]):
        raise ValueError("not a line of metrics")
    return line


def require_wandb() -> Any:
    """The package of Weights & Biases.

    Raises:
        UsageError: it is not installed.
    """
    try:
        import wandb
    except ImportError as error:
        raise UsageError("--wandb needs Weights & Biases: pip install 'lapo-cli[wandb]'.") from error
    return wandb


def _wandb_run(folder: Path, ctx: Context) -> Any:
    seed_dir = ctx.seed_dir
    id_file = folder / "wandb-id"  # A stage that is started over has a new folder, and so is another run.
    if not id_file.exists():
        atomic_write_text(id_file, secrets.token_hex(8))
    return require_wandb().init(
        project="lapo",
        name=f"{seed_dir.game}/seed-{seed_dir.seed}/{folder.relative_to(seed_dir.path)}",
        id=id_file.read_text(),
        resume="allow",
        dir=str(folder),
        config=ctx.config.model_dump(),
    )
