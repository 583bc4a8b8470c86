"""BossFight: stay below the boss, out of the way of bullets and rocks, and shoot whenever its shields are down.

Each step looks at what everything in sight will have moved to, and chooses among glides: the longest safe one, of
these the one that shoots the boss soonest.
"""

import numpy as np

from lapo_cli.core.envs.procgen_planners.planner import Bot
from lapo_cli.core.envs.procgen_planners.state import GameState
from lapo_cli.core.envs.procgen_planners.trajectories import (
    FIRE,
    NOOP,
    Glides,
    best_plan,
    holds,
    position,
    safe_steps,
    touches,
    velocity,
)

_BOSS, _BULLET, _BARRIER = 2, 4, 7
_SIZE = 20
_SHOT_REACH = 0.25
_RELOAD = 3  # steps from shot to shot
_GLIDES = Glides(0.85, _SIZE, 20, holds(1, 2, 3, 5, 8, 13))
_DISCOUNT = 0.9
_SAFETY = 10.0  # worth of a step without a collision
_BELOW = 1.5  # cells sideways that still count as below the boss
_STRAYING = 0.1 / _SIZE  # per cell away from the place below the boss
_LAST_SHOT, _SHIELDS = -24, -11  # among the counters of ``BossfightGame::serialize``
_KEEP = 0.005  # value of continuing the present action
_MARGIN = 0.05


class BossFightBot:
    """Chooses among glides."""

    def act(self, state: GameState) -> int:
        """The first action of the best glide, or fire."""
        things = state.entities
        paths = _GLIDES.paths(state.player)
        barriers = things[things["type"] == _BARRIER]
        dangers = things[np.isin(things["type"], (_BOSS, _BULLET, _BARRIER))]
        safe = safe_steps(touches(paths, state.player, dangers, _MARGIN).any(axis=2))

        boss = things[things["type"] == _BOSS][0]
        counters = np.frombuffer(state.rest, "<i4")
        last_shot, shields = int(counters[_LAST_SHOT]), bool(counters[_SHIELDS])
        ready = max(last_shot + _RELOAD - state.time, 1)

        # Where the boss will be when a shot gets there.
        times = _GLIDES.times
        ahead = position(boss) + velocity(boss) * times[:, None]
        flight = np.maximum(ahead[:, 1] - boss["ry"] - paths[..., 1], 0) / (1 - velocity(boss)[1])
        gap = np.abs(ahead[:, 0] + boss["vx"] * flight - paths[..., 0])
        lane = barriers["rx"] + _SHOT_REACH + _MARGIN
        blocked = (np.abs(paths[..., :1] - barriers["x"]) < lane) & (paths[..., 1:] < barriers["y"])
        clear = (gap < boss["rx"] - 2 * _SHOT_REACH) & ~blocked.any(axis=2) & (times <= safe[:, None])
        worth = np.where(clear & (times >= ready) & (times > _GLIDES.length[:, None]), _DISCOUNT**times, 0)
        if shields:
            worth[:] = 0
        score = safe * _SAFETY + worth.max(axis=1) - _STRAYING * (np.maximum(gap[:, -1] - _BELOW, 0) + paths[:, -1, 1])
        best = best_plan(_GLIDES, score, state.last_action, _KEEP)
        if _GLIDES.actions[best] == NOOP and worth[best, 0] > 0:
            return FIRE
        return int(_GLIDES.actions[best])


def make_bot(state: GameState, rng: np.random.Generator) -> Bot:
    """A bot for one level."""
    return BossFightBot()
