"""Where Procgen has no wheel, everything but acting works."""

import sys
from collections.abc import Callable

import pytest

from lapo_cli.core.errors import EnvironmentUnavailableError
from lapo_cli.core.stages.idm import train_idm
from lapo_cli.core.stages.offline import decode_offline
from lapo_cli.core.stages.online import finetune_online
from lapo_cli.core.stages.policy import train_policy
from lapo_cli.core.training.context import Context


def test_all_but_acting_works_and_acting_says_what_it_needs(
    context: Callable[..., Context], monkeypatch: pytest.MonkeyPatch
) -> None:
    ctx = context()
    monkeypatch.setitem(sys.modules, "procgen", None)  # what importing it meets where it is not installed
    for stage in (train_idm, train_policy, decode_offline):
        assert not stage(ctx).skipped
    with pytest.raises(EnvironmentUnavailableError, match="Linux on x86_64"):
        finetune_online(ctx, "latent")
