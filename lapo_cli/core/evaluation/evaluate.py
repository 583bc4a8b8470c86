"""Evaluates the policies that finished stages offer, and keeps each one's episodes until the policy changes.

``<game>/seed-<n>/evaluation/`` holds, for each policy, ``<policy>.json`` with its returns and ``<policy>.webp`` with a
film of the first levels; and what :mod:`lapo_cli.core.evaluation.measurements` adds.
"""

from collections.abc import Iterator
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, FiniteFloat, TypeAdapter
from typing_extensions import TypedDict

import lapo_cli
from lapo_cli.core.config import EvaluationConfig
from lapo_cli.core.evaluation import sheets
from lapo_cli.core.files import atomic_write_json, read_json
from lapo_cli.core.run_dir import Done, fingerprint
from lapo_cli.core.training.context import Context
from lapo_cli.core.training.rollout import Film, Filming, rollout, uniform
from lapo_cli.core.training.stage import STAGES, TrainedPolicy, is_current, needs_environment, stage_seed

FOLDER = "evaluation"
RANDOM_POLICY = "random policy"
FILMING = Filming(levels=9, frames=100, every=2)
"""What is filmed of every policy; all policies of a game and seed start on the same levels."""
_CURVE = {"curve_points", "curve_episodes"}  # settings of trainings


class _Kept(TypedDict):
    """What a file of an evaluation must have to be used again."""

    key: str
    returns: Annotated[list[FiniteFloat], Field(min_length=1)]


_KEPT = TypeAdapter(_Kept)


@dataclass(frozen=True)
class Candidate:
    """A policy to be evaluated.

    Attributes:
        fingerprint: of its weights.
        method: how it was trained, as tables and legends call it.
        stage: that offers it; empty for the random policy.
        order: its place among the policies.
    """

    policy: TrainedPolicy
    fingerprint: str
    method: str
    stage: str = ""
    order: int = 0


def candidates(ctx: Context, only: str | None = None) -> list[Candidate]:
    """The policies of a game and seed that are finished, the random one first.

    Args:
        only: leave out the policies of all stages but this one.
    """
    if needs_environment(ctx) is not None:
        return []
    random = TrainedPolicy("random", lambda: uniform(ctx.env.require_actions()))
    return [Candidate(random, "uniform", RANDOM_POLICY), *_of_stages(ctx, only)]


def _of_stages(ctx: Context, only: str | None) -> Iterator[Candidate]:
    for stage in STAGES.values():
        folder = ctx.seed_dir.stage(stage.name)
        if only in (None, stage.name) and is_current(ctx.seed_dir, stage.name):
            done = folder.require_done(stage.command_for(ctx))
            for policy in stage.policies(ctx, folder):
                made = policy_fingerprint(done, policy.name)
                yield Candidate(policy, made, stage.label, stage.name, stage.order)


def policy_fingerprint(done: Done, name: str) -> str:
    """Fingerprint of the weights of a finished stage's policy of that name."""
    return fingerprint([done["outputs"], done["key"], name])


def episodic_returns(ctx: Context, candidate: Candidate) -> NDArray[np.float64]:
    """Episodic returns (E,) of a policy, which acts now or, for unchanged weights and settings, has acted before.

    Raises:
        EnvironmentUnavailableError: nothing can act here.
        CorruptDataError: an earlier evaluation is damaged.
    """
    settings: EvaluationConfig = ctx.config.evaluation
    policy, seed = candidate.policy, stage_seed(ctx, "levels of evaluation")
    key = fingerprint([candidate.fingerprint, settings.model_dump(exclude=_CURVE), seed, astuple(FILMING)])
    file = ctx.seed_dir.path / FOLDER / f"{policy.name}.json"
    if file.exists() and not ctx.fresh:
        kept = read_json(file, _KEPT, "delete it and run 'lapo evaluate' again")
        if kept["key"] == key:
            return np.array(kept["returns"], np.float64)
    episodes = rollout(
        policy.load(),
        ctx.env,
        episodes=settings.episodes,
        num_envs=settings.num_envs,
        max_episode_steps=settings.max_episode_steps,
        seed=seed,
        device=ctx.compute.device,
        progress=ctx.progress,
        title=ctx.title(f"evaluating {candidate.method}"),
        filming=FILMING,
    )
    assert episodes.film is not None
    content = {
        "key": key,
        "stage": candidate.stage,
        "fingerprint": candidate.fingerprint,
        "order": candidate.order,
        "name": policy.name,
        "method": candidate.method,
        "labels": policy.labels,
        "env_steps": policy.env_steps,
        "game": ctx.game,
        "lapo_version": lapo_cli.__version__,
        "level_seed": seed,
        "reference_returns": [ctx.env.random_return, ctx.env.expert_return],
        "film": _write_film(file.with_suffix(".webp"), episodes.film),
        "returns": episodes.returns.tolist(),
        "lengths": episodes.lengths.tolist(),
    }
    atomic_write_json(file, content)
    return episodes.returns


def _write_film(file: Path, film: Film) -> dict[str, Any]:
    """Write a film as a sheet of all levels' frames one after another; returns its description, JSON-like."""
    levels, frames = film.frames.shape[:2]
    return {
        **sheets.write(file, film.frames.reshape(levels * frames, *film.frames.shape[2:])),
        "levels": levels,
        "every": FILMING.every,
        "lengths": film.lengths,
        "returns": film.returns,
    }
