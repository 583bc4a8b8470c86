"""Recording the replay logs of a game: one to train on, and one of other levels to test on."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lapo_cli.core import files
from lapo_cli.core.compute import Compute
from lapo_cli.core.data.store import Split
from lapo_cli.core.envs.base import ENVIRONMENTS
from lapo_cli.core.errors import BusyError, UsageError
from lapo_cli.core.progress import Progress
from lapo_cli.core.recording.players import load_player
from lapo_cli.core.recording.record import Member, partial_path, record

TEST_SEEDS = 1_000_000_000


@dataclass(frozen=True)
class Recorded:
    """A replay log that :func:`record_demonstrations` wrote.

    Attributes:
        game, split: what it holds.
        path: the file.
        frames: how many it makes.
        info: what made it and how well it went.
    """

    game: str
    split: Split
    path: Path
    frames: int
    info: dict[str, Any]


def record_demonstrations(
    game: str,
    policies: list[str],
    epsilons: list[float],
    to: Path,
    *,
    frames: dict[Split, int],
    num_envs: int,
    seed: int,
    greedy: bool,
    compute: Compute,
    fresh: bool,
    progress: Progress,
) -> list[Recorded]:
    """Write replay logs of one or more policies, and verify that they replay.

    Args:
        game: what is played.
        policies: words that :func:`load_player` knows.
        epsilons: share of random actions, one for all policies or one for each.
        to: folder of the logs.
        frames: split -> how many frames at least.
        num_envs: environments side by side, at least one per policy.
        seed: below :data:`TEST_SEEDS`; test logs are played with seeds from there on, and on other levels.
        greedy: networks take their likeliest action instead of sampling.
        compute: where networks run.
        fresh: set the logs of these splits that are there aside, and start over.
        progress: reports the frames played.

    Raises:
        UsageError: policies, epsilons and environments do not fit together, or the folder holds other recordings.
        BusyError: another process is recording the same game there.
        LapoError: a policy is missing or damaged, nothing can act here, or the disk is full.
    """
    if len(epsilons) not in (1, len(policies)):
        raise UsageError(
            f"{len(epsilons)} values of --epsilon do not fit {len(policies)} of --policy: give one for all or one each."
        )
    if len(policies) > num_envs:
        raise UsageError(f"{len(policies)} policies need as many environments: give a larger --num-envs.")
    shares = epsilons * len(policies) if len(epsilons) == 1 else epsilons
    env = ENVIRONMENTS.get(game)
    members = [
        Member(load_player(word, env, greedy=greedy, compute=compute), epsilon)
        for word, epsilon in zip(policies, shares, strict=True)
    ]
    with files.disk_full_as_error(to):
        to.mkdir(parents=True, exist_ok=True)
    paths: dict[Split, Path] = {split: to / f"{game}-{split}.npz" for split in frames}
    written = []
    played: frozenset[int] = frozenset()
    busy = BusyError(f"Another lapo process is recording {game} in {to}: wait until it has finished, then try again.")
    with files.exclusive(to / f".{game}.lock", busy):
        if fresh:
            for path in paths.values():
                files.set_aside(path)
                files.set_aside(partial_path(path))
        for split, path in paths.items():
            recording = record(
                game,
                members,
                path,
                frames=frames[split],
                num_envs=num_envs,
                seed=seed if split == "train" else seed + TEST_SEEDS,
                avoid=played,
                progress=progress,
            )
            played |= recording.levels
            written.append(Recorded(game, split, path, recording.log.num_frames, dict(recording.log.info)))
    return written
