"""Evaluates the policies that finished stages offer, and keeps each one's episodes until the policy changes.

``<game>/seed-<n>/evaluation/`` holds, for each policy, ``<policy>.json`` with its returns and ``<policy>.webp`` with a
film of the first levels; and what :mod:`lapo_cli.core.evaluation.measurements` adds.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import astuple, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, FiniteFloat, TypeAdapter
from typing_extensions import TypedDict

import lapo_cli
from lapo_cli.core.config import EvaluationConfig
from lapo_cli.core.errors import LapoError
from lapo_cli.core.evaluation import sheets
from lapo_cli.core.evaluation.measurements import DEMONSTRATIONS, demonstrations
from lapo_cli.core.evaluation.summary import Failure, Row, Summary, make_row, with_mean_of_games, with_shares
from lapo_cli.core.files import atomic_write_json, read_json
from lapo_cli.core.run_dir import Done, fingerprint
from lapo_cli.core.training.context import Context
from lapo_cli.core.training.networks import IDM, SUPERVISED_IDM
from lapo_cli.core.training.no_quantizer import NO_QUANTIZER
from lapo_cli.core.training.rollout import Film, Filming, rollout, uniform
from lapo_cli.core.training.stage import STAGES, TrainedPolicy, is_current, needs_environment, stage_seed

FOLDER = "evaluation"
RANDOM_POLICY = "random policy"
_SHARE_NOTE = (
    "Normalized: 0 is the random policy and 1 the paper's expert; of demonstrations: 0 is the random policy and 1 the "
    "demonstrations. In means of games a game counts 1 at most."
)
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


def compare(contexts: list[Context], failures: list[Failure], folder: Path, only: str | None = None) -> Summary:
    """The table of all finished policies of these games and seeds, pooled over seeds and for each seed by itself.

    Args:
        contexts: one for each game and seed.
        failures: what could not be finished, to be noted in it.
        folder: where its files will go.
        only: see :func:`candidates`.
    """
    rows: list[Row] = []
    by_seed: dict[int, list[Row]] = {}
    for game in dict.fromkeys(ctx.game for ctx in contexts):
        of_game = [ctx for ctx in contexts if ctx.game == game]
        env = of_game[0].env
        pooled: dict[tuple[str, int | None, int | None], list[NDArray[np.float64]]] = {}
        for ctx in of_game:
            for candidate in candidates(ctx, only):
                policy, returns = candidate.policy, episodic_returns(ctx, candidate)
                pooled.setdefault((candidate.method, policy.labels, policy.env_steps), []).append(returns)
                row = make_row(env, candidate.method, [returns], labels=policy.labels, env_steps=policy.env_steps)
                by_seed.setdefault(ctx.seed_dir.seed, []).append(row)
        shown = [
            make_row(env, method, returns, labels=labels, env_steps=env_steps)
            for (method, labels, env_steps), returns in pooled.items()
        ]
        rows += with_shares([*shown[:1], *_demonstrations(of_game[0]), *shown[1:]], RANDOM_POLICY, DEMONSTRATIONS)
    notes = [*_health(contexts), *([_SHARE_NOTE] if any(row.share is not None for row in rows) else [])]
    return Summary(with_mean_of_games(rows), by_seed, notes, failures, folder)


def _demonstrations(ctx: Context) -> list[Row]:
    """The row of the recorded episodes that ended; none where the data has been removed since, or none ended."""
    try:
        returns = demonstrations(ctx)
    except LapoError:
        return []
    return [make_row(ctx.env, DEMONSTRATIONS, [returns])] if len(returns) else []


def _health(contexts: Iterable[Context]) -> Iterator[str]:
    """How good the latent actions are, and what to compare that with."""
    for ctx in (replace(ctx, variant=variant) for ctx in contexts for variant in ("", NO_QUANTIZER)):
        done = ctx.seed_dir.stage(IDM + ctx.variant).done()
        if done is None:
            continue
        found = done["results"]
        if "probe/accuracy" in found:
            supervised = ctx.seed_dir.stage(SUPERVISED_IDM).done()
            accuracy = {} if supervised is None else supervised["results"]
            ceiling = f", a supervised model: {accuracy['val/accuracy']:.2f}" if "val/accuracy" in accuracy else ""
            yield (
                f"{ctx.title('probe')}: reads the true action off the latent action with accuracy "
                f"{found['probe/accuracy']:.2f} (majority baseline: {found['probe/majority_baseline']:.2f}, "
                f"an untrained network's latent action: {found['probe/untrained']:.2f}{ceiling})."
            )
        yield f"{ctx.title('world model')}: {_prediction_error(found)}."


def _prediction_error(found: Mapping[str, Any]) -> str:
    error = found["val/world_model"] / max(found["val/copy_last_frame"], 1e-12)
    parts = [f"its error is {error:.2f} times that of repeating the last frame"]
    if "val/world_model_changed" in found:
        changed = found["val/world_model_changed"] / max(found["val/copy_last_frame_changed"], 1e-12)
        parts.append(f"{changed:.2f} on the pixels that change")
    if "val/code_usage" in found:
        parts.append(f"{found['val/code_usage']:.0%} of the codes are used")
    return ", ".join(parts)
