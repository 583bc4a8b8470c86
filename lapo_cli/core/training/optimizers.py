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
        parameters: kernels are those of four dimensions whose second one (the input channels, of a transposed
            convolution the output channels) is 16 or more; smaller ones, such as those that see the image, are left to
            AdamW.
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
        by_shape: dict[torch.Size, list[Tensor]] = {}
        for kernel in group["params"]:
            if kernel.grad is not None:
                by_shape.setdefault(kernel.shape, []).append(kernel)
        for shape, kernels in by_shape.items():  # Together, because many small operations are what takes the time.
            gradients = [kernel.grad for kernel in kernels if kernel.grad is not None]
            momenta = [self._momentum(kernel) for kernel in kernels]
            torch._foreach_mul_(momenta, _MOMENTUM)
            torch._foreach_add_(momenta, gradients)
            nesterov = torch.stack(torch._foreach_add(gradients, momenta, alpha=_MOMENTUM))
            updates = orthogonalized(nesterov.flatten(2)).view_as(nesterov).unbind()
            rate = _KERNEL_RATE * group["lr"] * max(1.0, shape[0] / shape[1:].numel()) ** 0.5
            torch._foreach_mul_(kernels, 1 - group["lr"] * group["weight_decay"])
            torch._foreach_sub_(kernels, updates, alpha=rate)
            for kernel in kernels:
                kernel.grad = None  # so that AdamW leaves it alone
        return super().step(closure)

    def _momentum(self, kernel: Tensor) -> Tensor:
        state = self.state[kernel]
        if not state:  # AdamW expects a step in every state.
            state.update(step=torch.zeros((), device=kernel.device), momentum=torch.zeros_like(kernel))
        momentum: Tensor = state["momentum"]
        return momentum


def orthogonalized(matrices: Tensor) -> Tensor:
    """Matrices (..., m, n) with the same singular vectors and singular values of about 1 (0.7 to 1.2), in their dtype.

    Five Newton-Schulz iterations in bfloat16, with Muon's coefficients.
    """
    a, b, c = _NEWTON_SCHULZ
    tall = matrices.shape[-2] > matrices.shape[-1]
    x: Tensor = (matrices.mT if tall else matrices).bfloat16()
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(5):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.mT if tall else x).to(matrices.dtype)
