"""Training an expert to record: PPO from scratch with Procgen's standard settings (Cobbe et al., 2020)."""

from typing import Any

from lapo_cli.core.run_dir import WEIGHTS, StageDir
from lapo_cli.core.training.agents import ScratchAgent
from lapo_cli.core.training.checkpoints import EXPERT, about
from lapo_cli.core.training.context import Context
from lapo_cli.core.training.ppo import PPO
from lapo_cli.core.training.ppo_loop import Reinforcement
from lapo_cli.core.training.stage import StageResult, run_stage, stage_seed


def train_expert(ctx: Context) -> StageResult:
    """Train an expert; weights after every ``expert.snapshot_every`` steps are kept beside the last ones.

    Raises:
        EnvironmentUnavailableError: nothing can act here.
    """
    return run_stage(ctx, EXPERT, sections=("expert",), inputs={}, work=lambda stage: _train(ctx, stage))


def load_expert(ctx: Context) -> ScratchAgent:
    """The trained expert of a game and seed.

    Raises:
        MissingInputError: ``train-expert`` is not finished.
    """
    stage = ctx.seed_dir.stage(EXPERT)
    stage.require_done(f"lapo train-expert {ctx.seed_dir.game} --run-dir {ctx.seed_dir.run_path}")
    agent = _build(ctx)
    stage.load_weights({"agent": agent})
    return agent


def _build(ctx: Context) -> ScratchAgent:
    agent = ScratchAgent(ctx.config.expert.scale, ctx.config.expert.size, ctx.compute)
    ctx.compute.place(agent)
    return agent


def _train(ctx: Context, stage: StageDir) -> dict[str, Any]:
    config = ctx.config.expert
    agent = _build(ctx)
    groups = agent.parameter_groups(lambda env_steps, end: config.lr)
    seed = stage_seed(ctx, "levels of training")
    ppo = PPO(agent, groups, ctx.seed_dir.game, config, seed, ctx.compute.device)
    training = Reinforcement(ctx, stage, "expert", ppo)

    def save(file: str) -> None:
        network = {"scale": config.scale, "size": config.size}
        header = {**about(ctx, stage.name), "network": network, "env_steps": ppo.env_steps}
        stage.save_weights({"agent": agent}, header, file)

    kept = ppo.env_steps // config.snapshot_every
    for _ in training.updates():
        if ppo.env_steps // config.snapshot_every > kept and ppo.env_steps < config.steps:
            kept = ppo.env_steps // config.snapshot_every
            save(f"step-{ppo.env_steps}.safetensors")
    save(WEIGHTS)
    return training.results()
