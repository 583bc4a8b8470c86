"""Climber: from crystal to crystal, lowest first; the way is searched in a copy of the physics, patrols included."""

import numpy as np

from lapo_cli.core.envs.procgen_planners.planner import Bot
from lapo_cli.core.envs.procgen_planners.platformer_physics import (
    Bools,
    Cells,
    Floats,
    Ints,
    Things,
    patrols,
    run,
    slide,
    supported,
)
from lapo_cli.core.envs.procgen_planners.routes import Level, RouteBot
from lapo_cli.core.envs.procgen_planners.state import SPACE, GameState

_CRYSTAL, _ENEMY, _SIDE_WALL = 1, 5, 15
_R = 0.5
_JUMP, _GRAVITY = map(np.float32, (1.5, 0.2))
_MIX = 0.5
_BEAT = 4.0
_SAFETY = 0.1


class _Level(Level):
    def __init__(self, state: GameState) -> None:
        free, kinds = state.grid == SPACE, state.entities["type"]
        crystals = state.entities[kinds == _CRYSTAL]
        super().__init__(state, free, crystals[crystals["y"].argmin()])
        self._walls = Cells(~free, beyond=True)
        enemies = state.entities[kinds == _ENEMY]
        rough = Cells(state.grid == _SIDE_WALL, beyond=True)
        self._enemies = Things(enemies, patrols(enemies, self._walls, rough, _BEAT))
        self._timed = len(enemies) > 0

    def step(self, bodies: Floats, actions: Ints, steps: Ints) -> tuple[Floats, Bools]:
        x, y, vx, vy = bodies
        support = supported(x, y, _R, _R, self._walls)
        push, up = actions // 3 - 1, (actions % 3 == 2) & support
        vx = run(vx, push, support, _MIX)
        vy = np.where(up, _JUMP, np.where(~support & (vy > -2), vy - _GRAVITY, vy))
        x, y, vx, vy = slide(x, y, vx, vy, _R, _R, self._walls, up, push)
        return np.stack([x, y, vx, vy]), self._enemies.touched(x, y, _R + _SAFETY, _R + _SAFETY, steps)

    def keys(self, bodies: Floats, steps: Ints) -> Ints:
        return super().keys(bodies, steps) * 16 + steps // 8 * self._timed


def make_bot(state: GameState, rng: np.random.Generator) -> Bot:
    """A bot for one level."""
    return RouteBot(_Level)
