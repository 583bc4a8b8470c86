"""Stage 3, offline, by relabelling: decode every latent action, then clone the true actions (LAPO+, 2602.02762).

The latent policy is a regression: where two moves are equally right it predicts their mean, a latent action that no
transition has and the decoder never saw. Here the decoder reads the latent actions of the frames themselves.
"""

from functools import partial
from typing import Any

from lapo_cli.core.data.batches import FrameLoader
from lapo_cli.core.run_dir import StageDir
from lapo_cli.core.training import decoding
from lapo_cli.core.training.checkpoints import IDM, POLICY, direct_agent_of, load_idm
from lapo_cli.core.training.cloning import Targets, clone_for_each, clone_policies, with_true_actions
from lapo_cli.core.training.context import Context
from lapo_cli.core.training.latent_labels import label_counts, labelled_frames, labelled_pairs, latent_labels
from lapo_cli.core.training.relabelling import clone_settings, decoded_targets
from lapo_cli.core.training.stage import STAGES, Stage, needs_actions, output_fingerprint

_NAME = "relabel"
_LABEL = "LAPO relabelled and cloned"


def _run(ctx: Context, stage: StageDir) -> dict[str, Any]:
    train = ctx.open_store("train")
    order = labelled_frames(ctx, train)
    counts = label_counts(ctx, len(order))
    windows = train.video().windows(ctx.config.data.max_frames)
    idm = load_idm(ctx)
    latents = latent_labels(ctx, idm, output_fingerprint(ctx, IDM), train.video(), windows)
    loader = FrameLoader(train.video(), ctx.compute.device, resident=False)
    z, actions = labelled_pairs(ctx, idm, train, order[: counts[-1]], loader)

    def targets(count: int) -> Targets:
        decoder = decoding.fit_to_labels(z[:count], actions[:count], ctx.env.require_actions(), ctx.config)
        return with_true_actions(decoded_targets(ctx, decoder, latents, windows), train, order[:count])

    return clone_for_each(ctx, stage, _LABEL, counts, targets, *clone_settings(ctx))


STAGES.register(
    Stage(
        name=_NAME,
        label=_LABEL,
        run=_run,
        command="lapo run-stage relabel {seed_dir}",
        sections=(
            *("data.max_frames", "model", "stage2", "decoder", "offline"),
            *("relabel.steps", "relabel.lr", "relabel.warm_start"),
        ),
        requires=(IDM, POLICY),
        reads=("train", "test"),
        applicable=needs_actions,
        policies=partial(clone_policies, _LABEL),
        build_agent=direct_agent_of,
        in_chain="never",
        order=35,
    )
)
