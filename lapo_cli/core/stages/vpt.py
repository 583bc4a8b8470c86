"""Relabelling with a supervised inverse dynamics model of the few labelled frames, then cloning (arXiv:2206.11795)."""

from functools import partial
from typing import Any

import torch

from lapo_cli.core.run_dir import StageDir
from lapo_cli.core.training.checkpoints import direct_agent_of
from lapo_cli.core.training.cloning import Targets, clone_for_each, clone_policies, with_true_actions
from lapo_cli.core.training.context import Context
from lapo_cli.core.training.inverse_dynamics import action_probabilities, train_inverse_dynamics
from lapo_cli.core.training.latent_labels import label_counts, labelled_frames
from lapo_cli.core.training.stage import STAGES, Stage, needs_actions, stage_seed

_NAME = "vpt"
_LABEL = "VPT (supervised relabelling)"


def _run(ctx: Context, stage: StageDir) -> dict[str, Any]:
    train = ctx.open_store("train")
    order = labelled_frames(ctx, train)
    windows = train.video().windows(ctx.config.data.max_frames)

    def targets(count: int) -> Targets:
        folder = StageDir(stage.path / f"idm-{count}")
        torch.manual_seed(stage_seed(ctx, f"{_NAME}/idm-{count}"))
        folder.begin({"labels": count}, fresh=False)
        title = f"supervised inverse dynamics model, {count} labels"
        idm, _ = train_inverse_dynamics(ctx, folder, title, train, order[:count], ctx.config.offline.steps)
        return with_true_actions(Targets(windows, action_probabilities(ctx, idm, train, windows)), train, order[:count])

    return clone_for_each(ctx, stage, _LABEL, label_counts(ctx, len(order)), targets, ctx.config.stage2)


STAGES.register(
    Stage(
        name=_NAME,
        label=_LABEL,
        run=_run,
        command="lapo run-stage vpt {seed_dir}",
        sections=("data", "model", "stage1", "stage2", "offline.labels", "offline.steps"),
        reads=("train", "test"),
        applicable=needs_actions,
        policies=partial(clone_policies, _LABEL),
        build_agent=direct_agent_of,
        in_chain="baselines",
        order=66,
    )
)
