"""What the agent's own random play says about actions: a model of its transitions labels the video.

Random play gives labelled transitions for nothing. An inverse dynamics model is trained on them from random weights, at
the size of the policy's frames, and infers the actions of the whole video. It needs no other stage, so that it can be
trained beside stage 1.
"""

from typing import Any

from lapo_cli.core.run_dir import StageDir
from lapo_cli.core.training.context import Context
from lapo_cli.core.training.inverse_dynamics import inferred_actions, train_inverse_dynamics
from lapo_cli.core.training.networks import RANDOM_PLAY
from lapo_cli.core.training.random_play import env_steps, needs_steps, play
from lapo_cli.core.training.stage import STAGES, Stage

_LABEL = "inverse dynamics model of random play"


def _run(ctx: Context, stage: StageDir) -> dict[str, Any]:
    config, played = ctx.config.relabel, play(ctx)
    trained = train_inverse_dynamics(
        ctx, RANDOM_PLAY, stage, _LABEL, played, config.idm_steps, trunk=config.idm_network
    )
    video = ctx.open_store("train").video()
    inferred_actions(ctx, stage, video, video.windows(ctx.config.data.max_frames))  # Kept for those that clone them.
    return {**trained, "env_steps": env_steps(ctx)}


STAGES.register(
    Stage(
        name=RANDOM_PLAY,
        label=_LABEL,
        run=_run,
        sections=(
            *("data.max_frames", "stage1", "model.policy_scale", "model.policy_size", "model.motion_init"),
            *("relabel.env_steps", "relabel.idm_steps", "relabel.idm_network", "online.ppo.num_envs"),
        ),
        reads=("train", "test"),
        applicable=needs_steps,
        in_chain="never",
        order=42,
        kept_frames=lambda config: config.relabel.env_steps,
    )
)
