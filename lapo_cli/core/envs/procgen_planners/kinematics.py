"""How an agent with inertia moves in the games that do not step from cell to cell."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

_MIX = 0.5
_DECAY = 0.9

Floats = NDArray[np.float64]


def next_velocity(velocity: Floats, push: NDArray[Any], max_speed: float) -> Floats:
    """Velocity along an axis after a step with a push of -1, 0 or 1: ``BasicAbstractGame::update_agent_velocity``."""
    result: Floats = _DECAY * ((1 - _MIX) * velocity + _MIX * max_speed * push)
    return result


def slide(
    at: Floats, velocity: Floats, push: NDArray[Any], max_speed: float, low: float, high: float
) -> tuple[Floats, Floats]:
    """Position and velocity along an axis after a step, between two walls that stop the agent."""
    velocity = next_velocity(velocity, push, max_speed)
    at = at + velocity
    velocity[(at < low) | (at > high)] = 0
    return np.minimum(np.maximum(at, low), high), velocity


def courses(at: float, velocity: float, pushes: NDArray[Any], max_speed: float, low: float, high: float) -> Floats:
    """Positions (courses, steps) along an axis that such pushes lead to."""
    now, speed = np.full(len(pushes), float(at)), np.full(len(pushes), float(velocity))
    positions = np.empty(pushes.shape)
    for step, push in enumerate(pushes.T):
        now, speed = slide(now, speed, push, max_speed, low, high)
        positions[:, step] = now
    return positions
