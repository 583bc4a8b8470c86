"""README, CONTRIBUTING and EXPERIMENTS: what they show is what is there."""

import ast
import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command

from lapo_cli.cli.main import app
from lapo_cli.core.config import POLICY_TARGETS, QUANTIZERS
from lapo_cli.core.data.sources.base import SOURCES
from lapo_cli.core.envs.base import ENVIRONMENTS
from lapo_cli.core.launchers.base import LAUNCHERS
from lapo_cli.core.training.stage import STAGES

_ROOT = Path(__file__).parents[1]
_README = (_ROOT / "README.md").read_text()
_CONTRIBUTING = (_ROOT / ".github" / "CONTRIBUTING.md").read_text()
_EXPERIMENTS = (_ROOT / ".github" / "EXPERIMENTS.md").read_text()
_PLUGINS = sorted((_ROOT / "tests" / "plugins").glob("*.py"))
_GROUPS = {registry.group for registry in (ENVIRONMENTS, SOURCES, QUANTIZERS, POLICY_TARGETS, STAGES, LAUNCHERS)}
_BLOCK = re.compile(r"^( *)```(\w*)\n(.*?)^ *```$", re.DOTALL | re.MULTILINE)
_DOTTED = re.compile(r"[a-z]\w*(\.[a-z]\w*)+")
_FILE = re.compile(r".*\.(py|md|html|ya?ml|jsonl?|png|npz|safetensors|toml)")


def _blocks(text: str, language: str) -> list[str]:
    return [content for _, found, content in _BLOCK.findall(text) if found == language]


def _code(text: str) -> list[str]:
    """All spans in backticks, and lines of shell blocks without their comments."""
    lines = [line.partition("  #")[0].strip() for block in _blocks(text, "sh") for line in block.splitlines()]
    prose = _BLOCK.sub("", text)
    return [*(" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose)), *lines]


_CODE = [*_code(_README), *_code(_CONTRIBUTING), *_code(_EXPERIMENTS)]
_LINES = sorted({span[match.start() :] for span in _CODE if (match := re.search(r"(?<!\S)(\S*/)?lapo ", span))})


def _commands() -> dict[str, TyperCommand]:
    group = get_command(app)
    assert isinstance(group, TyperGroup)
    return {name: command for name, command in group.commands.items() if isinstance(command, TyperCommand)}


@pytest.fixture(scope="module")
def keys() -> set[str]:
    """Configuration keys, those of the examples included."""
    environment = {**os.environ, "LAPO_PLUGIN": os.pathsep.join(map(str, _PLUGINS))}
    words = [sys.executable, "-m", "lapo_cli", "info", "--config", "--json"]
    shown = subprocess.run(words, env=environment, cwd=_ROOT, capture_output=True, check=True).stdout
    return set(json.loads(shown)["config"])


def test_the_examples_of_contributing_are_the_files_that_the_tests_run() -> None:
    assert sorted(_blocks(_CONTRIBUTING, "python")) == sorted(file.read_text() for file in _PLUGINS)


def test_the_entry_points_of_contributing_are_those_of_the_registries_and_examples() -> None:
    (snippet,) = _blocks(_CONTRIBUTING, "toml")
    groups = tomllib.loads(snippet)["project"]["entry-points"]
    assert set(groups) == _GROUPS
    for points in groups.values():
        for where in points.values():
            module, _, name = where.partition(":")
            body = ast.parse((_ROOT / "tests" / "plugins" / f"{module}.py").read_text()).body
            defined = {node.name for node in body if isinstance(node, ast.ClassDef)}
            assigned = {ast.unparse(t) for node in body if isinstance(node, ast.Assign) for t in node.targets}
            assert name in defined | assigned


@pytest.mark.parametrize("line", _LINES)
def test_every_command_line_is_accepted(line: str) -> None:
    _, name, *words = shlex.split(line)
    if "--help" in words or not words:  # The name of a command, as prose has it.
        assert name in {"COMMAND", *_commands()}
        return
    while "--plugin" in words:  # Not loaded here, where other tests would see what it adds.
        at = words.index("--plugin")
        assert words[at + 1] == "FILE" or (_ROOT / words[at + 1]).is_file()
        del words[at : at + 2]
    _commands()[name].make_context(name, words)


def test_there_are_command_lines_for_every_command() -> None:
    assert {line.split()[1] for line in _LINES} >= set(_commands())


def test_options_named_alone_exist() -> None:
    named = {span.split()[0].partition("=")[0] for span in _CODE if span.startswith("--")}
    there = {flag for command in _commands().values() for parameter in command.params for flag in parameter.opts}
    assert "--plugin" in named
    assert named - there <= {"--help"}


def test_every_configuration_key_exists(keys: set[str]) -> None:
    assigned = {match[1] for span in _CODE for match in re.finditer(r"--set (\S+?)=", span)}
    dotted = {span for span in _CODE if _DOTTED.fullmatch(span) and not _FILE.fullmatch(span)}
    named = {name for name in dotted if not name.startswith(("lapo.", "tests."))}
    sections = {key.rpartition(".")[0] for key in keys}
    assert "stage1.lr" in assigned
    assert (assigned - {"KEY"}) - keys == set()
    assert named - keys - sections == set()


def test_every_group_of_entry_points_exists() -> None:
    named = set(re.findall(r"lapo\.[a-z_]+", _README + _CONTRIBUTING))
    assert named == _GROUPS
