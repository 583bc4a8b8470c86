"""The sixteen Procgen games (Cobbe et al., 2020), easy mode. The only module that imports Procgen, and late."""

import contextlib
import importlib.metadata
import io
import os
import re
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lapo_cli.core.envs.base import ENVIRONMENTS, EnvSpec, Planner, VecEnv
from lapo_cli.core.errors import EnvironmentUnavailableError, one_line

# Mean episodic returns of uniformly random actions and of the paper's expert.
_REFERENCE_RETURNS = {
    "bigfish": (0.874, 36.336),
    "bossfight": (0.046, 11.634),
    "caveflyer": (2.597, 9.184),
    "chaser": (0.663, 9.956),
    "climber": (2.224, 10.234),
    "coinrun": (2.705, 9.933),
    "dodgeball": (0.613, 13.487),
    "fruitbot": (-2.533, 29.925),
    "heist": (3.076, 9.685),
    "jumper": (3.411, 8.460),
    "leaper": (2.511, 7.408),
    "maze": (4.273, 9.969),
    "miner": (1.251, 11.893),
    "ninja": (2.560, 9.475),
    "plunder": (4.321, 11.461),
    "starpilot": (1.525, 66.986),
}
_ACTION_NAMES = (
    "LEFT-DOWN",
    "LEFT",
    "LEFT-UP",
    "DOWN",
    "NOOP",
    "UP",
    "RIGHT-DOWN",
    "RIGHT",
    "RIGHT-UP",
    "D",
    "A",
    "W",
    "S",
    "Q",
    "E",
)  # fmt: skip
GAMES = tuple(_REFERENCE_RETURNS)


def _import_procgen() -> Any:
    try:
        # gym prints a notice on stderr when it is imported; nothing but its names is used.
        with contextlib.redirect_stderr(io.StringIO()):
            from procgen import ProcgenGym3Env
    except ImportError as error:
        raise EnvironmentUnavailableError(
            f"Procgen cannot be imported here ({error}): acting needs Linux on x86_64 with Python 3.11 or 3.12; "
            "download, train-idm and train-policy from npz chunks work without it."
        ) from error
    return ProcgenGym3Env


def installed_procgen() -> str:
    """Version of the Procgen that acts here."""
    return importlib.metadata.version("procgen-mirror")


class ProcgenVecEnv(VecEnv):
    """Procgen's C++ vector environment over all levels.

    Deterministic: the same game, seed, number of environments and actions give the same frames bit for bit,
    whatever the number of threads.

    Args:
        game: name of a Procgen game.
        num_envs: N.
        seed: Procgen's ``rand_seed``; it chooses the sequence of levels.
        num_threads: C++ threads that step the environments; by default one per core, at most 8.
        distribution_mode: ``easy`` or ``hard``.

    Raises:
        EnvironmentUnavailableError: Procgen has no wheel for this platform, or a system library is missing.
        ValueError: there is no such distribution mode.
    """

    saves_state = True

    def __init__(
        self, game: str, num_envs: int, seed: int, *, num_threads: int | None = None, distribution_mode: str = "easy"
    ) -> None:
        make = _import_procgen()
        if distribution_mode not in ("easy", "hard"):
            raise ValueError(f"the distribution mode is {distribution_mode!r} instead of 'easy' or 'hard'")
        self.num_envs = num_envs
        self.version = installed_procgen()
        try:
            self._env = make(
                num=num_envs,
                env_name=game,
                rand_seed=seed,
                num_levels=0,
                start_level=0,
                distribution_mode=distribution_mode,
                num_threads=min(8, os.cpu_count() or 1) if num_threads is None else num_threads,
            )
        except OSError as error:  # Its wheel leaves libraries of graphics and windows to the system.
            missing = re.search(r"\S+\.so\S*(?=: cannot open)", str(error))
            if missing is None:
                why = one_line(str(error), 200)
                raise EnvironmentUnavailableError(
                    f"Procgen cannot be started here ({why}): install it again."
                ) from error
            raise EnvironmentUnavailableError(
                f"Procgen's library cannot be loaded here ({missing[0]} is missing): install what it needs, on Debian "
                "and Ubuntu with 'apt install libgl1 libglib2.0-0'."
            ) from error

    def observe(self) -> tuple[NDArray[np.float32], NDArray[np.uint8], NDArray[np.bool_]]:
        """See :meth:`VecEnv.observe`; frames are (N, 64, 64, 3)."""
        reward, obs, first = self._env.observe()
        return reward, obs["rgb"], first

    def act(self, actions: NDArray[np.integer[Any]]) -> None:
        """See :meth:`VecEnv.act`."""
        self._env.act(actions.astype(np.int32))

    def level_seeds(self) -> NDArray[np.int64]:
        """The level every environment plays, (N,); Procgen makes the level from this number."""
        return np.array([info["level_seed"] for info in self._env.get_info()], np.int64)

    def get_state(self) -> list[bytes]:
        """See :meth:`VecEnv.get_state`."""
        self._env.observe()  # waits for the threads that may still be stepping
        states: list[bytes] = self._env.callmethod("get_state")
        return states

    def set_state(self, states: list[bytes]) -> None:
        """See :meth:`VecEnv.set_state`."""
        self._env.observe()  # waits for the threads, which a new environment has at work on its first frame
        self._env.callmethod("set_state", states)

    def close(self) -> None:
        """Free the C++ environments."""
        self._env.close()


def _make_planner(game: str, num_envs: int, seed: int) -> Planner:
    from lapo_cli.core.envs.procgen_planners.planner import Planner as ProcgenPlanner

    return ProcgenPlanner(game, num_envs, seed)


for _game, (_random, _expert) in _REFERENCE_RETURNS.items():
    ENVIRONMENTS.register(
        EnvSpec(
            name=_game,
            num_actions=len(_ACTION_NAMES),
            action_names=_ACTION_NAMES,
            random_return=_random,
            expert_return=_expert,
            make=partial(ProcgenVecEnv, _game),
            make_planner=partial(_make_planner, _game),
        )
    )
