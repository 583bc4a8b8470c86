"""Where Procgen has no wheel, everything but acting works."""

import sys
from collections.abc import Callable

import pytest

from lapo_cli.core.errors import EnvironmentUnavailableError
from lapo_cli.core.training.context import Context
from tests.core.tiny_config import run


def test_all_but_acting_works_and_acting_names_what_it_needs(
    context: Callable[..., Context], monkeypatch: pytest.MonkeyPatch
) -> None:
    ctx = context()
    monkeypatch.setitem(sys.modules, "procgen", None)  # what importing it meets where it is not installed
    for stage in ("idm", "policy", "offline"):
        assert not run(ctx, stage).skipped
    with pytest.raises(EnvironmentUnavailableError, match="Linux on x86_64"):
        run(ctx, "online")
