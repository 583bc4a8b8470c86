"""The latent inverse dynamics model: which latent action lies between two frames (paper, section 3)."""

from torch import Tensor, nn

from lapo_cli.core.models.frames import stack_frames
from lapo_cli.core.models.impala import HIDDEN, ImpalaTrunk
from lapo_cli.core.models.quantizer import Quantized, VectorQuantizer


class InverseDynamicsModel(nn.Module):
    """Trunk over three stacked frames, a linear layer to the latent action, and the quantizer.

    Args:
        scale: k of the trunk.
        size: pixels a side of the frames.
        quantizer: maps the latent action z to z_q.
    """

    def __init__(self, scale: int, size: int, quantizer: VectorQuantizer) -> None:
        super().__init__()
        codebooks, dim, positions = quantizer.shape
        self.trunk = ImpalaTrunk(9, scale, size)
        self.hidden = nn.Linear(self.trunk.num_features, HIDDEN)
        self.head = nn.Linear(HIDDEN, codebooks * dim * positions)
        self.quantizer = quantizer

    def latent_action(self, frames: Tensor) -> Tensor:
        """z_t before quantization, (B, la_dim), of normalized frames (o_{t-1}, o_t, o_{t+1}): (B, 3, 3, size, size)."""
        z: Tensor = self.head(self.hidden(self.trunk(stack_frames(frames))).relu())
        return z

    def forward(self, frames: Tensor) -> tuple[Tensor, Quantized]:
        """z (B, la_dim) and what the quantizer makes of it, of normalized frames (B, 3, 3, size, size)."""
        z = self.latent_action(frames)
        return z, self.quantizer(z)
