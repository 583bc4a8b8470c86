"""Stage 3, online, by relabelling: learn from the agent's own play what the video's actions are, clone them, then PPO.

A little random play gives labelled transitions for nothing: a decoder that is trained on their latent actions labels
the whole video, and a clone of it is where PPO starts (the order of BCV-LR, arXiv:2512.21586).
"""

from contextlib import closing
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lapo_cli.core.models.idm import InverseDynamicsModel
from lapo_cli.core.models.policy import Decoder
from lapo_cli.core.run_dir import StageDir
from lapo_cli.core.training import decoding
from lapo_cli.core.training.agents import LAST_LAYERS, ClonedAgent
from lapo_cli.core.training.checkpoints import IDM, POLICY, direct_agent_of, header, load_idm
from lapo_cli.core.training.cloning import clone
from lapo_cli.core.training.context import Context
from lapo_cli.core.training.latent_labels import latent_labels, played_pairs
from lapo_cli.core.training.ppo import PPO
from lapo_cli.core.training.ppo_loop import PPOLoop, agent_policy
from lapo_cli.core.training.relabelling import clone_settings, decoded_targets
from lapo_cli.core.training.stage import STAGES, Stage, needs_environment, output_fingerprint, run_part, stage_seed

_NAME = "online-relabel"
_LABEL = "LAPO relabelled online, then PPO"


def _run(ctx: Context, stage: StageDir) -> dict[str, Any]:
    config, before = ctx.config.online, _play_steps(ctx) * ctx.config.online.ppo.num_envs
    cloned = StageDir(stage.path / "clone")
    of_clone = run_part(ctx, cloned, cloned.name, {}, lambda: _clone(ctx, cloned))
    torch.manual_seed(stage_seed(ctx, stage.name))  # Whether or not the clone was finished before.
    start = direct_agent_of(header(ctx, cloned), ctx.compute)
    cloned.load_weights({"agent": start})
    agent = ClonedAgent(start, ctx.compute)
    ctx.compute.place(agent)
    config = config.model_copy(update={"steps": max(1, config.steps - before)})
    groups = agent.parameter_groups(config)
    ppo = PPO(agent, groups, ctx.env, config, stage_seed(ctx, "levels of training"), ctx.compute.device)
    training = PPOLoop(ctx, stage, f"stage 3 {_NAME}", ppo, before=before)
    for _ in training.updates():
        pass
    results = training.results()
    stage.save_weights({"agent": agent}, header(ctx, stage, env_steps=results["env_steps"]))
    return {**results, "clone": of_clone}


def _play_steps(ctx: Context) -> int:
    """Steps of random play of each environment; windows take three."""
    return max(3, ctx.config.relabel.env_steps // ctx.config.online.ppo.num_envs)


def _clone(ctx: Context, folder: StageDir) -> dict[str, Any]:
    video = ctx.open_store("train").video()
    windows = video.windows(ctx.config.data.max_frames)
    idm = load_idm(ctx)
    latents = latent_labels(ctx, idm, output_fingerprint(ctx, IDM), video, windows)
    decoder = Decoder(idm.quantizer.la_dim, ctx.env.require_actions()).to(ctx.compute.device)
    decoding.fit(decoder, *_random_play(ctx, idm), ctx.config.decoder, ctx.config.offline.steps)
    # Several actions may do nothing. Random play takes them far more often than demonstrators do, so that its decoder
    # gives them too much probability; a temperature below 1 reduces that.
    targets = decoded_targets(ctx, decoder, latents, windows, ctx.config.relabel.play_temperature)
    return clone(ctx, _NAME, folder, "clone of what random play explains", targets, *clone_settings(ctx))


def _random_play(ctx: Context, idm: InverseDynamicsModel) -> tuple[Tensor, Tensor]:
    """z (P, la_dim) and actions (P,) of random play, on the device."""
    steps, num_envs = _play_steps(ctx), ctx.config.online.ppo.num_envs
    seed = stage_seed(ctx, "random play")
    actions = np.random.default_rng(seed).integers(0, ctx.env.require_actions(), (steps, num_envs))
    frames, first = [], []
    with closing(ctx.env.make_envs(num_envs, seed)) as envs:
        for step in range(steps + 1):
            _, frame, begins = envs.observe()
            frames.append(frame.copy())
            first.append(begins.copy())
            if step < steps:
                envs.act(actions[step])
    true = torch.from_numpy(actions).to(ctx.compute.device)
    return played_pairs(ctx, idm, np.stack(frames), np.stack(first), true)


STAGES.register(
    Stage(
        name=_NAME,
        label=_LABEL,
        run=_run,
        command="lapo run-stage online-relabel {seed_dir}",
        sections=(
            *("data.max_frames", "model", "stage2", "decoder", "offline.steps", "relabel"),
            *("online.steps", "online.ppo", *LAST_LAYERS),
        ),
        requires=(IDM, POLICY),
        reads=("train", "test"),
        applicable=needs_environment,
        policies=partial(agent_policy, _LABEL, direct_agent_of),
        build_agent=direct_agent_of,
        in_chain="never",
        order=45,
    )
)
