"""Playing replay logs through Procgen into a frame store, verified as they go."""

import itertools
import math
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lapo_cli.core.data.replay_log import ReplayLog, bundled_logs, frames_digest, read_log, write_log
from lapo_cli.core.data.store import FRAME_BYTES, FRAME_SHAPE, Manifest, Split, store_path
from lapo_cli.core.data.store_writer import StoreWriter
from lapo_cli.core.envs.procgen import ProcgenVecEnv
from lapo_cli.core.errors import CorruptDataError, UsageError
from lapo_cli.core.files import sha256_file
from lapo_cli.core.progress import Progress, Silent

__all__ = [
    "ReplayLog",
    "bundled_logs",
    "frames_digest",
    "import_replay",
    "read_log",
    "replay",
    "write_log",
]

_BUFFER_BYTES = 64 * 2**20


def replay(
    log: ReplayLog,
    writer: StoreWriter | None,
    *,
    num_steps: int | None = None,
    progress: Progress | None = None,
) -> tuple[int, float | None]:
    """Play a log and put its frames into a store, environment after environment, verifying its checksums.

    Args:
        log: what to play.
        writer: an open writer, to which (num_steps · N) rows are added; None only verifies.
        num_steps: stop after so many; the reward sum can then not be verified.
        progress: told the frames played.

    Returns:
        The number of whole episodes and their mean return, None where there are none.

    Raises:
        CorruptDataError: this Procgen renders or rewards otherwise than the one that recorded the log.
        EnvironmentUnavailableError: there is no Procgen here.
        DiskFullError: the disk is full.
    """
    steps, envs = min(num_steps or log.num_steps, log.num_steps), log.num_envs
    rewards = np.zeros((envs, steps), np.float32)
    starts = np.zeros((envs, steps), np.bool_)
    # Rows of one environment lie together in the store but arrive one at a time: they are collected for a while.
    block_steps = max(1, min(steps, _BUFFER_BYTES // (envs * FRAME_BYTES)))
    block = np.empty((envs, block_steps, *FRAME_SHAPE), np.uint8)
    base = 0 if writer is None else writer.reserve(envs * steps)
    env = ProcgenVecEnv(
        log.game,
        envs,
        log.rand_seed,
        distribution_mode=log.distribution_mode,
    )
    name = f"Replaying {log.game}"
    try:
        with (progress or Silent()).task(name, envs * steps, "frames") as task:
            for step in range(steps):
                reward, frames, first = env.observe()
                if step > 0:
                    rewards[:, step - 1] = reward
                starts[:, step] = first
                slot = step % block_steps
                block[:, slot] = frames
                # Procgen renders the next frames in its own threads while the rest of the loop works on these.
                env.act(log.actions[step])
                if step % log.sha_every == 0:
                    _verify_frames(log, step, block[:, slot])
                if slot == block_steps - 1 or step == steps - 1:
                    if writer is not None:
                        for number in range(envs):
                            writer.put_frames(base + number * steps + step - slot, block[number, : slot + 1])
                    task.update((step + 1) * envs)
            rewards[:, steps - 1] = env.observe()[0]
    finally:
        env.close()
    if steps == log.num_steps:
        _verify_rewards(log, rewards)
    returns = [value for row in range(envs) for value in _episode_returns(rewards[row], starts[row])]
    starts[:, 0] = True
    if writer is not None:
        writer.put_columns(base, log.actions[:steps].T.reshape(-1), rewards.reshape(-1), starts.reshape(-1))
    return len(returns), float(np.mean(returns)) if returns else None


def import_replay(
    path: Path,
    data_dir: Path,
    split: Split,
    *,
    max_frames: int | None = None,
    progress: Progress | None = None,
) -> Manifest:
    """Make the store of ``split`` of a log's game by playing the log.

    Args:
        path: the log.
        max_frames: play so many steps that at most this number of frames is stored.

    Raises:
        UsageError: ``max_frames`` leaves no window of three frames to any environment.
        CorruptDataError: the log is damaged or this Procgen renders otherwise; nothing is stored then.
        EnvironmentUnavailableError, DiskFullError, DownloadError: as in :func:`replay` and :class:`StoreWriter`.
    """
    log = read_log(path)
    num_steps = steps_within(log, max_frames)
    with StoreWriter(store_path(data_dir, log.game, split), log.game, split) as writer:
        num_episodes, mean_return = replay(log, writer, num_steps=num_steps, progress=progress)
        return writer.finish(
            source=log_source(path, max_frames),
            made_by="replay",
            num_episodes=num_episodes,
            mean_return=mean_return,
        )


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
            f"so ask for {3 * log.num_envs} or more."
        )
    return min(log.num_steps, max_frames // log.num_envs)


def log_source(path: Path, max_frames: int | None) -> str:
    """The words by which a store made from this log is known."""
    cut = "" if max_frames is None else f", at most {max_frames} frames"
    return f"replay log {path.name} (sha256 {sha256_file(path)[:16]}){cut}"


def _verify_frames(log: ReplayLog, step: int, frames: NDArray[np.uint8]) -> None:
    if frames_digest(frames) != log.frame_sha256[step // log.sha_every]:
        raise _renders_otherwise(log, f"the frames of step {step} differ")


def _verify_rewards(log: ReplayLog, rewards: NDArray[np.float32]) -> None:
    # Summed in another order than when it was recorded, hence the tolerance.
    total = float(rewards[:, :-1].sum(dtype=np.float64))
    if not math.isclose(total, log.reward_sum, rel_tol=1e-5, abs_tol=1e-3):
        raise _renders_otherwise(log, f"the rewards sum to {total:g} instead of {log.reward_sum:g}")


def _renders_otherwise(log: ReplayLog, what: str) -> CorruptDataError:
    recorded = f"procgen-mirror {log.procgen_version}" if log.procgen_version else "procgen-mirror 0.10.7"
    return CorruptDataError(
        f"The demonstrations of {log.game} do not replay here, {what}: the log is damaged or this Procgen renders "
        f"otherwise than {recorded}, which recorded it; nothing was stored."
    )


def _episode_returns(rewards: NDArray[np.float32], starts: NDArray[np.bool_]) -> list[float]:
    """Returns of the episodes whose first frame and end are both in the (T,) arrays of one environment."""
    bounds = np.flatnonzero(starts)
    return [float(rewards[start:end].sum()) for start, end in itertools.pairwise(bounds)]
