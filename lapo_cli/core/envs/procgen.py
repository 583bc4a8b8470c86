"""Procgen's C++ vector environment behind one small class. The only module that imports Procgen, and late."""

import contextlib
import io
import os
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lapo_cli.core.errors import ProcgenUnavailableError

OBS_SHAPE = (64, 64, 3)


def _import_procgen() -> Any:
    try:
        # gym greets every import with a notice on stderr; it is used for nothing but its names.
        with contextlib.redirect_stderr(io.StringIO()):
            from procgen import ProcgenGym3Env
    except ImportError as error:
        raise ProcgenUnavailableError(
            f"Procgen cannot be imported here ({error}): acting needs Linux on x86_64 with Python 3.11 or 3.12; "
            "download, train-idm and train-policy from npz chunks work without it."
        ) from error
    return ProcgenGym3Env


class ProcgenVecEnv:
    """``num_envs`` copies of one game, easy mode unless said otherwise, over all levels.

    Deterministic: the same game, seed, number of environments and actions give the same frames bit for bit,
    whatever the number of threads. An environment whose episode ends starts the next one by itself.

    Args:
        game: name of a Procgen game.
        num_envs: N.
        seed: Procgen's ``rand_seed``; it chooses the sequence of levels.
        num_threads: C++ threads that step the environments; by default one a core, at most 8.

    Raises:
        ProcgenUnavailableError: Procgen has no wheel for this platform.
    """

    def __init__(
        self, game: str, num_envs: int, seed: int, *, num_threads: int | None = None, distribution_mode: str = "easy"
    ) -> None:
        make = _import_procgen()
        self.num_envs = num_envs
        self._env = make(
            num=num_envs,
            env_name=game,
            rand_seed=seed,
            num_levels=0,
            start_level=0,
            distribution_mode=distribution_mode,
            num_threads=min(8, os.cpu_count() or 1) if num_threads is None else num_threads,
        )

    def observe(self) -> tuple[NDArray[np.float32], NDArray[np.uint8], NDArray[np.bool_]]:
        """What the last :meth:`act` led to.

        Returns:
            reward (N,) float32; frames (N, 64, 64, 3) uint8, valid until the next :meth:`act`; first (N,) bool,
            true where the frame is the first of an episode (the reward then belongs to the episode that ended).
        """
        reward, obs, first = self._env.observe()
        return reward, obs["rgb"], first

    def act(self, actions: NDArray[np.integer[Any]]) -> None:
        """Give every environment its action: (N,) integers in [0, 15)."""
        self._env.act(actions.astype(np.int32))

    def level_seeds(self) -> NDArray[np.int64]:
        """The level every environment plays, (N,); Procgen makes the level from this number."""
        return np.array([info["level_seed"] for info in self._env.get_info()], np.int64)

    def get_state(self) -> list[bytes]:
        """The complete state of every environment, N byte strings."""
        self._env.observe()  # waits for the threads that may still be stepping
        states: list[bytes] = self._env.callmethod("get_state")
        return states

    def set_state(self, states: list[bytes]) -> None:
        """Put back what :meth:`get_state` returned; play continues identically from there."""
        self._env.observe()  # waits for the threads, which a new environment has at work on its first frame
        self._env.callmethod("set_state", states)

    def close(self) -> None:
        """Free the C++ environments."""
        self._env.close()
