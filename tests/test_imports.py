"""The import rule: packages depend on one another in one direction, and only the CLI knows the terminal."""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import lapo_cli
from lapo_cli.core.training.stage import STAGES

_ROOT = Path(lapo_cli.__file__).parent
_MODULES = sorted(_ROOT.rglob("*.py"))
_MOST_LINES = 500

_STAGES = sorted(file.stem for file in (_ROOT / "core" / "stages").glob("[!_]*.py"))

# Lowest layer first. A module imports from its own layer and from lower ones; a stage imports no other stage.
_LAYERS = (
    tuple(
        f"core.{name}"
        for name in (
            "registry",
            "plugins",
            "config",
            "config_loading",
            "run_dir",
            "progress",
            "errors",
            "extras",
            "files",
            "compute",
            "distributed",
            "interrupts",
            "workers",
        )
    ),
    ("core.models", "core.envs"),
    ("core.data",),
    ("core.training",),
    ("core.evaluation",),
    ("core.stages",),
    ("core.report", "core.recording", "core.labelling", "core.launchers", "core.needs"),
    ("core.play",),
    ("core.chains",),
    ("core.pipeline",),
    ("cli",),
)


def _name(file: Path) -> str:
    parts = file.relative_to(_ROOT).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


def _layer(name: str) -> int | None:
    """Number of the layer of the longest matching package; None for ``lapo_cli``, ``__main__`` and ``core``."""
    packages = {package: number for number, layer in enumerate(_LAYERS) for package in layer}
    found = [package for package in packages if name == package or name.startswith(f"{package}.")]
    return packages[max(found, key=len)] if found else None


@cache
def _tree(file: Path) -> ast.Module:
    return ast.parse(file.read_text(), str(file))


def _walk(node: ast.AST) -> Iterator[ast.AST]:
    """All nodes but those that run for type checking alone."""
    if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
        return
    yield node
    for child in ast.iter_child_nodes(node):
        yield from _walk(child)


def _imports(file: Path) -> set[str]:
    """Dotted names of all that a module imports, at any depth of its code; ``from a import b`` is ``a.b``."""
    found = set()
    for node in _walk(_tree(file)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file} imports relatively"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def _own_imports(file: Path) -> set[str]:
    """The same within the package, without its name."""
    return {name.removeprefix("lapo_cli.") for name in _imports(file) if name.startswith("lapo_cli.")}


def _outside_imports(file: Path) -> set[str]:
    return {name.partition(".")[0] for name in _imports(file)}


each_module = pytest.mark.parametrize("file", _MODULES, ids=[_name(file) or "lapo_cli" for file in _MODULES])


def test_every_module_lies_in_a_layer() -> None:
    assert {_name(file) for file in _MODULES if _layer(_name(file)) is None} <= {"", "__main__", "core"}


@each_module
def test_imports_point_one_way(file: Path) -> None:
    here = _layer(_name(file))
    for name in _own_imports(file):
        there = _layer(name)
        if here is not None and there is not None:
            assert there <= here, f"{_name(file)} imports {name}"


@pytest.mark.parametrize("stage", _STAGES)
def test_stages_do_not_import_one_another(stage: str) -> None:
    others = tuple(f"core.stages.{other}" for other in _STAGES if other != stage)
    imported = _own_imports(_ROOT / "core" / "stages" / f"{stage}.py")
    assert [name for name in imported if name.startswith(others)] == []


def test_every_stage_module_registers_a_stage() -> None:
    registered = {getattr(stage.run, "func", stage.run).__module__ for stage in STAGES.values()}
    assert registered == {f"lapo_cli.core.stages.{stage}" for stage in _STAGES}


@each_module
def test_only_envs_import_procgen(file: Path) -> None:
    if not _name(file).startswith("core.envs.procgen"):
        assert _outside_imports(file).isdisjoint({"procgen", "gym", "gym3"})


@each_module
def test_only_the_cli_prints(file: Path) -> None:
    if _name(file).startswith("core"):
        assert _outside_imports(file).isdisjoint({"typer", "rich", "lapo_cli.cli"})
        calls = {ast.unparse(node.func) for node in ast.walk(_tree(file)) if isinstance(node, ast.Call)}
        assert calls.isdisjoint({"print", "input"})


@each_module
def test_importing_the_cli_imports_nothing_heavy(file: Path) -> None:
    """Nor anything that is slow to load: heavy packages are imported inside commands, or for type checking alone."""
    if not _name(file).startswith("cli"):
        return
    for node in _tree(file).body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [str(node.module)]
            for name in names:
                assert name.partition(".")[0] not in {"torch", "numpy", "procgen", "gym"}
                assert not name.startswith(("lapo_cli.core.data", "lapo_cli.core.pipeline", "lapo_cli.core.run_dir"))


@each_module
def test_no_module_is_long(file: Path) -> None:
    assert len(file.read_text().splitlines()) <= _MOST_LINES
