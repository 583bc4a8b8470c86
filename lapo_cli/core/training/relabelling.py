"""True actions for every frame of the video from its latent actions and a few labelled transitions."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lapo_cli.core.config import Stage2Config
from lapo_cli.core.models.policy import LatentPolicy
from lapo_cli.core.training.checkpoints import load_policy
from lapo_cli.core.training.cloning import Targets
from lapo_cli.core.training.context import Context
from lapo_cli.core.training.latent_labels import CHUNK


def decoded_targets(
    ctx: Context, decoder: torch.nn.Module, latents: NDArray[np.float16], windows: NDArray[np.int64]
) -> Targets:
    """Probabilities of the true actions at ``windows``, from a decoder of latent actions.

    Args:
        decoder: of z (B, la_dim) to logits (B, num_actions), on the device.
        latents: of the windows, (W, la_dim).
        windows: (W,) ascending.
    """

    def probabilities(z: NDArray[np.float16]) -> Tensor:
        logits: Tensor = decoder(torch.from_numpy(np.array(z)).to(ctx.compute.device).float())
        return logits.softmax(1).cpu()

    chunks = [latents[start : start + CHUNK] for start in range(0, len(windows), CHUNK)]
    with torch.no_grad():
        decoded = [probabilities(z) for z in chunks]
    return Targets(windows, torch.cat(decoded).to(torch.float16).numpy())


def clone_settings(ctx: Context) -> tuple[Stage2Config, LatentPolicy | None]:
    """How a policy is cloned from relabelled frames, and the latent policy that it starts from, if any."""
    config = ctx.config.relabel
    start = load_policy(ctx) if config.warm_start else None
    return ctx.config.stage2.model_copy(update={"steps": config.steps, "lr": config.lr}), start
