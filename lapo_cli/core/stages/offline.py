"""Stage 3, offline: decode the latent policy from a few labelled frames (paper, section 5.2)."""

from typing import Any

import numpy as np
import torch

from lapo_cli.core.data.batches import FrameLoader
from lapo_cli.core.data.store import FrameStore, open_store
from lapo_cli.core.models.frames import normalize
from lapo_cli.core.models.policy import Decoder
from lapo_cli.core.run_dir import StageDir
from lapo_cli.core.training import decoding
from lapo_cli.core.training.agents import OfflineAgent
from lapo_cli.core.training.checkpoints import (
    OFFLINE,
    about,
    idm_fingerprint,
    load_idm,
    load_policy,
    policy_fingerprint,
    training_windows,
)
from lapo_cli.core.training.context import Context
from lapo_cli.core.training.stage import StageResult, run_stage, stage_seed

_TEST_PAIRS = 4096
_CHUNK = 512


def decode_offline(ctx: Context) -> StageResult:
    """Train one decoder for every number of labelled frames; smaller sets are part of larger ones.

    Raises:
        MissingInputError: stage 1 or 2 is not finished.
    """
    train = open_store(ctx.data_dir, ctx.seed_dir.game, "train")
    test = open_store(ctx.data_dir, ctx.seed_dir.game, "test")
    return run_stage(
        ctx,
        OFFLINE,
        sections=("data", "model", "decoder", "offline"),
        inputs={
            "idm": idm_fingerprint(ctx),
            "policy": policy_fingerprint(ctx),
            "train": train.manifest.fingerprint,
            "test": test.manifest.fingerprint,
        },
        work=lambda stage: _decode(ctx, stage, train, test),
    )


def load_offline_agents(ctx: Context) -> dict[int, OfflineAgent]:
    """What acts, by number of labelled frames.

    Raises:
        MissingInputError: ``decode-offline`` is not finished.
    """
    stage = ctx.seed_dir.stage(OFFLINE)
    done = stage.require_done(f"lapo decode-offline {ctx.seed_dir.path}")
    decoders = {int(count): Decoder(ctx.config.model.la_dim) for count in done["results"]["test_accuracy"]}
    stage.load_weights({_name(count): decoder for count, decoder in decoders.items()})
    policy = load_policy(ctx)
    agents = {}
    for count, decoder in decoders.items():
        ctx.compute.place(decoder)
        agents[count] = OfflineAgent(policy, decoder, ctx.config.model.policy_size, ctx.compute)
    return agents


def _name(count: int) -> str:
    return f"decoder_{count}"


def _decode(ctx: Context, stage: StageDir, train: FrameStore, test: FrameStore) -> dict[str, Any]:
    device = ctx.compute.device
    windows = training_windows(train.video(), ctx.config.data.max_frames)
    order = np.random.default_rng(stage_seed(ctx, "labelled frames")).permutation(windows)
    counts = sorted({min(count, len(order)) for count in ctx.config.offline.labels})
    latents, actions = _pairs(ctx, train, order[: counts[-1]])
    test_latents, test_actions = _pairs(ctx, test, test.video().windows()[:_TEST_PAIRS])
    decoders, accuracy = {}, {}
    with ctx.progress.task(ctx.title("stage 3 offline: decoders"), len(counts), "decoder") as task:
        for number, count in enumerate(counts, 1):
            decoder = Decoder(ctx.config.model.la_dim).to(device)
            decoding.fit(decoder, latents[:count], actions[:count], ctx.config.decoder, ctx.config.offline.steps)
            with torch.no_grad():
                hits = decoder(test_latents).argmax(1) == test_actions
            accuracy[str(count)] = hits.float().mean().item()
            decoders[_name(count)] = decoder
            task.update(number, accuracy=accuracy[str(count)])
    stage.save_weights(decoders, about(ctx, OFFLINE))
    return {"test_accuracy": accuracy, "test_pairs": len(test_actions)}


@torch.no_grad()
def _pairs(
    ctx: Context, store: FrameStore, windows: "np.typing.NDArray[np.int64]"
) -> tuple[torch.Tensor, torch.Tensor]:
    """z (P, la_dim) float32 of the frozen IDM and true actions (P,) int64, on the device."""
    idm = load_idm(ctx)
    loader = FrameLoader(store.video(), ctx.compute.device, resident=False)
    found = []
    for start in range(0, len(windows), _CHUNK):
        frames = normalize(loader.gather(windows[start : start + _CHUNK]), ctx.config.model.frame_size)
        with ctx.compute.autocast():
            found.append(idm.latent_action(frames).float())
    actions = torch.from_numpy(store.actions[windows].astype(np.int64)).to(ctx.compute.device)
    return torch.cat(found), actions
