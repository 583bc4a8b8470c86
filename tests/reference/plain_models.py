"""The networks as shared/lapo-method.md, section 2, writes them down: no shared work, no tricks.

Parameters bear the names of the fast modules, so that ``load_state_dict`` moves weights from one to the other.
"""

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn


class PlainResidual(nn.Module):
    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.conv0 = nn.Conv2d(channels, hidden, 3, padding=1)
        self.conv1 = nn.Conv2d(hidden, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv0(torch.relu(x))
        return x + self.conv1(torch.relu(y))


class PlainTrunk(nn.Module):
    """IMPALA: (conv, maxpool, two residual blocks) three times, flattened, relu."""

    def __init__(self, in_channels: int, k: int) -> None:
        super().__init__()
        self.convs = nn.ModuleDict()
        for number, (before, after) in enumerate([(in_channels, 16 * k), (16 * k, 32 * k), (32 * k, 32 * k)]):
            self.convs[str(4 * number)] = nn.Conv2d(before, after, 3, padding=1)
            self.convs[str(4 * number + 2)] = PlainResidual(after, after)
            self.convs[str(4 * number + 3)] = PlainResidual(after, after)

    def forward(self, x: Tensor) -> Tensor:
        for number in range(3):
            x = self.convs[str(4 * number)](x)
            x = nn.functional.max_pool2d(x, kernel_size=3, stride=2, padding=1)
            x = self.convs[str(4 * number + 2)](x)
            x = self.convs[str(4 * number + 3)](x)
        return torch.relu(x.flatten(1))


class PlainEncoder(nn.Module):
    """Trunk -> linear to 256 -> relu -> linear: the IDM without its quantizer, and the policy."""

    def __init__(self, in_channels: int, k: int, size: int, out: int) -> None:
        super().__init__()
        self.trunk = PlainTrunk(in_channels, k)
        self.hidden = nn.Linear(32 * k * (size // 8) ** 2, 256)
        self.head = nn.Linear(256, out)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.hidden(self.trunk(x))))


def plain_normalize(frames: Tensor, size: int = 64) -> Tensor:
    """(..., 64, 64, 3) uint8 -> (..., 3, size, size): means of square blocks, / 255 - 0.5."""
    x = frames.float() / 255 - 0.5
    block = 64 // size
    if block > 1:
        x = x.unflatten(-2, (size, block)).unflatten(-4, (size, block)).mean((-4, -2))
    return x.movedim(-1, -3)  # A view: convolutions keep the order of the bytes, in which they are faster.


class PlainDown(nn.Module):
    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(before, after, 3, padding=1)
        self.norm = nn.BatchNorm2d(after)
        self.residual = PlainResidual(after, after // 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.residual(self.norm(self.conv(x)))
        return torch.relu(nn.functional.max_pool2d(x, 2))


class PlainUp(nn.Module):
    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.conv = nn.ConvTranspose2d(before, after, 2, stride=2)
        self.norm = nn.BatchNorm2d(after)
        self.residual = PlainResidual(after, after // 2)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.residual(self.norm(self.conv(x))))


class PlainWorldModel(nn.Module):
    """The U-Net. The latent action is repeated over the image and concatenated, as 128 ordinary channels."""

    def __init__(self, b: int, la_dim: int, size: int = 64) -> None:
        super().__init__()
        levels = int(math.log2(size)) - 1  # 5 at 64 pixels
        outs = [b * 2**level for level in range(levels)]
        self.first = PlainDown(6 + la_dim, b)
        self.down = nn.ModuleList([PlainDown(outs[i], outs[i + 1]) for i in range(levels - 1)])
        self.bottom = nn.Conv2d(outs[-1], 2 * outs[-1], 2)
        up: list[nn.Module] = [PlainUp(2 * outs[-1] + la_dim, outs[-1])]
        for level in reversed(range(levels)):
            up.append(PlainUp(2 * outs[level], outs[max(level - 1, 0)]))
        self.up = nn.ModuleList(up)
        self.widen = nn.Conv2d(b + 6, b, 3, padding=1)
        self.refine = PlainResidual(b, b // 2)
        self.narrow = nn.Conv2d(b, 3, 1)

    def forward(self, image: Tensor, latent: Tensor) -> Tensor:
        """image (B, 6, H, W), latent (B, la_dim)."""
        height, width = image.shape[2:]
        # The repeated latent action has no name: kept until the end of this function, it would slow that down.
        down = [self.first(torch.cat([image, latent[:, :, None, None].repeat(1, 1, height, width)], 1))]
        for block in self.down:
            down.append(block(down[-1]))
        x = self.bottom(down[-1])
        assert x.shape[2:] == (1, 1)
        x = self.up[0](torch.cat([x, latent[:, :, None, None]], 1))
        for block, skip in zip(self.up[1:], reversed(down), strict=True):
            x = block(torch.cat([x, skip], 1))
        x = torch.relu(self.refine(self.widen(torch.cat([x, image], 1))))
        return torch.tanh(self.narrow(x)) / 2


class PlainQuantizer:
    """Two codebooks of embeddings, learnt by moving averages; one latent after another, in loops.

    Args:
        embedding: (codebooks, codes, dim), copied.
    """

    def __init__(self, embedding: Tensor, positions: int, decay: float, commitment: float) -> None:
        self.embedding = embedding.clone()
        self.codebooks, self.codes, self.dim = embedding.shape
        self.positions, self.decay, self.commitment = positions, decay, commitment
        self.count = torch.zeros(self.codebooks, self.codes)
        self.sum = embedding.clone()

    def __call__(self, z: Tensor, training: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """z (B, la_dim) -> latent, loss, perplexity and codes (B, codebooks, positions)."""
        view = z.view(len(z), self.codebooks, self.dim, self.positions)
        quantized = torch.zeros_like(view)
        codes = torch.zeros(len(z), self.codebooks, self.positions, dtype=torch.int64)
        for i in range(len(z)):
            for book in range(self.codebooks):
                for position in range(self.positions):
                    distances = ((view[i, book, :, position].detach() - self.embedding[book]) ** 2).sum(1)
                    codes[i, book, position] = nearest = int(distances.argmin())
                    quantized[i, book, :, position] = self.embedding[book, nearest]
        loss = self.commitment * ((view - quantized.detach()) ** 2).mean()
        latent = view + (quantized - view).detach()
        perplexity = torch.zeros(())
        for book in range(self.codebooks):
            usage = torch.bincount(codes[:, book].flatten(), minlength=self.codes) / codes[:, book].numel()
            perplexity += torch.exp(-sum(p * torch.log(p) for p in usage if p > 0))
        if training:
            self._update(view.detach(), codes)
        return latent.flatten(1), loss, perplexity, codes

    def _update(self, view: Tensor, codes: Tensor) -> None:
        for book in range(self.codebooks):
            hits = torch.zeros(self.codes)
            sums = torch.zeros(self.codes, self.dim)
            for i in range(len(view)):
                for position in range(self.positions):
                    hits[codes[i, book, position]] += 1
                    sums[codes[i, book, position]] += view[i, book, :, position]
            count = self.decay * self.count[book] + (1 - self.decay) * hits
            total = count.sum()
            # Laplace smoothing: as if every code had been seen 1e-5 times more, then scaled back to the same total.
            self.count[book] = (count + 1e-5) / (total + self.codes * 1e-5) * total
            self.sum[book] = self.decay * self.sum[book] + (1 - self.decay) * sums
            for code in range(self.codes):
                self.embedding[book, code] = self.sum[book, code] / self.count[book, code]


def plain_stage1_loss(
    idm: PlainEncoder, quantizer: "PlainQuantizer | nn.Module", world_model: PlainWorldModel, frames: Tensor
) -> Tensor:
    """frames: normalized (B, 3, 3, H, W)."""
    z = idm(frames.flatten(1, 2))
    if isinstance(quantizer, PlainQuantizer):
        latent, loss, _, _ = quantizer(z, training=True)
    else:
        made = quantizer(z)
        latent, loss = made.latent, made.loss
    prediction = world_model(frames[:, :2].flatten(1, 2), latent)
    return ((prediction - frames[:, 2]) ** 2).mean() + loss


def gradients(parameters: Iterable[nn.Parameter]) -> list[Tensor]:
    """Their gradients, all of which must be there."""
    found = []
    for parameter in parameters:
        assert parameter.grad is not None
        found.append(parameter.grad)
    return found
