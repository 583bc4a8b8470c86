"""Random play of an environment: labelled transitions that cost nothing but steps."""

from contextlib import closing

import numpy as np
from numpy.typing import NDArray

from lapo_cli.core.data.store import Video
from lapo_cli.core.errors import BrokenEnvironmentError
from lapo_cli.core.training.context import Context
from lapo_cli.core.training.inverse_dynamics import LabelledVideo
from lapo_cli.core.training.stage import needs_environment, stage_seed


def env_steps(ctx: Context) -> int:
    """How many environment steps are played; a window takes two of each environment."""
    num_envs = ctx.config.online.ppo.num_envs
    return max(2, ctx.config.relabel.env_steps // num_envs) * num_envs


def needs_steps(ctx: Context) -> str | None:
    """Why it cannot be played, or leaves nothing for the training after it, for :attr:`Stage.applicable`."""
    played, steps = env_steps(ctx), ctx.config.online.steps
    reason = (
        f"its random play takes {played:,} of the {steps:,} environment steps: lower relabel.env_steps or raise "
        "online.steps"
    )
    return needs_environment(ctx) or (reason if played >= steps else None)


def play(ctx: Context) -> LabelledVideo:
    """Uniformly random actions and what they lead to, in memory; one environment's frames after another's.

    Raises:
        BrokenEnvironmentError: no episode lasts for three frames.
    """
    num_envs = ctx.config.online.ppo.num_envs
    steps, seed = env_steps(ctx) // num_envs, stage_seed(ctx, "random play")
    actions = np.random.default_rng(seed).integers(0, ctx.env.require_actions(), (num_envs, steps + 1), np.uint8)
    first: NDArray[np.bool_] = np.ones((num_envs, steps + 1), np.bool_)
    with (
        closing(ctx.env.make_envs(num_envs, seed)) as envs,
        ctx.progress.task(ctx.title("random play"), steps * num_envs, "environment step") as task,
    ):
        frames = np.empty((num_envs, steps + 1, *envs.observe()[1].shape[1:]), np.uint8)
        for step in range(steps + 1):
            _, frames[:, step], begins = envs.observe()
            if step:  # Each environment's first frame follows no other.
                first[:, step] = begins
            if step < steps:
                envs.act(actions[:, step])
                task.update((step + 1) * num_envs)
    name = f"{steps} random steps in {num_envs} environments of {ctx.game}, seed {seed}"
    video = Video(frames.reshape(-1, *frames.shape[2:]), first.reshape(-1), name)
    windows = video.windows()
    if len(windows) == 0:
        raise BrokenEnvironmentError(
            f"No episode of random play in {ctx.game} lasts for three frames, so nothing shows what actions do: give "
            "it longer episodes, or use lapo finetune-online."
        )
    return LabelledVideo(video, actions.reshape(-1), windows)
