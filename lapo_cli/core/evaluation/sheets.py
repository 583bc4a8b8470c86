"""Sprite sheets: small pictures side by side in one lossless WebP, which is how films are kept and shown."""

import hashlib
import io
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from typing_extensions import TypedDict

from lapo_cli.core.errors import CorruptDataError
from lapo_cli.core.files import atomic_write_bytes

_MOST_PIXELS = 16_000  # A side of a WebP is at most 16,383.
_MOST_CELL = 96


class Sheet(TypedDict):
    """What has to be known of a file to read it.

    Attributes:
        sha256: of the file.
        cells: N.
        size: height and width of a cell.
    """

    sha256: str
    cells: int
    size: tuple[int, int]


def write(file: Path, cells: NDArray[np.uint8]) -> Sheet:
    """Write cells (N, H, W, 3) uint8; those of more than 96 pixels a side lose every so many of them."""
    step = -(-max(cells.shape[1:3]) // _MOST_CELL)
    small = cells[:, ::step, ::step]
    content = encode(small)
    atomic_write_bytes(file, content)
    return Sheet(sha256=hashlib.sha256(content).hexdigest(), cells=len(small), size=(small.shape[1], small.shape[2]))


def read(file: Path, sheet: Sheet) -> NDArray[np.uint8]:
    """The cells (N, H, W, 3) uint8 of a file.

    Raises:
        CorruptDataError: the file is missing, or not the one that is described.
    """
    content = file.read_bytes() if file.is_file() else b""
    if hashlib.sha256(content).hexdigest() != sheet["sha256"]:
        raise CorruptDataError(f"{file} is missing or damaged: delete the .json file beside it and evaluate again.")
    return decode(content, sheet["cells"], *sheet["size"])


def columns(cells: int, width: int) -> int:
    """Cells in a row of a sheet of so many cells of that width."""
    return max(1, min(cells, _MOST_PIXELS // width))


def encode(cells: NDArray[np.uint8]) -> bytes:
    """The WebP of cells (N, H, W, 3) uint8 in rows of :func:`columns`; N >= 1."""
    count, height, width = cells.shape[:3]
    across = columns(count, width)
    down = -(-count // across)
    grid = np.zeros((down * across, height, width, 3), np.uint8)
    grid[:count] = cells
    sheet = grid.reshape(down, across, height, width, 3).swapaxes(1, 2).reshape(down * height, across * width, 3)
    buffer = io.BytesIO()
    Image.fromarray(sheet).save(buffer, "WEBP", lossless=True, quality=60, method=3)
    return buffer.getvalue()


def decode(content: bytes, cells: int, height: int, width: int) -> NDArray[np.uint8]:
    """The cells (N, H, W, 3) uint8 of :func:`encode`.

    Raises:
        CorruptDataError: it is no sheet of so many cells of that size.
    """
    across = columns(cells, width)
    try:
        with Image.open(io.BytesIO(content), formats=["WEBP"]) as image:
            if image.size != (across * width, -(-cells // across) * height):
                raise ValueError("another size")
            sheet = np.asarray(image.convert("RGB"))
    except (OSError, ValueError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise CorruptDataError("A sheet of films is damaged: delete it and evaluate again.") from error
    grid = sheet.reshape(-1, height, across, width, 3).swapaxes(1, 2).reshape(-1, height, width, 3)
    picked: NDArray[np.uint8] = grid[:cells]
    return picked
