"""Chaser: eats its way through the maze along the paths where orbs are many and the enemies unlikely to come.

At every cell it weighs paths of some twenty cells by beam search: orbs on the way against the chance to be caught,
which comes from where the enemies, who half of the time make for the agent, are likely to be by then. A large orb costs
something, so that it is taken when it helps.
"""

from dataclasses import dataclass
from math import ceil, floor

import numpy as np
from numpy.typing import NDArray

from lapo_cli.core.envs.procgen_planners.grids import NOOP, STEPS, Cell, cell_of, distances, move_action
from lapo_cli.core.envs.procgen_planners.planner import Bot
from lapo_cli.core.envs.procgen_planners.state import GameState

_LARGE_ORB, _EGG, _WALL, _ENEMY, _ORB = 2, 4, 5, 6, 1002
_EAT_STEPS = 75
_DEPTH = 18  # cells ahead
_BEAM = 30
_DISCOUNT = 0.95  # of an orb, or a death, a cell later
_DEATH = 150.0  # orbs a death costs
_POWER = 6.0  # orbs a large orb costs
_TURN = 0.2  # orbs turning round costs
_FAR_ORB = 0.3  # orbs a cell of distance to the nearest orb costs where a path finds none


def make_bot(state: GameState, rng: np.random.Generator) -> Bot:
    """A bot for one level."""
    return _Eater(state)


class _Maze:
    """The free cells by number and the steps between them, the directed edges.

    Attributes:
        cells: each cell.
        number: number of each cell.
        exits: for each cell the edges out of it, as (next cell, edge).
        end: for each edge the cell it leads to.
        onward: (edges, 3) the edges an enemy may continue on, never straight back; -1 where there are fewer.
        clash: two (edges, edges) matrices: 1 where the agent, taking the first edge, is caught by an enemy that reaches
            the end of the second at the same time, or the middle of it.
    """

    def __init__(self, free: NDArray[np.bool_]) -> None:
        self.cells: list[Cell] = [(int(x), int(y)) for y, x in np.argwhere(free)]
        self.number = {cell: number for number, cell in enumerate(self.cells)}
        self.exits: list[list[tuple[int, int]]] = [[] for _ in self.cells]
        edges: list[tuple[int, int]] = []
        for number, (x, y) in enumerate(self.cells):
            for dx, dy in STEPS:
                to = self.number.get((x + dx, y + dy))
                if to is not None:
                    self.exits[number].append((to, len(edges)))
                    edges.append((number, to))
        start, end = np.array(edges).T
        self.end = end
        self.onward = np.full((len(edges), 3), -1)
        for number, (before, cell) in enumerate(edges):
            ahead = [edge for to, edge in self.exits[cell] if to != before]
            self.onward[number, : len(ahead)] = ahead
        points = np.array(self.cells)
        ways = points[end] - points[start]
        bent = (ways[:, None] != ways).any(2)  # around a corner even the next cell but one is too near
        leave, enter = start[:, None], end[:, None]
        at_end = (enter == end) | bent & ((enter == start) | (leave == end))
        at_middle = (enter == end) | (enter == start) | (leave == start)
        self.clash = at_end.astype(float), at_middle.astype(float)

    def chances(self, target: int, sign: int) -> NDArray[np.float64]:
        """(edges, 3) chances of an enemy's next edges when it makes for a cell, or flees it where ``sign`` is -1."""
        points = np.array(self.cells)
        away = sign * np.abs(points - points[target]).sum(1)
        valid = self.onward >= 0
        far = np.where(valid, away[self.end[self.onward]], 1000)
        nearest = far == far.min(1, keepdims=True)
        result: NDArray[np.float64] = 0.5 * (
            nearest / nearest.sum(1, keepdims=True) + valid / valid.sum(1, keepdims=True)
        )
        return result

    def spread(self, edges: NDArray[np.float64], chances: NDArray[np.float64]) -> NDArray[np.float64]:
        """Expected enemies on each edge a cell later."""
        after = np.zeros(len(edges) + 1)  # the last one takes the chances, all 0, of the edges that are not there
        np.add.at(after, self.onward, edges[:, None] * chances)
        return after[:-1]


@dataclass(slots=True)
class _Path:
    cell: int
    before: int
    first: int  # the cell after the present one
    value: float
    alive: float
    power: int
    enemy_steps: float
    eaten: int


class _Eater:
    def __init__(self, state: GameState) -> None:
        self._action = NOOP
        self._maze = _Maze(state.grid != _WALL)
        self._before = -1

    def act(self, state: GameState) -> int:
        player = state.player
        if (float(player["x"]) + float(player["y"])) % 1 == 0:  # in the middle of a cell, not between two
            x, y = cell_of(player)
            here = self._maze.number[x, y]
            ahead = self._choose(state, here)
            i, j = self._maze.cells[ahead]
            self._action = move_action(i - x, j - y)
            self._before = here
        return self._action

    def _choose(self, state: GameState, here: int) -> int:
        maze = self._maze
        power = _EAT_STEPS - (state.time - int(np.frombuffer(state.rest, "<i4")[-6]))
        danger = _danger(maze, state, here, max(power, 0))
        orbs = [state.grid[y, x] == _ORB for x, y in maze.cells]
        large = {maze.number[cell_of(e)] for e in state.entities if e["type"] == _LARGE_ORB}
        field = distances(state.grid != _WALL, [cell for cell, orb in zip(maze.cells, orbs, strict=True) if orb])
        to_orb = [int(field[y, x]) for x, y in maze.cells]
        paths = [_Path(here, self._before, -1, 0.0, 1.0, power, 0.0, 0)]
        weight = 1.0
        for _ in range(_DEPTH):
            found: dict[tuple[int, int], _Path] = {}
            for path in paths:
                for cell, edge in maze.exits[path.cell]:
                    after_power = path.power - 2
                    enemy_steps = path.enemy_steps + (0.5 if after_power > 0 else 1.0)
                    value, alive, eaten = path.value, path.alive, path.eaten
                    if cell == path.before:
                        value -= _TURN * weight
                    if after_power <= 0:
                        caught = alive * danger[ceil(enemy_steps)][edge]
                        alive -= caught
                        value -= weight * _DEATH * caught
                    bit = 1 << cell
                    if not eaten & bit:
                        if orbs[cell]:
                            value += weight * alive
                            eaten |= bit
                        elif cell in large:
                            value -= weight * _POWER
                            after_power = _EAT_STEPS
                            eaten |= bit
                    key = cell, eaten
                    if key not in found or found[key].value < value:
                        first = cell if path.first < 0 else path.first
                        found[key] = _Path(cell, path.cell, first, value, alive, after_power, enemy_steps, eaten)
            paths = sorted(found.values(), key=lambda path: -path.value)[:_BEAM]
            weight *= _DISCOUNT
        for path in paths:
            if not path.eaten:
                path.value -= _FAR_ORB * to_orb[path.cell]
        return max(paths, key=lambda path: path.value).first


def _danger(maze: _Maze, state: GameState, here: int, power: int) -> list[list[float]]:
    """For each number of cells the enemies have gone on, the chance to be caught on each edge."""
    # Enemies whose way to the middle of a cell takes as long as the agent's, and those half a cell ahead of it.
    in_step, ahead = np.zeros((2, len(maze.end)))
    hatching: dict[int, list[int]] = {}
    for entity in state.entities:
        if entity["type"] == _EGG:
            health = int(entity["health"])
            steps = min(health, power) // 4 + max(0, health - power) // 2
            hatching.setdefault(max(steps, 1), []).append(maze.number[cell_of(entity)])
        elif entity["type"] == _ENEMY:
            x, y = float(entity["x"]), float(entity["y"])
            dx, dy = int(np.sign(entity["vx"])), int(np.sign(entity["vy"]))
            i, j = _last_middle(x, dx), _last_middle(y, dy)
            if dx == dy == 0:  # hatched this very step
                hatching.setdefault(1, []).append(maze.number[i, j])
            for to, edge in maze.exits[maze.number[i, j]]:
                if maze.cells[to] == (i + dx, j + dy):
                    # Slow ones are anywhere in between.
                    in_step[edge] += (x + y) % 1 == 0 or power > 0
                    ahead[edge] += (x + y) % 1 != 0 or power > 0
    chase, flee = maze.chances(here, 1), maze.chances(here, -1)
    result = [[0.0] * len(maze.end)]
    for step in range(1, _DEPTH + 1):
        chances = flee if step <= power // 4 else chase
        ahead = maze.spread(ahead, chances)
        if step > 1:
            in_step = maze.spread(in_step, chances)
        for cell in hatching.get(step, ()):
            for _, edge in maze.exits[cell]:
                ahead[edge] += 1 / len(maze.exits[cell])
        result.append(np.minimum(maze.clash[0] @ in_step + maze.clash[1] @ ahead, 1).tolist())
    return result


def _last_middle(position: float, direction: float) -> int:
    """The cell whose middle was passed last."""
    return ceil(position - 0.5) if direction < 0 else floor(position - 0.5)
