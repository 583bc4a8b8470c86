"""An environment: a dot on a board of 48x48 pixels walks to a goal; five actions."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from lapo_cli.core.envs.base import ENVIRONMENTS, EnvSpec, VecEnv

_STEPS = np.array([(0, 0), (-1, 0), (1, 0), (0, -1), (0, 1)])
_FIELDS, _PIXELS, _LONGEST = 8, 6, 32


class Dots(VecEnv):
    """N boards. Reaching the goal earns 1 and ends the episode, as does the step number 32."""

    saves_state = True

    def __init__(self, num_envs: int, seed: int) -> None:
        self.num_envs, self._seed = num_envs, seed
        self._board = np.zeros((num_envs, 6), np.int64)  # dot, goal, age and number of the episode
        self._reward, self._first = np.zeros(num_envs, np.float32), np.ones(num_envs, np.bool_)
        for n in range(num_envs):
            self._start(n)

    def _start(self, n: int) -> None:
        episode = self._board[n, 5] + 1
        places = np.random.default_rng([self._seed, n, episode]).choice(_FIELDS**2, 2, replace=False)
        self._board[n] = (*divmod(places[0], _FIELDS), *divmod(places[1], _FIELDS), 0, episode)

    def observe(self) -> tuple[NDArray[np.float32], NDArray[np.uint8], NDArray[np.bool_]]:
        small = np.zeros((self.num_envs, _FIELDS, _FIELDS, 3), np.uint8)
        everyone = np.arange(self.num_envs)
        small[everyone, self._board[:, 2], self._board[:, 3], 1] = 255
        small[everyone, self._board[:, 0], self._board[:, 1], 0] = 255
        return self._reward, small.repeat(_PIXELS, 1).repeat(_PIXELS, 2), self._first

    def act(self, actions: NDArray[np.integer[Any]]) -> None:
        self._board[:, :2] = (self._board[:, :2] + _STEPS[actions]).clip(0, _FIELDS - 1)
        self._board[:, 4] += 1
        arrived = (self._board[:, :2] == self._board[:, 2:4]).all(1)
        self._reward, self._first = arrived.astype(np.float32), arrived | (self._board[:, 4] == _LONGEST)
        for n in np.flatnonzero(self._first):
            self._start(n)

    def get_state(self) -> list[bytes]:
        return [np.array([*row, reward, first], np.float64).tobytes() for row, reward, first in self._rows()]

    def _rows(self) -> Any:
        return zip(self._board, self._reward, self._first, strict=True)

    def set_state(self, states: list[bytes]) -> None:
        rows = np.array([np.frombuffer(state) for state in states])
        self._board, self._reward = rows[:, :6].astype(np.int64), rows[:, 6].astype(np.float32)
        self._first = rows[:, 7].astype(np.bool_)

    def close(self) -> None:
        pass


SPEC = EnvSpec(
    name="dots",
    num_actions=5,
    action_names=("STAY", "UP", "DOWN", "LEFT", "RIGHT"),
    random_return=0.4,
    expert_return=1.0,
    make=Dots,
)
ENVIRONMENTS.register(SPEC)
