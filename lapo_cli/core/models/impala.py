"""Convolutional trunks of inverse dynamics model and policy: the paper's (IMPALA, appendix A) and a compact one."""

from torch import Tensor, nn

HIDDEN = 256


class ResidualBlock(nn.Module):
    """x + conv(relu(conv(relu(x)))), 3x3 convolutions, ``hidden`` channels in the middle."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.conv0 = nn.Conv2d(channels, hidden, 3, padding=1)
        self.conv1 = nn.Conv2d(hidden, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        out: Tensor = x + self.conv1(self.conv0(x.relu()).relu())
        return out


class Trunk(nn.Module):
    """Convolutions that reduce an image to an eighth of its size, and the features that they make of it.

    Args:
        convs: the layers.
        channels: that they give.
        size: pixels per side of the input.
    """

    def __init__(self, convs: nn.Sequential, channels: int, size: int) -> None:
        super().__init__()
        self.convs = convs
        self.num_features = channels * (size // 8) ** 2

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, size, size) -> features relu(flatten(convs(x))) of shape (B, num_features)."""
        # Flattened in the order of an ordinary (contiguous) tensor, so that weights do not depend on the layout.
        features: Tensor = self.convs(x).flatten(1).relu()
        return features


class ImpalaTrunk(Trunk):
    """Three sequences of convolution, pooling and two residual blocks; no normalization layers.

    Args:
        in_channels: 3 a stacked frame.
        scale: k; the sequences have 16k, 32k and 32k channels.
        size: pixels per side of the input.
    """

    def __init__(self, in_channels: int, scale: int, size: int) -> None:
        layers: list[nn.Module] = []
        channels = in_channels
        for out in (16 * scale, 32 * scale, 32 * scale):
            layers += [
                nn.Conv2d(channels, out, 3, padding=1),
                nn.MaxPool2d(3, stride=2, padding=1),
                ResidualBlock(out, out),
                ResidualBlock(out, out),
            ]
            channels = out
        super().__init__(nn.Sequential(*layers), channels, size)


class CompactTrunk(Trunk):
    """The widths of the paper's trunk at a lower cost, with layer normalization of the features.

    The first pooling is a stride, and sequences have one residual block. Neighbouring patches of the first convolution
    overlap; without that a shift by a pixel is another picture to it.
    """

    def __init__(self, in_channels: int, scale: int, size: int) -> None:
        first, second, third = 16 * scale, 32 * scale, 32 * scale
        convs = nn.Sequential(
            nn.Conv2d(in_channels, first, 4, stride=2, padding=1),
            ResidualBlock(first, first),
            nn.Conv2d(first, second, 3, padding=1),
            nn.MaxPool2d(3, stride=2, padding=1),
            ResidualBlock(second, second),
            nn.Conv2d(second, third, 3, padding=1),
            nn.MaxPool2d(3, stride=2, padding=1),
            ResidualBlock(third, third),
        )
        super().__init__(convs, third, size)
        self.norm = nn.LayerNorm(self.num_features)

    def forward(self, x: Tensor) -> Tensor:
        """See :meth:`Trunk.forward`; the features of each sample have mean 0 and variance 1, before gain and bias."""
        features: Tensor = self.norm(super().forward(x))
        return features


TRUNKS: dict[str, type[ImpalaTrunk | CompactTrunk]] = {"impala": ImpalaTrunk, "compact": CompactTrunk}
"""Name in the configuration -> trunk of a policy, or of the inverse dynamics model of random play."""
