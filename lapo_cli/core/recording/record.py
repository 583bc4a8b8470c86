"""Playing to a replay log: the actions that were taken, checksums of the frames they led to, and how well it went."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import lapo_cli
from lapo_cli.core.data.replay_log import ReplayLog, frames_digest, read_log, write_log
from lapo_cli.core.data.sources.replay import rehearse, verify
from lapo_cli.core.envs.base import ENVIRONMENTS
from lapo_cli.core.errors import CorruptDataError, UsageError
from lapo_cli.core.evaluation.statistics import mean_return
from lapo_cli.core.interrupts import interruptible
from lapo_cli.core.progress import Progress
from lapo_cli.core.recording.players import Player

_SHA_EVERY = 64
_CHECKPOINT_SECONDS = 60.0
_SHORTEST = 3  # steps, one window
_TRIES = 20
_REHEARSED_ENVS = 4


@dataclass(frozen=True)
class Member:
    """One of the players that are recorded.

    Attributes:
        player: what acts.
        epsilon: share of its actions that are replaced by uniformly random ones.
    """

    player: Player
    epsilon: float


@dataclass(frozen=True)
class Recording:
    """A log, and the levels that were played in it."""

    log: ReplayLog
    levels: frozenset[int]


def partial_path(path: Path) -> Path:
    """Where the part of a log lies that has been played so far."""
    return path.with_name(f"{path.stem}.partial.npz")


def record(
    game: str,
    members: Sequence[Member],
    path: Path,
    *,
    frames: int,
    num_envs: int,
    seed: int,
    avoid: frozenset[int] = frozenset(),
    progress: Progress,
) -> Recording:
    """Play until at least ``frames`` frames are recorded, verify that they replay, and write the log.

    Environment n is played by member n modulo their number. What an interrupted recording has played lies at
    :func:`partial_path`, as a log of its own, and is continued. A log that is complete is verified and left alone.

    Args:
        game: what is played, a registered environment whose frames follow from its seed and actions.
        members: who plays.
        path: the log.
        frames: how many at least; a multiple of ``num_envs`` is recorded.
        num_envs: N.
        seed: of the levels and of all random choices.
        avoid: levels that must not come up; where one does, the recording starts over with the next seed. Without
            effect where the environment has no numbered levels.
        progress: reports the frames played.

    Raises:
        UsageError: ``path`` holds a log of other settings, or levels to avoid come up again and again.
        CorruptDataError: the log that is there is damaged, or does not replay.
        BrokenEnvironmentError: the environment fails, or the same seed and actions give something else again; a
            rehearsal of a few steps shows most of these at once, the verification the others.
        KeyboardInterrupt: on Ctrl-C or SIGTERM, after what was played has been kept.
        EnvironmentUnavailableError: nothing can act here.
        DiskFullError: the disk is full.
    """
    steps = max(_SHORTEST, -(-frames // num_envs))
    settings = {
        "policies": [{**member.player.describe(), "epsilon": member.epsilon} for member in members],
        "seed": seed,
        "num_envs": num_envs,
        "steps": steps,
    }
    found = _find_earlier(path, settings)
    if found is None:
        rehearse(game, min(num_envs, _REHEARSED_ENVS), seed)
    for rand_seed in range(seed if found is None else found.rand_seed, seed + _TRIES):
        session = _Session(game, members, settings, rand_seed, found)
        try:
            session.play(path, avoid, progress)
        except _UnwantedLevelError:
            found = None
            partial_path(path).unlink(missing_ok=True)
            continue
        finally:
            session.close()
        levels = frozenset(session.levels)
        if found is None or not path.is_file():
            found = session.log()
            try:
                verify(found, path, progress)
            except KeyboardInterrupt:
                write_log(partial_path(path), found)
                raise
            write_log(path, found)
        partial_path(path).unlink(missing_ok=True)
        return Recording(found, levels)
    raise UsageError(
        f"In {_TRIES} tries, {steps * num_envs:,} frames of {game} always met one of the {len(avoid):,} levels of the "
        "other log: record fewer frames."
    )


def _find_earlier(path: Path, settings: dict[str, Any]) -> ReplayLog | None:
    """The complete or partial log of these settings that is there already."""
    for file in (path, partial_path(path)):
        if file.is_file():
            try:
                found = read_log(file)
            except CorruptDataError as error:
                raise CorruptDataError(f"{file} is damaged: start over with --fresh.") from error
            if found.info.get("settings") != settings:
                raise UsageError(
                    f"{path} was recorded or begun with other settings: choose another --to, or start over with "
                    "--fresh."
                )
            return found
    return None


class _UnwantedLevelError(Exception):
    """A level came up that is to be avoided."""


class _Session:
    """A recording in the making."""

    def __init__(
        self,
        game: str,
        members: Sequence[Member],
        settings: dict[str, Any],
        rand_seed: int,
        resumed: ReplayLog | None,
    ) -> None:
        self._game, self._members, self._settings, self._rand_seed = game, members, settings, rand_seed
        self._resumed = resumed
        self._num_resumed = 0 if resumed is None else resumed.num_steps
        num_envs, steps = settings["num_envs"], settings["steps"]
        self._spec = ENVIRONMENTS.get(game)
        self._num_actions = self._spec.require_actions()
        self._env = self._spec.make_envs(num_envs, rand_seed)
        self._actions = np.empty((steps, num_envs), np.uint8)
        self._step = 0
        self._digests: list[str] = []
        self._rewards = np.zeros(steps)
        self._returns: list[list[float]] = [[] for _ in range(num_envs)]
        self._running = np.zeros(num_envs)
        self.levels: set[int] = set()
        # A resumed recording draws other numbers than before, not the same ones again.
        self._rng = np.random.default_rng([rand_seed, self._num_resumed])
        for number, member in enumerate(members):
            member.player.start(len(range(number, num_envs, len(members))), int(self._rng.integers(2**31)))
        self._epsilon = np.array([members[n % len(members)].epsilon for n in range(num_envs)])

    def play(self, path: Path, avoid: frozenset[int], progress: Progress) -> None:
        """Play to the end; what has been played is saved every minute and when something interrupts.

        Raises:
            CorruptDataError: what was recorded before does not replay.
        """
        partial = partial_path(path)
        try:
            self._play(path, partial, avoid, progress)
        except _UnwantedLevelError:
            raise
        except BaseException:
            self._save(partial)
            raise

    def _play(self, path: Path, partial: Path, avoid: frozenset[int], progress: Progress) -> None:
        steps, num_envs = self._actions.shape
        saved = time.monotonic()
        with (
            interruptible() as interrupted,
            progress.task(f"recording {self._game}", steps * num_envs, "frame", self._num_resumed * num_envs) as task,
        ):
            for step in range(steps):
                reward, frames, first = self._env.observe()
                self._count(step, reward, first, avoid)
                if step % _SHA_EVERY == 0:
                    self._digests.append(frames_digest(frames))
                self._actions[step] = (
                    self._recorded_actions(path, step) if step < self._num_resumed else self._choose(frames)
                )
                self._env.act(self._actions[step])
                self._step = step + 1
                task.update(max(self._step, self._num_resumed) * num_envs)
                if time.monotonic() - saved > _CHECKPOINT_SECONDS:
                    self._save(partial)
                    saved = time.monotonic()
                if interrupted.is_set():
                    raise KeyboardInterrupt
            # The last reward belongs to the episode that it may have ended, but to no frame of the log.
            reward, _, first = self._env.observe()
            self._finish_episodes(reward, first)

    def _recorded_actions(self, path: Path, step: int) -> NDArray[np.uint8]:
        """The actions that were recorded for this step, after a check that its frames are the same."""
        assert self._resumed is not None
        if step % _SHA_EVERY == 0 and self._digests[-1] != self._resumed.frame_sha256[step // _SHA_EVERY]:
            raise CorruptDataError(
                f"What was recorded of {path} before does not replay here, the frames of step {step} differ: start "
                "over with --fresh."
            )
        actions: NDArray[np.uint8] = self._resumed.actions[step]
        return actions

    def _count(self, step: int, reward: NDArray[np.float32], first: NDArray[np.bool_], avoid: frozenset[int]) -> None:
        if step > 0:
            self._rewards[step] = reward.sum(dtype=np.float64)
            self._finish_episodes(reward, first)
        if step == 0 or first.any():
            seeds = self._env.level_seeds()
            levels = [] if seeds is None else seeds.tolist()
            if not avoid.isdisjoint(levels):
                raise _UnwantedLevelError
            self.levels.update(levels)

    def _finish_episodes(self, reward: NDArray[np.float32], first: NDArray[np.bool_]) -> None:
        self._running += reward
        for n in np.flatnonzero(first):
            self._returns[n].append(float(self._running[n]))
        self._running[first] = 0

    def _choose(self, frames: NDArray[np.uint8]) -> NDArray[np.int64]:
        needed = any(member.player.needs_states for member in self._members)
        states = self._env.get_state() if needed else []
        actions = np.empty(len(frames), np.int64)
        for number, member in enumerate(self._members):
            mine = slice(number, None, len(self._members))
            actions[mine] = member.player.act(frames[mine], states[mine])
        noisy = self._rng.random(len(actions)) < self._epsilon
        actions[noisy] = self._rng.integers(0, self._num_actions, int(noisy.sum()))
        return actions

    def _save(self, partial: Path) -> None:
        """Keep what was played, unless a longer part is kept already."""
        if self._step > self._num_resumed:
            write_log(partial, self.log())

    def log(self) -> ReplayLog:
        """What was played so far."""
        earlier = [] if self._resumed is None else self._resumed.info.get("resumed_at", [])
        return ReplayLog(
            game=self._game,
            distribution_mode=None,
            rand_seed=self._rand_seed,
            actions=self._actions[: self._step],
            # An interruption may have come between a frame and its action.
            frame_sha256=tuple(self._digests[: -(-self._step // _SHA_EVERY)]),
            sha_every=_SHA_EVERY,
            reward_sum=float(self._rewards[: self._step].sum()),
            env_version=self._env.version,
            info={
                "lapo_version": lapo_cli.__version__,
                "settings": self._settings,
                "resumed_at": [*earlier, *([self._num_resumed] if self._num_resumed else [])],
                **self._results(),
            },
        )

    def _results(self) -> dict[str, Any]:
        """Statistics of equally many episodes of every environment, so that short episodes do not count for more."""
        each = min(len(returns) for returns in self._returns)
        results: dict[str, Any] = {"episodes": sum(len(returns) for returns in self._returns), "measured_episodes": 0}
        if each > 0:
            measured = np.array([returns[:each] for returns in self._returns]).flatten()
            estimate = mean_return([measured])
            results |= {
                "measured_episodes": len(measured),
                "mean_return": round(estimate.mean, 4),
                "low": round(estimate.low, 4),
                "high": round(estimate.high, 4),
            }
            normalized = self._spec.normalize(estimate.mean)
            if normalized is not None:
                results["normalized"] = round(normalized, 4)
        return results

    def close(self) -> None:
        """Free the environments."""
        self._env.close()
