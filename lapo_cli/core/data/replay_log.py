"""Replay logs: demonstrations as actions, one byte per frame, which the environment turns back into the frames exactly.

A log is an npz file, version 1, of

- ``format_version`` int (missing in the oldest logs, which are of version 1);
- ``game`` str; ``rand_seed``, ``num_envs`` (N) int; and, where it is not the default of the environment,
  ``distribution_mode`` str: how the environments were made;
- ``actions`` (T, N) uint8: what each environment was given after its t-th observation;
- ``frame_sha256`` (ceil(T / sha_every),) str and ``sha_every`` int: hex SHA-256 of the bytes of the (N, H, W, 3)
  frames of steps 0, sha_every, 2 sha_every, ...;
- ``reward_sum`` float: sum of the rewards observed at steps 1 to T - 1;
- ``env_version`` str (``procgen_version`` in older logs) and ``info``, a JSON object as str: both optional.

``info`` as ``lapo record`` writes it holds ``lapo_version``; ``settings``: the ``policies`` (each with its ``epsilon``,
and for a network its stage, whether its ``actions`` were sampled or greedy, environment steps, seed and the beginning
of its weights' SHA-256), the requested ``seed``, ``num_envs`` and ``steps``; ``resumed_at``, the steps at which an
interrupted recording went on, with other random numbers; ``episodes``, how many ended; and, over the
``measured_episodes`` first ones of every environment, as many of each, ``mean_return``, its 95 % bootstrap interval
``low`` to ``high``, and ``normalized`` where the environment has reference returns.
"""

import hashlib
import importlib.resources
import json
import math
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from lapo_cli.core.data.arrays import UNREADABLE, Header, open_member
from lapo_cli.core.data.store import SPLITS, Split
from lapo_cli.core.envs.base import ENVIRONMENTS
from lapo_cli.core.errors import CorruptDataError, MissingInputError, UsageError, one_line, shortened
from lapo_cli.core.files import atomic_path, parse_json

FORMAT_VERSION = 1
_ARRAYS = (
    *("format_version", "game", "distribution_mode", "rand_seed", "num_envs", "actions", "frame_sha256", "sha_every"),
    *("reward_sum", "env_version", "procgen_version", "info"),
)


@dataclass(frozen=True, eq=False)
class ReplayLog:
    """What it takes to play demonstrations again; the fields are those of the file."""

    game: str
    distribution_mode: str | None
    rand_seed: int
    actions: NDArray[np.uint8]
    frame_sha256: tuple[str, ...]
    sha_every: int
    reward_sum: float
    env_version: str | None = None
    info: Mapping[str, Any] = field(default_factory=dict)

    @property
    def num_steps(self) -> int:
        """T."""
        return len(self.actions)

    @property
    def num_envs(self) -> int:
        """N."""
        return int(self.actions.shape[1])

    @property
    def num_frames(self) -> int:
        """T · N."""
        return int(self.actions.size)


def frames_digest(frames: NDArray[np.uint8]) -> str:
    """Hex SHA-256 of the (N, H, W, 3) frames of one step."""
    return hashlib.sha256(np.ascontiguousarray(frames).data).hexdigest()


def bundled_logs(game: str) -> dict[Split, Path]:
    """The logs of a game that come with the package: split -> file; empty where there are none."""
    return logs_in(Path(str(importlib.resources.files("lapo_cli"))) / "demos", game)


def logs_in(folder: Path, game: str) -> dict[Split, Path]:
    """The logs of a game in a folder, named as ``lapo record`` does: split -> file."""
    files = {split: folder / f"{game}-{split}.npz" for split in SPLITS}
    return {split: file for split, file in files.items() if file.is_file()}


def write_log(path: Path, log: ReplayLog) -> None:
    """Write a log completely or not at all.

    Raises:
        DiskFullError: the disk is full.
    """
    optional = {"distribution_mode": log.distribution_mode, "env_version": log.env_version}
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(
            file,
            format_version=FORMAT_VERSION,
            game=log.game,
            rand_seed=log.rand_seed,
            num_envs=log.num_envs,
            actions=log.actions,
            frame_sha256=np.array(log.frame_sha256),
            sha_every=log.sha_every,
            reward_sum=log.reward_sum,
            info=json.dumps(dict(log.info)),
            **{name: value for name, value in optional.items() if value is not None},
        )


def read_log(path: Path) -> ReplayLog:
    """Read and check a log.

    Raises:
        MissingInputError: there is no such file.
        CorruptDataError: it is no log, of a newer format, or one of its arrays is missing or not as it should be.
        UsageError: its environment is not registered.
    """
    if not path.is_file():
        raise MissingInputError(f"There is no replay log {path}: check the path.")
    try:
        with zipfile.ZipFile(path) as archive:
            there = {name for name in _ARRAYS if f"{name}.npy" in archive.namelist()}
            arrays = {name: _array(archive, name, path) for name in there}
    except UNREADABLE as error:
        raise CorruptDataError(f"{path} is truncated, altered or no replay log: get it again.") from error
    try:
        log = _parse_log(arrays)
    except KeyError as error:
        raise CorruptDataError(f"{path} is no replay log: the array {error} is missing.") from error
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        raise CorruptDataError(f"{path} is not a valid replay log: {one_line(str(error), 200)}.") from error
    if log.game not in ENVIRONMENTS:
        raise UsageError(
            f"{path} is a replay log of '{shortened(log.game)}', an environment that is not registered: name the file "
            "that registers it with --plugin."
        )
    num_actions = ENVIRONMENTS.get(log.game).require_actions()
    if log.actions.max() >= num_actions:
        raise CorruptDataError(
            f"{path} is not a valid replay log: actions holds {log.actions.max()}, which is no action of {log.game}: "
            f"they go from 0 to {num_actions - 1}."
        )
    return log


def _array(archive: zipfile.ZipFile, name: str, path: Path) -> NDArray[Any]:
    shown = f"{path}: array {name}"
    with open_member(archive, f"{name}.npy", shown) as (stream, info):
        return Header(shown, stream, info.file_size).read()


def _parse_log(arrays: dict[str, NDArray[Any]]) -> ReplayLog:
    version = int(arrays.get("format_version", np.array(1)))
    if version != FORMAT_VERSION:
        raise ValueError(f"it is of format {version} where this lapo knows {FORMAT_VERSION}")
    rand_seed = int(arrays["rand_seed"])
    if not 0 <= rand_seed < 2**31:
        raise ValueError(f"rand_seed is {rand_seed} instead of a number from 0 to 2^31 - 1")
    actions = arrays["actions"]
    if actions.dtype != np.uint8 or actions.ndim != 2 or actions.size == 0:
        raise ValueError(f"actions is {actions.dtype} {actions.shape} instead of uint8 (T, N)")
    if int(arrays["num_envs"]) != actions.shape[1]:
        raise ValueError(f"num_envs is {arrays['num_envs']} but actions are {actions.shape}")
    sha_every, digests = int(arrays["sha_every"]), arrays["frame_sha256"]
    if sha_every < 1 or digests.shape != (math.ceil(len(actions) / sha_every),) or digests.dtype.kind != "U":
        raise ValueError(f"frame_sha256 is {digests.dtype} {digests.shape}: not one text for every {sha_every} steps")
    reward_sum = float(arrays["reward_sum"])
    if not math.isfinite(reward_sum):
        raise ValueError(f"reward_sum is {reward_sum}")
    info = parse_json(str(arrays["info"])) if "info" in arrays else {}
    if not isinstance(info, dict):
        raise ValueError("info is not a JSON object")
    version_array = arrays.get("env_version", arrays.get("procgen_version"))
    mode = arrays.get("distribution_mode")
    return ReplayLog(
        game=_text(arrays["game"]),
        distribution_mode=None if mode is None else _text(mode),
        rand_seed=rand_seed,
        actions=actions,
        frame_sha256=tuple(str(digest) for digest in digests),
        sha_every=sha_every,
        reward_sum=reward_sum,
        env_version=None if version_array is None else _text(version_array),
        info=cast(Mapping[str, Any], info),
    )


def _text(array: NDArray[Any]) -> str:
    """A text that is short enough for messages."""
    text = str(array)
    if array.dtype.kind != "U" or array.ndim != 0 or len(text) > 100:
        raise ValueError(f"'{shortened(text)}' is no name")
    return text
