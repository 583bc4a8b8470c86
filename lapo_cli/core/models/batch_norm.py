"""Batch normalization over the whole batch, also where several processes have a share of it each."""

import torch
from torch import Tensor, nn

from lapo_cli.core import distributed


class BatchNorm2d(nn.BatchNorm2d):
    """``nn.BatchNorm2d``, whose statistics in training are those of all processes' shares together.

    Statistics of a share alone would be another method with every number of devices. PyTorch's SyncBatchNorm is the
    same function, but not for CPUs.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W), in the same dtype."""
        if not self.training or distributed.world_size() == 1:
            return super().forward(x)
        with torch.autocast(x.device.type, enabled=False):
            return self._over_processes(x.float()).to(x.dtype)

    def _over_processes(self, x: Tensor) -> Tensor:
        variance, mean = torch.var_mean(x, (0, 2, 3), correction=0)
        # Shares are equal, so the variance of the whole is the mean variance within shares and that between them.
        means, variances = distributed.gather(torch.stack([mean, variance])).unbind(1)
        mean, variance = means.mean(0), variances.mean(0) + means.var(0, correction=0)
        count = len(means) * x.numel() // x.shape[1]
        assert self.momentum is not None
        with torch.no_grad():
            self.running_mean.lerp_(mean, self.momentum)  # type: ignore[union-attr]
            self.running_var.lerp_(variance * count / (count - 1), self.momentum)  # type: ignore[union-attr]
            self.num_batches_tracked.add_(1)  # type: ignore[union-attr]
        scale = self.weight * (variance + self.eps).rsqrt()
        return (x - mean[:, None, None]) * scale[:, None, None] + self.bias[:, None, None]
