"""The optimizers of stages 1 and 2 and of clones: AdamW, and Muon beside it for the weights of hidden layers."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from lapo_cli.core.config import ScheduledConfig

_HIDDEN_RATE = 20.0
_MOMENTUM = 0.95
_HIDDEN_CHANNELS = 16
_NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)


def build_optimizer(networks: Iterable[nn.Module], config: ScheduledConfig) -> torch.optim.AdamW:
    """The configured optimizer; its learning rate is to be set at every step."""
    named = [parameter for network in networks for parameter in network.named_parameters()]
    if config.optimizer == "muon":
        return Muon(named, config.lr, weight_decay=config.weight_decay, fused=True)
    return torch.optim.AdamW([p for _, p in named], config.lr, weight_decay=config.weight_decay, fused=True)


class Muon(torch.optim.AdamW):
    """AdamW, but the weights of hidden layers are moved by orthogonalized momentum (Muon).

    K. Jordan et al., 2024, https://kellerjordan.github.io/posts/muon: a kernel (out, in, h, w) is taken as a matrix
    (out, in x h x w); its update is the Nesterov momentum with all singular values made about 1. Their learning rate is
    20 times that of the other parameters: the usual 0.02 where AdamW has 1e-3.

    Args:
        named: of networks. Weights of hidden layers are those of linear layers called ``hidden``, and kernels whose
            second dimension (the input channels, of a transposed convolution the output channels) is 16 or more.
            Smaller ones, such as those that see the image, and the heads are left to AdamW.
        lr: of the other parameters.
        options: of AdamW.
    """

    def __init__(self, named: list[tuple[str, nn.Parameter]], lr: float, **options: Any) -> None:
        hidden = {id(p) for name, p in named if _is_hidden(name, p)}
        parameters = [p for _, p in named]
        groups = [[p for p in parameters if id(p) not in hidden], [p for p in parameters if id(p) in hidden]]
        super().__init__([{"params": group} for group in groups], lr, **options)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update; the gradients of hidden weights are gone afterwards."""
        group = self.param_groups[1]
        by_shape: dict[torch.Size, list[Tensor]] = {}
        for weight in group["params"]:
            if weight.grad is not None:
                by_shape.setdefault(weight.shape, []).append(weight)
        for shape, weights in by_shape.items():  # Together, because many small operations are what takes the time.
            gradients = [weight.grad for weight in weights if weight.grad is not None]
            momenta = [self._momentum(weight) for weight in weights]
            torch._foreach_mul_(momenta, _MOMENTUM)
            torch._foreach_add_(momenta, gradients)
            nesterov = torch.stack(torch._foreach_add(gradients, momenta, alpha=_MOMENTUM))
            updates = orthogonalized(nesterov.flatten(2)).view_as(nesterov).unbind()
            rate = _HIDDEN_RATE * group["lr"] * max(1.0, shape[0] / shape[1:].numel()) ** 0.5
            torch._foreach_mul_(weights, 1 - group["lr"] * group["weight_decay"])
            torch._foreach_sub_(weights, updates, alpha=rate)
            for weight in weights:
                weight.grad = None  # so that AdamW leaves it alone
        return super().step(closure)

    def _momentum(self, weight: Tensor) -> Tensor:
        state = self.state[weight]
        if not state:  # AdamW expects a step in every state.
            state.update(step=torch.zeros((), device=weight.device), momentum=torch.zeros_like(weight))
        momentum: Tensor = state["momentum"]
        return momentum


def _is_hidden(name: str, parameter: nn.Parameter) -> bool:
    return name.split(".")[-2:] == ["hidden", "weight"] or (
        parameter.ndim == 4 and parameter.shape[1] >= _HIDDEN_CHANNELS
    )


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
