"""Stage 3, online, by relabelling: learn from the agent's own play what the video's actions are, clone them, then PPO.

Random play gives labelled transitions for nothing. Stage 1's inverse dynamics model is fine-tuned on them (the order of
BCV-LR, arXiv:2512.21586). It and the model of the stage ``random-play``, which starts from random weights and sees
finer frames, are wrong in different places, so that the mean of their probabilities labels the video. A clone of that
is where PPO starts.
"""

from dataclasses import replace
from functools import partial
from typing import Any

import torch

from lapo_cli.core.run_dir import StageDir
from lapo_cli.core.training.agents import LAST_LAYERS, ClonedAgent
from lapo_cli.core.training.cloning import clone, clone_settings
from lapo_cli.core.training.context import Context
from lapo_cli.core.training.inverse_dynamics import inferred_targets, train_inverse_dynamics
from lapo_cli.core.training.networks import (
    IDM,
    POLICY,
    RANDOM_PLAY,
    direct_agent_of,
    header,
    idm_about,
    load_idm,
    model_of,
)
from lapo_cli.core.training.ppo_loop import PPOLoop, agent_policy
from lapo_cli.core.training.random_play import env_steps, needs_steps, play
from lapo_cli.core.training.stage import STAGES, Stage, require_stage, run_part, stage_seed

_NAME = "online-relabel"


def _run(ctx: Context, stage: StageDir) -> dict[str, Any]:
    config, before = ctx.config.online, env_steps(ctx)
    idm, cloned = StageDir(stage.path / "idm"), StageDir(stage.path / "clone")
    of_idm = run_part(ctx, idm, f"{_NAME}/idm", {}, lambda: _fine_tune(ctx, idm))
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


def _fine_tune(ctx: Context, folder: StageDir) -> dict[str, Any]:
    # The network is that of stage 1, whatever is configured now.
    of_stage1 = replace(ctx, config=ctx.config.model_copy(update={"model": model_of(idm_about(ctx))}))
    title, steps = "stage 1's model on random play", ctx.config.relabel.idm_steps
    return train_inverse_dynamics(of_stage1, _NAME, folder, title, play(ctx), steps, load_idm(ctx))


def _clone(ctx: Context, idm: StageDir, folder: StageDir) -> dict[str, Any]:
    video = ctx.open_store("train").video()
    windows = video.windows(ctx.config.data.max_frames)
    models = (idm, require_stage(ctx, RANDOM_PLAY))
    # Several actions may do nothing. Random play takes them far more often than demonstrators do, so that its models
    # give them too much probability; a temperature below 1 reduces that.
    targets = inferred_targets(ctx, models, video, windows, ctx.config.relabel.play_temperature)
    return clone(ctx, _NAME, folder, "clone of what random play explains", targets, *clone_settings(ctx))


STAGES.register(
    Stage(
        name=_NAME,
        label="LAPO relabelled online, then PPO",
        run=_run,
        sections=(
            *("data.max_frames", "model", "stage1", "stage2", "relabel"),
            *("online.steps", "online.ppo", *LAST_LAYERS),
        ),
        requires=(IDM, POLICY, RANDOM_PLAY),
        reads=("train", "test"),
        applicable=needs_steps,
        policies=partial(agent_policy, direct_agent_of),
        build_agent=direct_agent_of,
        in_chain="never",
        order=45,
        trainings=lambda config: 3,  # the fine-tuned model, the clone, PPO
        kept_frames=lambda config: config.relabel.env_steps,
    )
)
