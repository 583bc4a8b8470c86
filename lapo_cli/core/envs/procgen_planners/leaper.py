"""Leaper: crosses road and river along the quickest way found by a search over hops and waits.

Cars and logs are taken to drive on as they do. The plan in hand is kept while it holds against what has turned up
since; it keeps clear of cars, of the edges where they come in and of the ends of logs where it can.
"""

import heapq
import struct
from collections import deque
from dataclasses import dataclass
from itertools import islice

import numpy as np

from lapo_cli.core.envs.procgen_planners.grids import NOOP, cell_of, move_action
from lapo_cli.core.envs.procgen_planners.planner import Bot
from lapo_cli.core.envs.procgen_planners.state import GameState

_LOG, _WATER, _CAR, _FINISH = 1, 3, 4, 5
_HOP = (0.4, 0.3, 0.2, 0.1, 0.0)  # cells per step: a hop is one cell long, and only at its end another may begin
_RADIUS = 0.4
_CAR_REACH = (0.9, 0.65)  # distances at which a car runs over the frog
_LOG_REACH = 0.45  # distance up to which it stands on a log
_ENTRY = 0.65  # distance from the edge at which a car that turns up there runs over the frog
_MOVES = ((0, 1), (0, 0), (-1, 0), (1, 0), (0, -1))
_HORIZON = 160  # steps
_NODES = 3000
_PATIENCE = 5  # moves after which to look again for a way where there was none


@dataclass(frozen=True)
class _Scene:
    """The rows when a plan begins.

    Attributes:
        width: of the screen.
        water: the rows of the river.
        speeds: of each row of the road.
        cars: by row, as (x, velocity).
        logs: by row, as (x, velocity).
        care: by how much cars are widened and logs narrowed; where it is 0 nothing is feared from beyond the edges.
    """

    width: int
    water: frozenset[int]
    speeds: dict[int, float]
    cars: dict[int, list[tuple[float, float]]]
    logs: dict[int, list[tuple[float, float]]]
    care: float


@dataclass(frozen=True, order=True)
class _Frog:
    """At rest in a row at a time."""

    time: int
    row: int
    x: float


def make_bot(state: GameState, rng: np.random.Generator) -> Bot:
    """A bot for one level."""
    return _Leaper()


class _Leaper:
    def __init__(self) -> None:
        self._plan: deque[tuple[int, int]] = deque()

    def act(self, state: GameState) -> int:
        player = state.player
        if player["vx"] or player["vy"]:
            return move_action(player["vx"], player["vy"])
        (goal,) = [cell_of(entity)[1] for entity in state.entities if entity["type"] == _FINISH]
        frog = _Frog(0, cell_of(player)[1], float(player["x"]))
        for care in (0.2, 0.1, 0.0):
            scene = _scene(state, care)
            if not (self._plan and _holds(scene, frog, self._plan)):
                self._plan = _search(scene, frog, goal)
            if self._plan:
                break
        return move_action(*self._plan.popleft()) if self._plan else NOOP


def _scene(state: GameState, care: float) -> _Scene:
    width = state.grid.shape[1]
    rows: dict[int, dict[int, list[tuple[float, float]]]] = {_CAR: {}, _LOG: {}}
    for entity in state.entities:
        kind, x, speed = int(entity["type"]), float(entity["x"]), float(entity["vx"])
        # Those that have left the screen stay in the state for good.
        if kind in rows and (x < width + 1 if speed > 0 else x > -1):
            rows[kind].setdefault(cell_of(entity)[1], []).append((x, speed))
    water = frozenset(np.flatnonzero(state.grid[:, 0] == _WATER).tolist())
    bottom, lanes = struct.unpack_from("<ii", state.rest)
    speeds = dict(enumerate(struct.unpack_from(f"<{lanes}f", state.rest, 8), bottom))
    return _Scene(width, water, speeds, rows[_CAR], rows[_LOG], care)


def _holds(scene: _Scene, frog: _Frog, plan: deque[tuple[int, int]]) -> bool:
    at: _Frog | None = frog
    for move in plan:
        at = _advance(scene, at, *move) if at else None
    return at is not None


def _search(scene: _Scene, start: _Frog, goal: int) -> deque[tuple[int, int]]:
    """The moves of the quickest path to the goal's row; if there is none, the first few of the longest that lives."""
    queue = [(len(_HOP) * (goal - start.row), 0, start)]
    came: dict[_Frog, tuple[_Frog, tuple[int, int]] | None] = {start: None}
    seen = set()
    last = start
    for order in range(_NODES):
        if not queue:
            break
        _, _, frog = heapq.heappop(queue)
        if frog.row == goal:
            last = frog
            break
        place = (frog.time, frog.row, round(5 * frog.x))
        if place in seen or frog.time > _HORIZON:
            continue
        seen.add(place)
        last = max(last, frog)
        for number, (dx, dy) in enumerate(_MOVES):
            after = _advance(scene, frog, dx, dy)
            if after is not None and after not in came:
                came[after] = frog, (dx, dy)
                left = len(_HOP) * (goal - after.row)
                heapq.heappush(queue, (after.time + left, order * len(_MOVES) + number, after))
    plan: deque[tuple[int, int]] = deque()
    link = came[last]
    while link is not None:
        plan.appendleft(link[1])
        link = came[link[0]]
    return plan if last.row == goal else deque(islice(plan, _PATIENCE))


def _advance(scene: _Scene, frog: _Frog, dx: int, dy: int) -> _Frog | None:
    """The frog after a hop, or after a wait of one step; None where it does not live."""
    x, y, time = frog.x, frog.row + _RADIUS, frog.time
    if y + dy < 0:
        return None
    for part in _HOP if dx or dy else (0.0,):
        time += 1
        x, y = x + part * dx, y + part * dy
        carried = 0.0
        afloat = False
        for row in (frog.row, frog.row + dy):
            above = abs(y - row - 0.5)
            if above < _CAR_REACH[1]:
                speed = scene.speeds.get(row, 0.0)
                # A car may come in at any time, and be here before the frog has crossed the lane.
                if scene.care and speed and (x if speed > 0 else scene.width - x) < _ENTRY + 6 * abs(speed):
                    return None
                for car, speed in scene.cars.get(row, ()):
                    if abs(car + speed * time - x) < _CAR_REACH[0] + scene.care:
                        return None
            if above < _LOG_REACH:
                for log, speed in scene.logs.get(row, ()):
                    if abs(log + speed * time - x) < _LOG_REACH - scene.care:
                        afloat = True
                        carried = speed
        x += carried
        if not _RADIUS <= x <= scene.width - _RADIUS:
            return None
    if frog.row + dy in scene.water and not afloat:
        return None
    return _Frog(time, frog.row + dy, x)
