"""StarPilot: fly to where a shot hits a ship that still needs one, shoot, and keep clear of ships and bullets.

Each step looks at where everything in sight is going, and chooses among glides: the longest safe one, of these the one
that gets to shoot soonest. When no ship is left it flies to the finish.
"""

import numpy as np
from numpy.typing import NDArray

from lapo_cli.core.envs.procgen_planners.planner import Bot
from lapo_cli.core.envs.procgen_planners.state import GameState
from lapo_cli.core.envs.procgen_planners.trajectories import (
    FIRE,
    NOOP,
    Floats,
    Glides,
    best_plan,
    holds,
    position,
    safe_steps,
    touches,
    velocity,
)

_SHOT, _BULLET, _FLYER, _FINISH = 1, 2, 4, 9
_SIZE = 16
_SHOT_REACH = 0.4  # of a shot, and how far before the agent's middle it starts
_SHOT_SPEED = 0.8
_GLIDES = Glides(0.75, _SIZE, 20, holds(1, 2, 3, 5, 8, 13))
_DISCOUNT = 0.9
_SAFETY = 10.0  # worth of a step without a collision
_KEEP = 0.005  # value of continuing the present action
_AIM = 0.1  # how much closer than need be a shot is aimed
_STRAYING = 0.001  # per cell away from home
_MARGIN = 0.15
_HOME = np.array([6.0, 8.0])


class StarPilotBot:
    """Chooses among glides."""

    def act(self, state: GameState) -> int:
        """The first action of the best glide, or fire."""
        things = state.entities
        ships = things[things["type"] == _FLYER]
        paths = _GLIDES.paths(state.player)
        need, doom = _left_to_shoot(ships, things[things["type"] == _SHOT])
        hits = (touches(paths, state.player, ships, _MARGIN) & (_GLIDES.times[:, None] <= doom)).any(axis=2)
        hits |= touches(paths, state.player, things[things["type"] == _BULLET], _MARGIN).any(axis=2)
        safe = safe_steps(hits)

        starts = paths + np.array([_SHOT_REACH, 0])
        ahead = position(ships) + velocity(ships) * _GLIDES.times[:, None, None]
        meets = _meeting(starts[:, :, None], ahead, ships, _AIM)
        meets[:, :, need <= 0] = np.inf
        worth = np.isfinite(meets).any(axis=2) * _DISCOUNT**_GLIDES.times
        worth[(_GLIDES.times <= _GLIDES.length[:, None]) | (_GLIDES.times > safe[:, None])] = 0

        over = (things["type"] == _FINISH).any() and not len(ships)
        goal = np.array([_SIZE, state.player["y"]]) if over else _HOME
        away = np.abs(paths[:, -1] - goal).sum(axis=1)
        score = safe * _SAFETY + worth.max(axis=1) - _STRAYING * away
        best = best_plan(_GLIDES, score, state.last_action, _KEEP)
        if _GLIDES.actions[best] == NOOP and worth[best, 0] > 0:
            return FIRE
        return int(_GLIDES.actions[best])


def _meeting(starts: Floats, targets: Floats, ships: NDArray[np.void], margin: float) -> Floats:
    """After how many steps shots from ``starts`` meet ships at ``targets``, infinite where they pass."""
    gap = targets - starts
    closing = _SHOT_SPEED - ships["vx"]
    reach = _SHOT_REACH + ships["rx"] - margin
    enter = np.maximum((gap[..., 0] - reach) / closing, 0)
    leave = (gap[..., 0] + reach) / closing
    low = gap[..., 1] + ships["vy"] * enter
    high = gap[..., 1] + ships["vy"] * leave
    y_in = (np.abs(low) < reach) | (np.abs(high) < reach)
    meet: Floats = np.where(y_in & (leave > 0), enter, np.inf)
    # Off the screen nothing is hit.
    where = targets + velocity(ships) * np.where(np.isfinite(meet), meet, 0)[..., None]
    meet[(where[..., 0] > _SIZE) | (where[..., 1] > _SIZE) | (where[..., 1] < 0)] = np.inf
    return meet


def _left_to_shoot(ships: NDArray[np.void], shots: NDArray[np.void]) -> tuple[Floats, Floats]:
    """Hits (E,) each ship needs beyond the shots under way, and when (E,) it will be gone by those."""
    need = ships["health"].astype(np.float64)
    doom = np.full(len(ships), np.inf)
    meets = _meeting(position(shots)[:, None], position(ships), ships, 0.0)
    for meet in meets[np.argsort(meets.min(axis=1, initial=np.inf))]:
        meet = np.where(need > 0, meet, np.inf)
        if np.isfinite(meet).any():
            ship = int(meet.argmin())
            need[ship] -= 1
            if need[ship] <= 0:
                doom[ship] = meet[ship] + 1
    return need, doom


def make_bot(state: GameState, rng: np.random.Generator) -> Bot:
    """A bot for one level."""
    return StarPilotBot()
