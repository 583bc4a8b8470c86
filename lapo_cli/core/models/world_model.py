"""The world model: a U-Net that predicts the next frame from two frames and a latent action (paper, section 3)."""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lapo_cli.core.models.batch_norm import BatchNorm2d
from lapo_cli.core.models.frames import stack_frames
from lapo_cli.core.models.impala import ResidualBlock


class ConstantChannelConv(nn.Conv2d):
    """3x3 zero-padded convolution of an image beside channels that do not vary over space, at a fraction of its cost.

    A constant map has only nine distinct outputs (four corners, four edges, the middle), and a 3x3 map shows all of
    them. So the constant channels are convolved at 3x3, spread over the image, and added to the convolution of the
    image channels: the function, and the parameters, of the ordinary convolution of the concatenation.
    """

    def __init__(self, image_channels: int, constant_channels: int, out_channels: int) -> None:
        super().__init__(image_channels + constant_channels, out_channels, 3, padding=1)
        self.image_channels = image_channels

    def forward(self, image: Tensor, constant: Tensor) -> Tensor:  # type: ignore[override]
        """image (B, image_channels, H, W) and constant (B, constant_channels) -> (B, out_channels, H, W); H, W >= 3."""
        of_image, of_constant = self.weight.tensor_split([self.image_channels], dim=1)
        nine = F.conv2d(constant[:, :, None, None].expand(-1, -1, 3, 3), of_constant, self.bias, padding=1)
        spread = nine.permute(0, 2, 3, 1)  # spread in NHWC order, so that the sum below stays channels-last
        for dim, length in ((1, image.shape[2]), (2, image.shape[3])):
            first, middle, last = spread.split(1, dim)
            sizes = [-1, -1, -1, -1]
            sizes[dim] = length - 2
            spread = torch.cat([first, middle.expand(sizes), last], dim)
        return F.conv2d(image, of_image, padding=1) + spread.permute(0, 3, 1, 2)


class DownBlock(nn.Module):
    """conv3x3 -> batchnorm -> residual -> maxpool 2 -> relu; ``conv`` may be given."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.conv = conv
        self.norm = BatchNorm2d(conv.out_channels)
        self.residual = ResidualBlock(conv.out_channels, conv.out_channels // 2)

    def forward(self, *inputs: Tensor) -> Tensor:
        """(B, in, H, W) -> (B, out, H/2, W/2); all ``inputs`` go to the convolution."""
        return F.max_pool2d(self.residual(self.norm(self.conv(*inputs))), 2).relu()


class UpBlock(nn.Module):
    """transposed conv 2x2 stride 2 -> batchnorm -> residual -> relu, on the running map beside its skip connection."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.ConvTranspose2d(in_channels, out_channels, 2, stride=2)
        self.norm = BatchNorm2d(out_channels)
        self.residual = ResidualBlock(out_channels, out_channels // 2)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """(B, c, H, W) and (B, in - c, H, W) -> (B, out, 2H, 2W)."""
        up: Tensor = self.residual(self.norm(self.conv(torch.cat([x, skip], 1)))).relu()
        return up


class WorldModel(nn.Module):
    """Predicts o_{t+1} from (o_{t-1}, o_t) and z_q.

    Args:
        base: channels b of the outermost level (24).
        size: pixels per side of the frames; 64 gives the paper's five levels, every halving one level less.
        la_dim: size of a latent action.
    """

    def __init__(self, base: int, size: int, la_dim: int) -> None:
        super().__init__()
        self.size = size
        levels = size.bit_length() - 2
        widths = [base * 2**level for level in range(levels)]
        bottleneck = base * 2**levels
        self.first = DownBlock(ConstantChannelConv(6, la_dim, base))
        self.down = nn.ModuleList(DownBlock(nn.Conv2d(a, b, 3, padding=1)) for a, b in pairwise(widths))
        self.bottom = nn.Conv2d(widths[-1], bottleneck, 2)
        # From the bottom up, what comes in beside the running map is z_q and then every down output.
        running = [bottleneck, *reversed(widths)]
        skips = [la_dim, *reversed(widths)]
        outs = [*reversed(widths), base]
        self.up = nn.ModuleList(UpBlock(a + b, out) for a, b, out in zip(running, skips, outs, strict=True))
        self.widen = nn.Conv2d(base + 6, base, 3, padding=1)
        self.refine = ResidualBlock(base, base // 2)
        self.narrow = nn.Conv2d(base, 3, 1)

    @torch.no_grad()
    def start_from_copying(self) -> None:
        """Start the head on the prediction o_{t+1} = o_t, nearly (up to the tanh), instead of on noise.

        Short runs otherwise spend most steps on learning to copy the background. Only the initial weights differ.
        """
        widen, narrow, last = self.widen, self.narrow, self.refine.conv1
        assert widen.bias is not None
        assert narrow.bias is not None
        assert last.bias is not None
        rgb = torch.arange(3)
        latest = widen.in_channels - 3 + rgb
        widen.weight[:3] = 0
        widen.weight[rgb, latest, 1, 1] = 1
        widen.bias[:3] = 0.5  # keeps normalized pixels positive through the relu
        last.weight[:3] = 0
        last.bias[:3] = 0
        narrow.weight.zero_()
        narrow.weight[rgb, rgb] = 2
        narrow.bias.fill_(-1)

    def forward(self, frames: Tensor, latent: Tensor) -> Tensor:
        """Predicted o_{t+1} (B, 3, size, size) in (-0.5, 0.5).

        Args:
            frames: normalized (o_{t-1}, o_t), (B, 2, 3, size, size).
            latent: z_q, (B, la_dim).
        """
        image = stack_frames(frames)
        skips = [self.first(image, latent)]
        for block in self.down:
            skips.append(block(skips[-1]))
        x = self.bottom(skips[-1])
        for block, skip in zip(self.up, [latent[:, :, None, None], *reversed(skips)], strict=True):
            x = block(x, skip)
        # Beside bfloat16 maps a float32 image would make the concatenation float32, to be rounded by the convolution.
        beside = torch.cat([x, image.to(x.dtype)], 1)
        prediction: Tensor = self.narrow(self.refine(self.widen(beside)).relu()).tanh() / 2
        return prediction
