"""Stage 1: the inverse dynamics model and the world model, jointly (paper, section 4.1)."""

from typing import Any

import numpy as np
import torch

from lapo_cli.core import distributed
from lapo_cli.core.data.batches import FrameLoader
from lapo_cli.core.data.store import FrameStore
from lapo_cli.core.models.frames import normalize
from lapo_cli.core.models.idm import InverseDynamicsModel
from lapo_cli.core.models.world_model import WorldModel
from lapo_cli.core.run_dir import StageDir
from lapo_cli.core.training.context import Context
from lapo_cli.core.training.fit import TrainingFrames, fit
from lapo_cli.core.training.joint_loss import joint_loss
from lapo_cli.core.training.latent_labels import gather_batches, labelled_pairs
from lapo_cli.core.training.networks import IDM, IDM_NETWORK, build_idm, build_world_model, header
from lapo_cli.core.training.no_quantizer import without_quantizer
from lapo_cli.core.training.probe import majority_accuracy, probe_accuracy, split_by_episode
from lapo_cli.core.training.stage import STAGES, Stage, held_out_sample, stage_seed

_CHANGED = 0.02  # of the range of a normalized pixel


def train(ctx: Context, stage: StageDir) -> dict[str, Any]:
    """Train both models on frames alone; actions, where there are any, are used by the probe alone."""
    config, model, compute = ctx.config.stage1, ctx.config.model, ctx.compute
    video = ctx.open_store("train").video()
    idm, world_model = build_idm(model), build_world_model(model)
    evaluate = _HeldOut(ctx, ctx.open_store("test"))
    compute.place(idm)
    compute.place(world_model)
    untrained = evaluate.probe(idm)
    results = fit(
        ctx,
        stage,
        "stage 1: inverse dynamics and world model",
        {"idm": idm, "world_model": world_model},
        config,
        TrainingFrames(video, video.windows(ctx.config.data.max_frames), stage_seed(ctx, "windows")),
        lambda frames, _: joint_loss(
            idm, world_model, normalize(frames, model.frame_size), compute, config.error_focus
        ),
        lambda: evaluate(idm, world_model),
        show=("losses/world_model", "quantizer/perplexity", "probe/accuracy"),
        grad_norm=config.grad_norm,
    )
    distributed.on_main(lambda: stage.save_weights({"idm": idm, "world_model": world_model}, header(ctx, stage)))
    return {**results, **untrained}


class _HeldOut:
    """Evaluation on the test store. The only place in stage 1 that sees actions."""

    def __init__(self, ctx: Context, store: FrameStore) -> None:
        self._ctx, self._store = ctx, store
        windows = store.video().windows()
        self._windows = held_out_sample(ctx, windows)
        halves = split_by_episode(
            store.labelled(windows),
            store.episode_starts,
            most=ctx.config.stage1.probe_pairs,
            seed=stage_seed(ctx, "probe"),
        )
        self._pairs, self._split = np.concatenate(halves), len(halves[0])
        self._loader = FrameLoader(store.video(), ctx.compute.device)

    def probe(self, idm: InverseDynamicsModel, name: str = "probe/untrained") -> dict[str, float]:
        """Accuracy of the probe on an inverse dynamics model, under that name; empty without labelled frames."""
        if not 0 < self._split < len(self._pairs):
            return {}
        latents, actions = labelled_pairs(self._ctx, idm, self._store, self._pairs, self._loader)
        accuracy = probe_accuracy(
            latents,
            actions.cpu().numpy(),
            self._ctx.env.require_actions(),
            split=self._split,
            epochs=self._ctx.config.stage1.probe_epochs,
            seed=stage_seed(self._ctx, "probe"),
        )
        return {
            name: accuracy,
            "probe/majority_baseline": majority_accuracy(actions.cpu().numpy(), split=self._split),
        }

    @torch.no_grad()
    def _health(self, idm: InverseDynamicsModel, world_model: WorldModel) -> dict[str, float]:
        """Prediction error, in total and on the pixels that change, beside that of repeating o_t; and code usage."""
        sums = torch.zeros(5, dtype=torch.float64)  # squared errors: model, copying, both where it changes; such pixels
        used: set[tuple[int, int]] = set()  # codebook and code
        for batch in gather_batches(self._loader, self._windows):
            frames = normalize(batch, idm.size)
            with self._ctx.compute.autocast():
                _, quantized = idm(frames)
                prediction = world_model(frames[:, :2], quantized.latent)
            error = (prediction.float() - frames[:, 2]).square().mean(1)
            copying = (frames[:, 1] - frames[:, 2]).square().mean(1)
            changed = (frames[:, 1] - frames[:, 2]).abs().amax(1) > _CHANGED
            terms = (error, copying, error * changed, copying * changed, changed)
            sums += torch.stack([term.double().sum() for term in terms]).cpu()
            if quantized.codes is not None:
                for book, codes in enumerate(quantized.codes.unbind(1)):
                    used |= {(book, code) for code in codes.unique().tolist()}
        pixels = len(self._windows) * idm.size**2
        health = {"val/world_model": float(sums[0]) / pixels, "val/copy_last_frame": float(sums[1]) / pixels}
        if sums[4] > 0:
            health["val/world_model_changed"] = float(sums[2] / sums[4])
            health["val/copy_last_frame_changed"] = float(sums[3] / sums[4])
        if idm.quantizer.num_codes:
            health["val/code_usage"] = len(used) / idm.quantizer.num_codes
        return health

    def __call__(self, idm: InverseDynamicsModel, world_model: WorldModel) -> dict[str, float]:
        idm.eval()
        world_model.eval()
        health = self._health(idm, world_model)
        probe = self.probe(idm, "probe/accuracy")
        idm.train()
        world_model.train()
        return {**health, **probe}


_STAGE = STAGES.register(
    Stage(
        name=IDM,
        label="inverse dynamics model",
        run=train,
        command="lapo train-idm {game} --run-dir {run_dir} --seed {seed}",
        sections=("data.max_frames", "model.world_model_base", "model.quantizer", "stage1", *IDM_NETWORK),
        reads=("train", "test"),
        order=10,
        parallel=True,
    )
)
STAGES.register(without_quantizer(_STAGE))
