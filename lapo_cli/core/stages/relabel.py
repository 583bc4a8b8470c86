"""Stage 3, offline, by relabelling: decode every latent action, then clone the true actions (LAPO+, 2602.02762).

The latent policy is a regression: where two moves are equally right it predicts their mean, a latent action that no
transition has and the decoder never saw. Here the decoder reads the latent actions of the frames themselves.
"""

from functools import partial
from typing import Any

import numpy as np
import torch

from lapo_cli.core.data.batches import FrameLoader
from lapo_cli.core.models.policy import Decoder
from lapo_cli.core.run_dir import StageDir
from lapo_cli.core.training import decoding
from lapo_cli.core.training.checkpoints import IDM, direct_agent_of, load_idm
from lapo_cli.core.training.cloning import Targets, clone_for_each, clone_policies, with_true_actions
from lapo_cli.core.training.context import Context
from lapo_cli.core.training.latent_labels import (
    CHUNK,
    label_counts,
    labelled_frames,
    labelled_pairs,
    latent_labels,
)
from lapo_cli.core.training.stage import STAGES, Stage, needs_actions, output_fingerprint

_NAME = "relabel"
_LABEL = "LAPO relabelled and cloned"


def _run(ctx: Context, stage: StageDir) -> dict[str, Any]:
    train, device = ctx.open_store("train"), ctx.compute.device
    order = labelled_frames(ctx, train)
    counts = label_counts(ctx, len(order))
    windows = train.video().windows(ctx.config.data.max_frames)
    idm = load_idm(ctx)
    latents = latent_labels(ctx, idm, output_fingerprint(ctx, IDM), train.video(), windows)
    loader = FrameLoader(train.video(), device, resident=False)
    pairs = labelled_pairs(ctx, idm, train, order[: counts[-1]], loader)

    def targets(count: int) -> Targets:
        decoder = Decoder(idm.quantizer.la_dim, ctx.env.require_actions()).to(device)
        decoding.fit(decoder, pairs[0][:count], pairs[1][:count], ctx.config.decoder, ctx.config.offline.steps)
        chunks = [latents[start : start + CHUNK] for start in range(0, len(windows), CHUNK)]
        with torch.no_grad():
            decoded = [decoder(torch.from_numpy(np.array(z)).to(device).float()).softmax(1).cpu() for z in chunks]
        actions = torch.cat(decoded).to(torch.float16).numpy()
        return with_true_actions(Targets(windows, actions), train, order[:count])

    return clone_for_each(ctx, stage, _LABEL, counts, targets, ctx.config.stage2.steps)


STAGES.register(
    Stage(
        name=_NAME,
        label=_LABEL,
        run=_run,
        command="lapo run-stage relabel {seed_dir}",
        sections=("data", "model", "stage2", "decoder", "offline"),
        requires=(IDM,),
        reads=("train", "test"),
        applicable=needs_actions,
        policies=partial(clone_policies, _LABEL),
        build_agent=direct_agent_of,
        in_chain="never",
        order=35,
    )
)
