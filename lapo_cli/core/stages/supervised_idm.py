"""The ceiling of stage 1's probe: a supervised inverse dynamics model of the same trunk, steps and frames."""

from typing import Any

from lapo_cli.core.run_dir import StageDir
from lapo_cli.core.training.context import Context
from lapo_cli.core.training.inverse_dynamics import LabelledVideo, train_inverse_dynamics
from lapo_cli.core.training.latent_labels import labelled_frames
from lapo_cli.core.training.networks import IDM_NETWORK, SUPERVISED_IDM
from lapo_cli.core.training.stage import STAGES, Stage, needs_actions

_LABEL = "supervised inverse dynamics model"


def _run(ctx: Context, stage: StageDir) -> dict[str, Any]:
    train = ctx.open_store("train")
    assert train.actions is not None
    frames = LabelledVideo(train.video(), train.actions, labelled_frames(ctx, train))
    return train_inverse_dynamics(ctx, SUPERVISED_IDM, stage, _LABEL, frames, ctx.config.stage1.steps)


STAGES.register(
    Stage(
        name=SUPERVISED_IDM,
        label=_LABEL,
        run=_run,
        sections=("data.max_frames", "stage1", *IDM_NETWORK),
        reads=("train", "test"),
        applicable=needs_actions,
        in_chain="baselines",
        order=61,
    )
)
