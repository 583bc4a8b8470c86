"""Cells of a grid and the ways between them, for the games that are played on one."""

from collections import deque
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

Cell = tuple[int, int]  # column, row; row 0 is the bottom

NOOP = 4
STEPS: tuple[Cell, ...] = ((1, 0), (0, 1), (-1, 0), (0, -1))
FAR = 10_000


def move_action(dx: float, dy: float) -> int:
    """The action that pushes towards the signs of (dx, dy)."""
    return int(3 * (np.sign(dx) + 1) + np.sign(dy) + 1)


def cell_of(entity: np.void) -> Cell:
    """The cell an entity's centre lies in."""
    return int(entity["x"]), int(entity["y"])


def distances(free: NDArray[np.bool_], goals: Iterable[Cell]) -> NDArray[np.int64]:
    """Steps from every cell of ``free`` (height, width) to the nearest goal, :data:`FAR` where there is no way."""
    height, width = free.shape
    found = np.full(free.shape, FAR)
    queue = deque(goals)
    for x, y in queue:
        found[y, x] = 0
    while queue:
        x, y = queue.popleft()
        for dx, dy in STEPS:
            i, j = x + dx, y + dy
            if 0 <= i < width and 0 <= j < height and free[j, i] and found[j, i] == FAR:
                found[j, i] = found[y, x] + 1
                queue.append((i, j))
    return found
