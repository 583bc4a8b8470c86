"""Environments of Gymnasium: which can be used, under which names, and that they repeat and continue exactly."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from lapo_cli.cli.main import app
from lapo_cli.core.data.sources import replay
from lapo_cli.core.data.store import open_store
from lapo_cli.core.envs.base import ENVIRONMENTS, VecEnv, parse_games
from lapo_cli.core.errors import BrokenEnvironmentError, LapoError, UnknownNameError
from lapo_cli.core.progress import Silent
from lapo_cli.core.recording.players import RandomPlayer
from lapo_cli.core.recording.record import Member, record
from lapo_cli.core.registry import PLAIN_NAME, member_of, plain_name
from tests.core.tiny_config import TINY

_MINIGRID = "gymnasium:MiniGrid-Empty-Random-5x5-v0"
_ATARI = "gymnasium:ALE/Breakout-v5"


def _toy(name: str = "Plain") -> str:
    return f"gymnasium:tests.toy_gymnasium:Toy/{name}-v0"


_word = st.text("aZ09_", min_size=1, max_size=5)


@given(
    st.tuples(
        st.sampled_from(["", "pkg:", "pkg.mod:"]),
        st.one_of(st.just(""), _word.map(lambda word: f"{word}/")),
        _word,
        st.sampled_from(["", ".5", "-x"]),
        st.sampled_from(["", "-v0", "-v12"]),
    ).map("".join)
)
def test_names_of_members_can_be_folders_and_lead_back(member: str) -> None:
    name = plain_name(f"gymnasium:{member}")
    assert PLAIN_NAME.fullmatch(name)
    assert member_of(name) == member
    assert plain_name(name) == name


def test_words_and_names_are_the_same_environment() -> None:
    spec = ENVIRONMENTS.get(_MINIGRID)
    assert spec.name == "gymnasium.MiniGrid-Empty-Random-5x5-v0"
    assert ENVIRONMENTS.get(spec.name) is spec
    assert parse_games([_MINIGRID, spec.name, "maze"]) == [spec.name, "maze"]
    assert _MINIGRID in ENVIRONMENTS
    assert spec.name not in ENVIRONMENTS.names()
    assert "gymnasium" not in ENVIRONMENTS
    assert (spec.num_actions, spec.action_names[2], spec.normalize(3.0)) == (7, "forward", None)


def _play(envs: VecEnv, actions: np.ndarray[Any, Any]) -> list[Any]:
    seen = []
    for row in actions:
        reward, frames, first = envs.observe()
        seen.append((reward.tolist(), frames.copy(), first.tolist()))
        envs.act(row)
    return seen


def _assert_equal(one: list[Any], other: list[Any]) -> None:
    assert [(reward, first) for reward, _, first in one] == [(reward, first) for reward, _, first in other]
    assert all(np.array_equal(frames, others) for (_, frames, _), (_, others, _) in zip(one, other, strict=True))


@pytest.mark.parametrize("word", [_MINIGRID, _ATARI, _toy(), _toy("large"), _toy("grey"), _toy("small"), _toy("dict")])
def test_play_repeats_and_continues_exactly(word: str) -> None:
    spec = ENVIRONMENTS.get(word)
    actions = np.random.default_rng(0).integers(0, spec.require_actions(), (80, 3))
    envs = spec.make_envs(3, seed=5)
    assert envs.saves_state
    before = _play(envs, actions[:40])
    states = envs.get_state()
    after = _play(envs, actions[40:])
    _assert_equal(_play(spec.make_envs(3, seed=5), actions), before + after)
    others = spec.make_envs(3, seed=6)
    assert not all(np.array_equal(a[1], b[1]) for a, b in zip(_play(others, actions[:40]), before, strict=True))
    others.set_state(states)
    _assert_equal(_play(others, actions[40:]), after)


def test_an_episode_ends_with_the_first_frame_of_the_next() -> None:
    spec = ENVIRONMENTS.get(_toy())
    assert spec.num_actions == 3
    seen = _play(spec.make_envs(2, seed=0), np.tile([[0, 2]], (60, 1)))
    for number in range(2):
        first = [row for row, (_, _, firsts) in enumerate(seen) if firsts[number]]
        assert first[0] == 0
        assert {6, 7, 8, 9} >= set(np.diff(first).tolist()) != set()
        assert all(seen[row][1][number].max() < 50 for row in first)
        assert {reward[number] for reward, _, _ in seen[1:]} == {5.0 + 2 * number}


@pytest.mark.parametrize(
    ("word", "shape"),
    [
        (_ATARI, 64),
        (_MINIGRID, 64),
        (_toy("grey"), 64),
        (_toy("large"), 64),
        (_toy("small"), (20, 24)),
        (_toy("dict"), 64),
    ],
)
def test_frames_have_a_size_that_networks_use(word: str, shape: Any) -> None:
    _, frames, _ = ENVIRONMENTS.get(word).make_envs(2, seed=0).observe()
    assert frames.shape == (2, *(shape if isinstance(shape, tuple) else (shape, shape)), 3)


@pytest.mark.parametrize(
    ("word", "sentence"),
    [
        (_toy("vector"), r"observations of .*vector-v0 are Box.* no images.*AddRenderObservation"),
        (_toy("continuous"), r"actions of .* are Box.*, and lapo needs at most 255 discrete ones"),
        (_toy("several"), "actions of .* are MultiDiscrete"),
        (_toy("nothing"), "Gymnasium has no environment .*: check the spelling"),
        ("gymnasium:no_such_package:X-v0", "Gymnasium has no environment no_such_package:X-v0"),
        ("gymnasium:ALE/Braekout-v5", "Did you mean: `Breakout`"),
        ("gymnasium:", "cannot be made here"),
        ("gymnasium.a b", "There is no game"),
    ],
)
def test_what_cannot_be_used_is_refused(word: str, sentence: str) -> None:
    with pytest.raises(LapoError, match=sentence) as raised:
        ENVIRONMENTS.get(word)
    assert len(str(raised.value)) < 600


def test_a_crash_in_mid_episode_is_the_environment_s() -> None:
    envs = ENVIRONMENTS.get(_toy("crash")).make_envs(2, seed=0)
    with pytest.raises(BrokenEnvironmentError, match=r"failed \(RuntimeError: the emulator died\)"):
        _play(envs, np.zeros((9, 2), np.int64))


def test_what_does_not_repeat_cannot_be_continued() -> None:
    assert not ENVIRONMENTS.get(_toy("chance")).make_envs(1, seed=0).saves_state
    spec = ENVIRONMENTS.get(_toy("unrepeatable"))
    envs = spec.make_envs(2, seed=0)
    _play(envs, np.zeros((4, 2), np.int64))
    with pytest.raises(BrokenEnvironmentError, match=r"does not give the same frames .*start over with --fresh"):
        spec.make_envs(2, seed=0).set_state(envs.get_state())


@pytest.mark.parametrize(
    ("fault", "rehearsed", "sentence", "begun"),
    [
        ("unrepeatable", 48, "the frames of step 0 differ", False),
        ("unrepeatable-frame", 48, "the frames of step 5 differ", False),
        ("unrepeatable-reward", 48, "the rewards of step 1 differ", False),
        ("unrepeatable-end", 48, "the episode starts of step [0-9]+ differ", False),
        ("unrepeatable-frame", 3, "the frames of step 64 differ", True),
        ("unrepeatable-reward", 1, "the rewards sum to .* instead of", True),
    ],
)
def test_what_does_not_repeat_is_not_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str, rehearsed: int, sentence: str, begun: bool
) -> None:
    titles: list[str] = []

    class _Titles(Silent):
        def task(self, title: str, *args: Any) -> Any:
            titles.append(title)
            return super().task(title, *args)

    monkeypatch.setattr(replay, "_REHEARSED_STEPS", rehearsed)
    spec = ENVIRONMENTS.get(_toy(fault))
    random = [Member(RandomPlayer(spec), 0.0)]
    with pytest.raises(BrokenEnvironmentError, match=rf"cannot be recorded, {sentence} .*played again from the same"):
        record(spec.name, random, tmp_path / "a.npz", frames=600, num_envs=6, seed=0, progress=_Titles())
    assert any(title.startswith("recording") for title in titles) == begun
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("word", "module", "extra"),
    [
        (_toy("grey"), "gymnasium", "gymnasium"),
        (_MINIGRID, "gymnasium", "minigrid"),
        (_MINIGRID, "minigrid", "minigrid"),
        (_ATARI, "ale_py", "atari"),
    ],
)
def test_without_the_extra_it_is_named(monkeypatch: pytest.MonkeyPatch, word: str, module: str, extra: str) -> None:
    monkeypatch.setattr(ENVIRONMENTS, "_members", {})
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(LapoError, match=rf"needs the extra '{extra}' .*pip install 'lapo-cli\[{extra}\]'"):
        ENVIRONMENTS.get(word)


def test_from_recorded_play_to_a_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LAPO_DATA_DIR", str(tmp_path / "data"))

    def lapo(*words: str) -> str:
        done = CliRunner().invoke(app, list(words))
        assert done.exit_code == 0, done.output
        return done.stdout

    sizes = ("--frames", "600", "--test-frames", "300", "--num-envs", "4")
    lapo("record", _MINIGRID, "--policy", "random", "--to", "demos", *sizes)
    lapo("download", _MINIGRID, "--from", "demos")
    name = plain_name(_MINIGRID)
    assert open_store(tmp_path / "data", name, "train").manifest.num_actions == 7
    settings = [part for word in TINY for part in ("--set", word)]
    printed = lapo("run-all", "--games", _MINIGRID, "--run-dir", "run", "--device", "cpu", "--json", *settings)
    rows = json.loads(printed)["rows"]
    assert {row["policy"] for row in rows} >= {"random policy", "PPO from scratch, 512 steps"}
    assert {(row["game"], row["normalized"]) for row in rows} == {(name, None)}
    words = ("record", _MINIGRID, "--policy", f"run/{name}/seed-0/scratch", "--to", "trained", *sizes)
    lapo(*words)
    assert {file.name for file in (tmp_path / "trained").glob("g*")} == {f"{name}-train.npz", f"{name}-test.npz"}
    with pytest.raises(UnknownNameError):
        ENVIRONMENTS.get("gymnasium:MiniGrid-None-v0")
