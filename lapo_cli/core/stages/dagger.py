"""A demonstrator that sees frames alone: a student of the game's planner (DAgger, Ross et al., 2011).

A planner reads the state of the game, and what it does need not follow from what a frame shows: what clones its
play learns little. The student meets the states to which its own play leads, is told what the planner would do there,
and learns as much of it as frames explain. Its own play, recorded, can be cloned.
"""

from collections.abc import Mapping
from contextlib import closing
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from lapo_cli.core.envs.base import VecEnv
from lapo_cli.core.models.frames import normalize
from lapo_cli.core.run_dir import StageDir
from lapo_cli.core.training.agents import ScratchAgent
from lapo_cli.core.training.checkpoints import direct_agent_of, header
from lapo_cli.core.training.cloning import clone_policy
from lapo_cli.core.training.context import Context
from lapo_cli.core.training.loop import Stateful, TrainingLoop, set_learning_rate
from lapo_cli.core.training.stage import STAGES, Stage, stage_seed

DAGGER = "dagger"
_LABEL = "student of the planner"
_FRAMES = "frames.u8"
_TEACHER_NOISE = 0.05  # share of random actions where the planner plays, so that its path is left too


def _train(ctx: Context, stage: StageDir) -> dict[str, Any]:
    config = ctx.config.dagger
    agent = direct_agent_of(header(ctx, stage), ctx.compute)
    policy = agent.policy
    optimizer = torch.optim.AdamW(policy.parameters(), config.lr, weight_decay=config.weight_decay, fused=True)
    rounds = -(-config.frames // (config.num_envs * config.num_steps))
    with closing(_Lessons(ctx, stage, rounds)) as lessons:
        state: dict[str, Stateful] = {"policy": policy, "optimizer": optimizer, "lessons": lessons}
        loop = TrainingLoop(
            stage,
            ctx,
            _LABEL,
            rounds,
            state,
            show=("losses/imitation", "charts/episodic_return"),
            unit="environment step",
            scale=config.num_envs * config.num_steps,
            read_every=1,
        )
        for number in loop:
            lessons.play(agent, number)
            rng = np.random.default_rng([stage_seed(ctx, "lessons"), number])
            # Every round makes its share of the updates, so that the total is met exactly.
            for update in range(config.steps * number // rounds, config.steps * (number + 1) // rounds):
                set_learning_rate(optimizer, config.learning_rate(update))
                frames, target = lessons.sample(rng, config.batch_size)
                with ctx.compute.autocast():
                    logits = policy(normalize(frames, policy.size))
                loss = F.cross_entropy(logits.float(), target)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                loop.record({"losses/imitation": loss})
            loop.log(number, lessons.metrics())
    stage.save_weights({"agent": agent}, header(ctx, stage))
    return {"frames": rounds * config.num_envs * config.num_steps, "steps": config.steps, **lessons.metrics()}


class _Lessons:
    """Play, and what the planner would have done at every frame of it.

    Environments are driven by the planner or the student, drawn anew every round; the planner's share falls linearly
    from all to ``teacher_share`` over the first ``handover`` of the rounds. A checkpoint holds actions and labels;
    the frames follow from replaying the actions. The planner forgets its plans at the end of a round.
    """

    def __init__(self, ctx: Context, stage: StageDir, rounds: int) -> None:
        self._config, self._device, self._rounds = ctx.config.dagger, ctx.compute.device, rounds
        self._env, self._seed = ctx.env, stage_seed(ctx, "levels of lessons")
        self._num_actions = ctx.env.require_actions()
        num_envs, steps = self._config.num_envs, rounds * self._config.num_steps
        self._envs: VecEnv = ctx.env.make_envs(num_envs, self._seed)
        self._actions = np.zeros((steps, num_envs), np.uint8)
        self._labels = np.zeros((steps, num_envs, self._num_actions), np.float16)
        self._done = 0
        self._file = stage.path / _FRAMES
        self._frames: NDArray[np.uint8] | None = None
        self._running, self._returns = np.zeros(num_envs), list[float]()
        self._agreement = 0.0

    def play(self, agent: ScratchAgent, number: int) -> None:
        """Play round ``number``, and note what the planner would do."""
        config, num_envs = self._config, self._config.num_envs
        rng = np.random.default_rng([self._seed, number])
        assert self._env.make_planner is not None
        planner = self._env.make_planner(num_envs, int(rng.integers(2**31)))
        handover = max(1.0, config.handover * self._rounds)
        teacher_share = max(config.teacher_share, 1 - number / handover)
        taught = rng.random(num_envs) < teacher_share
        generator = torch.Generator().manual_seed(int(rng.integers(2**31)))
        agreed = []
        for step in range(number * config.num_steps, (number + 1) * config.num_steps):
            frames = self._observe(step)
            labels = planner.probabilities(self._envs.get_state())
            probabilities = agent.act(torch.from_numpy(frames).to(self._device)).softmax(1).cpu()
            actions = torch.multinomial(probabilities, 1, generator=generator)[:, 0].numpy()
            wanted = labels.argmax(1)
            agreed.append(probabilities.argmax(1).numpy() == wanted)
            noisy = rng.random(num_envs) < _TEACHER_NOISE
            led = np.where(noisy, rng.integers(0, self._num_actions, num_envs), wanted)
            self._labels[step] = labels
            self._act(step, np.where(taught, led, actions))
        self._agreement = float(np.mean(agreed))

    def _observe(self, step: int) -> NDArray[np.uint8]:
        reward, frames, first = self._envs.observe()
        if self._frames is None:
            shape = (*self._actions.shape, *frames.shape[1:])
            self._frames = np.memmap(self._file, np.uint8, "w+", shape=shape)
        self._frames[step] = frames
        self._running += reward if step else 0
        self._returns += self._running[first].tolist() if step else []
        self._running[first] = 0
        return frames

    def _act(self, step: int, actions: NDArray[np.integer[Any]]) -> None:
        self._actions[step] = actions
        self._envs.act(self._actions[step])
        self._done = step + 1

    def sample(self, rng: np.random.Generator, count: int) -> tuple[Tensor, Tensor]:
        """Frames (count, H, W, 3) uint8 and the planner's probabilities (count, num_actions) at them, on the device."""
        assert self._frames is not None
        steps, envs = rng.integers(0, self._done, count), rng.integers(0, self._config.num_envs, count)
        frames = torch.from_numpy(self._frames[steps, envs]).to(self._device)
        return frames, torch.from_numpy(self._labels[steps, envs]).to(self._device).float()

    def metrics(self) -> dict[str, float]:
        """How often the student's likeliest action is the planner's, and the mean return of the latest episodes."""
        latest = self._returns[-2 * self._config.num_envs :]
        returns = {"charts/episodic_return": float(np.mean(latest))} if latest else {}
        return {"charts/agreement": self._agreement, **returns}

    def state_dict(self) -> dict[str, Any]:
        """The actions and labels so far."""
        return {
            "actions": torch.from_numpy(self._actions[: self._done]),
            "labels": torch.from_numpy(self._labels[: self._done]),
            "agreement": self._agreement,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Replay what :meth:`state_dict` gave."""
        actions, labels = state["actions"].numpy(), state["labels"].numpy()
        self._labels[: len(labels)] = labels
        self._agreement = float(state["agreement"])
        for step, chosen in enumerate(actions):
            self._observe(step)
            self._act(step, chosen)

    def close(self) -> None:
        """Free the environments and the frames."""
        self._envs.close()
        self._frames = None
        self._file.unlink(missing_ok=True)


def _needs_planner(ctx: Context) -> str | None:
    if ctx.env.make is None or ctx.env.make_planner is None:
        return f"there is no planner for {ctx.game} to learn from"
    return None


STAGES.register(
    Stage(
        name=DAGGER,
        label=_LABEL,
        run=_train,
        command="lapo train-expert {game} --method dagger --run-dir {run_dir}",
        sections=("model", "dagger"),
        applicable=_needs_planner,
        policies=partial(clone_policy, _LABEL),
        build_agent=direct_agent_of,
        in_chain="never",
        order=75,
    )
)
