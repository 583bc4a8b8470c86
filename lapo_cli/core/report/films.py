"""Films for the page: sprite sheets cut to what is shown, as few bytes as the page can spare."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lapo_cli.core.errors import CorruptDataError
from lapo_cli.core.evaluation import sheets
from lapo_cli.core.report.results import FilmFile

_STRIDES = (1, 2, 4, 8)


@dataclass(frozen=True)
class Film:
    """A film as the page's player shows it.

    Attributes:
        label: its heading.
        caption: the sentence below it.
        source: a data URI of a sheet that holds nothing else.
        columns: cells in a row of the sheet.
        frames: cells of the film.
        width, height: of a cell, in pixels.
        every: environment steps from one frame to the next.
    """

    label: str
    caption: str
    source: str
    columns: int
    frames: int
    width: int
    height: int
    every: int


@dataclass(frozen=True)
class Clip:
    """Frames to be made a film: (T, H, W, 3) uint8, one every so many environment steps."""

    label: str
    caption: str
    frames: NDArray[np.uint8]
    every: int = 1


def clips_of(file: Path, about: FilmFile) -> list[NDArray[np.uint8]]:
    """The frames (T, H, W, 3) of each level of a film's file.

    Raises:
        CorruptDataError: the file is missing, or not the one that is described.
    """
    cells = sheets.read(file, about)
    try:
        of_level = cells.reshape(about["levels"], -1, *cells.shape[1:])
        lengths = about.get("lengths", [of_level.shape[1]] * len(of_level))
        return [frames[: max(1, length)] for frames, length in zip(of_level, lengths, strict=True)]
    except ValueError as error:
        raise CorruptDataError(f"{file} does not fit its description: delete both and evaluate again.") from error


def encode(clips: Sequence[Clip], most_bytes: int) -> list[Film]:
    """Films of clips, all with every frame, or with every second, fourth or eighth where that is too many bytes."""
    films: list[Film] = []
    for stride in _STRIDES:
        films = [_film(clip, stride) for clip in clips]
        if sum(len(film.source) for film in films) <= most_bytes:
            break
    return films


def _film(clip: Clip, stride: int) -> Film:
    frames = clip.frames[::stride]
    count, height, width = frames.shape[:3]
    columns = sheets.columns(count, width)
    return Film(clip.label, clip.caption, picture(frames), columns, count, width, height, clip.every * stride)


def picture(cells: NDArray[np.uint8]) -> str:
    """The data URI of a sheet of cells (N, H, W, 3)."""
    return "data:image/webp;base64," + base64.b64encode(sheets.encode(cells)).decode()
