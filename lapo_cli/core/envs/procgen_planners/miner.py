"""Miner: digs its way to every diamond and then to the exit, by best-first search in an exact model of the mine.

The model lets boulders and diamonds fall, roll and be pushed as the game does, so no boulder takes it by surprise. In
the few levels where a diamond cannot be reached it gathers what it can and then lets a boulder end the level.
"""

import heapq
from collections import deque
from dataclasses import dataclass
from itertools import pairwise, permutations

import numpy as np

from lapo_cli.core.envs.procgen_planners.grids import NOOP, STEPS, cell_of, move_action
from lapo_cli.core.envs.procgen_planners.planner import Bot
from lapo_cli.core.envs.procgen_planners.state import SPACE, GameState

_BOULDER, _DIAMOND, _MOVING_BOULDER, _MOVING_DIAMOND, _EXIT, _DIRT = 1, 2, 3, 4, 6, 9
_AT_REST = {_BOULDER: _BOULDER, _MOVING_BOULDER: _BOULDER, _DIAMOND: _DIAMOND, _MOVING_DIAMOND: _DIAMOND}
_FALLING = {_BOULDER: _MOVING_BOULDER, _DIAMOND: _MOVING_DIAMOND}
_DUG = bytes(SPACE if cell == _DIRT else cell for cell in range(256))
_MOVES = (*STEPS, (0, 0))
_NODES = 8000
_TURN = 0.01  # steps that another action than the one before costs
_GREED = 1.5  # weight of the way that is left: above 1 the search is quicker and the plan may be a little longer


@dataclass(frozen=True, slots=True)
class _Mine:
    """Cells by index, row by row from the bottom, and the index the agent is at."""

    cells: bytes
    agent: int


_Link = tuple[_Mine, int]  # a mine and the action taken in it


def make_bot(state: GameState, rng: np.random.Generator) -> Bot:
    """A bot for one level."""
    return _Miner()


class _Miner:
    def __init__(self) -> None:
        self._plan: deque[_Link] = deque()

    def act(self, state: GameState) -> int:
        width = state.grid.shape[1]
        x, y = cell_of(state.player)
        mine = _Mine(state.grid.astype(np.uint8).tobytes(), y * width + x)
        if not self._plan or self._plan[0][0] != mine:
            ((x, y),) = [cell_of(entity) for entity in state.entities if entity["type"] == _EXIT]
            self._plan = _search(mine, width, y * width + x)
        return self._plan.popleft()[1] if self._plan else NOOP


def _search(start: _Mine, width: int, leave: int) -> deque[_Link]:
    """The mines and actions from the start to the exit; failing that, through most diamonds to an end."""
    came: dict[_Mine, _Link | None] = {start: None}
    costs = {start: 0.0}
    # Ways that dug other dirt but moved the same stones count as one: there are very many, and they differ little.
    known = {_key(start): 0.0}
    crushed: _Link | None = None
    fewest = len(start.cells)
    queue = [(0.0, 0, start)]
    for order in range(_NODES):
        if not queue:
            break
        _, _, mine = heapq.heappop(queue)
        diamonds, way = _left_over(mine, width, leave)
        if diamonds == way == 0:
            return _trace(came, came[mine])
        for number, (dx, dy) in enumerate(_MOVES):
            after = _advance(mine, width, dx, dy)
            link = mine, move_action(dx, dy)
            if after is None:
                if diamonds < fewest:
                    crushed, fewest = link, diamonds
                continue
            # The exit is closed until all diamonds are gathered, but for the first step: it would end the level.
            if after.agent == leave and diamonds and mine is start:
                continue
            last = came[mine]
            cost = costs[mine] + 1 + _TURN * (last is not None and last[1] != link[1])
            if cost < known.get(_key(after), _NODES):
                known[_key(after)] = costs[after] = cost
                came[after] = link
                left = sum(_left_over(after, width, leave))
                heapq.heappush(queue, (cost + _GREED * left, order * len(_MOVES) + number, after))
    return _trace(came, crushed)


def _trace(came: dict[_Mine, _Link | None], link: _Link | None) -> deque[_Link]:
    plan: deque[_Link] = deque()
    while link is not None:
        plan.appendleft(link)
        link = came[link[0]]
    return plan


def _key(mine: _Mine) -> _Mine:
    return _Mine(mine.cells.translate(_DUG), mine.agent)


def _left_over(mine: _Mine, width: int, leave: int) -> tuple[int, int]:
    """How many diamonds are left, and the steps of the shortest tour of them to the exit if nothing were in the way."""
    diamonds = [index for index, cell in enumerate(mine.cells) if cell in (_DIAMOND, _MOVING_DIAMOND)]
    tours = ((mine.agent, *order, leave) for order in permutations(diamonds))
    return len(diamonds), min(sum(_steps(a, b, width) for a, b in pairwise(tour)) for tour in tours)


def _steps(a: int, b: int, width: int) -> int:
    return abs(a % width - b % width) + abs(a // width - b // width)


def _advance(mine: _Mine, width: int, dx: int, dy: int) -> _Mine | None:
    """The mine a step later, as in the game's ``game_step``; None where the agent is killed."""
    cells = bytearray(mine.cells)
    agent = mine.agent
    target = agent + dx + dy * width
    if 0 <= agent % width + dx < width and 0 <= target < len(cells):
        if cells[target] not in (_BOULDER, _MOVING_BOULDER):
            agent = target
        elif dx and cells[target] == _BOULDER and 0 <= agent % width + 2 * dx < width and cells[target + dx] == SPACE:
            cells[target], cells[target + dx] = SPACE, _BOULDER
            agent = target
    if cells[agent] in (_DIRT, _DIAMOND):
        cells[agent] = SPACE

    def open_at(index: int) -> bool:
        return cells[index] == SPACE and index != agent

    for index in range(len(cells)):
        cell = cells[index]
        if cell not in _AT_REST:
            continue
        at_rest = _AT_REST[cell]
        below = index - width
        if below < 0:
            cells[index] = at_rest
        elif open_at(below):
            cells[index] = SPACE
            cells[below] = _FALLING[at_rest]
        elif below == agent and cell != at_rest:
            return None
        elif cells[below] not in _AT_REST:
            cells[index] = at_rest
        elif index % width > 0 and open_at(index - 1) and open_at(below - 1):
            cells[index] = SPACE
            cells[index - 1] = at_rest
        elif index % width < width - 1 and open_at(index + 1) and open_at(below + 1):
            cells[index] = SPACE
            cells[index + 1] = at_rest
        else:
            cells[index] = at_rest
    return _Mine(bytes(cells), agent)
