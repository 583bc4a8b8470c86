"""One file adds an environment, a source, a quantizer, a policy target, a stage or a launcher; no other changes."""

import json
import os
import site
import subprocess
import sys
import venv
import zipfile
from pathlib import Path
from typing import Any

from lapo_cli.core.config import POLICY_TARGETS, QUANTIZERS
from lapo_cli.core.data.sources.base import SOURCES
from lapo_cli.core.envs.base import ENVIRONMENTS
from lapo_cli.core.launchers.base import LAUNCHERS
from lapo_cli.core.training.stage import STAGES
from tests.core.tiny_config import TINY

_PLUGINS = sorted((Path(__file__).parent / "plugins").glob("toy_*.py"))
_OBJECTS = {
    ENVIRONMENTS.group: "toy_environment:SPEC",
    SOURCES.group: "toy_source:SOURCE",
    QUANTIZERS.group: "toy_quantizer:RoundingConfig",
    POLICY_TARGETS.group: "toy_policy_target:DirectionConfig",
    STAGES.group: "toy_stage:STAGE",
    LAUNCHERS.group: "toy_launcher:LAUNCHER",
}
_WORDS = [
    *("--games", "dots", "--device", "cpu", "--quiet", "--json"),
    *(part for word in TINY for part in ("--set", word)),
    *(
        "--set",
        "data.source=squares",
        "--set",
        "model.quantizer.kind=rounding",
        "--set",
        "stage2.target.kind=direction",
    ),
    *("--set", "plugins.constant.action=2"),
]
_POLICIES = [
    "random policy",
    "LAPO decoded offline, 4 labels",
    "LAPO decoded offline, 64 labels",
    "LAPO fine-tuned online, 512 steps",
    "PPO from scratch, 512 steps",
    "constant action",
]


_Process = subprocess.CompletedProcess[str]


def _lapo(python: str | Path, *words: str | Path, plugins: list[Path], home: Path) -> _Process:
    environment = {
        **os.environ,
        "LAPO_DATA_DIR": str(home / "data"),
        "LAPO_PLUGIN": os.pathsep.join(map(str, plugins)),
        "OMP_NUM_THREADS": "1",
    }
    return subprocess.run(
        [python, "-m", "lapo_cli", *map(str, words)], capture_output=True, text=True, env=environment, cwd=home
    )


def _document(process: _Process) -> Any:
    assert process.returncode == 0, process.stderr + process.stdout
    return json.loads(process.stdout)


def _check(python: str | Path, home: Path, plugins: list[Path]) -> Any:
    """run-all with one of each, and evaluate."""
    made = _document(
        _lapo(python, "run-all", *_WORDS, "--launcher", "backwards", "--run-dir", "run", plugins=plugins, home=home)
    )
    assert [row["policy"] for row in made["rows"]] == _POLICIES
    assert all(row["normalized"] is not None for row in made["rows"])
    stages = {path.name for path in (home / "run" / "dots" / "seed-0").iterdir() if path.is_dir()}
    assert stages == {"idm", "policy", "offline", "online", "scratch", "constant", "evaluation", "measurements"}
    again = _document(_lapo(python, "evaluate", "run", "--quiet", "--json", plugins=plugins, home=home))
    assert again["rows"] == made["rows"]
    return made


def test_files_given_by_plugin_add_one_of_each(tmp_path: Path) -> None:
    made = _check(sys.executable, tmp_path, _PLUGINS)
    words = [*_WORDS, "--jobs", "2", "--seeds", "0,1", "--run-dir", "two"]
    two = _document(_lapo(sys.executable, "run-all", *words, plugins=_PLUGINS, home=tmp_path))
    assert two["failures"] == []
    assert two["by_seed"]["0"] == made["by_seed"]["0"]
    process = _lapo(sys.executable, "evaluate", "run", "--json", plugins=[], home=tmp_path)
    assert process.returncode == 2
    assert "--plugin" in json.loads(process.stdout)["error"]["message"]
    assert "Traceback" not in process.stderr


def _wheel(folder: Path) -> Path:
    """A package that offers the same files by entry points."""
    file = folder / "lapo_toys-1.0-py3-none-any.whl"
    info = "lapo_toys-1.0.dist-info"
    with zipfile.ZipFile(file, "w") as wheel:
        for plugin in _PLUGINS:
            wheel.write(plugin, plugin.name)
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: lapo-toys\nVersion: 1.0\n")
        wheel.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        points = "".join(f"[{group}]\ntoy = {where}\n" for group, where in _OBJECTS.items())
        wheel.writestr(f"{info}/entry_points.txt", points)
        wheel.writestr(f"{info}/RECORD", "")
    return file


def test_a_package_adds_one_of_each_by_entry_points(tmp_path: Path) -> None:
    venv.create(tmp_path / "env", with_pip=False, symlinks=True)
    python = tmp_path / "env" / "bin" / "python"
    (packages,) = (tmp_path / "env" / "lib").glob("python*/site-packages")
    here = "".join(f"import site; site.addsitedir({folder!r})\n" for folder in site.getsitepackages())
    (packages / "parent.pth").write_text(here)
    install = ["install", "-q", "--no-index", "--no-deps", "--target", packages, _wheel(tmp_path)]
    subprocess.run([sys.executable, "-m", "pip", *map(str, install)], check=True)
    _check(python, tmp_path, [])


def test_a_broken_package_is_named(tmp_path: Path) -> None:
    info = tmp_path / "site" / "broken-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{ENVIRONMENTS.group}]\nnothing = no_such_module:SPEC\n")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path / "site"), *sys.path])}
    command = [sys.executable, "-m", "lapo_cli", "train-idm", "maze", "--run-dir", str(tmp_path / "run")]
    process = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert process.returncode == 1
    assert "'nothing' of broken cannot be loaded" in process.stderr
    assert "Traceback" not in process.stderr
