"""The bundled demonstrations: there for every game, as large as promised, and what they say they are."""

import itertools
from pathlib import Path

import numpy as np
import pytest

from lapo_cli.core.data.catalogue import bundled_demos
from lapo_cli.core.data.replay_log import bundled_logs, read_log
from lapo_cli.core.data.sources.replay import import_replay
from lapo_cli.core.data.store import SPLITS, open_store
from lapo_cli.core.envs.base import ENVIRONMENTS
from lapo_cli.core.envs.procgen import GAMES, ProcgenVecEnv
from lapo_cli.core.evaluation.reference import bc_shares

_SAMPLE_STEPS = 150


@pytest.mark.parametrize("game", GAMES)
def test_every_game_has_enough_frames_and_records_its_origin(game: str) -> None:
    logs = {split: read_log(path) for split, path in bundled_logs(game).items()}
    assert logs["train"].num_frames >= 120_000
    assert logs["test"].num_frames >= 16_000
    for log in logs.values():
        assert log.game == game
        assert log.distribution_mode in ("easy", None)  # None: as the environment is by default, which is easy
        settings = log.info["settings"]
        assert (settings["steps"], settings["num_envs"]) == log.actions.shape
        assert log.rand_seed == settings["seed"]
        assert settings["policies"]
        assert log.info["lapo_version"]
        assert len(np.unique(log.actions)) > 3
    info = logs["train"].info
    assert info["measured_episodes"] >= 30
    assert info["low"] <= info["mean_return"] <= info["high"]
    assert info["normalized"] == pytest.approx(ENVIRONMENTS.get(game).normalize(info["mean_return"]), abs=1e-3)


def test_all_of_them_are_small() -> None:
    sizes = [path.stat().st_size for game in GAMES for path in bundled_logs(game).values()]
    assert len(sizes) == 2 * len(GAMES)
    assert sum(sizes) <= 16 * 2**20


@pytest.mark.parametrize("game", GAMES)
def test_the_beginning_of_every_log_replays(game: str, tmp_path: Path) -> None:
    for split, path in bundled_logs(game).items():
        log = read_log(path)
        made = import_replay(path, tmp_path, split, max_frames=_SAMPLE_STEPS * log.num_envs)
        assert made.num_frames == _SAMPLE_STEPS * log.num_envs
        store = open_store(tmp_path, game, split)
        np.testing.assert_array_equal(store.actions.reshape(log.num_envs, -1), log.actions[:_SAMPLE_STEPS].T)


@pytest.mark.parametrize("game", GAMES)
def test_train_and_test_begin_on_different_levels(game: str) -> None:
    levels = []
    for split in SPLITS:
        log = read_log(bundled_logs(game)[split])
        env = ProcgenVecEnv(game, log.num_envs, log.rand_seed)
        env.observe()
        levels.append(set(env.level_seeds().tolist()))
        env.close()
    assert levels[0].isdisjoint(levels[1])


def test_all_of_one_log_replays_and_its_returns_are_those_it_states(tmp_path: Path) -> None:
    path = bundled_logs("coinrun")["train"]
    log = read_log(path)
    made = import_replay(path, tmp_path, "train")
    assert made.num_frames == log.num_frames
    store = open_store(tmp_path, "coinrun", "train")
    rewards = store.rewards.reshape(log.num_envs, -1)
    starts = store.episode_starts.reshape(log.num_envs, -1)
    ends = [np.flatnonzero(row) for row in starts]
    # An episode that ends with the very last action counts too, though no frame of the log shows it.
    returns = [
        [float(row[a:b].sum()) for a, b in itertools.pairwise(end)] for row, end in zip(rewards, ends, strict=True)
    ]
    assert abs(sum(map(len, returns)) - log.info["episodes"]) <= log.num_envs
    each = log.info["measured_episodes"] // log.num_envs
    measured = [value for row in returns for value in row[:each]]
    assert np.mean(measured) == pytest.approx(log.info["mean_return"], abs=0.02)


def test_the_readme_shows_the_table_that_the_package_holds() -> None:
    lines = (Path(__file__).parents[2] / "README.md").read_text().splitlines()
    table = lines[lines.index("<!-- demos -->") + 1 : lines.index("<!-- /demos -->")]
    shown = {
        cells[1].strip(): [cell.strip() for cell in cells[2:-1]] for cells in (line.split("|") for line in table[2:])
    }
    assert list(shown) == list(GAMES)
    shares = bc_shares()
    for game in GAMES:
        demos = bundled_demos(game)
        assert demos is not None
        assert shown[game] == [
            ", ".join(f"{count:,} {split}" for split, count in demos.frames.items()),
            "; ".join(demos.policies),
            f"{demos.training_steps:,}",
            str(demos.seed),
            f"{demos.mean_return:.2f}",
            f"{demos.low:.2f} to {demos.high:.2f}",
            f"{demos.episodes:,}",
            f"{demos.normalized:.2f}",
            f"{shares[game]:z.2f}",
        ]
