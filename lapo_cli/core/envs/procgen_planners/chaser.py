"""Chaser: goes for the nearest orb that it reaches before any enemy can, and for a large one when enemies are near.

What it does follows from the picture: it counts with where the enemies are, not with where they are going.
"""

import numpy as np
from numpy.typing import NDArray

from lapo_cli.core.envs.procgen_planners.grids import STEPS, Cell, cell_of, distances, move_action
from lapo_cli.core.envs.procgen_planners.planner import Bot
from lapo_cli.core.envs.procgen_planners.state import GameState

_LARGE_ORB, _WALL, _ENEMY, _ORB = 2, 5, 6, 1002
_EAT_STEPS = 75
_SPARE = 10  # steps before the end of a large orb's effect from which enemies are to be feared again
_LEAD = 1.0  # cells by which to be nearer to a place than any enemy
_NEAR = 6.0  # cells to an enemy from which on a large orb is wanted


def make_bot(state: GameState, rng: np.random.Generator) -> Bot:
    """A bot for one level."""
    return _Eater(state)


class _Eater:
    def __init__(self, state: GameState) -> None:
        free = state.grid != _WALL
        self._cells: list[Cell] = [(int(x), int(y)) for y, x in np.argwhere(free)]
        self._number = {cell: number for number, cell in enumerate(self._cells)}
        columns, rows = np.array(self._cells).T
        self._ways = np.array([distances(free, [cell])[rows, columns] for cell in self._cells])
        steps = [[(x + i, y + j) for i, j in STEPS] for x, y in self._cells]
        self._exits = [[self._number[cell] for cell in cells if cell in self._number] for cells in steps]

    def act(self, state: GameState) -> int:
        player, kinds = state.player, state.entities["type"]
        threat = self._threat(state)
        reach = self._reach(player, threat)
        begins = self._begins(player)
        orbs = [number for number, (x, y) in enumerate(self._cells) if state.grid[y, x] == _ORB]
        if min(threat[number] for number, _ in begins) < _NEAR:
            large = [self._number[cell_of(orb)] for orb in state.entities[kinds == _LARGE_ORB]]
            orbs = [number for number in large if number in reach] or orbs
        goals = [number for number in orbs if number in reach]
        if goals:
            to = reach[min(goals, key=lambda number: reach[number][0])][1]
        elif reach:
            to = reach[max(reach, key=lambda number: threat[number] - reach[number][0])][1]
        else:
            to = max((number for number, _ in begins), key=lambda number: threat[number])
        x, y = self._cells[to]
        return move_action(x + 0.5 - player["x"], y + 0.5 - player["y"])

    def _threat(self, state: GameState) -> NDArray[np.float64]:
        """Cells from each cell to the nearest enemy that can do harm."""
        threat = np.full(len(self._cells), np.inf)
        eaten = int(np.frombuffer(state.rest, "<i4")[-6])  # when the last large orb was
        if state.time - eaten >= _EAT_STEPS - _SPARE:
            for enemy in state.entities[state.entities["type"] == _ENEMY]:
                for number, way in self._ends(enemy):
                    threat = np.minimum(threat, self._ways[number] + way)
        return threat

    def _reach(self, player: np.void, threat: NDArray[np.float64]) -> dict[int, tuple[float, int]]:
        """The cells that the agent reaches before any enemy, nearest first: how far, and by which cell next to it."""
        begins = self._begins(player)
        queue = [(number, way, number) for number, way in begins if way + _LEAD <= threat[number]]
        reach: dict[int, tuple[float, int]] = {}
        for number, way, begin in queue:
            if number not in reach:
                reach[number] = way, begin
                queue += [(to, way + 1, begin) for to in self._exits[number] if way + 1 + _LEAD <= threat[to]]
        return reach

    def _begins(self, player: np.void) -> list[tuple[int, float]]:
        """The cells to go to next, and how far they are."""
        ends = self._ends(player)
        return ends if len(ends) > 1 else [(number, 1.0) for number in self._exits[ends[0][0]]]

    def _ends(self, entity: np.void) -> list[tuple[int, float]]:
        """The cell in whose middle an entity is, or the two between whose middles it is, and how far they are."""
        x, y = float(entity["x"]) - 0.5, float(entity["y"]) - 0.5
        part = x % 1 + y % 1
        cells = {(int(np.floor(x)), int(np.floor(y))): part, (int(np.ceil(x)), int(np.ceil(y))): (1 - part) % 1}
        return [(self._number[cell], way) for cell, way in cells.items() if cell in self._number]
