"""What one would do without latent actions: behaviour cloning of the few labelled frames alone."""

from typing import Any

from lapo_cli.core.run_dir import StageDir
from lapo_cli.core.training.cloning import Targets, clone_for_each, clone_policies, true_targets
from lapo_cli.core.training.context import Context
from lapo_cli.core.training.latent_labels import label_counts, labelled_frames
from lapo_cli.core.training.networks import POLICY_NETWORK, direct_agent_of
from lapo_cli.core.training.stage import STAGES, Stage, needs_actions

_LABEL = "BC without latent actions"


def _run(ctx: Context, stage: StageDir) -> dict[str, Any]:
    train = ctx.open_store("train")
    order = labelled_frames(ctx, train)

    def targets(count: int) -> Targets:
        assert train.actions is not None
        return true_targets(train.actions, order[:count], ctx.env.require_actions())

    config = ctx.config.stage2.of_steps(ctx.config.offline.steps)
    return clone_for_each(ctx, stage, _LABEL, label_counts(ctx, len(order)), targets, config)


STAGES.register(
    Stage(
        name="bc-few",
        label=_LABEL,
        run=_run,
        sections=("data.max_frames", "stage2", "offline.labels", "offline.steps", *POLICY_NETWORK),
        reads=("train", "test"),
        applicable=needs_actions,
        policies=clone_policies,
        build_agent=direct_agent_of,
        in_chain="baselines",
        order=64,
        trainings=lambda config: len(config.offline.labels),
    )
)
