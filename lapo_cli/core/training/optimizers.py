"""The optimizers of stages 1 and 2 and of clones: AdamW, and Muon beside it for the kernels of hidden convolutions."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from lapo_cli.core.config import ScheduledConfig

_KERNEL_RATE = 20.0
_MOMENTUM = 0.95
_HIDDEN_CHANNELS = 16
_NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)


def build_optimizer(parameters: Iterable[nn.Parameter], config: ScheduledConfig) -> torch.optim.AdamW:
    """The configured optimizer; its learning rate is for ``set_learning_rate`` to set, step by step."""
    kind = Muon if config.optimizer == "muon" else torch.optim.AdamW
    return kind(list(parameters), config.lr, weight_decay=config.weight_decay, fused=True)


class Muon(torch.optim.AdamW):
    """AdamW, but the kernels of hidden convolutions are moved by orthogonalized momentum (Muon).

    K. Jordan et al., 2024, https://kellerjordan.github.io/posts/muon: a kernel (out, in, h, w) is taken as a matrix
    (out, in x h x w); its update is the Nesterov momentum with all singular values made about 1. Kernels' learning rate
    is 20 times that of the other parameters: the usual 0.02 where AdamW has 1e-3.

    Args:
        parameters: kernels are those of four dimensions with 16 input channels or more; what has fewer sees the image
            itself and is left to AdamW, as is usual with Muon.
        lr: of the other parameters.
        options: of AdamW.
    """

    def __init__(self, parameters: list[nn.Parameter], lr: float, **options: Any) -> None:
        kernels = {id(p) for p in parameters if p.ndim == 4 and p.shape[1] >= _HIDDEN_CHANNELS}
        groups = [[p for p in parameters if id(p) not in kernels], [p for p in parameters if id(p) in kernels]]
        super().__init__([{"params": group} for group in groups], lr, **options)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update; the kernels' gradients are gone afterwards."""
        group = self.param_groups[1]
        rate = _KERNEL_RATE * group["lr"]
        for kernel in group["params"]:
            if kernel.grad is None:
                continue
            state = self.state[kernel]
            if not state:  # AdamW expects a step in every state.
                state.update(step=torch.zeros((), device=kernel.device), momentum=torch.zeros_like(kernel))
            momentum = state["momentum"].mul_(_MOMENTUM).add_(kernel.grad)
            update = orthogonalized((kernel.grad + _MOMENTUM * momentum).flatten(1)).view_as(kernel)
            kernel.mul_(1 - group["lr"] * group["weight_decay"])
            kernel.sub_(update, alpha=rate * max(1.0, len(kernel) / kernel[0].numel()) ** 0.5)
            kernel.grad = None  # so that AdamW leaves it alone
        return super().step(closure)


def orthogonalized(matrix: Tensor) -> Tensor:
    """A matrix (m, n) with the same singular vectors and singular values of about 1 (0.7 to 1.2), in its dtype.

    Five Newton-Schulz iterations in bfloat16, with Muon's coefficients.
    """
    a, b, c = _NEWTON_SCHULZ
    tall = len(matrix) > matrix.shape[1]
    x: Tensor = (matrix.T if tall else matrix).bfloat16()
    x = x / (x.norm() + 1e-7)
    for _ in range(5):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.T if tall else x).to(matrix.dtype)
