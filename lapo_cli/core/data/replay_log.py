"""Replay logs: demonstrations as actions, one byte a frame, which Procgen turns back into the frames bit for bit.

A log is an npz file, version 1, of

- ``format_version`` int (missing in the oldest logs, which are of version 1);
- ``game``, ``distribution_mode`` str; ``rand_seed``, ``num_envs`` (N) int: how the environments were made;
- ``actions`` (T, N) uint8: what each environment was given after its t-th observation;
- ``frame_sha256`` (ceil(T / sha_every),) str and ``sha_every`` int: hex SHA-256 of the bytes of the (N, 64, 64, 3)
  frames of steps 0, sha_every, 2 sha_every, ...;
- ``reward_sum`` float: sum of the rewards observed at steps 1 to T - 1;
- ``procgen_version`` str and ``info``, a JSON object as str: both optional.

``info`` as ``lapo record`` writes it holds ``lapo_version``; ``settings``: the ``policies`` (each with its ``epsilon``,
and for a network its stage, whether its ``actions`` were sampled or greedy, environment steps, seed and the beginning
of its weights' SHA-256), the ``seed`` asked for, ``num_envs`` and ``steps``; ``resumed_at``, the steps at which an
interrupted recording went on, with other random numbers; ``episodes``, how many ended; and, over the
``measured_episodes`` first ones of every environment, as many of each, ``mean_return``, its 95 % bootstrap interval
``low`` to ``high``, and ``normalized``.
"""

import hashlib
import importlib.metadata
import importlib.resources
import json
import math
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from lapo_cli.core.data.store import SPLITS, Split
from lapo_cli.core.errors import CorruptDataError, MissingInputError
from lapo_cli.core.files import atomic_path
from lapo_cli.core.games import GAMES, NUM_ACTIONS

FORMAT_VERSION = 1
# All that zipfile and numpy raise on damaged bytes.
_UNREADABLE = (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError)


@dataclass(frozen=True, eq=False)
class ReplayLog:
    """What it takes to play demonstrations again; the fields are those of the file."""

    game: str
    distribution_mode: str
    rand_seed: int
    actions: NDArray[np.uint8]
    frame_sha256: tuple[str, ...]
    sha_every: int
    reward_sum: float
    procgen_version: str | None = None
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
    """Hex SHA-256 of the (N, 64, 64, 3) frames of one step."""
    return hashlib.sha256(np.ascontiguousarray(frames).data).hexdigest()


def installed_procgen() -> str:
    """Version of the Procgen that would record here, for :attr:`ReplayLog.procgen_version`."""
    return importlib.metadata.version("procgen-mirror")


def bundled_logs(game: str) -> dict[Split, Path]:
    """The logs of a game that come with the package: split -> file."""
    folder = Path(str(importlib.resources.files("lapo_cli"))) / "demos"
    return {split: folder / f"{game}-{split}.npz" for split in SPLITS}


def write_log(path: Path, log: ReplayLog) -> None:
    """Write a log whole or not at all.

    Raises:
        DiskFullError: the disk is full.
    """
    optional = {} if log.procgen_version is None else {"procgen_version": log.procgen_version}
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(
            file,
            format_version=FORMAT_VERSION,
            game=log.game,
            distribution_mode=log.distribution_mode,
            rand_seed=log.rand_seed,
            num_envs=log.num_envs,
            actions=log.actions,
            frame_sha256=np.array(log.frame_sha256),
            sha_every=log.sha_every,
            reward_sum=log.reward_sum,
            info=json.dumps(dict(log.info)),
            **optional,
        )


def read_log(path: Path) -> ReplayLog:
    """Read and check a log.

    Raises:
        MissingInputError: there is no such file.
        CorruptDataError: it is no log, of a newer format, or one of its arrays is missing or not as it should be.
    """
    if not path.is_file():
        raise MissingInputError(f"There is no replay log {path}: check the path.")
    try:
        # zipfile first, because np.load would also read a lone array.
        with zipfile.ZipFile(path), np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except _UNREADABLE as error:
        raise CorruptDataError(f"{path} is truncated, altered or no replay log: get it again.") from error
    try:
        return _parse_log(arrays)
    except KeyError as error:
        raise CorruptDataError(f"{path} is no replay log: the array {error} is missing.") from error
    except (ValueError, TypeError) as error:
        raise CorruptDataError(f"{path} is not a valid replay log: {error}.") from error


def _parse_log(arrays: dict[str, NDArray[Any]]) -> ReplayLog:
    version = int(arrays.get("format_version", np.array(1)))
    if version != FORMAT_VERSION:
        raise ValueError(f"it is of format {version} where this lapo knows {FORMAT_VERSION}")
    game = str(arrays["game"])
    if game not in GAMES:
        raise ValueError(f"there is no game {game!r}")
    mode = str(arrays["distribution_mode"])
    if mode not in ("easy", "hard"):
        raise ValueError(f"the distribution mode is {mode!r} instead of 'easy' or 'hard'")
    rand_seed = int(arrays["rand_seed"])
    if not 0 <= rand_seed < 2**31:
        raise ValueError(f"rand_seed is {rand_seed}, which Procgen does not take")
    actions = arrays["actions"]
    if actions.dtype != np.uint8 or actions.ndim != 2 or actions.size == 0:
        raise ValueError(f"actions is {actions.dtype} {actions.shape} instead of uint8 (T, N)")
    if actions.max() >= NUM_ACTIONS:
        raise ValueError(f"actions holds {actions.max()}, which is no action: they go from 0 to {NUM_ACTIONS - 1}")
    if int(arrays["num_envs"]) != actions.shape[1]:
        raise ValueError(f"num_envs is {arrays['num_envs']} but actions are {actions.shape}")
    sha_every, digests = int(arrays["sha_every"]), arrays["frame_sha256"]
    if sha_every < 1 or digests.shape != (math.ceil(len(actions) / sha_every),) or digests.dtype.kind != "U":
        raise ValueError(f"frame_sha256 is {digests.dtype} {digests.shape}: not one text for every {sha_every} steps")
    info = json.loads(str(arrays["info"])) if "info" in arrays else {}
    if not isinstance(info, dict):
        raise ValueError("info is not a JSON object")
    return ReplayLog(
        game=game,
        distribution_mode=mode,
        rand_seed=rand_seed,
        actions=actions,
        frame_sha256=tuple(str(digest) for digest in digests),
        sha_every=sha_every,
        reward_sum=float(arrays["reward_sum"]),
        procgen_version=str(arrays["procgen_version"]) if "procgen_version" in arrays else None,
        info=cast(Mapping[str, Any], info),
    )
