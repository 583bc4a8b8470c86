"""Supervised inverse dynamics: a model of stage 1's trunk and budget that is trained on true actions."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from lapo_cli.core.data.batches import FrameLoader
from lapo_cli.core.data.store import FrameStore, Video
from lapo_cli.core.files import sha256_file
from lapo_cli.core.models.frames import normalize
from lapo_cli.core.models.idm import InverseDynamics
from lapo_cli.core.run_dir import WEIGHTS, StageDir, read_about
from lapo_cli.core.training.cloning import Targets
from lapo_cli.core.training.context import Context
from lapo_cli.core.training.fit import TrainingFrames, fit
from lapo_cli.core.training.latent_labels import CHUNK, gather_batches, labels_of_all
from lapo_cli.core.training.networks import actions_of, build_supervised_idm, header, model_of
from lapo_cli.core.training.probe import split_by_episode
from lapo_cli.core.training.stage import stage_seed


@dataclass(frozen=True)
class LabelledVideo:
    """A video of which some true actions are known.

    Attributes:
        video: the frames.
        actions: (N,) uint8 of all of them; only those at ``windows`` need be known.
        windows: labelled centres (W,), in any order.
    """

    video: Video
    actions: NDArray[np.uint8]
    windows: NDArray[np.int64]


def train_inverse_dynamics(
    ctx: Context,
    stage: str,
    folder: StageDir,
    title: str,
    frames: LabelledVideo,
    steps: int,
    start: InverseDynamics | None = None,
    trunk: str | None = None,
) -> dict[str, Any]:
    """Train on the true actions of these frames by cross-entropy, as stage 1 is trained, and save it in ``folder``.

    Args:
        stage: name of the stage that ``folder`` belongs to.
        title: shown beside the progress bar.
        frames: what it learns from.
        steps: updates; the learning rate decays over them.
        start: a model whose trunk it starts from; else its weights are random.
        trunk: see :func:`build_supervised_idm`.

    Returns:
        The number of ``steps``, and ``val/accuracy`` on the pairs that the probe of stage 1 is tested on, if any.
    """
    config, compute = ctx.config.stage1.of_steps(steps), ctx.compute
    about = {**header(ctx, folder, trunk=trunk), "stage": stage}
    idm = build_supervised_idm(ctx.config.model, ctx.env.require_actions(), trunk)
    if start is not None:  # The hidden layer, which serves latent actions, is no better a start than random weights.
        idm.trunk.load_state_dict(start.trunk.state_dict())
    compute.place(idm)
    held_out = ctx.open_store("test")

    def loss(batch: Tensor, centres: NDArray[np.int64]) -> tuple[Tensor, dict[str, Tensor]]:
        with compute.autocast():
            logits = idm.infer(normalize(batch, idm.size)).float()
        true = torch.from_numpy(frames.actions[centres].astype(np.int64)).to(compute.device)
        value = F.cross_entropy(logits, true)
        return value, {"losses/actions": value}

    results = fit(
        ctx,
        folder,
        title,
        {"idm": idm},
        config,
        TrainingFrames(frames.video, np.sort(frames.windows), stage_seed(ctx, "windows")),
        loss,
        lambda: _accuracy(ctx, idm, held_out),
        show=("losses/actions", "val/accuracy"),
        grad_norm=config.grad_norm,
    )
    folder.save_weights({"idm": idm}, about)
    return results


def load_inverse_dynamics(ctx: Context, folder: StageDir) -> InverseDynamics:
    """What :func:`train_inverse_dynamics` saved, frozen.

    Raises:
        CorruptDataError: the weights are missing or damaged.
    """
    about = read_about(folder.path / WEIGHTS)
    idm = build_supervised_idm(model_of(about), actions_of(about), about.get("trunk"))
    folder.load_weights({"idm": idm})
    ctx.compute.place(idm)
    return idm.requires_grad_(False)


def inferred_targets(
    ctx: Context, folders: Sequence[StageDir], video: Video, windows: NDArray[np.int64], temperature: float = 1.0
) -> Targets:
    """Probabilities of the actions at ``windows`` (W,) ascending, the mean of the models in ``folders``, for a clone.

    Args:
        temperature: divides the logits of the mean.

    Raises:
        DiskFullError, CorruptDataError: see :func:`labels_of_all`.
        CorruptDataError: the weights are missing or damaged.
    """
    of_models = [inferred_actions(ctx, folder, video, windows) for folder in folders]
    actions = np.empty_like(of_models[0])
    for part in (slice(start, start + CHUNK) for start in range(0, len(windows), CHUNK)):
        logits = torch.stack([torch.from_numpy(np.array(of_model[part])).float() for of_model in of_models])
        actions[part] = (logits.logsumexp(0) / temperature).softmax(1).numpy()
    return Targets(windows, actions)


def inferred_actions(ctx: Context, folder: StageDir, video: Video, windows: NDArray[np.int64]) -> NDArray[np.float16]:
    """Log-probabilities of the actions at ``windows`` (W,), (W, num_actions), by the model in ``folder``.

    They are computed once, see :func:`labels_of_all`, for what it raises too.

    Raises:
        CorruptDataError: the weights are missing or damaged.
    """
    idm = load_inverse_dynamics(ctx, folder)

    def infer(batches: Iterable[Tensor]) -> Iterator[Tensor]:
        return (logits.log_softmax(1) for logits in _logits(ctx, idm, batches))

    made = sha256_file(folder.path / WEIGHTS)
    return labels_of_all(ctx, "actions", infer, idm.head.out_features, made, video, windows)


@torch.no_grad()
def _logits(ctx: Context, idm: InverseDynamics, batches: Iterable[Tensor]) -> Iterator[Tensor]:
    for batch in batches:
        with ctx.compute.autocast():
            logits = idm.infer(normalize(batch, idm.size))
        yield logits.float()


def _accuracy(ctx: Context, idm: InverseDynamics, store: FrameStore) -> dict[str, float]:
    most, seed = ctx.config.stage1.probe_pairs, stage_seed(ctx, "probe")
    _, pairs = split_by_episode(store.labelled(store.video().windows()), store.episode_starts, most=most, seed=seed)
    if store.actions is None or len(pairs) == 0:
        return {}
    batches = gather_batches(FrameLoader(store.video(), ctx.compute.device, resident=False), pairs)
    inferred = torch.cat([logits.argmax(1).cpu() for logits in _logits(ctx, idm, batches)])
    return {"val/accuracy": float((inferred.numpy() == store.actions[pairs]).mean())}
