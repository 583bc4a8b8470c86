"""Relabelling with a supervised inverse dynamics model of the few labelled frames, then cloning (arXiv:2206.11795)."""

from typing import Any

import torch

from lapo_cli.core.run_dir import StageDir
from lapo_cli.core.training.cloning import Targets, clone_for_each, clone_policies, with_true_actions
from lapo_cli.core.training.context import Context
from lapo_cli.core.training.inverse_dynamics import LabelledVideo, inferred_targets, train_inverse_dynamics
from lapo_cli.core.training.latent_labels import label_counts, labelled_frames
from lapo_cli.core.training.networks import IDM_NETWORK, POLICY_NETWORK, direct_agent_of
from lapo_cli.core.training.stage import STAGES, Stage, needs_actions, run_part

_NAME = "vpt"
_LABEL = "VPT (supervised relabelling)"


def _run(ctx: Context, stage: StageDir) -> dict[str, Any]:
    train = ctx.open_store("train")
    assert train.actions is not None
    video, actions = train.video(), train.actions
    order = labelled_frames(ctx, train)
    windows = video.windows(ctx.config.data.max_frames)

    def inferring(count: int) -> StageDir:
        folder = StageDir(stage.path / f"idm-{count}")

        def work() -> dict[str, Any]:
            title = f"supervised inverse dynamics model, {count} labels"
            frames = LabelledVideo(video, actions, order[:count])
            return train_inverse_dynamics(ctx, _NAME, folder, title, frames, ctx.config.offline.steps)

        run_part(ctx, folder, f"{_NAME}/{folder.name}", {"labels": count}, work)
        return folder

    def targets(count: int) -> Targets:
        with torch.random.fork_rng(devices=[]):  # The clone starts from the same weights if it is resumed after this.
            inferred = inferred_targets(ctx, [inferring(count)], video, windows)
        return with_true_actions(inferred, train, order[:count])

    return clone_for_each(ctx, stage, _LABEL, label_counts(ctx, len(order)), targets, ctx.config.stage2)


STAGES.register(
    Stage(
        name=_NAME,
        label=_LABEL,
        run=_run,
        sections=(
            *("data.max_frames", "stage1", "stage2", "offline.labels", "offline.steps"),
            *(*IDM_NETWORK, *POLICY_NETWORK),
        ),
        reads=("train", "test"),
        applicable=needs_actions,
        policies=clone_policies,
        build_agent=direct_agent_of,
        in_chain="baselines",
        order=66,
        trainings=lambda config: 2 * len(config.offline.labels),
    )
)
