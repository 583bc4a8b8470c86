"""Frames that are nobody's game: without actions, without an environment, of other sizes; and games of plugins."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from lapo_cli.core.config import Config
from lapo_cli.core.data.store import SPLITS, UNLABELLED, store_path
from lapo_cli.core.data.store_writer import StoreWriter
from lapo_cli.core.envs.base import ENVIRONMENTS, EnvSpec, VecEnv
from lapo_cli.core.errors import BrokenEnvironmentError, UsageError
from lapo_cli.core.pipeline import Options, evaluate, run_all, run_stage
from lapo_cli.core.progress import Silent
from lapo_cli.core.run_dir import RunDir
from lapo_cli.core.training.rollout import rollout, uniform

Known = Callable[[str, NDArray[np.int64]], NDArray[np.bool_]]
_FRAMES = 192
_SHORT = ("stage1.steps=2", "stage1.eval_every=2", "stage2.steps=2", "stage2.eval_every=2", "online.steps=128")


@pytest.fixture
def run(tmp_path: Path, tiny: Callable[..., Config]) -> RunDir:
    return RunDir.create(tmp_path / "run", tiny(*_SHORT, "evaluation.max_episode_steps=100"), "paper")


@pytest.fixture
def options(tmp_path: Path) -> Options:
    return Options("cpu", tmp_path / "data")


def _store(
    data_dir: Path,
    game: str = "mine",
    num_actions: int | None = None,
    shape: tuple[int, int] = (64, 64),
    known: Known = lambda split, t: t >= 0,
) -> None:
    """Both splits, of random frames; ``known`` says which frames' actions are."""
    rng = np.random.default_rng(0)
    t = np.arange(_FRAMES)
    for split in SPLITS:
        with StoreWriter(store_path(data_dir, game, split), game, split, (*shape, 3), num_actions) as writer:
            writer.put_frames(writer.reserve(_FRAMES), rng.integers(0, 256, (_FRAMES, *shape, 3), np.uint8))
            actions = None
            if num_actions is not None:
                actions = np.where(known(split, t), rng.integers(0, num_actions, _FRAMES), UNLABELLED).astype(np.uint8)
            writer.put_columns(0, actions, np.zeros(_FRAMES, np.float32), t % 16 == 0)
            writer.finish(source="mine", made_by="a test", episode_returns=[])


def _made(run: RunDir, game: str = "mine") -> set[str]:
    return {folder.name for folder in run.seed_dir(game, 0).path.iterdir() if folder.is_dir()}


@pytest.mark.parametrize("shape", [(32, 32), (80, 60), (128, 128)])
def test_frames_of_any_size_without_actions_train_both_models(
    run: RunDir, options: Options, shape: tuple[int, int]
) -> None:
    _store(options.data_dir, shape=shape)
    summary = run_all(run, ["mine"], [0], options, Silent())
    assert summary.failures == summary.rows == []
    assert _made(run) == {"idm", "policy", "measurements"}
    assert "times that of repeating the last frame" in summary.notes[0]
    assert summary.notes[1:] == [
        "mine: offline was left out, since the train frames of mine have no true actions.",
        "mine: online was left out, since there is no environment for mine to act in.",
        "mine: scratch was left out, since there is no environment for mine to act in.",
    ]
    assert all(note in (run.path / "summary.md").read_text() for note in summary.notes)


def test_what_cannot_be_done_without_actions_and_environment_is_said(run: RunDir, options: Options) -> None:
    _store(options.data_dir)
    seed_dirs = [run.seed_dir("mine", 0)]
    for stage in ("idm", "policy"):
        run_stage(run, stage, seed_dirs, options, Silent())
    for stage, reason in (("offline", "no true actions"), ("online", "no environment"), ("scratch", "no environment")):
        with pytest.raises(UsageError, match=rf"Stage '{stage}' cannot be run: .*{reason}"):
            run_stage(run, stage, seed_dirs, options, Silent())
    summary = evaluate(run, run.path, options, Silent())
    assert summary.rows == summary.failures == []
    assert "mine: nothing can be evaluated, since there is no environment for mine to act in." in summary.notes
    assert _made(run) == {"idm", "policy", "measurements"}


@pytest.mark.parametrize(
    ("known", "decoded"),
    [
        (lambda split, t: t < 0, False),
        (lambda split, t: (t >= 0) & (split == "train"), False),
        (lambda split, t: (t >= 0) & (split == "test"), False),
        (lambda split, t: t % 16 == 0, False),  # The middle of no window.
        (lambda split, t: t == 5, True),
        (lambda split, t: t % 2 == 0, True),
    ],
    ids=["none", "train", "test", "first frames", "one", "half"],
)
def test_decoding_takes_the_frames_whose_actions_are_known(
    run: RunDir, options: Options, known: Known, decoded: bool
) -> None:
    _store(options.data_dir, num_actions=5, known=known)
    summary = run_all(run, ["mine"], [0], options, Silent())
    assert summary.failures == []
    assert ("offline" in _made(run)) == decoded
    assert decoded or any("the true action is not known for any" in note for note in summary.notes)


class _Faulty(VecEnv):
    """Episodes of 8 steps on black frames, with one fault."""

    def __init__(self, fault: str, num_envs: int, seed: int) -> None:
        if fault == "make":
            raise RuntimeError("there is no display\n" + "x" * 100_000)
        self.fault, self.num_envs, self.age = fault, num_envs, 0

    def observe(self) -> Any:
        n = self.num_envs
        reward, frames = np.zeros(n, np.float32), np.zeros((n, 64, 64, 3), np.uint8)
        first = np.full(n, self.age % 8 == 0 and (self.age == 0 or self.fault != "endless"))
        changed = {
            "no colours": (reward, frames[..., 0], first),
            "too few": (reward, frames[:1], first),
            "empty": (reward, frames[:, :0], first),
            "float frames": (reward, frames.astype(np.float32), first),
            "lists": (reward, frames.tolist(), first),
            "two things": (frames, first),
            "float64": (reward.astype(np.float64), frames, first),
            "column": (reward[:, None], frames, first),
            "NaN": (reward * np.nan, frames, first),
            "infinite": (reward + np.inf, frames, first),
            "numbers": (reward, frames, first.astype(np.float32)),
            "other size later": (reward, frames[:, self.age :], first),
        }
        return changed.get(self.fault, (reward, frames, first))

    def act(self, actions: NDArray[np.integer[Any]]) -> None:
        self.age += 1
        if self.fault == "exit":
            raise SystemExit(0)
        if self.fault == "crash" and self.age == 5:
            raise ValueError("the game crashed")

    def close(self) -> None:
        if self.fault == "close":
            raise OSError("the window is gone")


def _play(fault: str) -> None:
    spec = EnvSpec("faulty", 5, make=partial(_Faulty, fault))
    device = torch.device("cpu")
    rollout(
        uniform(5),
        spec,
        episodes=4,
        num_envs=2,
        max_episode_steps=100,
        seed=0,
        device=device,
        progress=Silent(),
        title="",
    )


@pytest.mark.parametrize(
    ("fault", "sentence"),
    [
        ("make", r"failed \(RuntimeError: there is no display x+ … x+\): correct it"),
        ("no colours", r"returned frames of uint8 \(2, 64, 64\) .* instead of uint8 \(2, H, W, 3\)"),
        ("too few", r"frames of uint8 \(1, 64, 64, 3\) .* instead of uint8 \(2, 64, 64, 3\)"),
        ("empty", r"frames of uint8 \(2, 0, 64, 3\)"),
        ("float frames", "frames of float32"),
        ("lists", "AttributeError"),
        ("two things", "ValueError: not enough values"),
        ("float64", "rewards of float64"),
        ("column", r"rewards of float32 \(2, 1\)"),
        ("NaN", "a reward that is not finite"),
        ("infinite", "a reward that is not finite"),
        ("numbers", "first frames of float32"),
        ("other size later", r"frames of uint8 \(2, 63, 64, 3\) .* instead of uint8 \(2, 64, 64, 3\)"),
        ("exit", r"failed \(SystemExit: 0\)"),
        ("crash", r"failed \(ValueError: the game crashed\)"),
        ("close", r"failed \(OSError: the window is gone\)"),
        ("endless", "An episode of faulty did not end within 100 steps"),
    ],
)
def test_an_environment_with_a_fault_is_named(fault: str, sentence: str) -> None:
    with pytest.raises(BrokenEnvironmentError, match=sentence) as raised:
        _play(fault)
    assert "faulty" in str(raised.value)
    assert len(str(raised.value)) < 1000


def test_an_environment_without_a_fault_is_played() -> None:
    _play("none")


def test_a_crash_in_the_middle_of_an_episode_loses_no_stage(
    run: RunDir, options: Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    _store(options.data_dir, "faulty", num_actions=5)
    monkeypatch.setitem(ENVIRONMENTS._items, "faulty", EnvSpec("faulty", 5, make=partial(_Faulty, "crash")))
    (failure,) = run_all(run, ["faulty"], [0], options, Silent()).failures
    assert "The environment 'faulty' failed (ValueError: the game crashed)" in failure.message
    weights = {file: file.stat().st_mtime_ns for file in run.path.rglob("*.safetensors")}
    assert {file.parent.name for file in weights} == {"idm", "policy", "offline"}
    monkeypatch.setitem(ENVIRONMENTS._items, "faulty", EnvSpec("faulty", 5, make=partial(_Faulty, "none")))
    assert run_all(run, ["faulty"], [0], options, Silent()).failures == []
    assert {file: file.stat().st_mtime_ns for file in weights} == weights
    assert _made(run, "faulty") == {"idm", "policy", "offline", "online", "scratch", "evaluation", "measurements"}
