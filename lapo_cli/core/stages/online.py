"""Stage 3, online: decode the latent policy by PPO, with a decoder and without one (paper, section 5.1)."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from lapo_cli.core.compute import Compute
from lapo_cli.core.run_dir import StageDir
from lapo_cli.core.training import decoding
from lapo_cli.core.training.agents import LAST_LAYERS, LatentAgent
from lapo_cli.core.training.context import Context
from lapo_cli.core.training.latent_labels import played_pairs
from lapo_cli.core.training.networks import (
    IDM,
    POLICY,
    actions_of,
    header,
    latent_policy_of,
    load_idm,
    load_policy,
    policy_about,
)
from lapo_cli.core.training.no_quantizer import without_quantizer
from lapo_cli.core.training.ppo import Rollout
from lapo_cli.core.training.ppo_loop import PPOLoop, agent_policy
from lapo_cli.core.training.stage import STAGES, Stage, needs_environment

_DECODER = (
    "decoder",
    *(f"online.decoder_{name}" for name in ("from", "dense_until", "every", "until", "epochs")),
)


def _build_agent(about: Mapping[str, Any], compute: Compute, *, with_decoder: bool) -> LatentAgent:
    agent = LatentAgent(latent_policy_of(about), actions_of(about), with_decoder=with_decoder, compute=compute)
    compute.place(agent)
    return agent


def _finetune(ctx: Context, stage: StageDir, *, with_decoder: bool) -> dict[str, Any]:
    config = ctx.config.online
    agent = LatentAgent(load_policy(ctx), ctx.env.require_actions(), with_decoder=with_decoder, compute=ctx.compute)
    ctx.compute.place(agent)
    decoder = _OnlineDecoder(ctx, agent) if with_decoder else None
    title = f"stage 3 {stage.name.removesuffix(ctx.variant)}"
    state = {} if decoder is None else {"decoder": decoder}
    training = PPOLoop(ctx, stage, title, agent, agent.parameter_groups(config), config, state)
    for update, rollout in training.updates(keep_frames=None if decoder is None else decoder.wants):
        if decoder is not None:
            decoder.learn(rollout, update, training.env_steps)
    stage.save_weights({"agent": agent}, header(ctx, stage, **policy_about(ctx), env_steps=training.env_steps))
    return training.results()


class _OnlineDecoder:
    """Labels the agent's own transitions with the frozen IDM and, from time to time, trains its decoder on all."""

    def __init__(self, ctx: Context, agent: LatentAgent) -> None:
        self._config, self._ctx, self._agent = ctx.config.online, ctx, agent
        self._idm = load_idm(ctx)
        self._latents: list[Tensor] = []
        self._actions: list[Tensor] = []

    def wants(self, env_steps: int) -> bool:
        """Whether transitions after so many environment steps will still be learnt from."""
        return env_steps < self._config.decoder_until

    def learn(self, rollout: Rollout, update: int, env_steps: int) -> None:
        """Label a rollout and, when it is time, train the decoder from scratch on all pairs so far."""
        config = self._config
        if rollout.frames is None:  # The decoder is final; checkpoints need not carry its pairs.
            self._latents, self._actions = [], []
            return
        first = rollout.first.cpu().numpy()
        latents, actions = played_pairs(self._ctx, self._idm, rollout.frames, first, rollout.actions)
        self._latents.append(latents)
        self._actions.append(actions)
        dense = env_steps < config.decoder_dense_until
        if config.decoder_from < env_steps < config.decoder_until and (dense or update % config.decoder_every == 0):
            z, a = torch.cat(self._latents), torch.cat(self._actions)
            if len(z) == 0:
                return
            decoder = self._agent.decoder
            assert decoder is not None
            decoding.reset(decoder)
            steps = decoding.epochs_to_steps(config.decoder_epochs, len(z), self._ctx.config.decoder)
            decoding.fit(decoder, z, a, self._ctx.config.decoder, steps)

    def state_dict(self) -> dict[str, Any]:
        """All pairs so far; none once the decoder is final."""
        return {"latents": self._latents, "actions": self._actions}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what :meth:`state_dict` gave."""
        device = self._ctx.compute.device
        self._latents = [z.to(device) for z in state["latents"]]
        self._actions = [a.to(device) for a in state["actions"]]


def _register(name: str, label: str, init: str, *, with_decoder: bool, order: int) -> None:
    build: Callable[[Mapping[str, Any], Compute], LatentAgent] = partial(_build_agent, with_decoder=with_decoder)
    stage = STAGES.register(
        Stage(
            name=name,
            label=label,
            run=partial(_finetune, with_decoder=with_decoder),
            command=f"lapo finetune-online {{seed_dir}} --init {init}",
            sections=("model", "online.steps", "online.ppo", *LAST_LAYERS, *(_DECODER if with_decoder else ())),
            requires=(IDM, POLICY),
            applicable=needs_environment,
            policies=partial(agent_policy, build),
            build_agent=build,
            in_chain="always" if with_decoder else "baselines",
            order=order,
        )
    )
    STAGES.register(without_quantizer(stage))


_register("online", "LAPO fine-tuned online", "latent", with_decoder=True, order=40)
_register("rl-only", "LAPO fine-tuned online, RL only", "latent-rl-only", with_decoder=False, order=50)
