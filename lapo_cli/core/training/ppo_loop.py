"""Training by PPO: checkpoints, metrics, progress, and evaluations on the way.

The returns of training episodes that ended recently favour short episodes, so they are no learning curve. The curve is
made of evaluations: at evenly spaced updates, the first included, the policy as it is then plays a fixed number of
episodes on levels of its own, the same ones each time, and every episode that it starts is counted.
"""

import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lapo_cli.core.compute import Compute
from lapo_cli.core.config import ReinforcementConfig
from lapo_cli.core.progress import Silent
from lapo_cli.core.run_dir import WEIGHTS, StageDir, read_about
from lapo_cli.core.training.agents import Act, Agent, ParameterGroup
from lapo_cli.core.training.context import Context
from lapo_cli.core.training.loop import Stateful, TrainingLoop
from lapo_cli.core.training.metrics import EVALUATED
from lapo_cli.core.training.ppo import PPO, Rollout
from lapo_cli.core.training.rollout import rollout
from lapo_cli.core.training.stage import TrainedPolicy, stage_seed

_RECENT_EPISODES = 100


class PPOLoop:
    """Collects rollouts and improves the agent on them until the configured number of environment steps.

    Args:
        ctx: whose environment, seed, progress and device.
        stage: folder of checkpoints and metrics.
        title: shown beside the progress bar.
        agent: the policy, on the device.
        groups: what of it is trained, and how fast.
        config: length and constants.
        state: what else the checkpoint holds, by name.
        before: environment steps that the agent has learnt from already.
    """

    def __init__(
        self,
        ctx: Context,
        stage: StageDir,
        title: str,
        agent: Agent,
        groups: list[ParameterGroup],
        config: ReinforcementConfig,
        state: Mapping[str, Stateful] | None = None,
        before: int = 0,
    ) -> None:
        self._ctx, self._before = ctx, before
        self._ppo = PPO(agent, groups, ctx.env, config, stage_seed(ctx, "levels of training"), ctx.compute.device)
        self._episodes = _Episodes()
        per_update = config.ppo.num_envs * config.ppo.num_steps
        updates = math.ceil(config.steps / per_update)
        points = ctx.config.evaluation.curve_points
        self._evaluated_after = {round(updates * i / points) for i in range(points + 1)} if points else set()
        self._loop = TrainingLoop(
            stage,
            ctx,
            title,
            updates,
            {"ppo": self._ppo, "episodes": self._episodes, **(state or {})},
            show=(EVALUATED, "losses/entropy", "losses/explained_variance"),
            unit="environment step",
            scale=per_update,
            read_every=1,
            before=before,
        )
        if self._loop.start > 0 and not self._ppo.resumes_exactly:
            ctx.progress.log(
                f"{ctx.game} cannot save its environments' state: new episodes begin where it was cut off."
            )

    @property
    def env_steps(self) -> int:
        """Environment steps that the agent has learnt from so far."""
        return self._before + self._ppo.env_steps

    def run(self) -> dict[str, Any]:
        """Make all updates; the results of the stage."""
        for _ in self.updates():
            pass
        return self.results()

    def updates(self, *, keep_frames: Callable[[int], bool] | None = None) -> Iterator[tuple[int, Rollout]]:
        """After each update its number, from 1, and its rollout; frees the environments, however it ends.

        Args:
            keep_frames: whether the rollout after so many environment steps should hold its frames; by default none.
        """
        with closing(self._ppo):
            if self._loop.start == 0:
                self._evaluate(0)
            for update in self._loop:
                collected = self._ppo.collect(keep_frames=keep_frames is not None and keep_frames(self._ppo.env_steps))
                self._loop.record(self._ppo.update(collected))
                yield update + 1, collected
                self._episodes.add(collected.returns)
                if collected.all_ended:
                    lengths = {"charts/episodic_length": float(np.mean(collected.lengths))} if collected.lengths else {}
                    returns = {"charts/recent_training_return": float(np.mean(self._episodes.recent))}
                    self._loop.log(update, {**returns, **lengths})
                self._evaluate(update + 1)

    def _evaluate(self, updates: int) -> None:
        """A point of the curve, if one is due after so many updates. Training's random numbers are not touched."""
        if updates not in self._evaluated_after:
            return
        settings = self._ctx.config.evaluation
        played = rollout(
            self._act,
            self._ctx.env,
            episodes=settings.curve_episodes,
            num_envs=settings.num_envs,
            max_episode_steps=settings.max_episode_steps,
            seed=stage_seed(self._ctx, "levels of the learning curve"),
            device=self._ctx.compute.device,
            progress=Silent(),
            title="",
        )
        values = {EVALUATED: played.returns.mean(), f"{EVALUATED}_std": played.returns.std(ddof=1)}
        self._loop.log(updates - 1, {**{k: float(v) for k, v in values.items()}, "eval/episodes": len(played.returns)})

    @torch.no_grad()
    def _act(self, frames: Tensor) -> Tensor:
        # Not by calling the agent, whose compiled form would be compiled again for every number of unfinished episodes.
        logits: Tensor = self._ppo.agent.forward(*self._ppo.agent.encode(frames))[0]
        return logits

    def results(self) -> dict[str, Any]:
        """The results of the stage."""
        recent = self._episodes.recent
        return {
            "env_steps": self.env_steps,
            "training_episodes": self._episodes.count,
            "last_training_return": float(np.mean(recent)) if recent else None,
        }


def agent_policy(
    build: Callable[[Mapping[str, Any], Compute], Agent], ctx: Context, stage: StageDir
) -> Iterator[TrainedPolicy]:
    """The one policy of a finished stage that trained an agent; for :attr:`Stage.policies`."""

    def load() -> Act:
        agent = build(read_about(stage.path / WEIGHTS), ctx.compute)
        stage.load_weights({"agent": agent})
        return agent.act

    env_steps = stage.require_done()["results"]["env_steps"]
    yield TrainedPolicy(stage.name, load, env_steps=env_steps)


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
