"""The planner of a game: for each level a bot, which reads the state of the game."""

import importlib
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from lapo_cli.core.envs.procgen_planners.state import GameState, parse_state


class Bot(Protocol):
    """Plays one level, from wherever it is when it is made."""

    def act(self, state: GameState) -> int:
        """The action to take in this state; another one may have been taken in the last."""
        ...


class Planner:
    """Bots for ``num_envs`` environments of one game.

    Module ``lapo_cli.core.envs.procgen_planners.<game>`` offers ``make_bot(state, rng) -> Bot``.

    Args:
        game: name of the game.
        num_envs: N.
        seed: of the bots' own random choices.
    """

    def __init__(self, game: str, num_envs: int, seed: int) -> None:
        module = importlib.import_module(f"lapo_cli.core.envs.procgen_planners.{game}")
        self._make_bot: Callable[[GameState, np.random.Generator], Bot] = module.make_bot
        self._rng = np.random.default_rng(seed)
        self._bots: list[Bot | None] = [None] * num_envs

    def act(self, states: Sequence[bytes]) -> NDArray[np.int64]:
        """Actions (N,) int64 for the N saved states."""
        return np.array([self._act(number, parse_state(saved)) for number, saved in enumerate(states)])

    def _act(self, number: int, state: GameState) -> int:
        bot = self._bots[number]
        if bot is None or state.time == 0:
            bot = self._bots[number] = self._make_bot(state, self._rng)
        return bot.act(state)
