"""Videos for tests: every frame shows its number in black and white blocks that no compression hides."""

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

_BITS, _BLOCK, _PER_ROW = 12, 4, 4
_EDGE = 24

Frames = NDArray[np.uint8]


def numbered(count: int, first: int = 0, shape: tuple[int, int] = (64, 64), ground: int = 0) -> Frames:
    """(count, H, W, 3): frames ``first``, ``first + 1``, ... on a ground of that grey, scaled to any size."""
    numbers = np.arange(first, first + count)[:, None] >> np.arange(_BITS) & 1
    small = np.full((count, 64, 64), ground, np.uint8)
    for bit in range(_BITS):
        row, column = divmod(bit, _PER_ROW)
        top, left = _EDGE + _BLOCK * row, _EDGE + _BLOCK * column
        small[:, top : top + _BLOCK, left : left + _BLOCK] = numbers[:, bit, None, None] * 255
    rows, columns = (np.arange(side) * 64 // side for side in shape)
    return np.ascontiguousarray(small[:, rows][:, :, columns, None].repeat(3, 3))


def number_of(frame: Frames) -> int:
    """The number that a frame (64, 64, 3) shows."""
    bits = [
        frame[_EDGE + _BLOCK * row + 1 : _EDGE + _BLOCK * row + 3, _EDGE + _BLOCK * column + 1 :][:, :2].mean() > 127
        for row, column in (divmod(bit, _PER_ROW) for bit in range(_BITS))
    ]
    return sum(1 << bit for bit, is_set in enumerate(bits) if is_set)


def write_video(
    path: Path,
    frames: Frames,
    *,
    codec: str = "libx264",
    pixels: str = "yuv420p",
    rate: int = 30,
    times: Sequence[float] | None = None,
    rotation: int | None = None,
    **options: str,
) -> Path:
    """Encode frames (N, H, W, 3), of any length, as the container that the suffix names.

    Args:
        times: seconds of each frame; None for an even rate.
        rotation: by which players are told to turn the pictures, counter-clockwise, in degrees.
        options: of the encoder.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(path, "w") as container:
        stream = container.add_stream(codec, rate=rate, options=options)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = pixels
        if rotation is not None:
            stream.set_display_rotation(rotation)
        if times is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        for number, pixels_of in enumerate(frames):
            picture = av.VideoFrame.from_ndarray(pixels_of, format="rgb24")
            if times is not None:
                picture.pts, picture.time_base = round(times[number] * 1000), Fraction(1, 1000)
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
    return path
