"""The latent inverse dynamics model: which latent action lies between two frames (paper, section 3)."""

import torch
from torch import Tensor, nn

from lapo_cli.core.models.frames import stack_frames
from lapo_cli.core.models.impala import HIDDEN, TRUNKS
from lapo_cli.core.models.quantizers.base import Quantized, Quantizer

_DIFFERENCE_GAIN = 7.0
_HEAD_GAIN = 5.0


class InverseDynamics(nn.Module):
    """Trunk over three stacked frames, and linear layers to ``out`` numbers on what happened between them.

    Args:
        scale: k of the trunk.
        size: pixels per side of the frames.
        out: logits of true actions, or numbers of a latent action.
        trunk: which of :data:`TRUNKS`.
    """

    def __init__(self, scale: int, size: int, out: int, trunk: str = "impala") -> None:
        super().__init__()
        self.size = size
        self.trunk = TRUNKS[trunk](9, scale, size)
        self.hidden = nn.Linear(self.trunk.num_features, HIDDEN)
        self.head = nn.Linear(HIDDEN, out)

    @torch.no_grad()
    def start_from_differences(self) -> None:
        """Start the first convolution on differences of successive frames, half of its channels on each of the two.

        In an untrained network the static scene dominates what moved in it, and short runs end before it has learnt to
        ignore the scene. Only the initial weights differ: all of them are trained. The gains keep the latent action of
        so weak a signal at about unit scale.
        """
        conv = self.trunk.convs[0]
        assert isinstance(conv, nn.Conv2d)
        assert conv.bias is not None
        kernel = conv.weight[:, :3] * _DIFFERENCE_GAIN
        half = len(kernel) // 2
        conv.weight.zero_()
        conv.bias.zero_()
        for channels, before, after in ((slice(half), 3, 6), (slice(half, None), 0, 3)):
            conv.weight[channels, after : after + 3] = kernel[channels]
            conv.weight[channels, before : before + 3] = -kernel[channels]
        self.head.weight.mul_(_HEAD_GAIN)

    def infer(self, frames: Tensor) -> Tensor:
        """(B, out) of normalized frames (o_{t-1}, o_t, o_{t+1}), (B, 3, 3, size, size)."""
        out: Tensor = self.head(self.hidden(self.trunk(stack_frames(frames))).relu())
        return out


class InverseDynamicsModel(InverseDynamics):
    """Infers a latent action, and quantizes it.

    Args:
        scale: k of the trunk.
        size: pixels per side of the frames.
        quantizer: maps the latent action z to z_q.
    """

    def __init__(self, scale: int, size: int, quantizer: Quantizer) -> None:
        super().__init__(scale, size, quantizer.la_dim)
        self.quantizer = quantizer

    def latent_action(self, frames: Tensor) -> Tensor:
        """z_t before quantization, (B, la_dim), of normalized frames (o_{t-1}, o_t, o_{t+1}): (B, 3, 3, size, size)."""
        return self.infer(frames)

    def forward(self, frames: Tensor) -> tuple[Tensor, Quantized]:
        """z (B, la_dim) and what the quantizer makes of it, of normalized frames (B, 3, 3, size, size)."""
        z = self.latent_action(frames)
        return z, self.quantizer(z)
