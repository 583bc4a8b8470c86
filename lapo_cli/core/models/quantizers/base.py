"""What a quantizer of latent actions is."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor, nn


@dataclass
class Quantized:
    """What a quantizer makes of a batch of latent actions.

    Attributes:
        latent: z_q (B, la_dim) float32; its gradient reaches z.
        loss: what is added to the world model's loss, a scalar.
        codes: which codes of each codebook were chosen, (B, codebooks, ...) int64; None for a quantizer without codes.
        perplexity: exp of the entropy of the batch's mean code usage, summed over codebooks, a scalar; None likewise.
    """

    latent: Tensor
    loss: Tensor
    codes: Tensor | None = None
    perplexity: Tensor | None = None


class Quantizer(nn.Module, ABC):
    """Maps latent actions z to z_q, through which the world model sees them.

    Attributes:
        la_dim: size of a latent action.
        num_codes: codes of all codebooks together; 0 for a quantizer without codes.
    """

    la_dim: int
    num_codes: int = 0

    @abstractmethod
    def forward(self, z: Tensor) -> Quantized:
        """Quantize latent actions z (B, la_dim)."""
