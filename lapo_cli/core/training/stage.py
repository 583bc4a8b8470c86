"""What every stage does around its work: what it depends on, whether it is done, its lock and its seed."""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lapo_cli.core.run_dir import StageDir
from lapo_cli.core.training.context import Context


@dataclass(frozen=True)
class StageResult:
    """How a stage ended.

    Attributes:
        results: numbers worth telling, JSON-like.
        skipped: it was done before, with the same configuration and inputs.
    """

    game: str
    seed: int
    stage: str
    path: Path
    results: dict[str, Any]
    skipped: bool


def stage_key(ctx: Context, name: str, sections: tuple[str, ...], inputs: Mapping[str, str]) -> dict[str, Any]:
    """All that the outcome depends on: ``sections`` of the configuration, the seed, ``inputs`` by fingerprint."""
    config = json.loads(ctx.config.model_dump_json())
    return {
        "stage": name,
        "game": ctx.seed_dir.game,
        "seed": ctx.seed_dir.seed,
        "inputs": dict(inputs),
        "config": {section: config[section] for section in ("precision", *sections)},
    }


def run_stage(
    ctx: Context,
    name: str,
    *,
    sections: tuple[str, ...],
    inputs: Mapping[str, str],
    work: Callable[[StageDir], dict[str, Any]],
) -> StageResult:
    """Do ``work`` in the stage's folder unless it is done already, then mark it done with the numbers it returns.

    Raises:
        RunDirError: another process works on this game and seed.
    """
    stage = ctx.seed_dir.stage(name)
    with ctx.seed_dir.lock():
        skipped = not stage.begin(stage_key(ctx, name, sections, inputs), fresh=ctx.fresh)
        if not skipped:
            torch.manual_seed(stage_seed(ctx, name))
            stage.finish(work(stage))
        results = stage.require_done("this command")["results"]
    return StageResult(ctx.seed_dir.game, ctx.seed_dir.seed, name, stage.path, results, skipped)


def stage_seed(ctx: Context, purpose: str) -> int:
    """A seed of its own for every game, seed and purpose, so that no two share a stream of random numbers."""
    text = f"{ctx.seed_dir.game}/{ctx.seed_dir.seed}/{purpose}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "little") >> 1
