"""The ceiling of offline decoding: behaviour cloning of all true actions, with stage 2's network and budget."""

from typing import Any

from lapo_cli.core.run_dir import StageDir
from lapo_cli.core.training.cloning import clone, clone_policy, true_targets
from lapo_cli.core.training.context import Context
from lapo_cli.core.training.latent_labels import labelled_frames
from lapo_cli.core.training.networks import POLICY_NETWORK, direct_agent_of
from lapo_cli.core.training.stage import STAGES, Stage, needs_actions

_NAME = "bc"
_LABEL = "BC on all true labels"


def _run(ctx: Context, stage: StageDir) -> dict[str, Any]:
    train = ctx.open_store("train")
    assert train.actions is not None
    targets = true_targets(train.actions, labelled_frames(ctx, train), ctx.env.require_actions())
    return clone(ctx, _NAME, stage, _LABEL, targets, ctx.config.stage2)


STAGES.register(
    Stage(
        name=_NAME,
        label=_LABEL,
        run=_run,
        sections=("data.max_frames", "stage2", *POLICY_NETWORK),
        reads=("train", "test"),
        applicable=needs_actions,
        policies=clone_policy,
        build_agent=direct_agent_of,
        in_chain="baselines",
        order=62,
    )
)
