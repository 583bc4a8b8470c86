"""Stage 3, online: decode the latent policy by reinforcement learning, and the baselines (paper, section 5.1)."""

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from lapo_cli.core.models.frames import normalize
from lapo_cli.core.models.idm import InverseDynamicsModel
from lapo_cli.core.run_dir import StageDir
from lapo_cli.core.training import decoding
from lapo_cli.core.training.agents import LatentAgent, ScratchAgent
from lapo_cli.core.training.checkpoints import (
    ONLINE,
    RL_ONLY,
    SCRATCH,
    about,
    idm_fingerprint,
    load_idm,
    load_policy,
    policy_fingerprint,
)
from lapo_cli.core.training.context import Context
from lapo_cli.core.training.ppo import PPO, Rollout
from lapo_cli.core.training.ppo_loop import Reinforcement
from lapo_cli.core.training.stage import StageResult, run_stage, stage_seed

Init = Literal["latent", "latent-rl-only", "scratch"]
STAGE_OF: dict[Init, str] = {"latent": ONLINE, "latent-rl-only": RL_ONLY, "scratch": SCRATCH}
_CHUNK = 512


def finetune_online(ctx: Context, init: Init) -> StageResult:
    """PPO from the latent policy with a decoder ("RL + SL"), without one, or from scratch.

    Raises:
        MissingInputError: stage 1 or 2 is not finished.
        EnvironmentUnavailableError: nothing can act here.
    """
    inputs = {} if init == "scratch" else {"idm": idm_fingerprint(ctx), "policy": policy_fingerprint(ctx)}
    return run_stage(
        ctx,
        STAGE_OF[init],
        sections=("model", "online", "decoder"),
        inputs=inputs,
        work=lambda stage: _finetune(ctx, stage, init),
    )


def build_agent(ctx: Context, init: Init) -> ScratchAgent | LatentAgent:
    """The agent before its first environment step, on its device."""
    model = ctx.config.model
    agent: ScratchAgent | LatentAgent
    if init == "scratch":
        agent = ScratchAgent(model.policy_scale, model.policy_size, ctx.compute)
    else:
        with_decoder = init == "latent"
        agent = LatentAgent(load_policy(ctx), with_decoder=with_decoder, size=model.policy_size, compute=ctx.compute)
    ctx.compute.place(agent)
    return agent


def load_agent(ctx: Context, init: Init) -> ScratchAgent | LatentAgent:
    """The agent after its last environment step.

    Raises:
        MissingInputError: ``finetune-online`` is not finished.
    """
    stage = ctx.seed_dir.stage(STAGE_OF[init])
    stage.require_done(f"lapo finetune-online {ctx.seed_dir.path} --init {init}")
    agent = build_agent(ctx, init)
    stage.load_weights({"agent": agent})
    return agent


def _finetune(ctx: Context, stage: StageDir, init: Init) -> dict[str, Any]:
    config = ctx.config.online
    agent = build_agent(ctx, init)
    if isinstance(agent, ScratchAgent):
        groups = agent.parameter_groups(config.scratch.at)
    else:
        groups = agent.parameter_groups(config)
    seed = stage_seed(ctx, "levels of training")
    ppo = PPO(agent, groups, ctx.seed_dir.game, config, seed, ctx.compute.device)
    labeller = _OnlineDecoder(ctx, agent) if isinstance(agent, LatentAgent) and agent.decoder is not None else None
    state = {} if labeller is None else {"decoder": labeller}
    training = Reinforcement(ctx, stage, f"stage 3 online ({init})", ppo, state)
    for update, rollout in training.updates(keep_frames=None if labeller is None else labeller.wants):
        if labeller is not None:
            labeller.learn(rollout, update, ppo.env_steps)
    stage.save_weights({"agent": agent}, {**about(ctx, stage.name), "env_steps": ppo.env_steps})
    return training.results()


class _OnlineDecoder:
    """Labels the agent's own transitions with the frozen IDM and, from time to time, trains its decoder on all."""

    def __init__(self, ctx: Context, agent: LatentAgent) -> None:
        self._config, self._ctx, self._agent = ctx.config.online, ctx, agent
        self._idm: InverseDynamicsModel = load_idm(ctx)
        self._latents: list[Tensor] = []
        self._actions: list[Tensor] = []

    def wants(self, env_steps: int) -> bool:
        """Whether transitions after so many environment steps will still be learnt from."""
        return env_steps < self._config.decoder_until

    @torch.no_grad()
    def label(self, rollout: Rollout) -> tuple[Tensor, Tensor]:
        """z (P, la_dim) float16 and actions (P,) of the rollout's windows; none crosses an episode."""
        assert rollout.frames is not None
        first = rollout.first.cpu().numpy()
        steps, envs = np.nonzero(~first[1:-1] & ~first[2:])  # row t of these is the window around frame t + 1
        latents = []
        for start in range(0, len(steps), _CHUNK):
            t, n = steps[start : start + _CHUNK], envs[start : start + _CHUNK]
            windows = np.stack([rollout.frames[t + offset, n] for offset in range(3)], axis=1)
            frames = normalize(
                torch.from_numpy(windows).to(self._ctx.compute.device), self._ctx.config.model.frame_size
            )
            with self._ctx.compute.autocast():
                latents.append(self._idm.latent_action(frames).to(torch.float16))
        return torch.cat(latents), rollout.actions[torch.from_numpy(steps) + 1, torch.from_numpy(envs)]

    def learn(self, rollout: Rollout, update: int, env_steps: int) -> None:
        """Label a rollout and, when it is time, train the decoder afresh on all pairs so far."""
        config = self._config
        if rollout.frames is None:
            return
        latents, actions = self.label(rollout)
        self._latents.append(latents)
        self._actions.append(actions)
        dense = env_steps < config.decoder_dense_until
        if config.decoder_from < env_steps < config.decoder_until and (dense or update % config.decoder_every == 0):
            decoder = self._agent.decoder
            assert decoder is not None
            decoding.reset(decoder)
            z, a = torch.cat(self._latents), torch.cat(self._actions)
            steps = decoding.epochs_to_steps(config.decoder_epochs, len(z), self._ctx.config.decoder)
            decoding.fit(decoder, z, a, self._ctx.config.decoder, steps)

    def state_dict(self) -> dict[str, Any]:
        """All pairs so far."""
        return {"latents": self._latents, "actions": self._actions}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what :meth:`state_dict` gave."""
        device = self._ctx.compute.device
        self._latents = [z.to(device) for z in state["latents"]]
        self._actions = [a.to(device) for a in state["actions"]]
