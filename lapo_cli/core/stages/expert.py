"""Training an expert to record: PPO from scratch with standard settings (Cobbe et al., 2020)."""

from collections.abc import Mapping
from functools import partial
from typing import Any

from lapo_cli.core.compute import Compute
from lapo_cli.core.errors import CorruptDataError
from lapo_cli.core.run_dir import WEIGHTS, StageDir
from lapo_cli.core.training.agents import DirectAgent
from lapo_cli.core.training.context import Context
from lapo_cli.core.training.networks import actions_of, header
from lapo_cli.core.training.ppo_loop import PPOLoop, agent_policy
from lapo_cli.core.training.stage import STAGES, Stage, needs_environment


def _build_agent(about: Mapping[str, Any], compute: Compute) -> DirectAgent:
    try:
        network = about["network"]
        scale, size = int(network["scale"]), int(network["size"])
    except (KeyError, TypeError, ValueError) as error:
        raise CorruptDataError(
            "The weights do not record which network they belong to: train the expert again."
        ) from error
    agent = DirectAgent(scale, size, actions_of(about), compute)
    compute.place(agent)
    return agent


def _train(ctx: Context, stage: StageDir) -> dict[str, Any]:
    """Weights after every ``expert.snapshot_every`` steps are kept beside the last ones."""
    config = ctx.config.expert
    network = {"scale": config.scale, "size": config.size}
    agent = _build_agent(header(ctx, stage, network=network), ctx.compute)
    groups = agent.parameter_groups(lambda env_steps, end: config.lr)
    training = PPOLoop(ctx, stage, "expert", agent, groups, config)

    def save(file: str) -> None:
        stage.save_weights({"agent": agent}, header(ctx, stage, network=network, env_steps=training.env_steps), file)

    kept = training.env_steps // config.snapshot_every
    for _ in training.updates():
        if training.env_steps // config.snapshot_every > kept and training.env_steps < config.steps:
            kept = training.env_steps // config.snapshot_every
            save(f"step-{training.env_steps}.safetensors")
    save(WEIGHTS)
    return training.results()


STAGES.register(
    Stage(
        name="expert",
        label="PPO expert",
        run=_train,
        command="lapo train-expert {game} --run-dir {run_dir} --seed {seed}",
        sections=("expert",),
        applicable=needs_environment,
        policies=partial(agent_policy, _build_agent),
        build_agent=_build_agent,
        in_chain="never",
        order=70,
    )
)
