"""Replay logs, played through their environment into a frame store and verified as they go."""

import itertools
import math
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lapo_cli.core.data.replay_log import ReplayLog, frames_digest, logs_in, read_log
from lapo_cli.core.data.sources.base import SOURCES, Bounds, Importer, Offer, Source
from lapo_cli.core.data.store import Manifest, Split, store_path
from lapo_cli.core.data.store_writer import StoreWriter
from lapo_cli.core.envs.base import ENVIRONMENTS, VecEnv
from lapo_cli.core.errors import BrokenEnvironmentError, CorruptDataError, LapoError, UsageError, one_line
from lapo_cli.core.files import sha256_file
from lapo_cli.core.progress import Progress, Silent

_BUFFER_BYTES = 64 * 2**20
_REHEARSED_STEPS = 48


class ReplaySource(Source):
    """See the module."""

    name = "replay"
    description = "A replay log as 'lapo record' writes it, or a folder of GAME-train.npz and GAME-test.npz."

    def open(self, game: str, location: str | None, scratch: Path) -> Importer | None:
        """See :meth:`Source.open`."""
        path = self.require(location, "a log or a folder")
        if path.suffix == ".npz" and path.is_file():
            return LogImporter(game, {"test" if path.stem.endswith("-test") else "train": path})
        logs = logs_in(path, game)
        return LogImporter(game, logs) if logs else None


@dataclass(frozen=True)
class LogImporter(Importer):
    """Replay logs of a game on this machine: split -> file."""

    game: str
    paths: dict[Split, Path]

    def offers(self, bounds: Bounds) -> dict[Split, Offer]:
        """See :meth:`Importer.offers`."""
        found = {}
        for split, path in self.paths.items():
            log = read_log(path)
            if log.game != self.game:
                raise UsageError(f"{path} holds demonstrations of {log.game}, not of {self.game}: check the name.")
            with open_envs(log, path, 1) as env:
                frame_bytes = env.observe()[1][0].nbytes
            frames = steps_within(log, bounds[split]) * log.num_envs
            found[split] = Offer(log_source(path, bounds[split]), frames, frame_bytes)
        return found

    def store(self, split: Split, data_dir: Path, bound: int | None, progress: Progress) -> Manifest:
        """See :func:`import_replay`."""
        return import_replay(self.paths[split], data_dir, split, max_frames=bound, progress=progress)


def verify(log: ReplayLog, path: Path, progress: Progress | None = None) -> list[float]:
    """Play a log that was just recorded to its end and verify all of its checksums.

    Args:
        log: what to play.
        path: its file, for messages.
        progress: reports the frames played.

    Returns:
        The returns of the complete episodes in it, environment after environment.

    Raises:
        BrokenEnvironmentError: frames or rewards are not those that were recorded.
        EnvironmentUnavailableError: the environment cannot run here.
    """
    with open_envs(log, path) as env:
        return _play(log, partial(_unrepeatable, log.game), env, None, log.num_steps, progress or Silent())


def rehearse(game: str, num_envs: int, seed: int) -> None:
    """Play a few dozen random actions twice, because :func:`verify` comes only after a recording of hours.

    Raises:
        BrokenEnvironmentError: the frames, rewards or episode starts of the two differ.
        EnvironmentUnavailableError: the environment cannot run here.
    """
    spec = ENVIRONMENTS.get(game)
    actions = np.random.default_rng(seed).integers(0, spec.require_actions(), (_REHEARSED_STEPS, num_envs))
    # One after the other, as the recording and its verification: an environment may use the process's random numbers.
    one, other = (_observed(spec.make_envs(num_envs, seed), actions) for _ in range(2))
    for step, (seen, seen_again) in enumerate(zip(one, other, strict=True)):
        for what, shown in seen.items():
            if shown != seen_again[what]:
                raise _unrepeatable(game, f"the {what} of step {step} differ")


def _observed(env: VecEnv, actions: NDArray[np.int64]) -> list[dict[str, object]]:
    """What each step showed, short enough to be kept."""
    with closing(env):
        steps: list[dict[str, object]] = []
        for row in actions:
            reward, frames, first = env.observe()
            digest = frames_digest(frames)
            steps.append({"episode starts": first.tobytes(), "rewards": reward.tobytes(), "frames": digest})
            env.act(row)
        return steps


def import_replay(
    path: Path,
    data_dir: Path,
    split: Split,
    *,
    max_frames: int | None = None,
    progress: Progress | None = None,
) -> Manifest:
    """Make a store from a replay log: the rows of one environment after those of another.

    Args:
        path: the log.
        data_dir: where the store goes.
        split: what it becomes.
        max_frames: play so many steps that there are at most so many frames.
        progress: reports the frames played.

    Raises:
        MissingInputError: there is no such file.
        UsageError: ``max_frames`` leaves no window of three frames to any environment, or the log's environment is
            not registered.
        CorruptDataError: the log is damaged or does not replay here; nothing is stored then.
        EnvironmentUnavailableError: the environment cannot run here.
        DiskFullError, BusyError: as in :class:`StoreWriter`.
    """
    log = read_log(path)
    num_steps = steps_within(log, max_frames)
    with open_envs(log, path) as env:
        height, width, channels = env.observe()[1].shape[1:]
        num_actions = ENVIRONMENTS.get(log.game).num_actions
        target = store_path(data_dir, log.game, split)
        with StoreWriter(target, log.game, split, (height, width, channels), num_actions) as writer:
            returns = _play(log, partial(_differs, log, path), env, writer, num_steps, progress or Silent())
            return writer.finish(source=log_source(path, max_frames), made_by="replay", episode_returns=returns)


@contextmanager
def open_envs(log: ReplayLog, path: Path, num_envs: int | None = None) -> Iterator[VecEnv]:
    """The environments of a log as they were when it was begun.

    Args:
        log: what is to be played.
        path: its file, for messages.
        num_envs: make so many instead of the log's.

    Raises:
        CorruptDataError: there are no such environments.
        EnvironmentUnavailableError: they cannot run here.
    """
    options = {} if log.distribution_mode is None else {"distribution_mode": log.distribution_mode}
    try:
        env = ENVIRONMENTS.get(log.game).make_envs(num_envs or log.num_envs, log.rand_seed, **options)
    except BrokenEnvironmentError as error:
        why = one_line(str(error.__cause__ or error), 200)
        raise CorruptDataError(f"The environments of {path} cannot be made ({why}): get it again.") from error
    try:
        yield env
    finally:
        env.close()


def _play(
    log: ReplayLog,
    differs: Callable[[str], LapoError],
    env: VecEnv,
    writer: StoreWriter | None,
    steps: int,
    progress: Progress,
) -> list[float]:
    """Play ``steps`` steps and put their frames into a store if there is one; the returns of complete episodes."""
    envs = log.num_envs
    rewards = np.zeros((envs, steps), np.float32)
    starts = np.zeros((envs, steps), np.bool_)
    # Rows of one environment lie together in the store but arrive one at a time: they are collected for a while.
    first_frames = env.observe()[1]
    block_steps = max(1, min(steps, _BUFFER_BYTES // first_frames.nbytes))
    block = np.empty((envs, block_steps, *first_frames.shape[1:]), np.uint8)
    base = 0 if writer is None else writer.reserve(envs * steps)
    with progress.task(f"Replaying {log.game}", envs * steps, "frames") as task:
        for step in range(steps):
            reward, frames, first = env.observe()
            if step > 0:
                rewards[:, step - 1] = reward
            starts[:, step] = first
            slot = step % block_steps
            block[:, slot] = frames
            # The environment may render the next frames in threads of its own while the rest of the loop works.
            env.act(log.actions[step])
            if step % log.sha_every == 0 and frames_digest(block[:, slot]) != log.frame_sha256[step // log.sha_every]:
                raise differs(f"the frames of step {step} differ")
            if slot == block_steps - 1 or step == steps - 1:
                if writer is not None:
                    for number in range(envs):
                        writer.put_frames(base + number * steps + step - slot, block[number, : slot + 1])
                task.update((step + 1) * envs)
        rewards[:, steps - 1] = env.observe()[0]
    # Summed in another order than when it was recorded, hence the tolerance.
    total = float(rewards[:, :-1].sum(dtype=np.float64))
    if steps == log.num_steps and not math.isclose(total, log.reward_sum, rel_tol=1e-5, abs_tol=1e-3):
        raise differs(f"the rewards sum to {total:g} instead of {log.reward_sum:g}")
    returns = [value for row in range(envs) for value in _episode_returns(rewards[row], starts[row])]
    starts[:, 0] = True
    if writer is not None:
        writer.put_columns(base, log.actions[:steps].T.reshape(-1), rewards.reshape(-1), starts.reshape(-1))
    return returns


def steps_within(log: ReplayLog, max_frames: int | None) -> int:
    """How many of the log's steps to play for at most ``max_frames`` frames.

    Raises:
        UsageError: fewer than three.
    """
    if max_frames is None:
        return log.num_steps
    if max_frames < 3 * log.num_envs:
        raise UsageError(
            f"{max_frames} frames are too few: this log has {log.num_envs} environments, each of which needs 3, "
            f"so take {3 * log.num_envs} or more."
        )
    return min(log.num_steps, max_frames // log.num_envs)


def log_source(path: Path, max_frames: int | None) -> str:
    """The manifest's ``source`` of a store made from this log."""
    cut = "" if max_frames is None else f", at most {max_frames} frames"
    return f"replay log {path.name} (sha256 {sha256_file(path)[:16]}){cut}"


def _differs(log: ReplayLog, path: Path, what: str) -> CorruptDataError:
    version = f" (version {log.env_version})" if log.env_version else ""
    return CorruptDataError(
        f"{path} does not replay here, {what}: the log is damaged, or {log.game} renders otherwise than where it was "
        f"recorded{version}; nothing was stored."
    )


def _unrepeatable(game: str, what: str) -> BrokenEnvironmentError:
    return BrokenEnvironmentError(
        f"{game} cannot be recorded, {what} when the same actions are played again from the same seed: make the "
        "environment take all that is random from its seed, or import videos of it with 'lapo import'; nothing was "
        "stored."
    )


def _episode_returns(rewards: NDArray[np.float32], starts: NDArray[np.bool_]) -> list[float]:
    """Returns of the episodes whose first frame and end are both in the (T,) arrays of one environment."""
    bounds = np.flatnonzero(starts)
    return [float(rewards[start:end].sum(dtype=np.float64)) for start, end in itertools.pairwise(bounds)]


SOURCES.register(ReplaySource())
