"""What the planners of the shooting games share: where the agent can get to, and what it would run into there."""

import numpy as np
from numpy.typing import NDArray

from lapo_cli.core.envs.procgen_planners.kinematics import next_velocity

Floats = NDArray[np.float64]

NOOP = 4
FIRE = 9
MOVES = [action for action in range(9) if action != NOOP]


def position(things: NDArray[np.void] | np.void) -> Floats:
    """Positions (..., 2)."""
    return _pairs(things, "x", "y")


def velocity(things: NDArray[np.void] | np.void) -> Floats:
    """Velocities (..., 2)."""
    return _pairs(things, "vx", "vy")


def extent(things: NDArray[np.void] | np.void) -> Floats:
    """Half widths and heights (..., 2)."""
    return _pairs(things, "rx", "ry")


def _pairs(things: NDArray[np.void] | np.void, across: str, up: str) -> Floats:
    pairs: Floats = np.stack([things[across], things[up]], axis=-1).astype(np.float64)
    return pairs


def holds(*times: int) -> list[list[int]]:
    """Plans that hold one of the eight moves for some steps."""
    return [[action] * time for time in times for action in MOVES]


class Glides:
    """Where plans lead an agent with inertia. The first plan is to do nothing, and at its end each of them lets go.

    Args:
        max_speed: the game's.
        size: width and height of the world, whose border stops the agent.
        horizon: H, steps looked ahead.
        plans: other plans, of one move or more.

    Attributes:
        actions: (K,) what each plan begins with.
        last: (K,) the last move it makes.
        length: (K,) when it lets go.
        effort: (K,) how much it pushes.
        times: (H,) 1 to H.
    """

    def __init__(self, max_speed: float, size: float, horizon: int, plans: list[list[int]]) -> None:
        plans = [[NOOP], *plans]
        self.actions = np.array([plan[0] for plan in plans])
        self.last = np.array([plan[-1] for plan in plans])
        self.length = np.array([len(plan) for plan in plans])
        self.length[0] = 0
        self.times = np.arange(1, horizon + 1)
        held = np.array([plan + [NOOP] * (horizon - len(plan)) for plan in plans])
        pushes = np.stack(np.divmod(held, 3), axis=-1) - 1
        self.effort = np.abs(pushes).sum(axis=(1, 2))
        self._size = size
        self._offsets = _travel(np.zeros((len(plans), 2)), pushes, max_speed)
        self._coast = _travel(np.ones((1, 1)), np.zeros((1, horizon, 1)), max_speed)

    def paths(self, player: np.void) -> Floats:
        """(K, H, 2) positions of the agent after each step of each plan."""
        free = position(player) + velocity(player) * self._coast[0] + self._offsets
        paths: Floats = np.clip(free, extent(player), self._size - extent(player))
        return paths


def _travel(speed: Floats, pushes: Floats, max_speed: float) -> Floats:
    """Ways (K, H, n) gone from speeds (K, n) under pushes (K, H, n)."""
    steps = []
    for push in pushes.swapaxes(0, 1):
        speed = next_velocity(speed, push, max_speed)
        steps.append(speed)
    way: Floats = np.cumsum(steps, axis=0).swapaxes(0, 1)
    return way


def overlap(points: Floats, centres: Floats, reach: Floats) -> NDArray[np.bool_]:
    """Whether points lie within ``reach`` of centres, along both axes; all (..., 2), without the last axis."""
    across = np.abs(points[..., 0] - centres[..., 0]) < reach[..., 0]
    result: NDArray[np.bool_] = across & (np.abs(points[..., 1] - centres[..., 1]) < reach[..., 1])
    return result


def touches(paths: Floats, player: np.void, things: NDArray[np.void], margin: float) -> NDArray[np.bool_]:
    """Whether the agent on its paths (K, H, 2) comes within ``margin`` of E things that go straight on: (K, H, E)."""
    times = np.arange(1, paths.shape[1] + 1)[:, None, None]
    ahead = position(things) + velocity(things) * times
    return overlap(paths[:, :, None], ahead, extent(things) + extent(player) + margin)


def best_plan(glides: Glides, score: Floats, last_action: int, keep: float) -> int:
    """The plan of the highest score (K,), where going on with the last action is worth ``keep`` and effort costs."""
    return int((score + keep * (glides.actions == last_action) - 1e-5 * glides.effort).argmax())


def safe_steps(hits: NDArray[np.bool_]) -> NDArray[np.int64]:
    """(K,) steps before the first hit of (K, H), H where there is none."""
    steps: NDArray[np.int64] = np.where(hits.any(axis=1), hits.argmax(axis=1), hits.shape[1])
    return steps
