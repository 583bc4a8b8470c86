"""A quantizer: every number of the latent action is rounded to one of a few levels."""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from lapo_cli.core.config import QUANTIZERS, QuantizerConfig
from lapo_cli.core.models.quantizers.base import Quantized, Quantizer


class Rounding(Quantizer):
    """tanh, then rounding, with a straight-through gradient."""

    def __init__(self, la_dim: int, levels: int) -> None:
        super().__init__()
        self.la_dim, self.levels = la_dim, levels

    def forward(self, z: Tensor) -> Quantized:
        bounded = z.float().tanh() * (self.levels - 1) / 2
        codes = bounded.detach().round()
        return Quantized(latent=bounded + (codes - bounded).detach(), loss=torch.zeros((), device=z.device))


class RoundingConfig(QuantizerConfig):
    """Its section of the configuration."""

    kind: Literal["rounding"] = Field("rounding", description="Which quantizer of latent actions.")
    size: int = Field(32, ge=1, description="Size of a latent action.")
    levels: int = Field(5, ge=2, description="Levels of each number.")

    @property
    def la_dim(self) -> int:
        return self.size

    def build(self) -> Rounding:
        return Rounding(self.size, self.levels)


QUANTIZERS.register(RoundingConfig)
