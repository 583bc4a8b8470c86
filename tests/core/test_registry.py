"""Registries: names that are taken, installed packages that fail, and modules that are imported in any order."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import lapo_cli
from lapo_cli.core.envs.base import ENVIRONMENTS, EnvSpec
from lapo_cli.core.errors import PluginError


def _python(code: str, *path: Path) -> subprocess.CompletedProcess[str]:
    """Run Python in a process that has imported nothing of lapo yet."""
    root = Path(lapo_cli.__file__).parents[1]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (*path, root)))}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)


def test_the_name_of_a_built_in_is_taken_also_before_the_first_look_up() -> None:
    process = _python(
        "from lapo_cli.core.envs.base import ENVIRONMENTS, EnvSpec\nENVIRONMENTS.register(EnvSpec('maze', 5))"
    )
    assert "PluginError: There are two registrations of the game 'maze'" in process.stderr


def test_registering_the_same_thing_again_changes_nothing() -> None:
    maze, names = ENVIRONMENTS.get("maze"), ENVIRONMENTS.names()
    assert ENVIRONMENTS.register(maze) is maze
    assert ENVIRONMENTS.names() == names
    with pytest.raises(PluginError, match="'maze'"):
        ENVIRONMENTS.register(EnvSpec("maze", 5))
    assert ENVIRONMENTS.get("maze") is maze


def test_a_package_that_cannot_be_loaded_is_reported_by_every_look_up(tmp_path: Path) -> None:
    info = tmp_path / "broken-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{ENVIRONMENTS.group}]\nnothing = no_such_module:SPEC\n")
    code = """
from lapo_cli.core.envs.base import ENVIRONMENTS
from lapo_cli.core.errors import PluginError
for _ in range(2):
    try:
        ENVIRONMENTS.get("maze")
    except PluginError as error:
        print(error)
"""
    process = _python(code, tmp_path)
    assert process.stdout.count("'nothing' of broken cannot be loaded") == 2, process.stderr


@pytest.mark.parametrize(
    "module", ["models.quantizers.vq", "models.policy_targets.latent", "stages.idm", "envs.procgen"]
)
def test_a_module_of_built_ins_can_be_imported_first(module: str) -> None:
    process = _python(f"import lapo_cli.core.{module}")
    assert process.returncode == 0, process.stderr


def test_the_section_of_a_stage_that_a_plugin_adds() -> None:
    """An error names its whole key, and a registration that is refused changes nothing."""
    code = """
from dataclasses import replace
from lapo_cli.core.config_loading import load_config, parse_config
from lapo_cli.core.errors import ConfigError, PluginError
from tests.plugins.toy_stage import STAGE, ConstantConfig
from lapo_cli.core.training.stage import STAGES

class Other(ConstantConfig):
    pass

try:
    STAGES.register(replace(STAGE, config=Other))
except PluginError as error:
    print(error)
config = load_config("quick", overrides=["plugins.constant.action=2"])
assert type(config.plugins["constant"]) is ConstantConfig
assert parse_config(config.model_dump()) == config
for word in ("plugins.constant.acton=2", "plugins.constant.action=x"):
    try:
        load_config("quick", overrides=[word])
    except ConfigError as error:
        print(error)
"""
    process = _python(code)
    assert process.returncode == 0, process.stderr
    refused, unknown, wrong = process.stdout.splitlines()
    assert "two registrations of the stage 'constant'" in refused
    assert unknown.startswith("There is no configuration key 'plugins.constant.acton': did you mean")
    assert wrong.startswith("Configuration key 'plugins.constant.action' has the invalid value 'x'")
