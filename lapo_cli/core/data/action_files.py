"""Files of true actions for the frames of clips, as ``lapo import --actions`` reads them.

- ``.csv``: a line per frame whose action is known, ``frame,action`` or, for several clips, ``clip,frame,action``, after
  an optional line with these names. ``frame`` counts the frames of the clip as they are decoded, from 0; ``clip`` is
  the name of its file or folder.
- ``.npy``, for a single clip: integers (N,), the action of every frame from the first on, or (K, 2), frame and action.
"""

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray

from lapo_cli.core.data.arrays import load_array
from lapo_cli.core.data.clips import Clip
from lapo_cli.core.envs.base import MOST_ACTIONS
from lapo_cli.core.errors import MissingInputError, UsageError, shortened

_MOST_FRAMES = 2**40

KnownActions = dict[Path, NDArray[np.int64]]
"""Clip's path -> (K, 2) frame and action."""


def read_actions(file: Path, clips: Sequence[Clip]) -> KnownActions:
    """The actions in a file.

    Raises:
        MissingInputError: there is no such file.
        UsageError: it is no such file, or it names a clip that is none of ``clips``, or a negative number; the message
            says where.
        CorruptDataError: it is damaged.
    """
    if not file.is_file():
        raise MissingInputError(f"There is no file of actions {file}: check the path of --actions.")
    if file.suffix.lower() == ".npy":
        return {_only(file, clips): _from_array(file)}
    if file.suffix.lower() != ".csv":
        raise UsageError(f"{file} is no file of actions: give one that ends in .csv or .npy.")
    rows: dict[Path, list[tuple[int, int]]] = {}
    try:
        for number, clip, frame, action in _lines(file):
            path = _only(file, clips) if clip is None else _named(f"{file}, line {number}", clip, clips)
            rows.setdefault(path, []).append((_number(file, number, frame), _number(file, number, action)))
    except (UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"{file} is no CSV file in UTF-8: save it again as one.") from error
    if not rows:
        raise UsageError(f"{file} holds no action: write lines of frame,action.")
    return {path: _checked(file, np.array(pairs, np.int64)) for path, pairs in rows.items()}


def require_frames(file: Path, actions: KnownActions, num_frames: dict[Path, int]) -> None:
    """Check that every frame with an action is there.

    Args:
        num_frames: clip's path -> how many frames it has.

    Raises:
        UsageError: one is not.
    """
    for path, pairs in actions.items():
        if path in num_frames and pairs[:, 0].max() >= num_frames[path]:
            raise UsageError(
                f"{file} has an action for frame {pairs[:, 0].max():,} of {path}, which has {num_frames[path]:,} "
                "frames counted from 0: correct the file."
            )


def _from_array(file: Path) -> NDArray[np.int64]:
    array = load_array(file)
    if array.dtype.kind not in "iu" or array.size == 0 or not (array.ndim == 1 or array.shape[1:] == (2,)):
        raise UsageError(
            f"{file} holds {array.dtype} {array.shape}: give integers (N,), or (K, 2) of frame and action."
        )
    pairs = array if array.ndim == 2 else np.stack([np.arange(len(array)), array], 1)
    return _checked(file, pairs.astype(np.int64))


def _checked(file: Path, pairs: NDArray[np.int64]) -> NDArray[np.int64]:
    frames, actions = pairs.T
    if frames.min() < 0 or actions.min() < 0:
        what = "a frame" if frames.min() < 0 else "an action"
        raise UsageError(f"{file} has {what} of number {pairs.min()}: frames and actions are counted from 0.")
    if actions.max() >= MOST_ACTIONS:
        raise UsageError(f"{file} has an action of number {actions.max()}: the largest that can be stored is 254.")
    if len(np.unique(frames)) != len(frames):
        raise UsageError(f"{file} has several actions for one frame: leave one of them.")
    return pairs


def _lines(file: Path) -> Iterator[tuple[int, str | None, str, str]]:
    """Number of the line, clip, frame and action."""
    with file.open(newline="", encoding="utf-8-sig") as lines:
        for number, row in enumerate(csv.reader(lines), 1):
            words = [word.strip() for word in row]
            if not any(words) or (number == 1 and words in (["frame", "action"], ["clip", "frame", "action"])):
                continue
            match words:
                case [frame, action]:
                    yield number, None, frame, action
                case [clip, frame, action]:
                    yield number, clip, frame, action
                case _:
                    _wrong(file, number, ",".join(row))


def _number(file: Path, line: int, word: str) -> int:
    digits = word.removeprefix("-")
    if not (digits.isascii() and digits.isdigit()) or abs(value := int(word[:16])) > _MOST_FRAMES or len(word) > 16:
        _wrong(file, line, word)
    return value


def _wrong(file: Path, line: int, found: str) -> NoReturn:
    raise UsageError(
        f"{file}, line {line}: '{shortened(found)}' is not what belongs there: write frame,action or clip,frame,action "
        "as whole numbers."
    )


def _only(file: Path, clips: Sequence[Clip]) -> Path:
    if len(clips) != 1:
        raise UsageError(
            f"{file} does not say to which of the {len(clips)} clips its frames belong: write lines of "
            "clip,frame,action in a CSV file."
        )
    return clips[0].path


def _named(where: str, name: str, clips: Sequence[Clip]) -> Path:
    found = [clip.path for clip in clips if name in (clip.path.name, str(clip.path))]
    if len(found) != 1:
        how_many = "none" if not found else f"{len(found)}"
        raise UsageError(f"{where} names the clip '{shortened(name)}', of which there is {how_many}: give its path.")
    return found[0]
