"""What can be recorded: a trained network, the planner of a game, or the random policy."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lapo_cli.core.compute import Compute
from lapo_cli.core.envs.base import EnvSpec
from lapo_cli.core.errors import MissingInputError, UsageError
from lapo_cli.core.files import sha256_file
from lapo_cli.core.run_dir import WEIGHTS, load_weights, read_about
from lapo_cli.core.training.agents import Agent
from lapo_cli.core.training.stage import STAGES

PLANNER = "planner"
RANDOM = "random"


class Player(ABC):
    """Acts for some environments of one game.

    Attributes:
        needs_states: whether it reads the saved states of its environments.
    """

    needs_states = False

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Its description in a recording's log, JSON-like; equal for players that act in the same way."""

    @abstractmethod
    def start(self, num_envs: int, seed: int) -> None:
        """Make ready to act for so many environments, with this seed for all that is random."""

    @abstractmethod
    def act(self, frames: NDArray[np.uint8], states: Sequence[bytes]) -> NDArray[np.int64]:
        """Actions (N,) for frames (N, H, W, 3) and, if they are needed, N saved states."""


class PlannerPlayer(Player):
    """The planner of an environment.

    Raises:
        UsageError: it has none.
    """

    needs_states = True

    def __init__(self, env: EnvSpec) -> None:
        if env.make_planner is None:
            raise UsageError(f"There is no planner for {env.name}: record 'random' or a trained policy.")
        self._make = env.make_planner

    def describe(self) -> dict[str, Any]:
        """See :meth:`Player.describe`."""
        return {"policy": PLANNER}

    def start(self, num_envs: int, seed: int) -> None:
        """See :meth:`Player.start`."""
        self._planner = self._make(num_envs, seed)

    def act(self, frames: NDArray[np.uint8], states: Sequence[bytes]) -> NDArray[np.int64]:
        """See :meth:`Player.act`."""
        return self._planner.act(states)


class RandomPlayer(Player):
    """Uniformly random actions."""

    def __init__(self, env: EnvSpec) -> None:
        self._num_actions = env.require_actions()

    def describe(self) -> dict[str, Any]:
        """See :meth:`Player.describe`."""
        return {"policy": RANDOM}

    def start(self, num_envs: int, seed: int) -> None:
        """See :meth:`Player.start`."""
        self._rng = np.random.default_rng(seed)

    def act(self, frames: NDArray[np.uint8], states: Sequence[bytes]) -> NDArray[np.int64]:
        """See :meth:`Player.act`."""
        return self._rng.integers(0, self._num_actions, len(frames))


class NetworkPlayer(Player):
    """A trained policy that acts on frames.

    Args:
        agent: the policy, on its device.
        about: the header of its weights.
        sha256: of its weights file.
        greedy: take the likeliest action instead of sampling.
        device: where the agent is.
    """

    def __init__(self, agent: Agent, about: dict[str, Any], sha256: str, *, greedy: bool, device: torch.device) -> None:
        self._agent, self._about, self._sha256 = agent, about, sha256
        self._greedy, self._device = greedy, device

    def describe(self) -> dict[str, Any]:
        """See :meth:`Player.describe`."""
        return {
            "policy": self._about["stage"],
            "actions": "greedy" if self._greedy else "sampled",
            "env_steps": self._about.get("env_steps"),
            "seed": self._about["seed"],
            "weights_sha256": self._sha256,
        }

    def start(self, num_envs: int, seed: int) -> None:
        """See :meth:`Player.start`."""
        self._generator = torch.Generator().manual_seed(seed)

    def act(self, frames: NDArray[np.uint8], states: Sequence[bytes]) -> NDArray[np.int64]:
        """See :meth:`Player.act`."""
        logits = self._agent.act(torch.from_numpy(np.ascontiguousarray(frames)).to(self._device)).cpu()
        if self._greedy:
            chosen = logits.argmax(1)
        else:
            chosen = torch.multinomial(logits.softmax(1), 1, generator=self._generator)[:, 0]
        actions: NDArray[np.int64] = chosen.numpy()
        return actions


def load_player(word: str, env: EnvSpec, *, greedy: bool, compute: Compute) -> Player:
    """The player of that name.

    Args:
        word: ``planner``, ``random``, the folder of a finished stage that acts, or a weights file.
        env: where it will act.
        greedy: for networks, take the likeliest action instead of sampling.
        compute: where networks run.

    Raises:
        MissingInputError: there is nothing at that path.
        UsageError: what is there does not act, or plays another game.
        CorruptDataError: the weights are damaged.
    """
    if word == PLANNER:
        return PlannerPlayer(env)
    if word == RANDOM:
        return RandomPlayer(env)
    file = Path(word) / WEIGHTS if Path(word).is_dir() else Path(word)
    if not file.is_file():
        raise MissingInputError(
            f"There is no policy {word}: name 'planner', 'random', the folder of a finished stage "
            f"(RUN_DIR/{env.name}/seed-0/expert) or a weights file in it; 'lapo train-expert {env.name}' makes one."
        )
    about = read_about(file)
    stage = about.get("stage")
    build = STAGES.get(stage).build_agent if isinstance(stage, str) and stage in STAGES else None
    if build is None:
        raise UsageError(f"{file} holds stage '{stage}', which cannot be recorded: name an expert or an online stage.")
    if about.get("game") != env.name:
        raise UsageError(f"{file} plays {about.get('game')}, not {env.name}: name a policy of {env.name}.")
    agent = build(about, compute)
    load_weights(file, {"agent": agent})
    return NetworkPlayer(agent, about, sha256_file(file)[:16], greedy=greedy, device=compute.device)
