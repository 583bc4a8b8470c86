"""Stage 3, offline, by relabelling: decode every latent action, then clone the true actions (LAPO+, 2602.02762).

The latent policy is a regression: where two moves are equally right it predicts their mean, a latent action that no
transition has and the decoder never saw. Here the decoder reads the latent actions of the frames themselves.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lapo_cli.core.data.batches import FrameLoader
from lapo_cli.core.run_dir import StageDir
from lapo_cli.core.training import decoding
from lapo_cli.core.training.cloning import Targets, clone_for_each, clone_policies, clone_settings, with_true_actions
from lapo_cli.core.training.context import Context
from lapo_cli.core.training.latent_labels import CHUNK, label_counts, labelled_frames, labelled_pairs, latent_labels
from lapo_cli.core.training.networks import IDM, POLICY, direct_agent_of, load_idm
from lapo_cli.core.training.stage import STAGES, Stage, needs_actions, output_fingerprint

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


def decoded_targets(
    ctx: Context, decoder: torch.nn.Module, latents: NDArray[np.float16], windows: NDArray[np.int64]
) -> Targets:
    """Probabilities of the true actions at ``windows``, from a decoder of latent actions.

    Args:
        decoder: of z (B, la_dim) to logits (B, num_actions), on the device.
        latents: of the windows, (W, la_dim).
        windows: (W,) ascending.
    """

    def probabilities(z: NDArray[np.float16]) -> torch.Tensor:
        logits: torch.Tensor = decoder(torch.from_numpy(np.array(z)).to(ctx.compute.device).float())
        return logits.softmax(1).cpu()

    chunks = [latents[start : start + CHUNK] for start in range(0, len(windows), CHUNK)]
    with torch.no_grad():
        decoded = [probabilities(z) for z in chunks]
    return Targets(windows, torch.cat(decoded).to(torch.float16).numpy())


STAGES.register(
    Stage(
        name="relabel",
        label=_LABEL,
        run=_run,
        sections=(
            *("data.max_frames", "model", "stage2", "decoder", "offline"),
            *("relabel.steps", "relabel.lr", "relabel.warm_start"),
        ),
        requires=(IDM, POLICY),
        reads=("train", "test"),
        applicable=needs_actions,
        policies=clone_policies,
        build_agent=direct_agent_of,
        in_chain="never",
        order=35,
        trainings=lambda config: len(config.offline.labels),
    )
)
