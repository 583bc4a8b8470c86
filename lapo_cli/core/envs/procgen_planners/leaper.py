"""Leaper: hops ahead where the next lane is clear or a log passes right ahead; else it waits.

What it goes by can be seen in one frame: a lane is clear where no car is near, allowing for the fastest one there is.
On a bank the frog waits by hopping to and fro about the middle of the screen, on the road it gives way to cars by
hopping back. A hop takes five steps, during which the game ignores the actions: those are no-ops, so that only a frog
at rest decides.
"""

import numpy as np
from numpy.typing import NDArray

from lapo_cli.core.envs.procgen_planners.grids import NOOP, cell_of, move_action
from lapo_cli.core.envs.procgen_planners.planner import Bot
from lapo_cli.core.envs.procgen_planners.state import SPACE, GameState

_LOG, _WATER, _CAR = 1, 3, 4
_HOP = 5  # steps
_CAR_SPEED = 0.12  # the highest, in cells per step
_MARGIN = 2.5  # cells from the edges: cars turn up there, logs leave there
_CLEAR = 1.4  # cells to either side of the frog where no car may be
_ON_LOG = 0.3  # distance from the middle of a log at which to hop on to it
_LANDING = 0.35  # the most that it may be when the hop ends
_UP, _DOWN = 5, 3


def make_bot(state: GameState, rng: np.random.Generator) -> Bot:
    """A bot for one level."""
    return _Leaper()


class _Leaper:
    def act(self, state: GameState) -> int:
        player, ground = state.player, state.grid[:, 0]
        if player["vx"] or player["vy"]:
            return NOOP
        row, x, width = cell_of(player)[1], float(player["x"]), state.grid.shape[1]
        ready = _log_passes(state, row, x) if ground[row + 1] == _WATER else _clear(state, row + 1, x, 1)
        if ground[row] == SPACE:
            central = ground[row + 1] == SPACE or _MARGIN <= x <= width - _MARGIN
            return _UP if central and ready and _clear(state, row + 2, x, 2) else move_action(width / 2 - x, 0)
        if ready:
            return _UP
        return _DOWN if not _clear(state, row, x, 1) and _clear(state, row - 1, x, 1) else NOOP


def _lane(state: GameState, kind: int, row: int) -> NDArray[np.void]:
    chosen = (state.entities["type"] == kind) & (state.entities["y"].astype(int) == row)
    things: NDArray[np.void] = state.entities[chosen]
    return things


def _clear(state: GameState, row: int, x: float, hops: int) -> bool:
    """Whether no car of the row can reach the frog there after so many hops and during the next one."""
    cars = _lane(state, _CAR, row)
    ahead = (x - cars["x"]) * np.sign(cars["vx"])
    return not ((ahead > -_CLEAR) & (ahead < _CLEAR + _CAR_SPEED * _HOP * hops)).any()


def _log_passes(state: GameState, row: int, x: float) -> bool:
    """Whether a log of the next row is right ahead, and still will be when a hop ends."""
    logs, own = _lane(state, _LOG, row + 1), _lane(state, _LOG, row)
    carried = own["vx"][np.abs(own["x"] - x).argmin()] if len(own) else 0.0
    off = logs["x"] - x
    return bool(((np.abs(off) < _ON_LOG) & (np.abs(off + _HOP * (logs["vx"] - carried)) < _LANDING)).any())
