"""Help: every subcommand and option has a text."""

from collections.abc import Callable

import pytest
import typer
from typer.main import get_command
from typer.testing import Result

import lapo_cli
from lapo_cli.cli.main import app
from lapo_cli.core.launchers.base import LAUNCHERS

Lapo = Callable[..., Result]


def _commands() -> dict[str, typer.core.TyperCommand]:
    group = get_command(app)
    assert isinstance(group, typer.core.TyperGroup)
    return {name: command for name, command in group.commands.items() if isinstance(command, typer.core.TyperCommand)}


_COMMANDS = _commands()


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"]])
def test_help_lists_every_subcommand(lapo: Lapo, words: list[str]) -> None:
    shown = lapo(*words)
    assert shown.exit_code == 0
    assert "run-all" in _COMMANDS
    assert [name for name in _COMMANDS if name not in shown.stdout] == []


@pytest.mark.parametrize("name", _COMMANDS)
def test_help_of_a_subcommand_explains_all_it_takes(lapo: Lapo, name: str) -> None:
    shown = lapo(name, "--help")
    assert shown.exit_code == 0
    parameters = [parameter for parameter in _COMMANDS[name].params if parameter.name != "help"]
    assert [p.name for p in parameters if not getattr(p, "help", None)] == []
    flags = {flag for parameter in parameters for flag in parameter.opts if flag.startswith("--")}
    assert flags - set(shown.stdout.replace("/", " ").split()) == set()
    assert {"--json", "--quiet", "--debug", "--plugin"} <= flags


def test_version(lapo: Lapo) -> None:
    shown = lapo("--version")
    assert (shown.exit_code, shown.stdout) == (0, f"lapo {lapo_cli.__version__}\n")


@pytest.mark.parametrize("launcher", ["ray", "slurm"])
def test_help_names_every_setting_of_a_launcher(launcher: str) -> None:
    (option,) = [option for option in _COMMANDS["run-all"].params if option.name == "launcher_set"]
    assert isinstance(option, typer.core.TyperOption)
    settings = LAUNCHERS.get(launcher).Settings
    assert settings is not None
    assert f"{launcher}: {', '.join(settings.model_fields)}." in (option.help or "")
