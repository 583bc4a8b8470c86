"""The loss of stage 1: the world model's prediction error and the quantizer's loss (paper, section 4.1)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from lapo_cli.core import distributed
from lapo_cli.core.compute import Compute
from lapo_cli.core.models.idm import InverseDynamicsModel
from lapo_cli.core.models.world_model import WorldModel

_LEAST_WEIGHT = 0.1  # of the mean


def joint_loss(
    idm: InverseDynamicsModel, world_model: WorldModel, frames: Tensor, compute: Compute, error_focus: float
) -> tuple[Tensor, dict[str, Tensor]]:
    """mse(predicted o_{t+1}, o_{t+1}) + quantizer loss, and metrics to log.

    Args:
        frames: normalized windows (B, 3, 3, size, size).
        error_focus: power in :func:`error_weights`; 0 is the paper's plain mean.
    """
    target = frames[:, 2]
    with compute.autocast():
        _, quantized = idm(frames)
        prediction = world_model(frames[:, :2], quantized.latent)
    error = (prediction.float() - target).square()
    world_model_loss = error.mean()
    weighted = (error * error_weights(error, error_focus)).mean() if error_focus else world_model_loss
    loss = weighted + quantized.loss
    metrics = {"losses/total": loss, "losses/world_model": world_model_loss, "losses/quantizer": quantized.loss}
    if quantized.perplexity is not None:
        metrics["quantizer/perplexity"] = quantized.perplexity
    return loss, metrics


@torch.no_grad()
def error_weights(error: Tensor, power: float) -> Tensor:
    """Weights (B, 1, size, size) that grow with the prediction's error at a pixel and its eight neighbours.

    A mean over pixels is dominated by what is large and faintly wrong, such as a background that scrolls. A small agent
    is badly wrong instead until the latent action says where it went: a focal loss (arXiv:1708.02002) for regression.

    Args:
        error: squared error (B, 3, size, size).
        power: of the local mean squared error; 1 makes the loss about the fourth moment of the error.

    Returns:
        Weights whose mean is 1 over the whole batch, also where several processes have a share of it each.
    """
    local = F.avg_pool2d(error.mean(1, keepdim=True), 3, stride=1, padding=1, count_include_pad=False) ** power
    weights = local + _LEAST_WEIGHT * distributed.mean(local.mean())
    return weights / distributed.mean(weights.mean())
