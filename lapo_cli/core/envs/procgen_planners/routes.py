"""The path to a goal: a best-first search over held actions in a copy of a game's physics, followed to its end."""

import heapq
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lapo_cli.core.envs.procgen_planners.grids import FAR, NOOP, cell_of, distances
from lapo_cli.core.envs.procgen_planners.platformer_physics import Bools, Floats, Ints
from lapo_cli.core.envs.procgen_planners.state import GameState

_BATCH = 48  # bodies that are expanded at once
_BUDGET = 10_000  # bodies expanded before the search settles for the one nearest to the goal
_HEURISTIC_WEIGHT = 2.0  # of the remaining steps against those made: higher is faster, lower finds shorter paths
_SWITCH_COST = 0.5  # cost, in steps, of another action
_TOLERANCE = 0.1  # cells off the route at which it is planned again


class Level(ABC):
    """How a game continues from a state until the agent reaches ``goal``, for many bodies at once.

    Bodies are the columns of an array (D, N), whose first rows are x, y, vx and vy.

    Args:
        state: where it starts.
        free: (height, width), the cells that can be passed.
        goal: what to reach.
    """

    moves: tuple[int, ...] = (7, 1, 4, 8, 2, 5)
    hold = 3
    speed = 0.5

    def __init__(self, state: GameState, free: Bools, goal: np.void) -> None:
        self.body = np.array([state.player[name] for name in ("x", "y", "vx", "vy")], np.float32)
        self._goal = goal
        self._reach_x, self._reach_y = (goal[name] + state.player[name] for name in ("rx", "ry"))
        field = distances(free, [cell_of(goal)])
        self._to_go = np.where(field < FAR, field / self.speed, np.inf)

    @abstractmethod
    def step(self, bodies: Floats, actions: Ints, steps: Ints) -> tuple[Floats, Bools]:
        """Bodies after an action each, ``steps`` after the start, and which of them are lost."""

    def won(self, bodies: Floats) -> Bools:
        """Which bodies touch the goal."""
        near_x, near_y = np.abs(bodies[0] - self._goal["x"]), np.abs(bodies[1] - self._goal["y"])
        near: Bools = (near_x < self._reach_x) & (near_y < self._reach_y)
        return near

    def remaining(self, bodies: Floats) -> NDArray[np.float64]:
        """About how many steps each body has to go; infinite where there is no path."""
        left: NDArray[np.float64] = self._to_go[bodies[1].astype(np.intp), bodies[0].astype(np.intp)]
        return left

    def keys(self, bodies: Floats, steps: Ints) -> Ints:
        """Bodies of the same key are treated as the same."""
        x, y, vx, vy = np.rint(bodies[:4] * np.array([[4], [4], [4], [3]])).astype(np.int64)
        key: Ints = ((x * 256 + y) * 8 + vx + 2) * 32 + vy + 12
        return key

    def fallbacks(self, bodies: Floats) -> Bools:
        """Which bodies may be taken instead when no path to the goal is found; the nearest to the goal is."""
        return np.ones(bodies.shape[1], np.bool_)

    def fallback_action(self, state: GameState) -> int:
        """What to do when there is not even a path to such a body."""
        return NOOP


@dataclass(frozen=True)
class Route:
    """Actions, and where they lead after each hold."""

    actions: list[int]
    places: list[tuple[float, float]]


def find_route(level: Level, last_action: int) -> Route:
    """The path to the goal, or the first half of one that leads near it; ``last_action`` is the current action."""
    moves = np.array(level.moves)
    capacity = _BUDGET + _BATCH * len(moves)
    bodies = np.empty((len(level.body), capacity), np.float32)
    parent, action, steps, cost = (np.zeros(capacity, kind) for kind in (int, int, int, float))
    bodies[:, 0], parent[0], action[0] = level.body, -1, last_action
    count = 1
    frontier = [(0.0, 0)]
    seen: set[int] = set()

    def way_to(node: int) -> tuple[list[int], list[tuple[float, float]]]:
        nodes: list[int] = []
        while parent[node] >= 0:
            nodes.insert(0, node)
            node = int(parent[node])
        return (
            [int(action[node]) for node in nodes for _ in range(level.hold)],
            [(float(bodies[0, node]), float(bodies[1, node])) for node in nodes],
        )

    while frontier and count < _BUDGET:
        grown = [heapq.heappop(frontier)[1] for _ in range(min(_BATCH, len(frontier)))]
        origin, tried = np.repeat(grown, len(moves)), np.tile(moves, len(grown))
        now, price = bodies[:, origin], cost[origin] + _SWITCH_COST * (tried != action[origin])
        alive = np.ones(len(origin), np.bool_)
        for step in range(level.hold):
            now, lost = level.step(now, tried, steps[origin] + step)
            won = level.won(now) & alive
            if won.any():
                best = int(np.where(won, price, np.inf).argmin())
                actions, places = way_to(int(origin[best]))
                return Route(actions + [int(tried[best])] * (step + 1), places)
            alive &= ~lost
        left = np.where(alive, level.remaining(now), np.inf)
        rank = price + _HEURISTIC_WEIGHT * left
        order = rank.argsort(kind="stable")[: np.isfinite(rank).sum()]
        fresh: dict[int, int] = {}
        for lane, key in zip(order.tolist(), level.keys(now[:, order], steps[origin[order]]).tolist(), strict=True):
            if key not in seen:
                seen.add(key)
                fresh[lane] = count + len(fresh)
        if not fresh:
            continue
        lanes, nodes = np.array(list(fresh)), slice(count, count + len(fresh))
        bodies[:, nodes], parent[nodes], action[nodes] = now[:, lanes], origin[lanes], tried[lanes]
        steps[nodes], cost[nodes] = steps[origin[lanes]] + level.hold, price[lanes] + level.hold
        count += len(fresh)
        for lane, node in fresh.items():
            heapq.heappush(frontier, (float(rank[lane]), node))
    reached = bodies[:, :count]
    actions, places = way_to(int(np.where(level.fallbacks(reached), level.remaining(reached), np.inf).argmin()))
    return Route(actions[: (len(actions) + 1) // 2], places)


class RouteBot:
    """Finds a route and follows it; finds another where it ended or when something else happened.

    Args:
        look: the level as it continues from a state.
    """

    def __init__(self, look: Callable[[GameState], Level]) -> None:
        self._look = look
        self._route = Route([], [])
        self._hold = 1
        self._next = 0

    def act(self, state: GameState) -> int:
        """The next action of the current route, or of a new one."""
        if self._next >= len(self._route.actions) or not self._on_route(state):
            level = self._look(state)
            self._route = find_route(level, state.last_action if state.time else NOOP)
            self._hold, self._next = level.hold, 0
            if not self._route.actions:
                self._route = Route([level.fallback_action(state)], [])
        self._next += 1
        return self._route.actions[self._next - 1]

    def _on_route(self, state: GameState) -> bool:
        if self._next and self._route.actions[self._next - 1] != state.last_action:
            return False
        holds, within = divmod(self._next, self._hold)
        if within or not 0 < holds <= len(self._route.places):
            return True
        x, y = self._route.places[holds - 1]
        return bool(max(abs(state.player["x"] - x), abs(state.player["y"] - y)) < _TOLERANCE)
