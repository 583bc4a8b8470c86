"""FruitBot: the robot is carried upwards, so a plan is a path sideways through all that can be seen above it.

Paths grow a move at a time; of those that come to about the same place and speed the best is kept. A path gains by
fruit and by two presents touched at once, loses by other food and by steering, and as good as ends at walls.
"""

import numpy as np
from numpy.typing import NDArray

from lapo_cli.core.envs.procgen_planners.kinematics import next_velocity, slide
from lapo_cli.core.envs.procgen_planners.planner import Bot
from lapo_cli.core.envs.procgen_planners.state import GameState

_BARRIER, _BAD, _GOOD, _PRESENT = 1, 4, 7, 12
_REWARD = {_BARRIER: -100.0, _BAD: -4.0, _GOOD: 1.0, _PRESENT: 10.0}
_WIDTH = 10.0
_GOAL = 59.0
_MAX_SPEED = 0.85
_CLIMB = np.array([0.2])  # the push upwards, whatever the action
_SIGHT = 9.2

_HOLD = 2  # steps a move is held
_COMMIT = 8  # steps of a path that are followed before planning again
_MARGIN = 0.6  # distance that it is good to keep
_RISK = {_BARRIER: 0.2, _BAD: 0.04, _GOOD: 0.0, _PRESENT: 0.0}  # cost of a step without any distance
_GRAZE = 0.2  # cost of touching a thing less than _DEPTH deep: fruit is to be met squarely
_DEPTH = 0.25
_STEERING = 0.01
_TURNING = 0.06
_HOPELESS = 20.0  # paths as much worse than the best are given up
_NOOP = 4
_PUSHES = np.array([0, -1, 1])


class FruitBot:
    """Steers along the best path in sight."""

    def __init__(self) -> None:
        self._plan: list[int] = []
        self._done = _NOOP

    def act(self, state: GameState) -> int:
        """The next action of the present path, or of a new one."""
        if not self._plan or self._done != state.last_action:
            self._plan = _plan(state)[:_COMMIT]
        self._done = self._plan.pop(0)
        return self._done


def _plan(state: GameState) -> list[int]:
    player, things = state.player, state.entities
    things = things[np.isin(things["type"], list(_REWARD)) & (things["y"] < player["y"] + _SIGHT)]
    things_x, things_y = things["x"].astype(float), things["y"].astype(float)
    reach_x, reach_y = things["rx"] + player["rx"], things["ry"] + player["ry"]
    rewards = np.array([_REWARD[kind] for kind in things["type"]])
    risks = np.array([_RISK[kind] for kind in things["type"]])
    low, high = float(player["rx"]), _WIDTH - float(player["rx"])
    y, vy = float(player["y"]), np.array([player["vy"]], float)
    x, vx = np.array([player["x"]], float), np.array([player["vx"]], float)
    score, last = np.zeros(1), np.array([_push(state)])
    touched = np.zeros((1, len(things)), np.bool_)
    moves: list[tuple[NDArray[np.int64], NDArray[np.int64]]] = []
    top = min(y + _SIGHT, _GOAL)
    while y < top:
        parent = np.repeat(np.arange(len(x)), 3)
        push = np.tile(_PUSHES, len(x))
        x, vx, touched = x[parent], vx[parent], touched[parent]
        score = score[parent] - _STEERING * (push != 0) - _TURNING * (push != last[parent])
        for _ in range(_HOLD):
            vy = next_velocity(vy, _CLIMB, _MAX_SPEED)
            y += float(vy[0])
            x, vx = slide(x, vx, push, _MAX_SPEED, low, high)
            gap_y = np.abs(things_y - y) - reach_y
            near = np.flatnonzero(gap_y < _MARGIN)
            gap = np.abs(x[:, None] - things_x[near]) - reach_x[near]
            score -= (1 - np.minimum(np.maximum(gap, 0), _MARGIN) / _MARGIN) @ risks[near]
            hit = (gap < 0) & (gap_y[near] < 0) & ~touched[:, near]
            score += hit @ rewards[near] - _GRAZE * (hit & (gap > -_DEPTH)).sum(1)
            touched[:, near] |= hit
        # Later entries overwrite earlier ones, so that each cell of place and speed keeps its best path.
        order = np.argsort(score, kind="stable")
        cells = np.full(8 * 34, -1)
        cells[(np.rint(x / 0.3) * 8 + np.rint(vx / 0.4) + 4).astype(np.int64)[order]] = order
        best = cells[cells >= 0]
        best = best[score[best] > score.max() - _HOPELESS]
        x, vx, score, last, touched = x[best], vx[best], score[best], push[best], touched[best]
        moves.append((parent[best], last))
    path = int(score.argmax())
    plan: list[int] = []
    for parents, pushes in reversed(moves):
        plan = [int(pushes[path]) * 3 + _NOOP] * _HOLD + plan
        path = int(parents[path])
    return plan or [_NOOP]


def _push(state: GameState) -> int:
    """The push sideways at the last step."""
    return state.last_action // 3 - 1 if state.time > 0 and state.last_action < 9 else 0


def make_bot(state: GameState, rng: np.random.Generator) -> Bot:
    """A bot for one level."""
    return FruitBot()
