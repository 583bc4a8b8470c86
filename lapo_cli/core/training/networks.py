"""Networks from a configuration, and from what finished stages have left.

Every weights file carries in its header what its networks were built from, so that a stage uses those of an earlier one
as they are, independently of the current configuration.
"""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from pydantic import ValidationError

from lapo_cli.core.compute import Compute
from lapo_cli.core.config import ModelConfig, PolicyTargetConfig, Stage2Config
from lapo_cli.core.errors import CorruptDataError
from lapo_cli.core.models.idm import InverseDynamics, InverseDynamicsModel
from lapo_cli.core.models.policy import LatentPolicy
from lapo_cli.core.models.quantizers.base import Quantizer
from lapo_cli.core.models.world_model import WorldModel
from lapo_cli.core.run_dir import WEIGHTS, StageDir, read_about
from lapo_cli.core.training.agents import DirectAgent
from lapo_cli.core.training.context import Context
from lapo_cli.core.training.stage import require_stage

_Module = TypeVar("_Module", bound=torch.nn.Module)

IDM = "idm"
POLICY = "policy"
SUPERVISED_IDM = "supervised-idm"
RANDOM_PLAY = "random-play"

IDM_NETWORK = ("model.frame_size", "model.idm_scale", "model.motion_init")
"""The settings that :func:`build_supervised_idm` reads, for :attr:`Stage.sections`."""

POLICY_NETWORK = ("model.policy_scale", "model.policy_size", "model.policy_trunk")
"""The settings that :func:`direct_agent_of` reads, for :attr:`Stage.sections`."""


def header(ctx: Context, stage: StageDir, **more: Any) -> dict[str, Any]:
    """Header of a weights file: which stage, game, seed and networks these are; ``more`` is JSON-like."""
    return {
        "stage": stage.name,
        "game": ctx.game,
        "seed": ctx.seed_dir.seed,
        "num_actions": ctx.env.num_actions,
        "model": ctx.config.model.model_dump(mode="json"),
        **more,
    }


def model_of(about: Mapping[str, Any]) -> ModelConfig:
    """The ``model`` section in a header.

    Raises:
        CorruptDataError: it is not there, or not one that this version knows.
    """
    try:
        return ModelConfig.model_validate(about["model"])
    except (KeyError, ValidationError) as error:
        raise CorruptDataError(
            "The weights were made by another version of lapo, or with a plugin that is not loaded: train again, "
            "or give --plugin FILE."
        ) from error


def actions_of(about: Mapping[str, Any]) -> int:
    """The number of actions in a header.

    Raises:
        CorruptDataError: it is not there.
    """
    count = about.get("num_actions")
    if not isinstance(count, int) or count < 1:
        raise CorruptDataError("The weights do not record their number of actions: train again.")
    return count


def build_idm(model: ModelConfig) -> InverseDynamicsModel:
    """The inverse dynamics model of a configuration, untrained."""
    idm = InverseDynamicsModel(model.idm_scale, model.frame_size, model.quantizer.build())
    if model.motion_init:
        idm.start_from_differences()
    return idm


def build_supervised_idm(model: ModelConfig, num_actions: int, trunk: str | None = None) -> InverseDynamics:
    """A model that infers true actions, untrained.

    Args:
        trunk: which of :data:`TRUNKS`, of the policy's size; None for that of stage 1's model.
    """
    if trunk is None:
        idm = InverseDynamics(model.idm_scale, model.frame_size, num_actions)
    else:
        idm = InverseDynamics(model.policy_scale, model.policy_size, num_actions, trunk)
    if model.motion_init:
        idm.start_from_differences()
    return idm


def direct_agent_of(about: Mapping[str, Any], compute: Compute) -> DirectAgent:
    """The agent, untrained, that a header describes whose policy gives true actions directly; on its device.

    Raises:
        CorruptDataError: the header does not describe one.
    """
    model = model_of(about)
    agent = DirectAgent(model.policy_scale, model.policy_size, actions_of(about), compute, model.policy_trunk)
    compute.place(agent)
    return agent


def build_world_model(model: ModelConfig) -> WorldModel:
    """The world model of a configuration, untrained."""
    world_model = WorldModel(model.world_model_base, model.frame_size, model.quantizer.la_dim)
    if model.motion_init:
        world_model.start_from_copying()
    return world_model


def build_latent_policy(model: ModelConfig, target: PolicyTargetConfig, quantizer: Quantizer) -> LatentPolicy:
    """The latent policy of a configuration, untrained, for latent actions of that quantizer."""
    return LatentPolicy(model.policy_scale, model.policy_size, target.build(quantizer), model.policy_trunk)


def latent_policy_of(about: Mapping[str, Any]) -> LatentPolicy:
    """The latent policy that a header describes, untrained.

    Raises:
        CorruptDataError: the header does not describe one.
    """
    model = model_of(about)
    try:
        target = Stage2Config.model_validate({"target": about["target"]}).target
    except (KeyError, ValidationError) as error:
        raise CorruptDataError(
            "The weights name a policy target that is not known here: give the plugin that defines it with --plugin "
            "FILE, or train again."
        ) from error
    # Only its shapes matter: the weights that follow hold what the target took from the trained one.
    with torch.random.fork_rng(devices=[]):
        quantizer = model.quantizer.build()
    return build_latent_policy(model, target, quantizer)


def load_idm(ctx: Context) -> InverseDynamicsModel:
    """The trained inverse dynamics model of a game and seed, frozen and in evaluation mode.

    Raises:
        MissingInputError: stage 1 is not finished.
        CorruptDataError: its weights are damaged.
    """
    return _load_of_stage1(ctx, IDM, build_idm)


def load_world_model(ctx: Context) -> WorldModel:
    """The trained world model of a game and seed, frozen and in evaluation mode; raises as :func:`load_idm`."""
    return _load_of_stage1(ctx, "world_model", build_world_model)


def _load_of_stage1(ctx: Context, name: str, build: Callable[[ModelConfig], _Module]) -> _Module:
    stage = require_stage(ctx, IDM + ctx.variant)
    module = build(model_of(read_about(stage.path / WEIGHTS)))
    stage.load_weights({name: module})
    ctx.compute.place(module)
    return module.eval().requires_grad_(False)


def load_policy(ctx: Context) -> LatentPolicy:
    """The trained latent policy of a game and seed, frozen.

    Raises:
        MissingInputError: stage 2 is not finished.
        CorruptDataError: its weights are damaged.
    """
    stage = require_stage(ctx, POLICY + ctx.variant)
    policy = latent_policy_of(read_about(stage.path / WEIGHTS))
    stage.load_weights({"policy": policy})
    ctx.compute.place(policy)
    return policy.eval().requires_grad_(False)


def idm_about(ctx: Context) -> dict[str, Any]:
    """The header of the trained inverse dynamics model.

    Raises:
        MissingInputError: stage 1 is not finished.
    """
    return read_about(require_stage(ctx, IDM + ctx.variant).path / WEIGHTS)


def policy_about(ctx: Context) -> dict[str, Any]:
    """The part of the trained latent policy's header that describes its networks.

    Raises:
        MissingInputError: stage 2 is not finished.
    """
    about = read_about(require_stage(ctx, POLICY + ctx.variant).path / WEIGHTS)
    return {name: about[name] for name in ("model", "target") if name in about}
