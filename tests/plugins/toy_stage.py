"""A stage: a policy that prefers one action, with settings of its own."""

from collections.abc import Iterator
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from lapo_cli.core.config import Section
from lapo_cli.core.run_dir import StageDir
from lapo_cli.core.training.context import Context
from lapo_cli.core.training.stage import STAGES, Stage, TrainedPolicy, needs_environment


class ConstantConfig(Section):
    """The section ``plugins.constant``."""

    action: int = Field(1, ge=0, description="The action.")
    logit: float = Field(3.0, description="Its logit, where that of the others is 0.")


def _settings(ctx: Context) -> ConstantConfig:
    section = ctx.config.plugins["constant"]
    assert isinstance(section, ConstantConfig)
    return section


def _run(ctx: Context, stage: StageDir) -> dict[str, Any]:
    return {"action": _settings(ctx).action, "logit": _settings(ctx).logit}


def _policies(ctx: Context, stage: StageDir) -> Iterator[TrainedPolicy]:
    made = stage.require_done()["results"]

    def act(frames: Tensor) -> Tensor:
        logits = torch.zeros(len(frames), ctx.env.require_actions())
        logits[:, made["action"]] = made["logit"]
        return logits

    yield TrainedPolicy("constant", lambda: act)


STAGE = Stage(
    name="constant",
    label="constant action",
    run=_run,
    sections=(),
    applicable=needs_environment,
    policies=_policies,
    order=80,
    config=ConstantConfig,
)
STAGES.register(STAGE)
