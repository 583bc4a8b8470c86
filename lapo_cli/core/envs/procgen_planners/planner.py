"""The planner of a game: for each level a bot, which reads the state of the game."""

import importlib
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from lapo_cli.core.envs.procgen_planners.state import GameState, parse_state

NUM_ACTIONS = 15


class Bot(Protocol):
    """Plays one level, from wherever it is when it is made."""

    def act(self, state: GameState) -> int:
        """The action to take in this state; another one may have been taken in the last."""
        ...


@runtime_checkable
class ScoringBot(Bot, Protocol):
    """A bot that can say how good each action is, so that near equals need not be told apart by who watches.

    Attributes:
        temperature: of the softmax that turns its scores into probabilities.
    """

    temperature: float

    def scores(self, state: GameState) -> NDArray[np.float64]:
        """(15,) the worth of each action."""
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
        return np.array([bot.act(state) for bot, state in self._bots_for(states)])

    def probabilities(self, states: Sequence[bytes]) -> NDArray[np.float64]:
        """(N, 15): a softmax of each bot's scores where it has some, else all on its action."""
        result = np.zeros((len(states), NUM_ACTIONS))
        for row, (bot, state) in zip(result, self._bots_for(states), strict=True):
            if isinstance(bot, ScoringBot):
                scores = bot.scores(state)
                weights = np.exp((scores - scores.max()) / bot.temperature)
                row[:] = weights / weights.sum()
            else:
                row[bot.act(state)] = 1
        return result

    def _bots_for(self, states: Sequence[bytes]) -> Iterator[tuple[Bot, GameState]]:
        for number, state in enumerate(map(parse_state, states)):
            bot = self._bots[number]
            if bot is None or state.time == 0:
                bot = self._bots[number] = self._make_bot(state, self._rng)
            yield bot, state
