"""Stage 2: behaviour cloning in the space of latent actions (paper, section 4.2)."""

from typing import Any

import numpy as np
import torch

from lapo_cli.core import distributed
from lapo_cli.core.data.batches import FrameLoader
from lapo_cli.core.run_dir import StageDir
from lapo_cli.core.training.context import Context
from lapo_cli.core.training.fit import TrainingFrames, fit
from lapo_cli.core.training.imitation import Imitation
from lapo_cli.core.training.latent_labels import CHUNK, latent_labels
from lapo_cli.core.training.networks import IDM, POLICY, build_latent_policy, header, idm_about, load_idm
from lapo_cli.core.training.no_quantizer import without_quantizer
from lapo_cli.core.training.stage import STAGES, Stage, held_out_sample, output_fingerprint, stage_seed

_PRESENT = (0,)
_FITTED = 10_000  # latent actions, at most, that a policy target sees beforehand


def train(ctx: Context, stage: StageDir) -> dict[str, Any]:
    """Train policy(o_t) to predict the frozen IDM's z_t, on frames alone."""
    config, model, compute = ctx.config.stage2, ctx.config.model, ctx.compute
    train, held_out = ctx.open_store("train").video(), ctx.open_store("test").video()
    idm, idm_fingerprint = load_idm(ctx), output_fingerprint(ctx, IDM + ctx.variant)
    windows = train.windows(ctx.config.data.max_frames)
    labels = latent_labels(ctx, idm, idm_fingerprint, train, windows)
    test_windows = held_out_sample(ctx, held_out.windows())
    test_labels = latent_labels(ctx, idm, idm_fingerprint, held_out, test_windows)

    policy = build_latent_policy(model, config.target, idm.quantizer)
    del idm
    policy.target.fit(torch.from_numpy(np.array(labels[:: -(-len(labels) // _FITTED)])).float())
    imitation = Imitation(policy, windows, labels, policy.target.loss, config.lookahead, compute)
    test_loader = FrameLoader(held_out, compute.device, resident=False)

    # Always predicting the mean latent action would cost this; the error is given as a fraction of it.
    variance = max(float(np.var(np.asarray(test_labels, np.float32), axis=0).mean()), 1e-12)

    @torch.no_grad()
    def evaluate() -> dict[str, float]:
        loss = squared_error = 0.0
        for start in range(0, len(test_windows), CHUNK):
            part = slice(start, start + CHUNK)
            predicted = imitation.predict(test_loader.gather(test_windows[part], _PRESENT))
            z = torch.from_numpy(np.array(test_labels[part])).to(compute.device).float()
            loss += policy.target.loss(predicted, z).item() * len(z)
            squared_error += (policy.target.latent_action(predicted) - z).square().mean().item() * len(z)
        count = len(test_windows)
        return {"val/imitation": loss / count, "val/normalized_mse": squared_error / count / variance}

    results = fit(
        ctx,
        stage,
        "stage 2: latent policy",
        dict(imitation.named_children()),
        config,
        TrainingFrames(train, windows, stage_seed(ctx, "frames"), _PRESENT),
        imitation,
        evaluate,
        show=("losses/imitation", "val/normalized_mse"),
    )
    # The latent actions are those of stage 1's networks, whatever the current configuration is.
    networks = {**header(ctx, stage)["model"], "quantizer": idm_about(ctx)["model"]["quantizer"]}
    about = header(ctx, stage, model=networks, target=config.target.model_dump())
    distributed.on_main(lambda: stage.save_weights({"policy": policy}, about))
    return results


_STAGE = STAGES.register(
    Stage(
        name=POLICY,
        label="latent policy",
        run=train,
        command="lapo train-policy {seed_dir}",
        sections=("data.max_frames", "model", "stage2"),
        requires=(IDM,),
        reads=("train", "test"),
        order=20,
        parallel=True,
    )
)
STAGES.register(without_quantizer(_STAGE))
