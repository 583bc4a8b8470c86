"""Heist: plans the shortest path to the gem through the cells, fetching on the way the keys of the locks it must pass.

It steers ahead into a turn: while a wall is at its side it already pushes towards the opening, and slides along it.
"""

import struct
from collections import deque

import numpy as np

from lapo_cli.core.envs.procgen_planners.grids import STEPS, Cell, cell_of, move_action
from lapo_cli.core.envs.procgen_planners.planner import Bot
from lapo_cli.core.envs.procgen_planners.state import WALL, GameState

_LOCK, _KEY, _GEM = 1, 2, 9
_SLACK = 0.12  # how far off the middle of a corridor the agent still fits into it


def make_bot(state: GameState, rng: np.random.Generator) -> Bot:
    """A bot for one level."""
    return _Thief()


class _Thief:
    def act(self, state: GameState) -> int:
        route = _route(state)
        player = state.player
        x, y = cell_of(player)
        if len(route) == 1:  # the gem is in this cell, at its edge
            (gem,) = state.entities[state.entities["type"] == _GEM]
            return move_action(gem["x"] - player["x"], gem["y"] - player["y"])
        along = np.subtract(route[1], route[0])
        across = np.abs(along[::-1])
        push = along
        # Off the middle by so much that the corner of the next corridor would catch it.
        off = (np.array([x, y]) + 0.5 - [player["x"], player["y"]]) * across
        if np.abs(off).max() > _SLACK:
            push = along + np.sign(off).astype(int)
        elif len(route) > 2:
            turn = np.subtract(route[2], route[1])
            if turn @ along == 0 and not _is_free(state, x + int(turn[0]), y + int(turn[1])):
                push = along + turn
        return move_action(push[0], push[1])


def _is_free(state: GameState, x: int, y: int) -> bool:
    height, width = state.grid.shape
    return 0 <= x < width and 0 <= y < height and state.grid[y, x] != WALL


def _route(state: GameState) -> list[Cell]:
    """The cells from the agent's to the gem's, by breadth-first search over (cell, keys held as a bit mask)."""
    num_keys, _, _ = struct.unpack_from("<iii", state.rest)
    held = sum(1 << i for i, has in enumerate(struct.unpack_from(f"<{num_keys}i", state.rest, 12)) if has)
    locks, keys, gem = {}, {}, None
    for entity in state.entities:
        if entity["type"] == _LOCK:
            locks[cell_of(entity)] = 1 << int(entity["image_theme"])
        elif entity["type"] == _KEY:
            keys[cell_of(entity)] = 1 << int(entity["image_theme"])
        elif entity["type"] == _GEM:
            gem = cell_of(entity)
    start = (cell_of(state.player), held)
    came: dict[tuple[Cell, int], tuple[Cell, int] | None] = {start: None}
    queue = deque([start])
    while queue:
        node = queue.popleft()
        (x, y), held = node
        if (x, y) == gem:
            route = []
            at: tuple[Cell, int] | None = node
            while at is not None:
                route.append(at[0])
                at = came[at]
            return route[::-1]
        for dx, dy in STEPS:
            cell = (x + dx, y + dy)
            after = (cell, held | keys.get(cell, 0))
            if _is_free(state, *cell) and not locks.get(cell, 0) & ~held and after not in came:
                came[after] = node
                queue.append(after)
    return [start[0]]
