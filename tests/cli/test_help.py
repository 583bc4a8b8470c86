"""The table of contents: every subcommand and option says what it is."""

from collections.abc import Callable

import pytest
import typer
from typer.main import get_command
from typer.testing import Result

import lapo_cli
from lapo_cli.cli.main import app

Lapo = Callable[..., Result]

_OUTPUT = ("--json", "--quiet", "--debug")
_WORK = ("--config", "--set", "--device", "--data-dir", "--fresh", *_OUTPUT)
_OPTIONS = {
    "download": ("--source", "--from", "--max-frames", "--data-dir", "--list", "--fresh", *_OUTPUT),
    "train-idm": ("--preset", "--seed", "--run-dir", "--reconfigure", "--wandb", *_WORK),
    "train-policy": ("--wandb", *_WORK),
    "decode-offline": ("--labels", "--wandb", *_WORK),
    "finetune-online": ("--init", "--steps", "--wandb", *_WORK),
    "evaluate": ("--episodes", *_WORK),
    "run-all": (
        "--games",
        "--seeds",
        "--preset",
        "--run-dir",
        "--reconfigure",
        "--jobs",
        "--dry-run",
        "--wandb",
        *_WORK,
    ),
    "train-expert": (
        *("--preset", "--seed", "--steps", "--run-dir", "--reconfigure", "--wandb"),
        *(option for option in _WORK if option != "--data-dir"),
    ),
    "record": (
        *("--policy", "--epsilon", "--frames", "--test-frames", "--greedy", "--num-envs", "--seed", "--to"),
        *("--device", "--fresh", *_OUTPUT),
    ),
    "info": ("--config", "--preset", "--data-dir", *_OUTPUT),
}


def test_help_lists_every_subcommand(lapo: Lapo) -> None:
    shown = lapo("--help")
    assert shown.exit_code == 0
    assert [name for name in _OPTIONS if name not in shown.stdout] == []


def test_no_words_at_all_shows_help(lapo: Lapo) -> None:
    shown = lapo()
    assert shown.exit_code == 2
    assert "run-all" in shown.output


@pytest.mark.parametrize("name", _OPTIONS)
def test_help_of_a_subcommand_lists_its_options(lapo: Lapo, name: str) -> None:
    shown = lapo(name, "--help")
    assert shown.exit_code == 0
    assert [option for option in _OPTIONS[name] if option not in shown.stdout] == []


@pytest.mark.parametrize("name", _OPTIONS)
def test_every_option_has_a_help_text_and_no_other_exists(name: str) -> None:
    group = get_command(app)
    assert isinstance(group, typer.core.TyperGroup)
    parameters = [p for p in group.commands[name].params if p.name != "help"]
    assert [p.name for p in parameters if not getattr(p, "help", None)] == []
    options = {flag for p in parameters if p.param_type_name == "option" for flag in p.opts}
    assert options == set(_OPTIONS[name])


def test_version(lapo: Lapo) -> None:
    shown = lapo("--version")
    assert (shown.exit_code, shown.stdout) == (0, f"lapo {lapo_cli.__version__}\n")
