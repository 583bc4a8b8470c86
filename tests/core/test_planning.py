"""Planners: what they read of a state is what is there, what they foresee is what happens, and they play well."""

import importlib

import numpy as np
import pytest

from lapo_cli.core.envs.procgen import GAMES, ProcgenVecEnv
from lapo_cli.core.envs.procgen_planners.planner import Planner
from lapo_cli.core.envs.procgen_planners.state import parse_state


@pytest.mark.parametrize("game", GAMES)
def test_a_state_holds_the_last_action_and_the_level(game: str) -> None:
    env, rng = ProcgenVecEnv(game, 4, 8), np.random.default_rng(0)
    time = np.zeros(4, int)
    for _ in range(12):
        actions = rng.integers(0, 15, 4)
        env.act(actions)
        first = env.observe()[2]
        time = np.where(first, 0, time + 1)
    states = [parse_state(saved) for saved in env.get_state()]
    levels = env.level_seeds()
    env.close()
    assert [state.level_seed for state in states] == levels.tolist()
    assert [state.time for state in states] == time.tolist()
    for state, action in zip(states, actions, strict=True):
        height, width = state.grid.shape
        assert 0 <= state.player["x"] <= width
        assert 0 <= state.player["y"] <= height
        assert state.player["type"] == 0
        assert state.timeout >= 500
        if state.time > 0:
            assert state.last_action == action


def test_another_version_of_procgen_is_noticed() -> None:
    env = ProcgenVecEnv("maze", 1, 0)
    (saved,) = env.get_state()
    env.close()
    with pytest.raises(ValueError, match="version 7"):
        parse_state(b"\x07" + saved[1:])


@pytest.mark.parametrize("game", ["caveflyer", "climber", "coinrun", "jumper", "ninja"])
def test_the_copy_of_a_games_physics_moves_as_the_game_does(game: str) -> None:
    """Random held moves from the start of twelve levels, until the episode ends or the copy says that it will."""
    module = importlib.import_module(f"lapo_cli.core.envs.procgen_planners.{game}")
    env, rng = ProcgenVecEnv(game, 12, 31), np.random.default_rng(2)
    levels = [module._Level(parse_state(saved)) for saved in env.get_state()]
    bodies = [level.body[:, None] for level in levels]
    going = np.ones(12, np.bool_)
    errors = []
    for step in range(60):
        if step % levels[0].hold == 0:
            actions = rng.choice(levels[0].moves, 12)
        env.act(actions)
        going &= ~env.observe()[2]
        states = [parse_state(saved) for saved in env.get_state()]
        for n in np.flatnonzero(going):
            bodies[n], lost = levels[n].step(bodies[n], actions[n : n + 1], np.array([step]))
            if lost[0] or levels[n].won(bodies[n])[0]:
                going[n] = False
                continue
            player = states[n].player
            errors.append(np.abs(bodies[n][:2, 0] - [player["x"], player["y"]]).max())
    env.close()
    assert len(errors) > 100
    # Rounding decides now and then whether a wall is touched; a route is left at a tenth of a cell.
    assert np.median(errors) < 1e-4
    assert np.mean(np.array(errors) > 0.1) < 0.02


def _play(game: str, planner: Planner | None, steps: int, *, noise: float) -> float:
    """Mean reward an environment of four, over so many steps; without a planner, of random actions."""
    env, rng = ProcgenVecEnv(game, 4, 123), np.random.default_rng(0)
    total = 0.0
    for _ in range(steps):
        actions = rng.integers(0, 15, 4)
        if planner is not None:
            planned = planner.act(env.get_state())
            actions = np.where(rng.random(4) < noise, actions, planned)
        env.act(actions)
        total += float(env.observe()[0].sum())
    env.close()
    return total / 4


@pytest.mark.parametrize("game", GAMES)
def test_a_planner_plays_better_than_chance_even_when_it_is_disturbed(game: str) -> None:
    steps = 300 if game in ("bossfight", "chaser", "leaper", "plunder") else 120  # a return of 1 takes these longer
    planned, random = _play(game, Planner(game, 4, 0), steps, noise=0.05), _play(game, None, steps, noise=0)
    assert planned > max(random + 1, 1.5 * random)
