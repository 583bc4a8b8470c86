"""Ninja: searches the path to the mushroom in a copy of the ninja's physics, over fire and around bombs.

Where bombs leave no way, a star is thrown at one from a safe distance.
"""

import numpy as np

from lapo_cli.core.envs.procgen_planners.grids import NOOP, move_action
from lapo_cli.core.envs.procgen_planners.planner import Bot
from lapo_cli.core.envs.procgen_planners.platformer_physics import (
    Bools,
    Cells,
    Floats,
    Ints,
    Things,
    run,
    slide,
    supported,
)
from lapo_cli.core.envs.procgen_planners.routes import Level, RouteBot
from lapo_cli.core.envs.procgen_planners.state import GameState

_GOAL, _BOMB, _STAR, _FIRE, _WALL, _EXPLOSION = 1, 6, 7, 14, 20, 54
_R = 0.5
_JUMP, _GRAVITY = map(np.float32, (1.25, 0.2))
_MIX = 0.5
_THROWS = (9, 10, 11, 12)
_ANGLES = np.radians([0, 45, 90, -45])  # of the throws above straight ahead
_STAR_R = 0.25
_FLIGHT = np.arange(0.25, 14, 0.25)
_RANGE = 4  # cells from which a bomb is hit safely
_BLAST, _BLAST_STEPS = 2.7, 6


class _Level(Level):
    """Bodies also know how far their jump is charged: it starts when UP is let go."""

    def __init__(self, state: GameState) -> None:
        grid = state.grid
        danger = (grid == _BOMB) | (grid == _FIRE)
        super().__init__(state, (grid != _WALL) & ~danger, state.entities[state.entities["type"] == _GOAL][0])
        self.body = np.append(self.body, np.frombuffer(state.rest, "<f4", 1, 24))
        self._walls = Cells(grid == _WALL, beyond=True)
        kinds = state.entities["type"]
        self._thrown = bool((kinds == _STAR).any())
        self._blasts = Things(state.entities[kinds == _EXPLOSION])
        self._bombs = Cells(grid == _BOMB, beyond=False)
        self._danger = Cells(danger, beyond=False)

    def step(self, bodies: Floats, actions: Ints, steps: Ints) -> tuple[Floats, Bools]:
        x, y, vx, vy, charge = bodies
        support = supported(x, y, _R, _R, self._walls)
        push, up = actions // 3 - 1, (actions % 3 == 2) & support
        jump = ~up & support & (charge > 0)
        vx = run(vx, push, support, _MIX)
        vy = np.where(jump, _JUMP, np.where(~support & (vy > -2), vy - _GRAVITY, vy))
        x, y, vx, vy = slide(x, y, vx, vy, _R, _R, self._walls, up, push)
        lost = self._danger.under(x, y, _R, _R)
        lost |= self._blasts.touched(x, y, _BLAST, _BLAST, steps) & (steps < _BLAST_STEPS)
        return np.stack([x, y, vx, vy, up.astype(np.float32)]), lost

    def keys(self, bodies: Floats, steps: Ints) -> Ints:
        keys: Ints = super().keys(bodies, steps) * 2 + bodies[4].astype(np.int64)
        return keys

    def fallbacks(self, bodies: Floats) -> Bools:
        if self._thrown:
            return np.arange(bodies.shape[1]) < 1
        x, y, vx = bodies[:3]
        stands = supported(x, y, _R, _R, self._walls)
        aims = stands.copy()
        aims[stands] = self._aims(x[stands], y[stands], np.where(vx[stands] < 0, -1, 1)).any(1)
        return aims if aims.any() else stands

    def fallback_action(self, state: GameState) -> int:
        if self._thrown:
            return NOOP
        ahead = -1 if state.player["reflected"] else 1
        for side in (ahead, -ahead):
            aims = self._aims(self.body[:1], self.body[1:2], np.array([side]))[0]
            if aims.any():
                return _THROWS[int(aims.argmax())] if side == ahead else move_action(side, 0)
        return NOOP

    def _aims(self, x: Floats, y: Floats, ahead: Ints) -> Bools:
        """(N, throws): which throws from each body hit a bomb that is not too near."""
        along = np.stack([np.cos(_ANGLES), np.sin(_ANGLES)]) * _FLIGHT[:, None, None]
        far_x = x[:, None, None] + ahead[:, None, None] * along[:, 0]
        far_y = y[:, None, None] + along[:, 1]
        bomb, wall = (cells.under(far_x, far_y, _STAR_R, _STAR_R) for cells in (self._bombs, self._walls))
        first = (bomb | wall).argmax(1)
        hit: Bools = np.take_along_axis(bomb, first[:, None], 1)[:, 0] & (_FLIGHT[first] >= _RANGE)
        return hit


def make_bot(state: GameState, rng: np.random.Generator) -> Bot:
    """A bot for one level."""
    return RouteBot(_Level)
