"""Maze: walks the shortest path to the cheese, one cell per step."""

import numpy as np

from lapo_cli.core.envs.procgen_planners.grids import NOOP, STEPS, cell_of, distances, move_action
from lapo_cli.core.envs.procgen_planners.planner import Bot
from lapo_cli.core.envs.procgen_planners.state import WALL, GameState

_CHEESE = 2


def make_bot(state: GameState, rng: np.random.Generator) -> Bot:
    """A bot for one level."""
    return _Walker(state)


class _Walker:
    def __init__(self, state: GameState) -> None:
        ((row, column),) = np.argwhere(state.grid == _CHEESE)
        self._away = distances(state.grid != WALL, [(int(column), int(row))])

    def act(self, state: GameState) -> int:
        away = self._away
        x, y = cell_of(state.player)
        height, width = away.shape
        for dx, dy in STEPS:
            if 0 <= x + dx < width and 0 <= y + dy < height and away[y + dy, x + dx] < away[y, x]:
                return move_action(dx, dy)
        return NOOP
