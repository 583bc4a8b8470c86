"""Plunder: ships sail in straight lines and cannon balls fly straight up, so what every shot hits can be predicted.

The bot sails to where it can soonest fire a shot that hits a wanted ship, well inside its hull and clear of all
others, fires and looks for the next; while there is none it waits.
"""

import struct

import numpy as np
from numpy.typing import NDArray

from lapo_cli.core.envs.procgen_planners.kinematics import Floats, courses
from lapo_cli.core.envs.procgen_planners.planner import Bot
from lapo_cli.core.envs.procgen_planners.state import GameState

_BALL, _LEGEND, _SHIP = 1, 2, 7
_FIRE = 9
_NOOP = 4
_RELOAD = 3
_MAX_SPEED = 0.85
_BALL_RADIUS = 0.25  # of a ball, which flies a cell a step
_WIDTH = 20.0
_LEFT = 4.0  # the legend's edge

_HORIZON = 60
_LONGEST = 39  # steps of holding a direction, enough to cross the sea
_AIM = 0.5  # how far inside the hull a shot must be, and how far clear of others

# Courses hold a direction for a while and then drift.
_HOLDS = np.concatenate([np.arange(_LONGEST + 1), -np.arange(1, _LONGEST + 1)])
_PUSHES = np.sign(_HOLDS)[:, None] * (np.arange(_HORIZON) < np.abs(_HOLDS)[:, None])


class PlunderBot:
    """Makes for the soonest good shot."""

    def act(self, state: GameState) -> int:
        """Sail, wait or fire."""
        kinds = state.entities["type"]
        ships, balls = state.entities[kinds == _SHIP], state.entities[kinds == _BALL]
        wanted = ships["image_theme"] == state.entities["image_theme"][kinds == _LEGEND][0]
        doomed = _victims(ships, wanted, balls["x"], balls["y"], np.zeros(len(balls)), 0.0)
        afloat = np.isin(np.arange(len(ships)), doomed, invert=True)
        ships, wanted = ships[afloat], wanted[afloat]
        if not wanted.any():
            return _NOOP
        player = state.player
        x = courses(player["x"], player["vx"], _PUSHES, _MAX_SPEED, _LEFT + player["rx"], _WIDTH - player["rx"])
        y = np.full(x.shape, float(player["y"]))
        victims = _victims(ships, wanted, x, y, np.arange(1.0, _HORIZON + 1), _AIM)
        (last_fire,) = struct.unpack_from("<i", state.rest)
        loaded = state.time + 1 + np.arange(_HORIZON) >= last_fire + _RELOAD
        good = ((victims >= 0) & wanted[victims] & (_PUSHES == 0) & loaded).T
        if not good.any():
            return _NOOP
        shot, course = divmod(int(good.argmax()), len(x))
        return _FIRE if shot == 0 else int(_PUSHES[course, 0]) * 3 + _NOOP


def _victims(
    ships: NDArray[np.void], wanted: NDArray[np.bool_], x: Floats, y: Floats, start: Floats, aim: float
) -> NDArray[np.int64]:
    """Index of the ship that each ball, at (x, y) after ``start`` steps, hits first; -1 for none.

    Wanted ships count as narrower by ``aim`` on each side, others as wider.
    """
    first = np.full(x.shape, np.inf)
    victims = np.full(x.shape, -1)
    for index, ship in enumerate(ships):
        reach_x = ship["rx"] + _BALL_RADIUS + (-aim if wanted[index] else aim)
        reach_y = ship["ry"] + _BALL_RADIUS
        enter = np.maximum(np.floor(ship["y"] - reach_y - y) + 1, 1)
        leave = np.ceil(ship["y"] + reach_y - y) - 1
        for step in range(int((leave - enter).max(initial=-1)) + 1):
            at = enter + step
            offset = np.abs(ship["x"] + ship["vx"] * (start + at) - x)
            hit = (at <= leave) & (offset < reach_x) & (at < first)
            first[hit], victims[hit] = at[hit], index
    return victims


def make_bot(state: GameState, rng: np.random.Generator) -> Bot:
    """A bot for one level."""
    return PlunderBot()
