"""The baseline: PPO from scratch, with the same network, environments and steps as online fine-tuning."""

from functools import partial
from typing import Any

from lapo_cli.core.run_dir import StageDir
from lapo_cli.core.training.context import Context
from lapo_cli.core.training.networks import POLICY_NETWORK, direct_agent_of, header
from lapo_cli.core.training.ppo_loop import PPOLoop, agent_policy
from lapo_cli.core.training.stage import STAGES, Stage, needs_environment


def _train(ctx: Context, stage: StageDir) -> dict[str, Any]:
    config = ctx.config.online
    agent = direct_agent_of(header(ctx, stage), ctx.compute)
    groups = agent.parameter_groups(config.scratch.at)
    results = PPOLoop(ctx, stage, "PPO from scratch", agent, groups, config).run()
    stage.save_weights({"agent": agent}, header(ctx, stage, env_steps=results["env_steps"]))
    return results


STAGES.register(
    Stage(
        name="scratch",
        label="PPO from scratch",
        run=_train,
        command="lapo finetune-online {seed_dir} --init scratch",
        sections=("online.steps", "online.ppo", "online.scratch", *POLICY_NETWORK),
        applicable=needs_environment,
        policies=partial(agent_policy, direct_agent_of),
        build_agent=direct_agent_of,
        order=60,
    )
)
