"""Measures the policies of one game and seed, and keeps each one's episodes until the policy changes."""

import json
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

import lapo_cli
from lapo_cli.core.config import EvaluationConfig
from lapo_cli.core.data.store import FrameStore
from lapo_cli.core.errors import CorruptDataError
from lapo_cli.core.evaluation.rollout import Act, play
from lapo_cli.core.evaluation.statistics import Estimate
from lapo_cli.core.files import atomic_write_json
from lapo_cli.core.run_dir import fingerprint
from lapo_cli.core.training.context import Context
from lapo_cli.core.training.stage import stage_seed

FOLDER = "evaluation"


@dataclass(frozen=True)
class Candidate:
    """A policy to be measured.

    Attributes:
        name: of its file, and of its row in the table.
        label: what the table calls it.
        fingerprint: of its weights.
        load: makes it ready to act; called only if it has to play.
    """

    name: str
    label: str
    fingerprint: str
    load: Callable[[], Act]


def measured_returns(ctx: Context, candidate: Candidate) -> NDArray[np.float64]:
    """Episodic returns (E,) of a policy, played now or, for unchanged weights and settings, before.

    Raises:
        EnvironmentUnavailableError: nothing can act here.
        CorruptDataError: an earlier measurement is damaged.
    """
    settings: EvaluationConfig = ctx.config.evaluation
    seed = stage_seed(ctx, "levels of evaluation")
    key = fingerprint([candidate.fingerprint, settings.model_dump(), seed])
    file = ctx.seed_dir.path / FOLDER / f"{candidate.name}.json"
    if file.exists() and not ctx.fresh:
        try:
            content = json.loads(file.read_text())
            if content["key"] == key:
                return np.array(content["returns"], np.float64)
        except (ValueError, KeyError, TypeError) as error:
            raise CorruptDataError(f"{file} is damaged: delete it and run 'lapo evaluate' again.") from error
    played = play(
        candidate.load(),
        ctx.seed_dir.game,
        episodes=settings.episodes,
        num_envs=settings.num_envs,
        seed=seed,
        device=ctx.compute.device,
        progress=ctx.progress,
        title=ctx.title(f"evaluating {candidate.label}"),
    )
    content = {
        "key": key,
        "policy": candidate.label,
        "game": ctx.seed_dir.game,
        "lapo_version": lapo_cli.__version__,
        "levels": "all, easy mode, unseen in training",
        "level_seed": seed,
        "returns": played.returns.tolist(),
        "lengths": played.lengths.tolist(),
    }
    atomic_write_json(file, content)
    return played.returns


def demonstrations(store: FrameStore) -> Estimate | None:
    """Mean return of the recorded episodes that ended, with a normal 95 % interval; None where none did.

    The spread is that of all stretches between episode starts. The last one of each recorded environment is cut by
    the end of the recording; there are few of those, and they widen the interval.
    """
    manifest = store.manifest
    if manifest.mean_return is None:
        return None
    stretches = np.add.reduceat(store.rewards.astype(np.float64), np.flatnonzero(store.episode_starts))
    half = 1.96 * float(stretches.std()) / manifest.num_episodes**0.5
    return Estimate(manifest.mean_return, manifest.mean_return - half, manifest.mean_return + half)


@dataclass(frozen=True)
class Measured:
    """Episodic returns (E,) of a policy of one training seed."""

    seed: int
    returns: NDArray[np.float64]
