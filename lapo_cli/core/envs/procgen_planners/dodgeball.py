"""Dodgeball: step out of the way of balls, walk to where a throw hits an enemy, and leave by the door at the end.

The ways around the walls are distances from the goal over a grid of quarter cells. A throw goes where the last step
went, so that a plan is to walk, and to throw when an enemy is ahead.
"""

import numpy as np
from numpy.typing import NDArray

from lapo_cli.core.envs.procgen_planners.planner import Bot
from lapo_cli.core.envs.procgen_planners.state import GameState
from lapo_cli.core.envs.procgen_planners.trajectories import (
    FIRE,
    MOVES,
    NOOP,
    Floats,
    Glides,
    best_plan,
    extent,
    holds,
    overlap,
    position,
    safe_steps,
    touches,
    velocity,
)

_WALL, _BALL, _ENEMY, _DOOR, _ENEMY_BALL = 1, 3, 4, 5, 6
_SIZE = 20
_BALL_SPEED = 0.5
_BALL_REACH = 0.5
_RELOAD = 7  # steps from throw to throw
_ENEMY_RELOAD = 50
_LAST_THROW = -4  # among the counters of ``DodgeballGame::serialize``

_FINE = 4  # points of the grid to a cell
_POINTS = np.arange(_SIZE * _FINE + 1) / _FINE
_BORDER = np.isin(_POINTS, (1, _SIZE - 1))[:, None] | np.isin(_POINTS, (1, _SIZE - 1))
_FLIGHT = np.arange(1, 31)  # steps of a ball

# The last ones turn before they throw, and wriggle through gaps that full steps would not fit into.
_TURNS = [[move] * hold + [turn] for hold in (2, 5) for move in MOVES for turn in MOVES if turn != move]
_WRIGGLES = [[one, other] * count for one, other in ((0, 2), (6, 8), (0, 6), (2, 8)) for count in (3, 4, 5)]
_GLIDES = Glides(0.75, _SIZE, 14, holds(1, 2, 3, 5, 8) + _TURNS + _WRIGGLES + [plan[::-1] for plan in _WRIGGLES])
_AIMS = np.stack(np.divmod(_GLIDES.last, 3), axis=-1) - 1

_SAFETY = 10.0  # worth of a step without a collision
_DISCOUNT = 0.9
_WAY = 0.01  # price of a step on the grid still to go
_FAR = 200.0
_CAUTION = 0.05  # price of a step in which an enemy could throw; it decays, so that no duel lasts long
_CLOSE = 7  # cells
_KEEP = 0.03  # value of continuing the present action
_MARGIN = 0.1
_WALL_MARGIN = 0.02
_REFRESH = 8  # steps until enemies have moved on
_SLOW = 0.05
_PATIENCE = 25  # steps


class DodgeballBot:
    """Chooses among glides: the longest safe one, of these the soonest throw, or the shortest way left.

    Args:
        state: how the level begins.
        rng: of where to go from a dead end.
    """

    def __init__(self, state: GameState, rng: np.random.Generator) -> None:
        self._rng = rng
        walls = state.entities[state.entities["type"] == _WALL]
        self._open = _open(walls, extent(state.player))
        self._ways = np.zeros((0, 0))
        self._until = 0
        self._rested = 0

    def act(self, state: GameState) -> int:
        """The first action of the best glide, or throw."""
        things, player = state.entities, state.player
        walls, enemies = things[things["type"] == _WALL], things[things["type"] == _ENEMY]
        self._rested = self._rested + 1 if np.abs(velocity(player)).max() < _SLOW else 0
        if self._rested > _PATIENCE:
            # Whole steps from here do not fit through a gap: they may do so from where the border has stopped it.
            border = np.argwhere(self._open & _BORDER) / _FINE
            self._ways = _ways(self._open, self._rng.choice(border, 1))
            self._until, self._rested = state.time + 2 * _PATIENCE, 0
        if state.time >= self._until:
            goals = enemies if len(enemies) else things[things["type"] == _DOOR]
            self._ways = _ways(self._open, position(goals))
            self._until = state.time + _REFRESH
        dangers = things[np.isin(things["type"], (_ENEMY, _ENEMY_BALL))]
        paths = _GLIDES.paths(player)
        collides = touches(paths, player, dangers, _MARGIN).any(axis=2)
        collides |= touches(paths, player, walls, _WALL_MARGIN).any(axis=2)
        safe = safe_steps(collides)

        waited = state.time - int(np.frombuffer(state.rest, "<i4")[_LAST_THROW])
        facing = np.array([np.cos(player["rotation"]), -np.sin(player["rotation"])])
        aims = np.where(_GLIDES.actions[:, None] == NOOP, np.sign(np.rint(2 * facing)), _AIMS)
        # A plan throws once, as soon as it has let go and a ball is at hand.
        throws = np.minimum(np.maximum(_GLIDES.length, _RELOAD - 1 - waited), _GLIDES.times[-1] - 1)
        targets = _untargeted(enemies, things[things["type"] == _BALL])
        hits = _hits(paths[np.arange(len(paths)), throws], aims, throws, targets, walls)
        worth = np.where(hits & (throws < safe), _DISCOUNT**throws, 0)
        spots = np.rint(paths[:, -1] * _FINE).astype(int)
        score = safe * _SAFETY + worth - _WAY * np.minimum(self._ways[spots[:, 0], spots[:, 1]], _FAR)
        score -= _CAUTION / (1 + waited / _PATIENCE) * _exposed(paths, enemies, state.time).sum(axis=1)
        best = best_plan(_GLIDES, score, state.last_action, _KEEP)
        if _GLIDES.actions[best] == NOOP and throws[best] == 0 and worth[best] > 0:
            return FIRE
        return int(_GLIDES.actions[best])


def _exposed(paths: Floats, enemies: NDArray[np.void], time: int) -> NDArray[np.bool_]:
    """Whether an enemy could throw at the agent from nearby at each step of each plan: (K, H)."""
    ahead = position(enemies) + velocity(enemies) * _GLIDES.times[:, None, None]
    ready = time + _GLIDES.times[:, None] - enemies["fire_time"] >= _ENEMY_RELOAD
    x, y = (np.abs(paths[:, :, None, axis] - ahead[..., axis]) for axis in (0, 1))
    exposed: NDArray[np.bool_] = (ready & (np.minimum(x, y) < 1 + _MARGIN) & (np.maximum(x, y) < _CLOSE)).any(axis=2)
    return exposed


def _untargeted(enemies: NDArray[np.void], balls: NDArray[np.void]) -> NDArray[np.void]:
    """The enemies that no ball under way is going to hit."""
    ahead = position(balls) + velocity(balls) * _FLIGHT[:, None, None]
    meets = overlap(ahead[:, :, None], position(enemies), extent(enemies) + _BALL_REACH)
    untargeted: NDArray[np.void] = enemies[~meets.any(axis=(0, 1))]
    return untargeted


def _hits(
    starts: Floats, aims: Floats, times: NDArray[np.int64], enemies: NDArray[np.void], walls: NDArray[np.void]
) -> NDArray[np.bool_]:
    """Whether each of K balls, thrown from ``starts`` after ``times`` steps, hits an enemy before a wall: (K,)."""
    balls = starts[:, None] + aims[:, None] * (_BALL_SPEED * _FLIGHT[:, None])
    stops = ((balls < _BALL_REACH) | (balls > _SIZE - _BALL_REACH)).any(axis=-1)
    stops |= overlap(balls[:, :, None], position(walls), extent(walls) + _BALL_REACH + _MARGIN).any(axis=2)
    free = ~np.logical_or.accumulate(stops, axis=1)
    ahead = position(enemies) + velocity(enemies) * (times[:, None] + _FLIGHT)[..., None, None]
    meets = overlap(balls[:, :, None], ahead, extent(enemies) + _BALL_REACH - 2 * _MARGIN)
    hits: NDArray[np.bool_] = (meets.any(axis=2) & free).any(axis=1)
    return hits


def _open(walls: NDArray[np.void], reach: Floats) -> NDArray[np.bool_]:
    """Where on the grid an agent of half size ``reach`` touches no wall."""
    points = np.stack(np.meshgrid(_POINTS, _POINTS, indexing="ij"), axis=-1)
    result: NDArray[np.bool_] = ((points >= reach) & (points <= _SIZE - reach)).all(axis=-1)
    for wall in walls:
        result &= ~overlap(points, position(wall), extent(wall) + reach + _WALL_MARGIN)
    return result


def _ways(open_: NDArray[np.bool_], goals: Floats) -> Floats:
    """Steps on the grid to the nearest goal from all that is open or next to it, infinite where there is no way."""
    ways = np.full(open_.shape, np.inf)
    spots = np.clip(np.rint(goals * _FINE).astype(int), _FINE, (_SIZE - 1) * _FINE)
    front = np.zeros_like(open_)
    front[spots[:, 0], spots[:, 1]] = True
    passed = open_ | front
    step = 0
    while front.any():
        ways[front] = step
        front &= passed
        grown = front.copy()
        grown[1:] |= front[:-1]
        grown[:-1] |= front[1:]
        grown[:, 1:] |= front[:, :-1]
        grown[:, :-1] |= front[:, 1:]
        front = grown & np.isinf(ways)
        step += 1
    return ways


def make_bot(state: GameState, rng: np.random.Generator) -> Bot:
    """A bot for one level."""
    return DodgeballBot(state, rng)
