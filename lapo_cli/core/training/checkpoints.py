"""What stages leave for one another: the names of their folders, and how to read what lies there."""

import json
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lapo_cli.core.config import ModelConfig
from lapo_cli.core.data.store import Video
from lapo_cli.core.models.idm import InverseDynamicsModel
from lapo_cli.core.models.policy import Policy
from lapo_cli.core.models.quantizers.vq import VectorQuantizer
from lapo_cli.core.training.context import Context

IDM = "idm"
POLICY = "policy"
OFFLINE = "offline"
ONLINE = "online"
RL_ONLY = "rl-only"
SCRATCH = "scratch"
EXPERT = "expert"


def about(ctx: Context, stage: str) -> dict[str, Any]:
    """Header of a weights file: which stage, game, seed and networks these are."""
    model = json.loads(ctx.config.model.model_dump_json())
    return {"stage": stage, "game": ctx.seed_dir.game, "seed": ctx.seed_dir.seed, "model": model}


def idm_fingerprint(ctx: Context) -> str:
    """Fingerprint of the trained inverse dynamics model.

    Raises:
        MissingInputError: stage 1 is not finished.
    """
    return ctx.seed_dir.stage(IDM).output_fingerprint(
        f"lapo train-idm {ctx.seed_dir.game} --run-dir {ctx.seed_dir.run_path}"
    )


def policy_fingerprint(ctx: Context) -> str:
    """Fingerprint of the trained latent policy.

    Raises:
        MissingInputError: stage 2 is not finished.
    """
    return ctx.seed_dir.stage(POLICY).output_fingerprint(f"lapo train-policy {ctx.seed_dir.path}")


def build_idm(model: ModelConfig) -> InverseDynamicsModel:
    """The inverse dynamics model of a configuration, untrained."""
    quantizer = VectorQuantizer(
        model.codebooks,
        model.codes,
        model.code_dim,
        model.positions,
        model.ema_decay,
        model.commitment,
        model.revive_below,
    )
    idm = InverseDynamicsModel(model.idm_scale, model.frame_size, quantizer)
    if model.motion_init:
        idm.start_from_differences()
    return idm


def load_idm(ctx: Context) -> InverseDynamicsModel:
    """The trained inverse dynamics model of a game and seed, frozen and in evaluation mode.

    Raises:
        MissingInputError: stage 1 is not finished.
    """
    stage = ctx.seed_dir.stage(IDM)
    stage.require_done(f"lapo train-idm {ctx.seed_dir.game} --run-dir {ctx.seed_dir.run_path}")
    idm = build_idm(ctx.config.model)
    stage.load_weights({"idm": idm})
    ctx.compute.place(idm)
    return idm.eval().requires_grad_(False)


def training_windows(video: Video, max_frames: int) -> NDArray[np.int64]:
    """Centres of the windows within the first ``max_frames`` frames, ascending."""
    windows = video.windows()
    return windows[windows < max_frames - 1]


def load_policy(ctx: Context) -> Policy:
    """The trained latent policy of a game and seed, frozen.

    Raises:
        MissingInputError: stage 2 is not finished.
    """
    stage = ctx.seed_dir.stage(POLICY)
    stage.require_done(f"lapo train-policy {ctx.seed_dir.path}")
    policy = Policy(ctx.config.model.policy_scale, ctx.config.model.policy_size, ctx.config.model.la_dim)
    stage.load_weights({"policy": policy})
    ctx.compute.place(policy)
    return policy.eval().requires_grad_(False)
