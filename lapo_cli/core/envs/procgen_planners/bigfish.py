"""BigFish: fish swim straight, so the bot predicts every collision on each of some thousand courses.

A course pushes in one direction after another. It gains by fish no larger than the bot, the sooner the better, and
loses by larger ones, also by close shaves with them, and by lingering at the sides, where new fish come in.
"""

from itertools import product

import numpy as np
from numpy.typing import NDArray

from lapo_cli.core.envs.procgen_planners.kinematics import Floats, courses
from lapo_cli.core.envs.procgen_planners.planner import Bot
from lapo_cli.core.envs.procgen_planners.state import GameState

_FISH = 2
_SIZE = 20.0
_MAX_SPEED = 0.5
_INSIDE = 0.98  # part of a body that must not overlap a wall
_NOOP = 4

_LEGS = (4, 6, 12, 20)  # steps that a course holds one push
_DISCOUNT = 0.97
_BERTHS = {0.0: -8.0, 0.15: -4.0, 0.6: -1.0}  # what coming so close to a larger fish costs; 0 is death
_SIDE = 3.0  # from the sides, where it is not good to linger
_LINGER = -1.6
_STEER = -0.02

# What a course does along one axis, leg by leg and step by step; a whole course is a pair of these.
_PUSHES = np.array(list(product((0, -1, 1), repeat=len(_LEGS))))
_STEPS = np.repeat(_PUSHES, _LEGS, axis=1)
_END = _STEPS.shape[1]
_BITS = 1 << np.arange(_END)
_WORTH = np.append(_DISCOUNT ** np.arange(_END), 0.0)


class BigFish:
    """Follows the first leg of the best course."""

    def __init__(self) -> None:
        self._action = _NOOP
        self._left = 0

    def act(self, state: GameState) -> int:
        """The action of the present leg, or of a new one."""
        player = state.player
        stuck = 3 * _stuck(player["x"], player["rx"]) + _stuck(player["y"], player["ry"])
        if stuck:
            self._action, self._left = _NOOP + stuck, 1
        elif self._left == 0 or state.last_action != self._action:
            self._action, self._left = _best_action(state), _LEGS[0]
        self._left -= 1
        return self._action


def _stuck(at: float, radius: float) -> int:
    """The push that frees a bot of a wall it has grown into: Procgen lets it go only if it pushes against the wall."""
    return int(at + _INSIDE * radius >= _SIZE) - int(at - _INSIDE * radius < 0)


def _best_action(state: GameState) -> int:
    player = state.player
    x = courses(player["x"], player["vx"], _STEPS, _MAX_SPEED, player["rx"], _SIZE - player["rx"])
    y = courses(player["y"], player["vy"], _STEPS, _MAX_SPEED, player["ry"], _SIZE - player["ry"])
    fish = state.entities[state.entities["type"] == _FISH]
    larger = fish["rx"] > player["rx"]
    close = [_first_meeting(fish[larger], player, x, y, berth) for berth in _BERTHS]
    score = sum((cost * _WORTH[first] for first, cost in zip(close, _BERTHS.values(), strict=True)), np.zeros(()))
    for index in np.flatnonzero(~larger):
        meeting = _first_meeting(fish[[index]], player, x, y, 0.0)
        score += _WORTH[np.where(meeting < close[0], meeting, _END)]
    linger = _LINGER * np.maximum(_SIDE + player["rx"] - np.minimum(x, _SIZE - x), 0).mean(1)
    steer = _STEER * ((_PUSHES != 0).sum(1) + (np.diff(_PUSHES) != 0).sum(1))
    score += (linger + steer)[:, None] + steer
    if state.time > 0 and state.last_action < 9:
        score += _STEER * (_PUSHES[:, 0] != state.last_action // 3 - 1)[:, None]
        score += _STEER * (_PUSHES[:, 0] != state.last_action % 3 - 1)
    across, up = divmod(int(score.argmax()), len(y))
    return int(_PUSHES[across, 0]) * 3 + int(_PUSHES[up, 0]) + _NOOP


def _first_meeting(fish: NDArray[np.void], player: np.void, x: Floats, y: Floats, margin: float) -> NDArray[np.int64]:
    """(courses across, courses up): the step at which the bot meets any of the fish, _END where it does not."""
    meetings = np.full((len(x), len(y)), 1 << _END)  # one bit per step
    for one in fish:
        swims = one["x"] + one["vx"] * np.arange(1, _END + 1)
        across = (np.abs(x - swims) < one["rx"] + player["rx"] + margin) @ _BITS
        up = (np.abs(y - one["y"]) < one["ry"] + player["ry"] + margin) @ _BITS
        meetings |= across[:, None] & up
    first: NDArray[np.int64] = np.log2(meetings & -meetings).astype(np.int64)
    return first


def make_bot(state: GameState, rng: np.random.Generator) -> Bot:
    """A bot for one level."""
    return BigFish()
