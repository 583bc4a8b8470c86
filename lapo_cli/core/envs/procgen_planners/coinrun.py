"""CoinRun: searches the path to the coin in a copy of the runner's physics, over saws and lava, on and off crates."""

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
from lapo_cli.core.envs.procgen_planners.state import ENTITY, GameState

_COIN, _SAW, _ENEMY, _WALLS, _LAVAS, _BARRIER, _CRATE = 1, 2, 5, (15, 16), (17, 18), 19, 20
_RX, _RY = 0.5, 0.5787
_JUMP, _GRAVITY = map(np.float32, (1.5, 0.2))
_MIX = 0.2
_SLOW = 0.0999, 0.01499  # speeds, on the ground and in the air, below which it stands still
_SAFETY = 0.05
_CLOSE = np.float32(0.001)


class _Level(Level):
    """Bodies also know whether they stand on a crate; one lands on crates from above and goes through them else."""

    def __init__(self, state: GameState) -> None:
        grid, entities = state.grid, state.entities
        walls, lava, crates = np.isin(grid, _WALLS), np.isin(grid, _LAVAS), np.zeros(grid.shape, np.bool_)
        row, column = np.argwhere(grid == _COIN)[0]
        coin = np.zeros(1, ENTITY)[0]
        coin["x"], coin["y"], coin["rx"], coin["ry"] = column + 0.5, row + 0.5, 0.5, 0.5
        super().__init__(state, ~walls & ~lava, coin)
        self.body = np.append(self.body, np.float32(np.frombuffer(state.rest, "<i4", 1, 16)))
        piled = entities[entities["type"] == _CRATE]
        crates[piled["y"].astype(int), piled["x"].astype(int)] = True
        self._walls, self._lava, self._crates = (
            Cells(cells, beyond=beyond) for cells, beyond in ((walls, True), (lava, False), (crates, False))
        )
        foes = entities[(entities["type"] == _SAW) | (entities["type"] == _ENEMY)]
        turns = Cells(walls | (grid == _BARRIER), beyond=True)
        self._foes = Things(foes, patrols(foes, turns, Cells(grid == _WALLS[0], beyond=True)))

    def step(self, bodies: Floats, actions: Ints, steps: Ints) -> tuple[Floats, Bools]:
        x, y, vx, vy, on_crate = bodies
        support = (supported(x, y, _RX, _RY, self._walls) | (on_crate > 0)) & (vy == 0)
        push, jump = actions // 3 - 1, (actions % 3 == 2) & support
        vx = run(vx, push, support, _MIX)
        vx = np.where(np.abs(vx) < np.where(support, *_SLOW), 0, vx)
        vy = np.where(jump, _JUMP, np.clip(vy - _GRAVITY, -_JUMP, _JUMP))
        old_x, feet = x, y - np.float32(_RY)
        x, y, vx, vy = slide(x, y, vx, vy, _RX, _RY, self._walls, jump, push)
        lost = self._lava.under(x, y, _RX, _RY)
        lost |= self._foes.touched(x, y, _RX + _SAFETY, _RY + _SAFETY, steps)
        on_crate = np.zeros(len(x), np.bool_)
        for top in (np.floor(feet + _CLOSE), np.floor(feet + _CLOSE) - 1):
            fall = feet - (y - np.float32(_RY))
            falls = (vy < 0) & (feet - fall < top - _CLOSE)
            # A step goes in quarters: where the body is before and after the one in which its feet pass the top.
            quarters = np.floor(np.clip((feet - top) / np.maximum(fall, _CLOSE), 0, 0.99) * 4) / 4
            before, after = (self._on_crate(old_x + part * (x - old_x), top) for part in (quarters, quarters + 0.25))
            landed = falls & before & after
            # What grazes a crate may land on it, or even be pushed downwards.
            lost |= falls & ~landed & (before | after | self._on_crate(x, top))
            y, vy = np.where(landed, top + np.float32(_RY), y), np.where(landed, np.float32(0), vy)
            on_crate |= landed
        return np.stack([x, y, vx, vy, on_crate]), lost

    def keys(self, bodies: Floats, steps: Ints) -> Ints:
        # It takes long to gain speed here, so that small differences count.
        speed = np.rint(bodies[2] * 16).astype(np.int64) + 8
        keys: Ints = (super().keys(bodies, steps) * 17 + speed) * 2 + (bodies[4] > 0)
        return keys

    def _on_crate(self, x: Floats, top: Floats) -> Bools:
        side, middle = np.float32(_RX) - _CLOSE, top - np.float32(0.5)
        return self._crates.at(x - side, middle) | self._crates.at(x + side, middle)


def make_bot(state: GameState, rng: np.random.Generator) -> Bot:
    """A bot for one level."""
    return RouteBot(_Level)
