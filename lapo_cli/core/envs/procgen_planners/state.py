"""The content of Procgen's saved states: the entities, the grid of cells and the counters of one environment.

Positions are in cells, y upwards, velocities in cells per step. The layout is that of ``Game::serialize``,
``BasicAbstractGame::serialize`` and ``Entity::serialize`` of Procgen 0.10, little-endian words of four bytes.
"""

import struct
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

PLAYER = 0
SPACE = 100
WALL = 51

ENTITY = np.dtype(
    [(name, "<f4") for name in ("x", "y", "vx", "vy", "rx", "ry")]
    + [(name, "<i4") for name in ("type", "image_type", "image_theme", "render_z", "will_erase", "collides")]
    + [(name, "<f4") for name in ("collision_margin", "rotation", "vrot")]
    + [(name, "<i4") for name in ("reflected", "fire_time", "spawn_time", "life_time", "expire_time", "absolute")]
    + [("friction", "<f4")]
    + [(name, "<i4") for name in ("smart_step", "avoids_collisions", "auto_erase")]
    + [(name, "<f4") for name in ("alpha", "health", "theta", "grow_rate", "alpha_decay", "climber_spawn_x")]
)

_OPTIONS = 12  # booleans and modes between the game's name and grid_step
_COUNTERS = struct.Struct("<fiiiiiiiiifiiii")
_WORLD = struct.Struct("<iifffiiiffffffffiii")
_SCREEN = struct.Struct("<iiiffffff")


@dataclass(frozen=True, eq=False, slots=True)
class GameState:
    """One environment at one moment.

    Attributes:
        level_seed: the level being played.
        time: steps since the episode began.
        timeout: steps after which it ends.
        last_action: the action that led here; meaningless at time 0.
        entities: structured array of :data:`ENTITY`, the agent among them.
        agent: index of the agent in ``entities``.
        grid: (height, width) int32 cells; row 0 is the bottom.
        rest: what the game itself appends, in the order of its own ``serialize``.
    """

    level_seed: int
    time: int
    timeout: int
    last_action: int
    entities: NDArray[np.void]
    agent: int
    grid: NDArray[np.int32]
    rest: bytes

    @property
    def player(self) -> np.void:
        """The agent's entity."""
        player: np.void = self.entities[self.agent]
        return player


def parse_state(state: bytes) -> GameState:
    """Read one of the byte strings of :meth:`ProcgenVecEnv.get_state`.

    Raises:
        ValueError: it is of another version of Procgen.
    """
    (version,) = struct.unpack_from("<i", state, 0)
    if version != 0:
        raise ValueError(f"a saved state of version {version} where this lapo knows 0")
    at = _skip_text(state, 4) + 4 * (_OPTIONS + 5)
    at = _skip_random(state, _skip_random(state, at))
    counters = _COUNTERS.unpack_from(state, at)
    at += _COUNTERS.size + 4  # and grid_size
    (count,) = struct.unpack_from("<i", state, at)
    entities = np.frombuffer(state, ENTITY, count, at + 4)
    at = _skip_random(state, at + 4 + count * ENTITY.itemsize + _WORLD.size) + _SCREEN.size
    width, height, cells = struct.unpack_from("<iii", state, at)
    if cells != width * height:
        raise ValueError(f"a grid of {width} x {height} with {cells} cells")
    grid = np.frombuffer(state, "<i4", cells, at + 12).reshape(height, width)
    return GameState(
        level_seed=counters[5],
        time=counters[13],
        timeout=counters[4],
        last_action=counters[3],
        entities=entities,
        agent=int(np.flatnonzero(entities["type"] == PLAYER)[-1]),
        grid=grid,
        rest=state[at + 12 + 4 * cells :],
    )


def _skip_text(state: bytes, at: int) -> int:
    (length,) = struct.unpack_from("<i", state, at)
    return at + 4 + int(length)


def _skip_random(state: bytes, at: int) -> int:
    """The position after a random generator: whether it is seeded, and its state as text."""
    return _skip_text(state, at + 4)
