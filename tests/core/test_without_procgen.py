"""Where Procgen has no wheel, everything but acting works."""

import sys
from collections.abc import Callable

import pytest

from lapo_cli.core.envs.base import ENVIRONMENTS
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


def test_a_missing_system_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    procgen = pytest.importorskip("procgen")

    def make(**options: object) -> None:
        raise OSError("cannot load library 'libenv.so': libGL.so.1: cannot open shared object file: No such file")

    monkeypatch.setattr(procgen, "ProcgenGym3Env", make)
    with pytest.raises(EnvironmentUnavailableError, match=r"libGL\.so\.1 is missing\): install .*libgl1"):
        ENVIRONMENTS.get("maze").make_envs(1, 0)
