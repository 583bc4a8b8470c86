"""Recording: what a log says is what was played, whoever played it and however often it was interrupted."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from lapo_cli.core.compute import Compute
from lapo_cli.core.config import Config
from lapo_cli.core.data.replay_log import read_log, write_log
from lapo_cli.core.data.sources.replay import import_replay, verify
from lapo_cli.core.data.store import open_store
from lapo_cli.core.envs.base import ENVIRONMENTS
from lapo_cli.core.envs.procgen import GAMES, ProcgenVecEnv
from lapo_cli.core.envs.procgen_planners.state import parse_state
from lapo_cli.core.errors import BusyError, CorruptDataError, DiskFullError, MissingInputError, UsageError
from lapo_cli.core.evaluation.evaluate import candidates
from lapo_cli.core.files import exclusive
from lapo_cli.core.pipeline import Options, evaluate, run_stage
from lapo_cli.core.progress import Silent
from lapo_cli.core.recording.demonstrations import TEST_SEEDS, Recorded, record_demonstrations
from lapo_cli.core.recording.players import NetworkPlayer, PlannerPlayer, Player, load_player
from lapo_cli.core.recording.record import Member, record
from lapo_cli.core.report.images import draw_learning_curve
from lapo_cli.core.run_dir import RunDir, StageDir
from lapo_cli.core.training.agents import Act, DirectAgent
from lapo_cli.core.training.context import Context
from lapo_cli.core.training.networks import header
from tests.core.tiny_config import run as run_one

_MAZE = ENVIRONMENTS.get("maze")
_CPU = Compute(torch.device("cpu"), bf16=False)


class _Constant(Player):
    """Always the same action; stops like a person does after so many calls."""

    def __init__(self, action: int, calls: int = 10**9) -> None:
        self._action, self._calls = action, calls

    def describe(self) -> dict[str, Any]:
        return {"policy": f"always {self._action}"}

    def start(self, num_envs: int, seed: int) -> None:
        self.num_envs = num_envs

    def act(self, frames: NDArray[np.uint8], states: Sequence[bytes]) -> NDArray[np.int64]:
        assert frames.shape == (self.num_envs, 64, 64, 3)
        self._calls -= 1
        if self._calls < 0:
            raise KeyboardInterrupt
        return np.full(self.num_envs, self._action)


def _record(path: Path, *members: Member, **changed: Any) -> Any:
    settings: dict[str, Any] = {"frames": 600, "num_envs": 6, "seed": 4, "progress": Silent(), **changed}
    return record("maze", members, path, **settings)


def test_a_recording_replays_and_holds_its_statistics(tmp_path: Path) -> None:
    path = tmp_path / "maze-train.npz"
    made = _record(path, Member(load_player("planner", _MAZE, greedy=False, compute=_CPU), 0.0), frames=1000)
    log = read_log(path)
    assert log.actions.shape == (167, 6)
    assert np.array_equal(log.actions, made.log.actions)
    returns = verify(log, path)
    episodes, mean = len(returns), np.mean(returns)
    info = log.info
    # The last step may end episodes that no frame of the log shows.
    assert episodes <= info["episodes"] <= episodes + 6
    assert mean == pytest.approx(10)
    assert info["mean_return"] == info["low"] == info["high"] == 10
    assert info["normalized"] == pytest.approx(1.0054, abs=1e-4)
    assert info["measured_episodes"] % 6 == 0
    assert 0 < info["measured_episodes"] <= info["episodes"]
    assert info["settings"] == {
        "policies": [{"policy": "planner", "epsilon": 0.0}],
        "seed": 4,
        "num_envs": 6,
        "steps": 167,
    }


def test_episodes_are_counted_alike_for_every_environment(tmp_path: Path) -> None:
    """Against returns gathered by playing the log, environment by environment."""
    path = tmp_path / "maze-train.npz"
    log = _record(path, Member(load_player("random", _MAZE, greedy=False, compute=_CPU), 0.0), frames=12_000).log
    env, running = ProcgenVecEnv("maze", 6, 4), np.zeros(6)
    returns: list[list[float]] = [[] for _ in range(6)]
    for actions in log.actions:
        env.act(actions)
        reward, _, first = env.observe()
        running += reward
        for n in np.flatnonzero(first):
            returns[n].append(running[n])
            running[n] = 0
    env.close()
    each = min(map(len, returns))
    assert each >= 1
    assert log.info["episodes"] == sum(map(len, returns))
    assert log.info["measured_episodes"] == 6 * each
    assert log.info["mean_return"] == pytest.approx(np.mean([r[:each] for r in returns]), abs=1e-3)


def test_environments_take_turns_among_the_policies_and_only_their_noise_differs(tmp_path: Path) -> None:
    log = _record(tmp_path / "a.npz", Member(_Constant(7), 0.0), Member(_Constant(3), 0.5), frames=1200).log
    assert (log.actions[:, ::2] == 7).all()
    kept = (log.actions[:, 1::2] == 3).mean()
    assert 0.47 < kept < 0.59  # a half, and a fifteenth of the other half
    assert [p["epsilon"] for p in log.info["settings"]["policies"]] == [0.0, 0.5]


@pytest.mark.parametrize("game", GAMES)
def test_a_planner_continues_in_the_middle_of_a_level(tmp_path: Path, game: str) -> None:
    path = tmp_path / f"{game}-train.npz"

    class _Cut(PlannerPlayer):
        def act(self, frames: NDArray[np.uint8], states: Sequence[bytes]) -> NDArray[np.int64]:
            if parse_state(states[0]).time >= 9:
                raise KeyboardInterrupt
            return super().act(frames, states)

    settings: dict[str, Any] = {"frames": 60, "num_envs": 3, "seed": 2, "progress": Silent()}
    with pytest.raises(KeyboardInterrupt):
        record(game, [Member(_Cut(ENVIRONMENTS.get(game)), 0.0)], path, **settings)
    log = record(game, [Member(PlannerPlayer(ENVIRONMENTS.get(game)), 0.0)], path, **settings).log
    assert log.num_steps == 20
    assert log.info["resumed_at"] == [9]


def test_an_interrupted_recording_resumes_where_it_stopped(tmp_path: Path) -> None:
    path = tmp_path / "maze-train.npz"
    with pytest.raises(KeyboardInterrupt):
        _record(path, Member(_Constant(7, calls=64), 0.3))
    assert not path.exists()
    begun = read_log(tmp_path / "maze-train.partial.npz")
    assert begun.num_steps == 64
    verify(begun, path)
    whole = _record(path, Member(_Constant(7), 0.3)).log
    assert np.array_equal(whole.actions[:64], begun.actions)
    assert whole.info["resumed_at"] == [64]
    assert whole.num_steps == 100
    verify(whole, path)
    assert [file.name for file in tmp_path.iterdir()] == ["maze-train.npz"]


def test_a_recording_interrupted_while_it_is_verified_is_not_played_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "maze-train.npz"

    def interrupt(*given: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as now:
        now.setattr("lapo_cli.core.recording.record.verify", interrupt)
        with pytest.raises(KeyboardInterrupt):
            _record(path, Member(_Constant(7), 0.3))
    assert not path.exists()
    played = read_log(tmp_path / "maze-train.partial.npz")
    made = _record(path, Member(_Constant(7, calls=0), 0.3)).log
    assert np.array_equal(made.actions, played.actions)
    verify(read_log(path), path)
    assert [file.name for file in tmp_path.iterdir()] == ["maze-train.npz"]


def test_a_whole_recording_is_not_played_again(tmp_path: Path) -> None:
    path = tmp_path / "maze-train.npz"
    one = _record(path, Member(_Constant(7), 0.3))
    again = _record(path, Member(_Constant(7, calls=0), 0.3))
    assert np.array_equal(one.log.actions, again.log.actions)
    assert one.levels == again.levels


def test_other_settings_do_not_overwrite_a_recording(tmp_path: Path) -> None:
    path = tmp_path / "maze-train.npz"
    _record(path, Member(_Constant(7), 0.0))
    before = path.read_bytes()
    with pytest.raises(UsageError, match="other settings"):
        _record(path, Member(_Constant(8), 0.0))
    assert path.read_bytes() == before


def test_a_partial_recording_that_renders_differently_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "maze-train.npz"
    log = _record(path, Member(_Constant(7), 0.0)).log
    write_log(path, dataclasses.replace(log, frame_sha256=("0" * 64, *log.frame_sha256[1:])))
    with pytest.raises(CorruptDataError, match="step 0"):
        _record(path, Member(_Constant(7), 0.0))


def _demonstrations(to: Path, **changed: Any) -> list[Recorded]:
    settings: dict[str, Any] = {
        "frames": {"train": 120, "test": 60},
        "num_envs": 4,
        "seed": 20,
        "greedy": False,
        "compute": _CPU,
        "fresh": False,
        "progress": Silent(),
    }
    return record_demonstrations("maze", ["planner"], [0.1], to, **{**settings, **changed})


def test_a_test_log_that_meets_a_level_of_the_training_log_is_played_with_another_seed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The test log's first seed is made to play the training log's levels; its second one does not."""
    real = ProcgenVecEnv.__init__

    def twin(self: ProcgenVecEnv, game: str, num_envs: int, seed: int, **more: Any) -> None:
        real(self, game, num_envs, 20 if seed == TEST_SEEDS + 20 else seed, **more)

    monkeypatch.setattr(ProcgenVecEnv, "__init__", twin)
    train, test = _demonstrations(tmp_path)
    assert [read_log(log.path).rand_seed for log in (train, test)] == [20, TEST_SEEDS + 21]
    assert [log.info["settings"]["seed"] for log in (train, test)] == [20, TEST_SEEDS + 20]
    kept = test.path.read_bytes()
    _demonstrations(tmp_path)
    assert test.path.read_bytes() == kept


def test_levels_that_cannot_be_avoided_end_in_a_sentence(tmp_path: Path) -> None:
    class _Everything(frozenset[int]):
        def isdisjoint(self, other: object) -> bool:
            return False

    with pytest.raises(UsageError, match="record fewer frames"):
        _record(tmp_path / "maze-test.npz", Member(_Constant(7), 0.0), avoid=_Everything())
    assert list(tmp_path.iterdir()) == []


def test_fresh_sets_aside_the_logs_that_are_recorded_again_and_touches_no_others(tmp_path: Path) -> None:
    train, test = _demonstrations(tmp_path)
    kept = {path: path.read_bytes() for path in (train.path, test.path)}
    (tmp_path / "heist-train.npz").write_bytes(b"kept")
    (tmp_path / "maze-train.partial.npz").write_bytes(b"cut")
    for seed in (5, 6):
        _demonstrations(tmp_path, seed=seed, frames={"train": 120}, fresh=True)
    assert test.path.read_bytes() == kept[test.path]
    assert (tmp_path / "maze-train.old-1.npz").read_bytes() == kept[train.path]
    assert read_log(tmp_path / "maze-train.old-2.npz").rand_seed == 5
    assert read_log(train.path).rand_seed == 6
    assert (tmp_path / "maze-train.partial.old-1.npz").read_bytes() == b"cut"
    assert len(list(tmp_path.glob("*.npz"))) == 6


def test_a_disk_that_fills_up_loses_nothing_that_was_kept(small_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Random actions take half a byte each: the disk has room for some of the parts, but not for the whole log."""
    monkeypatch.setattr("lapo_cli.core.recording.record._CHECKPOINT_SECONDS", 0.0)
    filler = small_disk / "filler"
    filler.write_bytes(b"0" * (2**20 - 3 * 4096 * 4))
    player = load_player("random", _MAZE, greedy=False, compute=_CPU)
    with pytest.raises(DiskFullError, match="disk"):
        record(
            "maze",
            [Member(player, 0.0)],
            small_disk / "maze-train.npz",
            frames=200_000,
            num_envs=64,
            seed=1,
            progress=Silent(),
        )
    begun = read_log(small_disk / "maze-train.partial.npz")
    assert 0 < begun.num_steps < 3125
    filler.unlink()
    log = record(
        "maze",
        [Member(player, 0.0)],
        small_disk / "maze-train.npz",
        frames=200_000,
        num_envs=64,
        seed=1,
        progress=Silent(),
    ).log
    assert np.array_equal(log.actions[: begun.num_steps], begun.actions)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_keeps_what_was_played(tmp_path: Path, number: signal.Signals) -> None:
    words = ["record", "maze", "--policy", "random", "--frames", "4000000", "--num-envs", "8", "--to", str(tmp_path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "lapo_cli", *words]
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stderr is not None
    process.stderr.readline()  # the first line of progress
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert said.splitlines()[-1] == "Error: Interrupted: what was finished is kept; the same command resumes."
    assert read_log(tmp_path / "maze-train.partial.npz").num_steps > 0


def test_a_second_recording_of_a_game_is_refused(tmp_path: Path) -> None:
    lock = exclusive(tmp_path / ".maze.lock", BusyError("busy"))
    with lock, pytest.raises(BusyError, match="recording maze"):
        _demonstrations(tmp_path)


@pytest.mark.parametrize("frames", [1, 7])
def test_the_smallest_recording_holds_a_window_of_every_environment(tmp_path: Path, frames: int) -> None:
    (made,) = _demonstrations(tmp_path, frames={"train": frames})
    import_replay(made.path, tmp_path / "data", "train")
    assert len(open_store(tmp_path / "data", "maze", "train").video().windows()) >= 4


def _trained(ctx: Context, stage: str) -> Act:
    """What evaluation would act with."""
    (_, candidate) = candidates(ctx, stage)
    return candidate.policy.load()


def test_trained_networks_are_recorded_from_their_weights_alone(context: Callable[..., Context]) -> None:
    size = ("expert.scale=1", "expert.size=16", "expert.ppo.num_envs=8", "expert.ppo.num_steps=16")
    ctx = context("expert.steps=256", "expert.snapshot_every=128", *size)
    result = run_one(ctx, "expert")
    assert result.results["env_steps"] == 256
    frames = np.random.default_rng(0).integers(0, 256, (5, 64, 64, 3), dtype=np.uint8)
    player = load_player(str(result.path), _MAZE, greedy=True, compute=_CPU)
    player.start(5, 0)
    expected = _trained(ctx, "expert")(torch.from_numpy(frames)).argmax(1)
    assert player.act(frames, []).tolist() == expected.tolist()
    assert player.describe()["env_steps"] == 256
    snapshot = load_player(str(result.path / "step-128.safetensors"), _MAZE, greedy=True, compute=_CPU)
    assert snapshot.describe()["env_steps"] == 128
    assert snapshot.describe()["weights_sha256"] != player.describe()["weights_sha256"]


def test_an_expert_is_trained_in_a_run_of_its_own_and_evaluated(tmp_path: Path, tiny: Callable[..., Config]) -> None:
    words = ("expert.steps=256", "expert.ppo.num_envs=8", "expert.ppo.num_steps=16", "expert.scale=1", "expert.size=16")
    run = RunDir.create(tmp_path / "run", tiny(*words), "paper")
    run.seed_dir("maze", 0).path.mkdir(parents=True)
    with pytest.raises(MissingInputError, match="train-expert"):
        evaluate(run, run.path, Options("cpu", tmp_path), Silent())
    (result,) = run_stage(run, "expert", [run.seed_dir("maze", 0)], Options("cpu", tmp_path), Silent())
    assert result.results["env_steps"] == 256
    (again,) = run_stage(run, "expert", [run.seed_dir("maze", 0)], Options("cpu", tmp_path), Silent())
    assert again.skipped
    rows = evaluate(run, run.path, Options("cpu", tmp_path), Silent()).rows
    assert [row.title for row in rows] == ["random policy", "PPO expert, 256 steps"]


def test_a_learning_curve_is_drawn_once_there_is_one(tmp_path: Path) -> None:
    stage = tmp_path / "maze" / "seed-0" / "expert"
    stage.mkdir(parents=True)
    draw_learning_curve(stage)
    assert list(stage.iterdir()) == []
    point = {"seconds": 1.0, "eval/episodic_return": 5.0, "eval/episodic_return_std": 1.0, "eval/episodes": 64}
    lines = [{"step": step, **point} for step in (0, 20)]
    (stage / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    draw_learning_curve(stage)
    assert (stage / "learning-curve.png").stat().st_size > 1000


def test_networks_sample_unless_they_are_to_be_greedy() -> None:
    torch.manual_seed(0)
    agent = DirectAgent(1, 16, 15, _CPU)
    frames = np.zeros((2000, 64, 64, 3), np.uint8)
    chances = agent.act(torch.from_numpy(frames[:1])).softmax(1)[0].numpy()
    about = {"stage": "scratch", "seed": 0}
    sampling = NetworkPlayer(agent, about, "", greedy=False, device=_CPU.device)
    sampling.start(2000, 3)
    counts = np.bincount(sampling.act(frames, []), minlength=15) / 2000
    np.testing.assert_allclose(counts, chances, atol=4 * 0.5 / 2000**0.5)
    greedy = NetworkPlayer(agent, about, "", greedy=True, device=_CPU.device)
    greedy.start(2000, 3)
    assert set(greedy.act(frames, [])) == {int(chances.argmax())}


def test_the_policy_from_scratch_and_the_latent_one_can_be_recorded_too(context: Callable[..., Context]) -> None:
    ctx = context()
    run_one(ctx, "idm")
    run_one(ctx, "policy")
    frames = np.random.default_rng(0).integers(0, 256, (5, 64, 64, 3), dtype=np.uint8)
    for stage in ("online", "rl-only", "scratch"):
        result = run_one(ctx, stage)
        player = load_player(str(result.path), _MAZE, greedy=True, compute=_CPU)
        player.start(5, 0)
        expected = _trained(ctx, stage)(torch.from_numpy(frames)).argmax(1)
        assert player.act(frames, []).tolist() == expected.tolist(), stage


def test_what_cannot_play_is_refused(tmp_path: Path, context: Callable[..., Context]) -> None:
    ctx = context()
    stage = StageDir(tmp_path / "idm")
    stage.path.mkdir()
    stage.save_weights({"agent": DirectAgent(1, 16, 15, _CPU)}, header(ctx, stage))
    with pytest.raises(UsageError, match="cannot be recorded"):
        load_player(str(stage.path), _MAZE, greedy=False, compute=_CPU)
    stage.save_weights({"agent": DirectAgent(1, 16, 15, _CPU)}, header(ctx, StageDir(tmp_path / "online")))
    with pytest.raises(UsageError, match="plays maze, not fruitbot"):
        load_player(str(stage.path), ENVIRONMENTS.get("fruitbot"), greedy=False, compute=_CPU)
    with pytest.raises(CorruptDataError):
        load_player(str(stage.path), _MAZE, greedy=False, compute=_CPU)
    (tmp_path / "cut.safetensors").write_bytes((stage.path / "model.safetensors").read_bytes()[:100])
    with pytest.raises(CorruptDataError, match="no weights file"):
        load_player(str(tmp_path / "cut.safetensors"), _MAZE, greedy=False, compute=_CPU)
    with pytest.raises(MissingInputError, match="train-expert maze"):
        load_player(str(tmp_path / "nowhere"), _MAZE, greedy=False, compute=_CPU)


def test_epsilons_must_fit_the_policies(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="3 values of --epsilon"):
        record_demonstrations(
            "maze",
            ["planner", "random"],
            [0.1, 0.2, 0.3],
            tmp_path,
            frames={"train": 60},
            num_envs=4,
            seed=0,
            greedy=False,
            compute=_CPU,
            fresh=False,
            progress=Silent(),
        )


def test_kill_9_loses_no_more_than_the_last_minute_and_leaves_no_half_log(tmp_path: Path) -> None:
    script = (
        "import lapo_cli.core.recording.record as r; r._CHECKPOINT_SECONDS = 0.2;"
        "from lapo_cli.__main__ import main; main()"
    )
    words = ["record", "maze", "--policy", "random", "--frames", "400000", "--num-envs", "8", "--to", str(tmp_path)]
    process = subprocess.Popen(
        [sys.executable, "-c", script, *words, "--quiet"], env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    partial = tmp_path / "maze-train.partial.npz"
    try:
        until = time.monotonic() + 60
        while not partial.exists() and time.monotonic() < until:
            time.sleep(0.05)
        time.sleep(0.3)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    begun = read_log(partial)
    assert begun.num_steps > 0
    assert not (tmp_path / "maze-train.npz").exists()
    verify(begun, partial)


_TOY = '''
"""A counter without levels: action 1 counts up, and at 7 the episode ends with reward 2.5."""

import numpy as np

from lapo_cli.core.envs.base import ENVIRONMENTS, EnvSpec, VecEnv


class Counter(VecEnv):
    def __init__(self, num_envs, seed):
        self.num_envs, self._seed = num_envs, seed
        self._count, self._reward = np.zeros(num_envs, int), np.zeros(num_envs, np.float32)
        self._first = np.ones(num_envs, bool)

    def observe(self):
        frames = np.zeros((self.num_envs, 6, 10, 3), np.uint8)
        frames += (self._count + self._seed)[:, None, None, None].astype(np.uint8)
        return self._reward, frames, self._first

    def act(self, actions):
        assert 0 <= actions.min() <= actions.max() < 3
        self._count = self._count + (actions == 1)
        self._first = self._count == 7
        self._reward = np.where(self._first, 2.5, 0).astype(np.float32)
        self._count[self._first] = 0

    def close(self):
        pass


ENVIRONMENTS.register(EnvSpec("counter", num_actions=3, make=Counter))
'''

_RECORD_TOY = """
import sys
from pathlib import Path
import numpy as np
from lapo_cli.core.plugins import load_plugin
load_plugin(Path(sys.argv[1]))
from lapo_cli.core.data.download import download
from lapo_cli.core.progress import Silent
from lapo_cli.core.recording.players import Player
from lapo_cli.core.recording.record import Member, record

class Up(Player):
    def describe(self):
        return {"policy": "up"}
    def start(self, num_envs, seed):
        pass
    def act(self, frames, states):
        return np.ones(len(frames), int)

here = Path(sys.argv[2])
path = here / "counter-train.npz"
made = record("counter", [Member(Up(), 0.3)], path, frames=600, num_envs=3, seed=5, progress=Silent())
assert made.levels == frozenset()
assert made.log.actions.max() == 2 and made.log.distribution_mode is None
assert made.log.info["mean_return"] == 2.5 and "normalized" not in made.log.info
download("counter", here / "data", location=here)
"""


def test_any_registered_environment_can_be_recorded_and_replayed(tmp_path: Path) -> None:
    plugin = tmp_path / "counter.py"
    plugin.write_text(_TOY)
    done = subprocess.run([sys.executable, "-c", _RECORD_TOY, plugin, tmp_path], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    store = open_store(tmp_path / "data", "counter", "train")
    assert (store.manifest.frame_shape, store.manifest.num_actions) == ((6, 10, 3), 3)
    assert store.frames.shape == (600, 6, 10, 3)
    assert set(store.episode_returns().tolist()) == {2.5}
    assert store.actions is not None
    assert set(store.actions.tolist()) == {0, 1, 2}
    with pytest.raises(UsageError, match=r"counter-train\.npz is a replay log of 'counter'.*--plugin"):
        read_log(tmp_path / "counter-train.npz")
