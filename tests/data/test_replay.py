import dataclasses
import hashlib
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lapo_cli.core.data.replay_log import ReplayLog, bundled_logs, frames_digest, read_log, write_log
from lapo_cli.core.data.sources.replay import import_replay
from lapo_cli.core.data.store import open_store
from lapo_cli.core.envs.procgen import ProcgenVecEnv
from lapo_cli.core.errors import CorruptDataError, MissingInputError, UsageError

STEPS, ENVS = 300, 5


@pytest.fixture(scope="module")
def played() -> tuple[ReplayLog, np.ndarray, np.ndarray, np.ndarray]:
    """A log of random play recorded here, with its frames (T, N, 64, 64, 3), rewards and firsts (T, N)."""
    rng = np.random.default_rng(3)
    actions = rng.integers(0, 15, (STEPS, ENVS), dtype=np.uint8)
    env = ProcgenVecEnv("bigfish", ENVS, 7)
    seen = []
    for step in range(STEPS):
        seen.append(tuple(np.array(part) for part in env.observe()))
        env.act(actions[step])
    env.close()
    rewards, frames, firsts = (np.stack(parts) for parts in zip(*seen, strict=True))
    log = ReplayLog(
        game="bigfish",
        distribution_mode="easy",
        rand_seed=7,
        actions=actions,
        frame_sha256=tuple(hashlib.sha256(frames[step].tobytes()).hexdigest() for step in range(0, STEPS, 64)),
        sha_every=64,
        reward_sum=float(rewards[1:].sum()),
        env_version="0.10.7",
        info={"agent": "random"},
    )
    return log, frames, rewards, firsts


@pytest.fixture
def log_file(tmp_path: Path, played) -> Path:
    path = tmp_path / "bigfish-train.npz"
    write_log(path, played[0])
    return path


def test_a_log_is_read_back(log_file: Path, played) -> None:
    log = read_log(log_file)
    for field in dataclasses.fields(ReplayLog):
        if field.name != "actions":
            assert getattr(log, field.name) == getattr(played[0], field.name), field.name
    np.testing.assert_array_equal(log.actions, played[0].actions)
    assert (log.num_steps, log.num_envs, log.num_frames) == (STEPS, ENVS, STEPS * ENVS)


def test_replaying_gives_what_was_seen(tmp_path: Path, log_file: Path, played) -> None:
    log, frames, rewards, firsts = played
    made = import_replay(log_file, tmp_path, "train")
    store = open_store(tmp_path, "bigfish", "train")
    assert made == store.manifest
    by_env = store.frames.reshape(ENVS, STEPS, 64, 64, 3)
    np.testing.assert_array_equal(by_env, frames.swapaxes(0, 1))
    np.testing.assert_array_equal(store.actions.reshape(ENVS, STEPS), log.actions.T)
    np.testing.assert_array_equal(store.episode_starts.reshape(ENVS, STEPS), firsts.T)
    # What an action led to is seen one step later.
    np.testing.assert_array_equal(store.rewards.reshape(ENVS, STEPS)[:, :-1], rewards[1:].T)
    assert made.num_episodes == int(firsts.sum()) - ENVS > 0


def test_the_mean_return_is_that_of_whole_episodes(tmp_path: Path, log_file: Path, played) -> None:
    _, _, rewards, firsts = played
    returns = []
    for env in range(ENVS):
        running = 0.0
        for step in range(1, STEPS):
            running += rewards[step, env]
            if firsts[step, env]:
                returns.append(running)
                running = 0.0
    assert import_replay(log_file, tmp_path, "train").mean_return == pytest.approx(np.mean(returns))


def test_max_frames_cuts_the_steps(tmp_path: Path, log_file: Path, played) -> None:
    made = import_replay(log_file, tmp_path, "train", max_frames=ENVS * 100 + 3)
    assert made.num_frames == ENVS * 100
    frames = open_store(tmp_path, "bigfish", "train").frames.reshape(ENVS, 100, 64, 64, 3)
    np.testing.assert_array_equal(frames, played[1][:100].swapaxes(0, 1))
    with pytest.raises(UsageError, match="15 or more"):
        import_replay(log_file, tmp_path, "train", max_frames=14)


def test_the_bundled_test_log_replays_here(tmp_path: Path) -> None:
    log = read_log(bundled_logs("fruitbot")["test"])
    made = import_replay(bundled_logs("fruitbot")["test"], tmp_path, "test")
    assert made.num_frames == log.num_frames == 16_384
    store = open_store(tmp_path, "fruitbot", "test")
    frames = store.frames.reshape(log.num_envs, log.num_steps, 64, 64, 3)
    for number, digest in enumerate(log.frame_sha256):
        assert frames_digest(frames[:, number * log.sha_every]) == digest
    assert store.rewards.reshape(log.num_envs, log.num_steps)[:, :-1].sum() == log.reward_sum


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda _: {"rand_seed": 8}, "step 0 differ"),
        (lambda log: {"actions": np.where(np.arange(STEPS)[:, None] == 70, 4, log.actions)}, "step 128 differ"),
        (lambda log: {"frame_sha256": (*log.frame_sha256[:-1], "0" * 64)}, "step 256 differ"),
        (lambda log: {"reward_sum": log.reward_sum + 1}, "rewards sum"),
        (lambda _: {"distribution_mode": "hard"}, "differ"),
    ],
)
def test_a_log_that_does_not_replay_stores_nothing(
    tmp_path: Path, played, change: Callable[[ReplayLog], dict], named: str
) -> None:
    path = tmp_path / "bigfish-train.npz"
    write_log(path, dataclasses.replace(played[0], **change(played[0])))
    with pytest.raises(CorruptDataError, match=named) as caught:
        import_replay(path, tmp_path, "train")
    assert "0.10.7" in str(caught.value)
    with pytest.raises(MissingInputError):
        open_store(tmp_path, "bigfish", "train")


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"format_version": 2}, "format 2"),
        ({"actions": np.zeros((STEPS, ENVS), np.int64)}, "int64"),
        ({"actions": np.zeros(STEPS, np.uint8)}, r"\(300,\)"),
        ({"actions": np.full((STEPS, ENVS), 15, np.uint8)}, "15"),
        ({"num_envs": 4}, "num_envs"),
        ({"num_envs": np.arange(3)}, "not a valid replay log"),
        ({"sha_every": 0}, "frame_sha256"),
        ({"frame_sha256": np.array(["a"])}, "frame_sha256"),
        ({"info": "{"}, "not a valid replay log"),
        ({"info": "[]"}, "info"),
        ({"actions": None}, "'actions' is missing"),
        ({"reward_sum": np.nan}, "reward_sum is nan"),
        ({"game": "x" * 10_000}, "no name"),
        ({"game": np.array(["bigfish"])}, "no name"),
        ({"rand_seed": 2**40}, "rand_seed"),
        ({"info": "[" * 100_000}, "not a valid replay log"),
        ({"actions": np.full((STEPS, ENVS), None)}, "array actions holds neither numbers nor text"),
        ({"reward_sum": None}, "'reward_sum' is missing"),
    ],
)
def test_a_malformed_log_is_refused(log_file: Path, changes: dict, named: str) -> None:
    with np.load(log_file) as file:
        arrays = {name: file[name] for name in file.files} | changes
    np.savez(log_file, **{name: array for name, array in arrays.items() if array is not None})
    with pytest.raises(CorruptDataError, match=named) as caught:
        read_log(log_file)
    assert str(log_file) in str(caught.value)
    assert len(str(caught.value)) < 1000
    assert "pickle" not in str(caught.value)


def test_a_log_of_an_environment_that_is_not_registered_says_so(log_file: Path, played) -> None:
    write_log(log_file, dataclasses.replace(played[0], game="chess"))
    with pytest.raises(UsageError, match=r"bigfish-train\.npz is a replay log of 'chess'.*--plugin"):
        read_log(log_file)


def test_a_log_of_a_mode_that_its_environment_does_not_have(tmp_path: Path, log_file: Path, played) -> None:
    write_log(log_file, dataclasses.replace(played[0], distribution_mode="odd"))
    with pytest.raises(CorruptDataError, match=r"bigfish-train\.npz cannot be made.*'odd'"):
        import_replay(log_file, tmp_path, "train")


def test_older_logs_name_the_version_of_procgen(log_file: Path, played) -> None:
    with np.load(log_file) as file:
        arrays = {name: file[name] for name in file.files}
    arrays["procgen_version"] = arrays.pop("env_version")
    np.savez(log_file, **arrays)
    assert read_log(log_file).env_version == "0.10.7"


def test_an_array_whose_header_promises_terabytes(log_file: Path) -> None:
    with zipfile.ZipFile(log_file) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    members["actions.npy"] = members["actions.npy"].replace(
        b"(300, 5), }".ljust(30), b"(1000000000000, 5), }".ljust(30)
    )
    with zipfile.ZipFile(log_file, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    with pytest.raises(CorruptDataError, match=r"array actions .* its size differs from its header"):
        read_log(log_file)


def test_logs_without_a_version_are_of_version_1(log_file: Path) -> None:
    with np.load(log_file) as file:
        arrays = {name: file[name] for name in file.files}
    for name in ("format_version", "info", "env_version", "distribution_mode"):
        del arrays[name]
    np.savez(log_file, **arrays)
    log = read_log(log_file)
    assert log.env_version is None
    assert log.distribution_mode is None
    assert log.info == {}


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(keep=st.floats(0, 0.999))
def test_a_truncated_log_is_refused_wherever_it_was_cut(
    tmp_path_factory: pytest.TempPathFactory, played, keep: float
) -> None:
    path = tmp_path_factory.mktemp("cut") / "bigfish-train.npz"
    write_log(path, played[0])
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * keep)])
    with pytest.raises(CorruptDataError, match="truncated"):
        read_log(path)


def test_an_array_is_no_log(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros(3))
    with pytest.raises(CorruptDataError, match="no replay log"):
        read_log(tmp_path / "a.npy")
    with pytest.raises(MissingInputError):
        read_log(tmp_path / "b.npz")
