"""Training by PPO: checkpoints, metrics, progress and the latest returns."""

import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from typing import Any

import numpy as np

from lapo_cli.core.compute import Compute
from lapo_cli.core.run_dir import WEIGHTS, StageDir, read_about
from lapo_cli.core.training.agents import Act, Agent
from lapo_cli.core.training.context import Context
from lapo_cli.core.training.loop import Stateful, TrainingLoop
from lapo_cli.core.training.ppo import PPO, Rollout
from lapo_cli.core.training.stage import TrainedPolicy

_RECENT_EPISODES = 100


class PPOLoop:
    """Collects rollouts and improves the agent on them until the configured number of environment steps.

    Args:
        ctx: whose progress, device and settings.
        stage: folder of checkpoints and metrics.
        title: shown beside the progress bar.
        ppo: at its first environment step.
        state: what else the checkpoint holds, by name.
    """

    def __init__(
        self, ctx: Context, stage: StageDir, title: str, ppo: PPO, state: Mapping[str, Stateful] | None = None
    ) -> None:
        self._ppo = ppo
        self._episodes = _Episodes()
        per_update = ppo.config.ppo.num_envs * ppo.config.ppo.num_steps
        self._loop = TrainingLoop(
            stage,
            ctx,
            title,
            math.ceil(ppo.config.steps / per_update),
            {"ppo": ppo, "episodes": self._episodes, **(state or {})},
            show=("charts/episodic_return", "losses/entropy", "losses/explained_variance"),
            unit="environment step",
            scale=per_update,
            read_every=1,
        )
        if self._loop.start > 0 and not ppo.resumes_exactly:
            ctx.progress.log(
                f"{ctx.game} cannot save its environments' state: new episodes begin where it was cut off."
            )

    def updates(self, *, keep_frames: Callable[[int], bool] | None = None) -> Iterator[tuple[int, Rollout]]:
        """After each update its number, from 1, and its rollout; frees the environments, however it ends.

        Args:
            keep_frames: whether the rollout after so many environment steps should hold its frames; by default none.
        """
        with closing(self._ppo):
            for update in self._loop:
                rollout = self._ppo.collect(keep_frames=keep_frames is not None and keep_frames(self._ppo.env_steps))
                self._loop.record(self._ppo.update(rollout))
                yield update + 1, rollout
                self._episodes.add(rollout.returns)
                if rollout.all_ended:
                    lengths = {"charts/episodic_length": float(np.mean(rollout.lengths))} if rollout.lengths else {}
                    returns = {"charts/episodic_return": float(np.mean(self._episodes.recent))}
                    self._loop.log(update, {**returns, **lengths})

    def results(self) -> dict[str, Any]:
        """The results of the stage."""
        recent = self._episodes.recent
        return {
            "env_steps": self._ppo.env_steps,
            "training_episodes": self._episodes.count,
            "last_training_return": float(np.mean(recent)) if recent else None,
        }


def agent_policy(
    label: str, build: Callable[[Mapping[str, Any], Compute], Agent], ctx: Context, stage: StageDir
) -> Iterator[TrainedPolicy]:
    """The one policy of a finished stage that trained an agent; for :attr:`Stage.policies`."""

    def load() -> Act:
        agent = build(read_about(stage.path / WEIGHTS), ctx.compute)
        stage.load_weights({"agent": agent})
        return agent.act

    env_steps = stage.require_done(stage.name)["results"]["env_steps"]
    yield TrainedPolicy(stage.name, label, load, env_steps=env_steps)


class _Episodes:
    """How many episodes ended in training, and the returns of the latest."""

    def __init__(self) -> None:
        self.count = 0
        self.recent: deque[float] = deque(maxlen=_RECENT_EPISODES)

    def add(self, returns: list[float]) -> None:
        """Count the episodes that ended in a rollout."""
        self.count += len(returns)
        self.recent.extend(returns)

    def state_dict(self) -> dict[str, Any]:
        """Plain types."""
        return {"count": self.count, "recent": list(self.recent)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what :meth:`state_dict` gave."""
        self.count = state["count"]
        self.recent.extend(state["recent"])
