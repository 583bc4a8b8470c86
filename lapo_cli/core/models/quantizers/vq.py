"""The vector quantizer with exponential-moving-average codebooks (paper, section 3 and appendix A)."""

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from lapo_cli.core import distributed
from lapo_cli.core.config import QUANTIZERS, QuantizerConfig
from lapo_cli.core.models.quantizers.base import Quantized, Quantizer


class VectorQuantizer(Quantizer):
    """Nearest-neighbour quantization with several codebooks, learnt by exponential moving average.

    A latent action of ``codebooks * dim * positions`` numbers is read as that three-dimensional array. In training
    mode every forward pass also moves the codebooks; in evaluation mode nothing changes. Computed in float32. Codebooks
    follow the latents of the whole batch, also where several processes have a share of it each.

    Args:
        codebooks: number of codebooks (2).
        codes: embeddings per codebook (64).
        dim: size of an embedding (16).
        positions: latents per codebook (4).
        decay: of the moving averages (0.999).
        commitment: weight of mse(z, stopgrad(z_q)) (0.05).
        revive_below: a code whose moving share of the batch falls under this fraction of an even share is moved
            onto a latent of the current batch, which is what keeps short runs from collapsing; 0, the paper's, never.
    """

    embedding: Tensor
    ema_count: Tensor
    ema_sum: Tensor

    def __init__(
        self,
        codebooks: int,
        codes: int,
        dim: int,
        positions: int,
        decay: float,
        commitment: float,
        revive_below: float = 0.0,
    ) -> None:
        super().__init__()
        self.shape = (codebooks, dim, positions)
        self.la_dim = codebooks * dim * positions
        self.num_codes = codebooks * codes
        self.decay = decay
        self.commitment = commitment
        self.revive_below = revive_below
        embedding = torch.empty(codebooks, codes, dim).uniform_(-5 / codes, 5 / codes)
        self.register_buffer("embedding", embedding)
        self.register_buffer("ema_count", torch.zeros(codebooks, codes))
        self.register_buffer("ema_sum", embedding.clone())

    def forward(self, z: Tensor) -> Quantized:
        """Quantize latent actions z (B, codebooks * dim * positions)."""
        with torch.autocast(z.device.type, enabled=False):
            return self._quantize(z.float())

    def _quantize(self, z: Tensor) -> Quantized:
        # (codebooks, B * positions, dim)
        x = z.unflatten(1, self.shape).permute(1, 0, 3, 2).flatten(1, 2)
        flat = x.detach()
        distance = torch.baddbmm(
            self.embedding.square().sum(2).unsqueeze(1) + flat.square().sum(2, keepdim=True),
            flat,
            self.embedding.transpose(1, 2),
            alpha=-2.0,
        )
        codes = distance.argmin(2)
        quantized = self.embedding.gather(1, codes.unsqueeze(2).expand(-1, -1, self.shape[1]))
        everyone, chosen = (_of_all(flat), _of_all(codes)) if self.training else (flat, codes)
        usage = F.one_hot(chosen, self.embedding.shape[1]).to(flat.dtype)
        if self.training:
            self._move_codebooks(everyone, usage)
        loss = self.commitment * F.mse_loss(x, quantized)
        mean_usage = usage.mean(1)
        perplexity = torch.exp(-(mean_usage * (mean_usage + 1e-10).log()).sum(1)).sum()
        straight_through = quantized + (x - x.detach())
        return Quantized(
            latent=self._unfold(straight_through).flatten(1),
            loss=loss,
            perplexity=perplexity,
            codes=codes.unflatten(1, (-1, self.shape[2])).transpose(0, 1),
        )

    def _unfold(self, x: Tensor) -> Tensor:
        """(codebooks, B * positions, dim) -> (B, codebooks, dim, positions)."""
        unfolded: Tensor = x.unflatten(1, (-1, self.shape[2])).permute(1, 0, 3, 2)
        return unfolded

    @torch.no_grad()
    def _move_codebooks(self, flat: Tensor, usage: Tensor) -> None:
        """EMA update with Laplace smoothing 1e-5 of the counts; embedding = sums / counts."""
        epsilon = 1e-5
        self.ema_count.lerp_(usage.sum(1), 1 - self.decay)
        total = self.ema_count.sum(1, keepdim=True)
        self.ema_count.add_(epsilon).div_(total + self.ema_count.shape[1] * epsilon).mul_(total)
        self.ema_sum.lerp_(usage.transpose(1, 2) @ flat, 1 - self.decay)
        self.embedding.copy_(self.ema_sum / self.ema_count.unsqueeze(2))
        if self.revive_below > 0:
            self._revive(flat)

    def _revive(self, flat: Tensor) -> None:
        codebooks, codes, dim = self.embedding.shape
        share = self.ema_count / self.ema_count.sum(1, keepdim=True)
        dead = share < self.revive_below / codes
        picks = torch.randint(flat.shape[1], (codebooks, codes), device=flat.device)
        fresh = flat.gather(1, picks.unsqueeze(2).expand(-1, -1, dim))
        # A revived code starts with an even share, or it would be found dead again at the next step.
        even = (self.ema_count.sum(1, keepdim=True) / codes).expand_as(self.ema_count)
        self.ema_count.copy_(torch.where(dead, even, self.ema_count))
        self.embedding.copy_(torch.where(dead.unsqueeze(2), fresh, self.embedding))
        self.ema_sum.copy_(torch.where(dead.unsqueeze(2), fresh * even.unsqueeze(2), self.ema_sum))


def _of_all(x: Tensor) -> Tensor:
    """(codebooks, N, ...) of this process -> (codebooks, world size * N, ...) of all."""
    return x if distributed.world_size() == 1 else distributed.gather(x).transpose(0, 1).flatten(1, 2)


class VQConfig(QuantizerConfig):
    """Vector quantization with exponential-moving-average codebooks, the paper's."""

    kind: Literal["vq"] = Field("vq", description="Which quantizer of latent actions.")
    codebooks: int = Field(2, ge=1, le=64, description="Codebooks of the quantizer.")
    codes: int = Field(64, ge=2, le=4096, description="Embeddings per codebook.")
    code_dim: int = Field(16, ge=1, le=256, description="Size of an embedding.")
    positions: int = Field(4, ge=1, le=64, description="Discrete latents per codebook.")
    ema_decay: float = Field(0.999, gt=0, lt=1, description="Decay of the codebooks' moving averages.")
    commitment: float = Field(0.05, ge=0, description="Weight of mse(z, stopgrad(z_q)).")
    revive_below: float = Field(
        0.0, ge=0, lt=1, description="Move codes used less than this fraction of an even share; 0, the paper's: never."
    )

    @property
    def la_dim(self) -> int:
        """Size of a latent action: codebooks * positions * code_dim."""
        return self.codebooks * self.positions * self.code_dim

    def build(self) -> VectorQuantizer:
        """See :meth:`QuantizerConfig.build`."""
        return VectorQuantizer(
            self.codebooks,
            self.codes,
            self.code_dim,
            self.positions,
            self.ema_decay,
            self.commitment,
            self.revive_below,
        )


QUANTIZERS.register(VQConfig)
