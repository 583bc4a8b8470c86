"""Behaviour cloning of true or inferred actions: the ceiling of latent policies, and related methods."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from lapo_cli.core.config import Stage2Config
from lapo_cli.core.data.batches import FrameLoader
from lapo_cli.core.data.store import FrameStore
from lapo_cli.core.errors import UsageError
from lapo_cli.core.models.policy import LatentPolicy
from lapo_cli.core.run_dir import WEIGHTS, StageDir, read_about
from lapo_cli.core.training.agents import Act
from lapo_cli.core.training.context import Context
from lapo_cli.core.training.fit import TrainingFrames, fit
from lapo_cli.core.training.imitation import Imitation
from lapo_cli.core.training.latent_labels import CHUNK
from lapo_cli.core.training.networks import direct_agent_of, header, load_policy
from lapo_cli.core.training.stage import TrainedPolicy, held_out_sample, run_part, stage_seed

_PRESENT = (0,)


@dataclass(frozen=True)
class Targets:
    """What a policy is to imitate.

    Attributes:
        windows: the frames, (W,) ascending.
        actions: probabilities of the actions at each, (W, num_actions) float16.
    """

    windows: NDArray[np.int64]
    actions: NDArray[np.float16]


def true_targets(actions: NDArray[np.uint8], windows: NDArray[np.int64], num_actions: int) -> Targets:
    """The true actions of these frames.

    Args:
        actions: (N,), of the whole store.
        windows: (W,), in any order.
        num_actions: how many there are.
    """
    windows = np.sort(windows)
    return Targets(windows, np.eye(num_actions, dtype=np.float16)[actions[windows]])


def with_true_actions(targets: Targets, store: FrameStore, labelled: NDArray[np.int64]) -> Targets:
    """These targets, with the true actions in place of guesses at the ``labelled`` frames (L,) among them."""
    assert store.actions is not None
    known = true_targets(store.actions, labelled, targets.actions.shape[1])
    actions = targets.actions.copy()
    actions[np.searchsorted(targets.windows, known.windows)] = known.actions
    return Targets(targets.windows, actions)


def clone(
    ctx: Context,
    stage: str,
    folder: StageDir,
    title: str,
    targets: Targets,
    config: Stage2Config,
    start: LatentPolicy | None = None,
) -> dict[str, Any]:
    """Train a policy of the configured size by cross-entropy, as stage 2 is trained, and save it in ``folder``.

    Args:
        stage: name of the stage that ``folder`` belongs to.
        title: shown beside the progress bar.
        config: number of updates, batch size and learning rate.
        start: a latent policy of the same size whose trunk and hidden layer it starts from; else they are random.

    Raises:
        UsageError: ``start`` is of another size.

    Returns:
        ``val/accuracy`` on the test store, the ``val/majority_baseline``, and the number of ``steps``.
    """
    train, held_out = ctx.open_store("train"), ctx.open_store("test")
    about = {**header(ctx, folder), "stage": stage}
    agent = direct_agent_of(about, ctx.compute)
    policy = agent.policy
    if start is not None:
        shapes = [
            [p.shape for part in (network.trunk, network.hidden) for p in part.parameters()]
            for network in (start, policy)
        ]
        if shapes[0] != shapes[1]:
            raise UsageError(
                "A clone that starts from the latent policy needs a network of its size: leave out the overrides of "
                "model.policy_*, or add --set relabel.warm_start=false."
            )
        policy.trunk.load_state_dict(start.trunk.state_dict())
        policy.hidden.load_state_dict(start.hidden.state_dict())
    imitation = Imitation(policy, targets.windows, targets.actions, F.cross_entropy, config.lookahead, ctx.compute)
    loader = FrameLoader(held_out.video(), ctx.compute.device, resident=False)
    windows = held_out_sample(ctx, held_out.labelled(held_out.video().windows()))

    @torch.no_grad()
    def evaluate() -> dict[str, float]:
        if held_out.actions is None or len(windows) == 0:
            return {}
        true = held_out.actions[windows]
        chunks = (loader.gather(windows[i : i + CHUNK], _PRESENT) for i in range(0, len(windows), CHUNK))
        guessed = torch.cat([imitation.predict(frames).argmax(1) for frames in chunks])
        majority = np.bincount(true).max() / len(true)
        return {
            "val/accuracy": float((guessed.cpu().numpy() == true).mean()),
            "val/majority_baseline": float(majority),
        }

    seed = stage_seed(ctx, f"frames of {folder.name}")
    results = fit(
        ctx,
        folder,
        title,
        dict(imitation.named_children()),
        config,
        TrainingFrames(train.video(), targets.windows, seed, _PRESENT),
        imitation,
        evaluate,
        show=("losses/imitation", "val/accuracy"),
    )
    folder.save_weights({"agent": agent}, about)
    return results


def clone_settings(ctx: Context) -> tuple[Stage2Config, LatentPolicy | None]:
    """How a policy is cloned from relabelled frames, and the latent policy that it starts from, if any."""
    config = ctx.config.relabel
    start = load_policy(ctx) if config.warm_start else None
    return ctx.config.stage2.model_copy(update={"steps": config.steps, "lr": config.lr}), start


def clone_for_each(
    ctx: Context,
    stage: StageDir,
    title: str,
    counts: list[int],
    targets: Callable[[int], Targets],
    config: Stage2Config,
    start: LatentPolicy | None = None,
) -> dict[str, Any]:
    """One clone for each number of labels, in a folder of its own; those that are finished are skipped.

    Args:
        title: shown beside the progress bar.
        counts: numbers of labels.
        targets: what each of them is to imitate.
        config, start: see :func:`clone`.

    Returns:
        ``by_labels``: number of labels -> what :func:`clone` returns.
    """

    def of(count: int) -> dict[str, Any]:
        folder = StageDir(stage.path / f"labels-{count}")

        def work() -> dict[str, Any]:
            return clone(ctx, stage.name, folder, f"{title}, {count} labels", targets(count), config, start)

        return run_part(ctx, folder, f"{stage.name}/{count}", {"labels": count}, work)

    return {"by_labels": {str(count): of(count) for count in counts}}


def clone_policy(ctx: Context, stage: StageDir) -> Iterator[TrainedPolicy]:
    """The policy that :func:`clone` saved; for :attr:`Stage.policies`."""
    yield TrainedPolicy(stage.name, partial(_load, ctx, stage))


def clone_policies(ctx: Context, stage: StageDir) -> Iterator[TrainedPolicy]:
    """The policies that :func:`clone_for_each` saved; for :attr:`Stage.policies`."""
    results: Mapping[str, Any] = stage.require_done()["results"]["by_labels"]
    for count in sorted(map(int, results)):
        folder = StageDir(stage.path / f"labels-{count}")
        yield TrainedPolicy(f"{stage.name}-{count}", partial(_load, ctx, folder), labels=count)


def _load(ctx: Context, folder: StageDir) -> Act:
    agent = direct_agent_of(read_about(folder.path / WEIGHTS), ctx.compute)
    folder.load_weights({"agent": agent})
    return agent.act
