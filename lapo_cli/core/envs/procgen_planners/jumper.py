"""Jumper: searches the path to the carrot in a copy of the bunny's physics, double jumps and spikes included."""

import struct

import numpy as np

from lapo_cli.core.envs.procgen_planners.planner import Bot
from lapo_cli.core.envs.procgen_planners.platformer_physics import Bools, Cells, Floats, Ints, Things, slide, supported
from lapo_cli.core.envs.procgen_planners.routes import Level, RouteBot
from lapo_cli.core.envs.procgen_planners.state import SPACE, GameState

_GOAL, _SPIKE = 1, 2
_RX, _RY = 0.254, 0.4
_SPEED, _JUMP, _GRAVITY, _MIX = map(np.float32, (0.5, 1, 0.15, 0.5))
_COOLDOWN = 3  # steps between jumps
_SAFETY = 0.05


class _Level(Level):
    """Bodies also know how many jumps they have left and how many steps ago they jumped."""

    def __init__(self, state: GameState) -> None:
        free, kinds = state.grid == SPACE, state.entities["type"]
        super().__init__(state, free, state.entities[kinds == _GOAL][0])
        jumps, _, jumped = struct.unpack_from("<3i", state.rest)
        self.body = np.append(self.body, np.array([jumps, min(state.time - jumped, _COOLDOWN)], np.float32))
        self._walls = Cells(~free, beyond=True)
        self._spikes = Things(state.entities[kinds == _SPIKE])

    def step(self, bodies: Floats, actions: Ints, steps: Ints) -> tuple[Floats, Bools]:
        x, y, vx, vy, jumps, waited = bodies
        push = actions // 3 - 1
        jumps = np.where(supported(x, y, _RX, _RY, self._walls), 2, jumps)
        jump = (actions % 3 == 2) & (jumps > 0) & (waited >= _COOLDOWN)
        vx = (1 - _MIX) * vx + _MIX * _SPEED * push.astype(np.float32)
        vy = np.where(jump, _JUMP, vy)
        x, y, vx, vy = slide(x, y, vx, vy, _RX, _RY, self._walls, jump, push)
        vy = np.where(vy > -2, vy - _GRAVITY, vy)
        waited = np.where(jump, 0, np.minimum(waited + 1, _COOLDOWN))
        lost = self._spikes.touched(x, y, _RX + _SAFETY, _RY + _SAFETY, steps)
        return np.stack([x, y, vx, vy, jumps - jump, waited]), lost

    def keys(self, bodies: Floats, steps: Ints) -> Ints:
        keys: Ints = (super().keys(bodies, steps) * 4 + bodies[4].astype(np.int64)) * 2 + (bodies[5] >= _COOLDOWN)
        return keys


def make_bot(state: GameState, rng: np.random.Generator) -> Bot:
    """A bot for one level."""
    return RouteBot(_Level)
