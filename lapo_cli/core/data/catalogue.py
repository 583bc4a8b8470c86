"""What is available: the demonstrations bundled with lapo, and the stores in the data folder."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lapo_cli.core.data.replay_log import bundled_logs, read_log
from lapo_cli.core.data.store import SPLITS, Manifest, Split, read_manifest, store_path
from lapo_cli.core.envs.base import ENVIRONMENTS
from lapo_cli.core.errors import CorruptDataError


@dataclass(frozen=True)
class Demos:
    """Bundled demonstrations of a game.

    Attributes:
        game: its name.
        frames: split -> how many frames they make.
        policies: the policies that were recorded, and how they acted.
        training_steps: environment steps that the most trained of them had; a planner needs none.
        seed: of the training log's levels and random choices.
        mean_return, low, high: of the training log's episodes, with its 95 % interval.
        episodes: how many these are.
        normalized: (mean_return - random) / (paper's expert - random).
    """

    game: str
    frames: dict[Split, int]
    policies: tuple[str, ...]
    training_steps: int
    seed: int
    mean_return: float
    low: float
    high: float
    episodes: int
    normalized: float


@dataclass(frozen=True)
class GameRow:
    """One line of the list of games.

    Attributes:
        game: its name.
        stores: split -> manifest of what is here.
        problems: split -> why what is here cannot be used.
    """

    game: str
    stores: dict[Split, Manifest]
    problems: dict[Split, str]


def list_games(data_dir: Path) -> list[GameRow]:
    """All registered games, then whatever else has a store, and what is here of each."""
    others = {path.parent.name for split in SPLITS for path in data_dir.glob(f"[!.]*/{split}") if path.is_dir()}
    rows = []
    for game in dict.fromkeys([*ENVIRONMENTS.names(), *sorted(others)]):
        stores: dict[Split, Manifest] = {}
        problems: dict[Split, str] = {}
        for split in SPLITS:
            path = store_path(data_dir, game, split)
            if path.is_dir():
                try:
                    stores[split] = read_manifest(path)
                except CorruptDataError as error:
                    problems[split] = str(error)
        rows.append(GameRow(game, stores, problems))
    return rows


def bundled_demos(game: str) -> Demos | None:
    """What is bundled of a game, and how well it was played; None where nothing is.

    Raises:
        CorruptDataError: the files of this installation are damaged.
    """
    logs = {split: read_log(path) for split, path in bundled_logs(game).items()}
    if not logs:
        return None
    info = logs["train"].info
    policies = info["settings"]["policies"]
    return Demos(
        game=game,
        frames={split: log.num_frames for split, log in logs.items()},
        policies=tuple(
            text if count == len(policies) else f"{count} of {len(policies)}: {text}"
            for text, count in Counter(map(_describe, policies)).items()
        ),
        training_steps=max(policy.get("env_steps") or 0 for policy in policies),
        seed=info["settings"]["seed"],
        mean_return=info["mean_return"],
        low=info["low"],
        high=info["high"],
        episodes=info["measured_episodes"],
        normalized=info["normalized"],
    )


def _describe(policy: Mapping[str, Any]) -> str:
    """A policy of a log's ``info``, such as 'expert (25,000,000 steps, seed 0, sampled)'."""
    facts = [
        f"{policy['env_steps']:,} steps" if policy.get("env_steps") else "",
        f"seed {policy['seed']}" if "seed" in policy else "",
        str(policy.get("actions", "")),
        f"{100 * policy['epsilon']:g} % random" if policy["epsilon"] else "",
    ]
    details = ", ".join(fact for fact in facts if fact)
    return f"{policy['policy']} ({details})" if details else str(policy["policy"])
