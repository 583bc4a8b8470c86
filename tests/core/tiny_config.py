"""The paper's configuration made so small that every stage takes a second, and how to run one stage."""

from lapo_cli.core.training.context import Context
from lapo_cli.core.training.stage import STAGES, StageResult, run_stage

TINY = (
    "precision=fp32",
    "data.source=demos",
    "data.max_frames=2048",
    "model.frame_size=16",
    "model.idm_scale=1",
    "model.world_model_base=4",
    "model.policy_scale=1",
    "stage1.steps=12",
    "stage1.batch_size=16",
    "stage1.eval_every=6",
    "stage1.probe_pairs=128",
    "stage2.steps=12",
    "stage2.batch_size=16",
    "stage2.eval_every=6",
    "offline.labels=4,64",
    "offline.steps=10",
    "online.steps=512",
    "online.ppo.num_envs=8",
    "online.ppo.num_steps=16",
    "online.ppo.minibatches=2",
    "online.decoder_from=100",
    "evaluation.episodes=4",
    "evaluation.num_envs=4",
    "evaluation.curve_points=0",
    "evaluation.curve_episodes=2",
)


def run(ctx: Context, stage: str) -> StageResult:
    """Run the stage of that name."""
    return run_stage(ctx, STAGES.get(stage))
