"""Bodies that slide along the cells of a grid as Procgen's do, many at once, and the things in their way.

A copy in NumPy of ``BasicAbstractGame::basic_step_object``: looking ahead in it is a hundred times as fast as in the
game, which also draws every frame.
"""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]

_EDGE = 16  # cells around the grid, for what sticks out of it
_CORNER = np.float32(0.98)  # part of a body's radius at which Procgen looks for walls
_TOUCH = np.float32(0.001)  # how far bodies may overlap before they touch
_ZERO = np.float32(0)
_RUN, _AIR = np.float32(0.5), 0.15  # speed of running, what a push counts for in the air
_FORESIGHT = 80  # steps


class Cells:
    """The cells of a grid that have some property, looked up at many points at once.

    Args:
        marked: (height, width), the cells that have it.
        beyond: whether all that is beyond the grid has it too.
    """

    def __init__(self, marked: Bools, *, beyond: bool) -> None:
        padded = np.pad(marked, _EDGE, constant_values=beyond)
        self.flat = padded.ravel()
        self.stride = padded.shape[1]

    def at(self, x: Floats, y: Floats) -> Bools:
        """Whether the cell at each point is marked."""
        found: Bools = self.flat[(y + _EDGE).astype(np.intp) * self.stride + (x + _EDGE).astype(np.intp)]
        return found

    def under(self, x: Floats, y: Floats, rx: float, ry: float) -> Bools:
        """Whether each body of these half sides touches a marked cell with a corner."""
        left, right = x - (rx - _TOUCH), x + (rx - _TOUCH)
        low, high = y - (ry - _TOUCH), y + (ry - _TOUCH)
        found: Bools = self.at(left, low) | self.at(right, low) | self.at(left, high) | self.at(right, high)
        return found


def slide(
    x: Floats, y: Floats, vx: Floats, vy: Floats, rx: float, ry: float, walls: Cells, up: Bools, push: Ints
) -> tuple[Floats, Floats, Floats, Floats]:
    """Positions and velocities of bodies after a step; a body slows down by the part of the step it was held up.

    Args:
        x, y, vx, vy: (N,) before it.
        rx, ry: half the bodies' sides.
        walls: what they do not enter.
        up: (N,) whether the action drives them up or down.
        push: (N,) whether it drives them sideways; what drives a body decides which way it moves first.
    """
    y_first = up | ((push == 0) & (np.abs(vx) <= np.abs(vy)))
    # Along the axis that moves first, a, and the other one, b.
    a, b = np.where(y_first, y, x), np.where(y_first, x, y)
    va, vb = np.where(y_first, vy, vx), np.where(y_first, vx, vy)
    ra = np.where(y_first, np.float32(ry), np.float32(rx))
    rb = np.where(y_first, np.float32(rx), np.float32(ry))
    stride_a, stride_b = np.where(y_first, walls.stride, 1), np.where(y_first, 1, walls.stride)
    parts = np.maximum((4 * np.hypot(vx, vy)).astype(np.int32), 4)
    step_a, step_b = (va / parts).astype(np.float32), (vb / parts).astype(np.float32)
    held_a, held_b = np.zeros_like(a), np.zeros_like(b)
    for part in range(int(parts.max(initial=0))):
        if part >= 4:
            still = part >= parts
            step_a, step_b = np.where(still, _ZERO, step_a), np.where(still, _ZERO, step_b)
        a, hit = _push(a, b, step_a, ra, rb, stride_a, stride_b, walls.flat)
        held_a += hit
        b, hit = _push(b, a, step_b, rb, ra, stride_b, stride_a, walls.flat)
        held_b += hit
    va, vb = va * (1 - held_a / parts), vb * (1 - held_b / parts)
    return (
        np.where(y_first, b, a),
        np.where(y_first, a, b),
        np.where(y_first, vb, va).astype(np.float32),
        np.where(y_first, va, vb).astype(np.float32),
    )


def _push(
    a: Floats,
    b: Floats,
    step: Floats,
    ra: Floats,
    rb: Floats,
    stride_a: NDArray[np.intp],
    stride_b: NDArray[np.intp],
    walls: Bools,
) -> tuple[Floats, Bools]:
    """Positions along axis a after a move, up to the wall in the way, and whether there was one."""
    to = a + step
    front = (to + np.copysign(_CORNER * ra, step) + _EDGE).astype(np.intp) * stride_a
    sides = _CORNER * rb
    low, high = (b - sides + _EDGE).astype(np.intp) * stride_b, (b + sides + _EDGE).astype(np.intp) * stride_b
    hit = (walls[front + low] | walls[front + high]) & (step != 0)
    if hit.any():
        to = np.where(hit, np.where(step > 0, np.floor(to + ra) - ra, np.ceil(to - ra) + ra), to)
    return to, hit


def supported(x: Floats, y: Floats, rx: float, ry: float, walls: Cells) -> Bools:
    """Whether each body stands on a wall."""
    below = y - np.float32(ry + 0.01)
    found: Bools = walls.at(x - np.float32(rx - 0.01), below) | walls.at(x + np.float32(rx - 0.01), below)
    return found


def run(vx: Floats, push: Ints, support: Bools, mix: float) -> Floats:
    """Sideways velocity of running bodies after a push, which counts for less in the air."""
    part = np.where(support, np.float32(mix), np.float32(mix * _AIR))
    result: Floats = (1 - part) * vx + part * (_RUN * push.astype(np.float32))
    return result


class Things:
    """What bodies may touch.

    Args:
        entities: the M things.
        path: (steps, M, 2) where they will be; by default they stay where they are.
    """

    def __init__(self, entities: NDArray[np.void], path: Floats | None = None) -> None:
        self._rx, self._ry = entities["rx"], entities["ry"]
        self._path = np.stack([entities["x"], entities["y"]], -1)[None] if path is None else path

    def touched(self, x: Floats, y: Floats, rx: float, ry: float, steps: Ints) -> Bools:
        """Whether each body touches any thing, after ``steps`` of the path."""
        places = self._path[np.minimum(steps, len(self._path) - 1)]
        near_x = np.abs(x[:, None] - places[..., 0]) < rx + self._rx
        near_y = np.abs(y[:, None] - places[..., 1]) < ry + self._ry
        found: Bools = (near_x & near_y).any(1)
        return found


def patrols(walkers: NDArray[np.void], walls: Cells, rough: Cells, beat: float = np.inf) -> Floats:
    """(steps, N, 2) where N things that turn round at walls, and ``beat`` cells from their origin, will be.

    They lose a quarter of their speed at the walls that are ``rough``: those that are also what lies beyond the grid.
    """
    place = np.stack([walkers["x"], walkers["y"]])
    speed = np.stack([walkers["vx"], walkers["vy"]])
    path = np.empty((_FORESIGHT if speed.any() else 1, len(walkers), 2), np.float32)
    radius = np.stack([walkers["rx"], walkers["ry"]])
    origin = walkers["climber_spawn_x"]
    for step in range(len(path)):
        place = place + speed
        reach = np.copysign(radius, speed) * (speed != 0)
        front = place + _CORNER * reach
        hit = walls.at(*front) & (speed != 0)
        place = np.where(hit, 2 * np.rint(place + reach) - 2 * reach - place, place)
        speed = np.where(hit, np.where(rough.at(*front), -0.75, -1) * speed, speed).astype(np.float32)
        away = np.abs(place[0] - origin) > beat
        speed[0] = np.where(away, np.copysign(speed[0], origin - place[0]), speed[0])
        path[step] = place.T
    return path
