"""CaveFlyer: searches the path to the green ship in a copy of the flight's physics, clear of all other ships."""

import numpy as np

from lapo_cli.core.envs.procgen_planners.planner import Bot
from lapo_cli.core.envs.procgen_planners.platformer_physics import Bools, Cells, Floats, Ints, Things, patrols, slide
from lapo_cli.core.envs.procgen_planners.routes import Level, RouteBot
from lapo_cli.core.envs.procgen_planners.state import GameState

_GOAL, _METEOR, _TARGET, _ENEMY, _WALL = 1, 2, 3, 5, 8
_R = 0.4
_DECAY = np.float32(0.9)
_THRUST = np.float32(0.9 * 0.5 * 0.2) * np.array([-0.33, 0, 1], np.float32)  # back, none, ahead
_TURN = np.float32(np.radians(15))
_SAFETY = 0.05


class _Level(Level):
    """Bodies also know their heading, clockwise from upwards, and how fast it turns."""

    moves = (5, 4, 2, 8, 1, 7, 3)
    hold = 4
    speed = 0.7

    def __init__(self, state: GameState) -> None:
        walls, kinds = state.grid == _WALL, state.entities["type"]
        still = state.entities[(kinds == _METEOR) | (kinds == _TARGET)]
        free = ~walls
        free[still["y"].astype(int), still["x"].astype(int)] = False
        super().__init__(state, free, state.entities[kinds == _GOAL][0])
        self.body = np.append(self.body, np.array([state.player["rotation"], state.player["vrot"]], np.float32))
        self._walls = Cells(walls, beyond=True)
        others = state.entities[(kinds == _METEOR) | (kinds == _TARGET) | (kinds == _ENEMY)]
        self._others = Things(others, patrols(others, self._walls, self._walls))

    def step(self, bodies: Floats, actions: Ints, steps: Ints) -> tuple[Floats, Bools]:
        x, y, vx, vy, heading, spin = bodies
        thrust = _THRUST[actions % 3]
        vx, vy = _DECAY * (vx + thrust * np.sin(heading)), _DECAY * (vy + thrust * np.cos(heading))
        spin = (spin + _TURN * (actions // 3 - 1).astype(np.float32)) / 2
        x, y, vx, vy = slide(x, y, vx, vy, _R, _R, self._walls, thrust != 0, np.zeros_like(actions))
        lost = self._others.touched(x, y, _R + _SAFETY, _R + _SAFETY, steps)
        return np.stack([x, y, vx, vy, heading + spin, spin]), lost

    def keys(self, bodies: Floats, steps: Ints) -> Ints:
        scale = np.array([[2], [2], [5], [5], [8 / np.pi], [8]])
        x, y, vx, vy, heading, spin = np.rint(bodies * scale).astype(np.int64)
        place = (x * 64 + y) * 256 + (vx + 8) * 16 + vy + 8
        keys: Ints = ((place * 16 + heading % 16) * 8 + spin + 4) * 16 + steps // 8
        return keys


def make_bot(state: GameState, rng: np.random.Generator) -> Bot:
    """A bot for one level."""
    return RouteBot(_Level)
