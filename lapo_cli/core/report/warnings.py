"""What in a run calls for a second look, and what to do about it. The thresholds are the constants of this module."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from lapo_cli.core.report.results import RunResults, SeedResults, StageRun, trusted_steps
from lapo_cli.core.training.networks import RANDOM_PLAY

LEAST_CODES = 0.1
"""Share of the codes in use below which a codebook has collapsed."""
LEAST_FALL = 0.1
"""A training loss that fell by less than this fraction of its first value never fell."""
LEAST_PROBE_GAIN = 0.02
"""The probe should read the action off the latent action better than off an untrained network's, by this accuracy."""
MOST_LATENT_ERROR = 0.95
"""Error of the latent policy, as a fraction of that of predicting the mean, above which it has learnt nothing."""
LEAST_SEEDS = 3
"""With fewer training seeds an interval says little about another training."""
LEAST_EPISODES = 100
"""With fewer episodes of a policy its mean return is rough."""

_LOSSES = ("losses/total", "losses/imitation", "losses/actions")


@dataclass(frozen=True)
class Notice:
    """Something to look at.

    Attributes:
        where: game and seed, or the run.
        what: one sentence on what was found, with the number.
        advice: one sentence on what to do.
    """

    where: str
    what: str
    advice: str


def warnings_of(run: RunResults) -> list[Notice]:
    """All warnings of a run, those of the whole first."""
    found = [Notice(run.name, problem, "") for problem in run.problems]
    found += [Notice(run.name, f"Failed: {failure}", "") for failure in run.failures]
    found += list(_statistics(run))
    for seed in run.seeds:
        found += _stages(seed)
    return found


def _statistics(run: RunResults) -> Iterator[Notice]:
    seeds = min((len(run.of(game)) for game in run.games), default=0)
    if 0 < seeds < LEAST_SEEDS and any(seed.policies for seed in run.seeds):
        yield Notice(
            run.name,
            f"There are games with {seeds} training seed{'s' if seeds > 1 else ''}: intervals say little about how "
            "another training would have ended.",
            "Train more, for example --seeds 0,1,2.",
        )
    episodes = [len(policy.returns) for seed in run.seeds for policy in seed.policies if policy.stage]
    if episodes and min(episodes) < LEAST_EPISODES:
        yield Notice(
            run.name, f"Some policies were evaluated for {min(episodes)} episodes.", "Evaluate with --episodes 256."
        )


def _stages(seed: SeedResults) -> Iterator[Notice]:
    where = f"{seed.game}, seed {seed.seed}"
    for stage in seed.stages.values():
        if not stage.done:
            yield Notice(where, f"Not finished: {stage.label}.", "Run the same command again: it resumes.")
        yield from _training(where, stage)
    if "idm" in seed.stages:
        yield from _latent_actions(where, seed.stages["idm"])
    if seed.imagined is not None and trusted_steps(seed.imagined["errors"]) == 0:
        yield Notice(
            where,
            "The world model's first prediction is no better than repeating the frame.",
            "Train stage 1 for longer (stage1.steps), or weight what is mispredicted (stage1.error_focus).",
        )
    random = next((policy for policy in seed.policies if policy.method == "random policy"), None)
    for policy in seed.policies:
        if policy.stage == "online" and random is not None and policy.returns.mean() <= random.returns.mean():
            yield Notice(
                where,
                f"Fine-tuned online, the policy's mean return ({policy.returns.mean():.2f}) is not above that of the "
                f"random policy ({random.returns.mean():.2f}).",
                "Look at the warnings on the latent actions first, then give it more steps (online.steps).",
            )


def _training(where: str, stage: StageRun) -> Iterator[Notice]:
    for name in _LOSSES:
        values = stage.curve(name)[1]
        if len(values) < 2:
            continue
        part = max(1, len(values) // 10)
        first, last = float(np.mean(values[:part])), float(np.mean(values[-part:]))
        if not last < (1 - LEAST_FALL) * first:
            yield Notice(
                where,
                f"The loss of the {stage.label} never fell: {first:.4g} at first, {last:.4g} at the end.",
                "Change its learning rate, or train for longer ({}, {}).".format(*_settings(stage)),
            )
    errors = stage.curve("val/normalized_mse")[1]
    if errors and errors[-1] > MOST_LATENT_ERROR:
        yield Notice(
            where,
            f"The error of the {stage.label} is {errors[-1]:.2f} of that of always predicting the mean latent action.",
            "Train it for longer (stage2.steps), or look whether a single frame can say what to do.",
        )


def _settings(stage: StageRun) -> tuple[str, str]:
    """The keys of its learning rate and of its number of steps."""
    if stage.name == RANDOM_PLAY:
        return "stage1.lr", "relabel.idm_steps"
    section = "stage1" if "idm" in stage.name else "stage2"
    return f"{section}.lr", f"{section}.steps"


def _latent_actions(where: str, idm: StageRun) -> Iterator[Notice]:
    results = {name: value for name, value in idm.results.items() if isinstance(value, int | float)}
    usage = results.get("val/code_usage")
    if usage is not None and usage < LEAST_CODES:
        yield Notice(
            where,
            f"The codebook has collapsed: {usage:.0%} of the codes are used.",
            "Move unused codes (model.quantizer.revive_below=0.1), or lower stage1.lr.",
        )
    accuracy, untrained = results.get("probe/accuracy"), results.get("probe/untrained")
    if accuracy is not None and untrained is not None and accuracy < untrained + LEAST_PROBE_GAIN:
        yield Notice(
            where,
            f"The probe reads the true action off the latent action with accuracy {accuracy:.2f}, and off that of an "
            f"untrained network with {untrained:.2f}: what tells actions apart was there before training.",
            "Train stage 1 for longer (stage1.steps), or weight what is mispredicted (stage1.error_focus).",
        )
    model, copying = results.get("val/world_model_changed"), results.get("val/copy_last_frame_changed")
    if model is not None and copying is not None and model >= copying:
        yield Notice(
            where,
            "Where pixels change, the world model predicts no better than repeating the last frame.",
            "Train stage 1 for longer (stage1.steps), or weight what is mispredicted (stage1.error_focus).",
        )
