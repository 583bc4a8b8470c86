"""Stage 3, online, by relabelling: learn from the agent's own play what the video's actions are, clone them, then PPO.

Random play gives labelled transitions for nothing. An inverse dynamics model, stage 1's or a fresh one, is trained on
them and labels the video, and a clone of that is where PPO starts (the order of BCV-LR, arXiv:2512.21586).
"""

from contextlib import closing
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch

from lapo_cli.core.data.store import Video
from lapo_cli.core.errors import BrokenEnvironmentError
from lapo_cli.core.run_dir import StageDir
from lapo_cli.core.training.agents import LAST_LAYERS, ClonedAgent
from lapo_cli.core.training.cloning import clone, clone_settings
from lapo_cli.core.training.context import Context
from lapo_cli.core.training.inverse_dynamics import (
    LabelledVideo,
    inferred_targets,
    load_inverse_dynamics,
    train_inverse_dynamics,
)
from lapo_cli.core.training.networks import IDM, POLICY, direct_agent_of, header, idm_about, load_idm, model_of
from lapo_cli.core.training.ppo_loop import PPOLoop, agent_policy
from lapo_cli.core.training.stage import STAGES, Stage, needs_environment, run_part, stage_seed

_NAME = "online-relabel"


def _run(ctx: Context, stage: StageDir) -> dict[str, Any]:
    config, before = ctx.config.online, _play_steps(ctx) * ctx.config.online.ppo.num_envs
    idm, cloned = StageDir(stage.path / "idm"), StageDir(stage.path / "clone")
    of_idm = run_part(ctx, idm, f"{_NAME}/idm", {}, lambda: _learn_actions(ctx, idm))
    of_clone = run_part(ctx, cloned, cloned.name, {}, lambda: _clone(ctx, idm, cloned))
    torch.manual_seed(stage_seed(ctx, stage.name))  # Whether or not the clone was finished before.
    start = direct_agent_of(header(ctx, cloned), ctx.compute)
    cloned.load_weights({"agent": start})
    agent = ClonedAgent(start, ctx.compute)
    ctx.compute.place(agent)
    config = config.of_steps(config.steps - before)
    groups = agent.parameter_groups(config)
    results = PPOLoop(ctx, stage, f"stage 3 {_NAME}", agent, groups, config, before=before).run()
    stage.save_weights({"agent": agent}, header(ctx, stage, env_steps=results["env_steps"]))
    return {**results, "idm": of_idm, "clone": of_clone}


def _applicable(ctx: Context) -> str | None:
    played, steps = _play_steps(ctx) * ctx.config.online.ppo.num_envs, ctx.config.online.steps
    reason = (
        f"its random play takes {played:,} of the {steps:,} environment steps: lower relabel.env_steps or raise "
        "online.steps"
    )
    return needs_environment(ctx) or (reason if played >= steps else None)


def _play_steps(ctx: Context) -> int:
    """Steps of random play of each environment; a window takes two."""
    return max(2, ctx.config.relabel.env_steps // ctx.config.online.ppo.num_envs)


def _learn_actions(ctx: Context, folder: StageDir) -> dict[str, Any]:
    title, played = "inverse dynamics model of random play", _random_play(ctx)
    steps, network = ctx.config.relabel.idm_steps, ctx.config.relabel.idm_network
    if network != "stage1":
        return train_inverse_dynamics(ctx, _NAME, folder, title, played, steps, trunk=network)
    # The network is that of stage 1, whatever is configured now.
    of_stage1 = replace(ctx, config=ctx.config.model_copy(update={"model": model_of(idm_about(ctx))}))
    return train_inverse_dynamics(of_stage1, _NAME, folder, title, played, steps, load_idm(ctx))


def _clone(ctx: Context, idm: StageDir, folder: StageDir) -> dict[str, Any]:
    video = ctx.open_store("train").video()
    windows = video.windows(ctx.config.data.max_frames)
    # Several actions may do nothing. Random play takes them far more often than demonstrators do, so that its model
    # gives them too much probability; a temperature below 1 reduces that.
    temperature = ctx.config.relabel.play_temperature
    targets = inferred_targets(ctx, load_inverse_dynamics(ctx, idm), video, windows, temperature)
    return clone(ctx, _NAME, folder, "clone of what random play explains", targets, *clone_settings(ctx))


def _random_play(ctx: Context) -> LabelledVideo:
    """Uniformly random actions and what they lead to, in memory; one environment's frames after another's.

    Raises:
        BrokenEnvironmentError: no episode lasts for three frames.
    """
    steps, num_envs = _play_steps(ctx), ctx.config.online.ppo.num_envs
    seed = stage_seed(ctx, "random play")
    actions = np.random.default_rng(seed).integers(0, ctx.env.require_actions(), (num_envs, steps + 1), np.uint8)
    first = np.ones((num_envs, steps + 1), np.bool_)
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


STAGES.register(
    Stage(
        name=_NAME,
        label="LAPO relabelled online, then PPO",
        run=_run,
        sections=(
            *("data.max_frames", "model", "stage1", "stage2", "relabel"),
            *("online.steps", "online.ppo", *LAST_LAYERS),
        ),
        requires=(IDM, POLICY),
        reads=("train", "test"),
        applicable=_applicable,
        policies=partial(agent_policy, direct_agent_of),
        build_agent=direct_agent_of,
        in_chain="never",
        order=45,
        trainings=lambda config: 3,  # the model of random play, the clone, PPO
        kept_frames=lambda config: config.relabel.env_steps,
    )
)
