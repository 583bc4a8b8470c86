"""The run directory: its layout, what is finished in it, and who may write to it.

::

    runs/<name>/run.yaml                       format, version, configuration
                <game>/seed-<n>/<stage>/       config.yaml  state.pt  metrics.jsonl  model.safetensors  done.json
                summary.json  summary.md

``done.json`` is written last. It names the configuration and the inputs by fingerprint, so a stage is run again when,
and only when, what it depends on has changed; a stage folder without it is unfinished and resumes from ``state.pt``. An
expert also keeps weights of earlier steps, ``step-<n>.safetensors``.
"""

import hashlib
import io
import json
import pickle
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import filelock
import safetensors
import safetensors.torch
import torch
import yaml
from torch import Tensor

import lapo_cli
from lapo_cli.core.config import Config, parse_config
from lapo_cli.core.errors import ConfigError, CorruptDataError, MissingInputError, RunDirError
from lapo_cli.core.files import atomic_write_bytes, atomic_write_json, atomic_write_text
from lapo_cli.core.games import GAMES

FORMAT = 1
WEIGHTS = "model.safetensors"


def fingerprint(value: Any) -> str:
    """Short stable digest of any JSON-like value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class StageDir:
    """One stage of one game and seed; all that the stage makes lies in ``path``."""

    path: Path

    @property
    def name(self) -> str:
        """Name of the stage."""
        return self.path.name

    def done(self) -> dict[str, Any] | None:
        """What ``done.json`` says, or None while the stage is unfinished.

        Raises:
            CorruptDataError: the file is there and is not what this tool writes.
        """
        file = self.path / "done.json"
        if not file.exists():
            return None
        try:
            content: dict[str, Any] = json.loads(file.read_text())
            content["key"], content["results"], content["outputs"]
        except (ValueError, KeyError, TypeError) as error:
            raise CorruptDataError(
                f"{file} is damaged: delete that stage's folder and run the command again."
            ) from error
        return content

    def asked(self) -> dict[str, Any]:
        """What ``config.yaml`` says the stage was asked to do; empty while nothing was.

        Raises:
            CorruptDataError: the file is there and is not what this tool writes.
        """
        file = self.path / "config.yaml"
        if not file.exists():
            return {}
        try:
            content: dict[str, Any] = yaml.safe_load(file.read_text())
            content["key"], content["config"], content["inputs"]
        except (yaml.YAMLError, KeyError, TypeError, UnicodeDecodeError) as error:
            raise CorruptDataError(
                f"{file} is damaged: run the command with --fresh to start this stage over."
            ) from error
        return content

    def require_done(self, command: str) -> dict[str, Any]:
        """``done.json`` of an earlier stage.

        Raises:
            MissingInputError: the stage is not finished; the message names the ``command`` that does it.
        """
        done = self.done()
        if done is None:
            raise MissingInputError(
                f"Stage '{self.name}' is not finished in {self.path.parent}: run '{command}' first."
            )
        return done

    def begin(self, key: Mapping[str, Any], *, fresh: bool, label: str = "") -> bool:
        """Make the folder ready to work in.

        A finished or half-finished stage of another key is set aside beside it, never destroyed.

        Args:
            key: all the stage depends on: configuration sections, seed, and inputs by fingerprint.
            fresh: start over: what is there is set aside too.
            label: what reports call the stage.

        Returns:
            False if the stage is done already, for just this key.
        """
        digest = fingerprint(key)
        marker = self.path / "config.yaml"
        if fresh and self.path.exists():
            shutil.rmtree(self.path)
        if self.path.exists():
            done = self.done()
            if done is not None and done["key"] == digest:
                return False
            if self.begun().get("key") != digest:
                self._set_aside()
        self.path.mkdir(parents=True, exist_ok=True)
        if not marker.exists():
            stamp = {
                "key": digest,
                "label": label,
                "lapo_version": lapo_cli.__version__,
                "torch_version": str(torch.__version__),
            }
            atomic_write_text(marker, yaml.safe_dump({**stamp, **json.loads(json.dumps(key))}, sort_keys=False))
        return True

    def begun(self) -> dict[str, Any]:
        """What ``config.yaml`` says, empty where it is missing or damaged."""
        try:
            return self.asked()
        except CorruptDataError:
            return {}

    def _set_aside(self) -> None:
        number = 1
        while (aside := self.path.with_name(f"{self.name}.old-{number}")).exists():
            number += 1
        self.path.rename(aside)

    def finish(self, results: Mapping[str, Any]) -> None:
        """Mark the stage done, with its ``results`` and the fingerprints of what it made; drop the resume state."""
        marker = yaml.safe_load((self.path / "config.yaml").read_text())
        outputs = {
            file.name: hashlib.sha256(file.read_bytes()).hexdigest()[:16]
            for file in sorted(self.path.glob("*.safetensors"))
        }
        content = {
            "key": marker["key"],
            "lapo_version": lapo_cli.__version__,
            "results": dict(results),
            "outputs": outputs or {"results": fingerprint(dict(results))},
        }
        atomic_write_json(self.path / "done.json", content)
        (self.path / "state.pt").unlink(missing_ok=True)

    def output_fingerprint(self, command: str) -> str:
        """Fingerprint of a finished stage's outputs, to be named among a later stage's inputs."""
        return fingerprint(self.require_done(command)["outputs"])

    def save_state(self, state: Mapping[str, Any]) -> None:
        """Write the resume checkpoint atomically; plain types and tensors only."""
        # Through memory, because PyTorch tells of a full disk as a RuntimeError.
        buffer = io.BytesIO()
        torch.save(dict(state), buffer)
        atomic_write_bytes(self.path / "state.pt", buffer.getvalue())

    def load_state(self) -> dict[str, Any] | None:
        """The resume checkpoint, or None.

        Raises:
            CorruptDataError: it is damaged.
        """
        file = self.path / "state.pt"
        if not file.exists():
            return None
        try:
            state: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
        except (RuntimeError, pickle.UnpicklingError, EOFError, ValueError, OSError) as error:
            raise CorruptDataError(
                f"The checkpoint {file} is damaged: run the command with --fresh to start this stage over."
            ) from error
        return state

    def save_weights(
        self, modules: Mapping[str, torch.nn.Module], about: Mapping[str, Any], file: str = WEIGHTS
    ) -> None:
        """Write a weights file: tensors named ``<module>.<parameter>``, with ``about`` in the header."""
        tensors: dict[str, Tensor] = {
            f"{name}.{key}": value.detach().cpu().contiguous()
            for name, module in modules.items()
            for key, value in module.state_dict().items()
        }
        # One entry: safetensors writes several in any order, and equal weights should be equal files.
        header = {"about": json.dumps({"lapo_version": lapo_cli.__version__, **about}, default=str)}
        atomic_write_bytes(self.path / file, safetensors.torch.save(tensors, metadata=header))

    def load_weights(self, modules: Mapping[str, torch.nn.Module]) -> None:
        """Read ``model.safetensors`` into modules of the same names and shapes.

        Raises:
            CorruptDataError: the file is missing, damaged or of other shapes.
        """
        load_weights(self.path / WEIGHTS, modules)


def load_weights(file: Path, modules: Mapping[str, torch.nn.Module]) -> None:
    """Read a weights file into modules of the same names and shapes.

    Raises:
        CorruptDataError: the file is missing, damaged or of other shapes.
    """
    try:
        tensors = safetensors.torch.load_file(file)
        for name, module in modules.items():
            mine = {k.removeprefix(f"{name}."): v for k, v in tensors.items() if k.startswith(f"{name}.")}
            module.load_state_dict(mine)
    except (OSError, safetensors.SafetensorError, RuntimeError) as error:
        raise CorruptDataError(
            f"The weights {file} are missing or damaged: run that stage again with --fresh."
        ) from error


def read_about(file: Path) -> dict[str, Any]:
    """What the header of a weights file says of it: stage, game, seed, networks, version.

    Raises:
        CorruptDataError: it is no weights file of this tool.
    """
    try:
        with safetensors.safe_open(file, "pt") as content:
            about: dict[str, Any] = json.loads(content.metadata()["about"])
    except (OSError, safetensors.SafetensorError, ValueError, KeyError, TypeError) as error:
        raise CorruptDataError(f"{file} is damaged or no weights file of lapo: give the folder of a stage.") from error
    return about


@dataclass(frozen=True)
class SeedDir:
    """One game and seed of a run."""

    path: Path
    game: str
    seed: int

    @property
    def run_path(self) -> Path:
        """The run directory this lies in."""
        return self.path.parent.parent

    def stage(self, name: str) -> StageDir:
        """The folder of a stage, made or not."""
        return StageDir(self.path / name)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold this game and seed against every other process, until the block or the process ends."""
        with _lock(self.path):
            yield


@dataclass(frozen=True)
class RunDir:
    """A run: one configuration, any games and seeds."""

    path: Path
    config: Config
    preset: str

    @classmethod
    def create(cls, path: Path, config: Config, preset: str, *, replace: bool = False) -> "RunDir":
        """Make a run directory, or reopen one of the same configuration.

        Args:
            replace: give an existing run the new configuration; stages that depend on what changed will run again.

        Raises:
            RunDirError: the folder holds something else, a run of another configuration, or one that another process
                works on.
        """
        if path.exists() and not (path / "run.yaml").exists() and (not path.is_dir() or any(path.iterdir())):
            raise RunDirError(f"{path} exists and is no run directory: choose another --run-dir or empty it.")
        if (path / "run.yaml").exists():
            changed = _changed_keys(cls.open(path).config, config)
            if changed and not replace:
                raise RunDirError(
                    f"{path} is a run of another configuration ({', '.join(changed[:3])} differ): use the same "
                    "--preset, --config and --set, or another --run-dir, or --fresh to change this one."
                )
        run = cls(path, config, preset)
        content = {
            "format": FORMAT,
            "lapo_version": lapo_cli.__version__,
            "preset": preset,
            "config": json.loads(config.model_dump_json()),
        }
        text = yaml.safe_dump(content, sort_keys=False)
        if not (path / "run.yaml").exists() or (path / "run.yaml").read_text() != text:
            with run.lock():
                atomic_write_text(path / "run.yaml", text)
        return run

    @classmethod
    def open(cls, path: Path) -> "RunDir":
        """Open the run that ``path`` lies in: its root, or anything below it.

        Raises:
            RunDirError: it lies in none, or in one of another format.
        """
        for folder in (path.absolute(), *path.absolute().parents):
            if (folder / "run.yaml").is_file() and path.exists():
                return cls._read(folder)
        raise RunDirError(
            f"{path} is no run directory (no run.yaml there or above it): "
            "'lapo train-idm GAME' or 'lapo run-all' makes one."
        )

    @classmethod
    def _read(cls, folder: Path) -> "RunDir":
        try:
            content = yaml.safe_load((folder / "run.yaml").read_text())
            version = content["format"]
            if version != FORMAT:
                raise RunDirError(
                    f"{folder} has run format {version}, made by lapo {content.get('lapo_version')}, and this lapo "
                    f"{lapo_cli.__version__} reads format {FORMAT}: use that version, or another --run-dir."
                )
            return cls(folder, parse_config(content["config"]), str(content["preset"]))
        except (yaml.YAMLError, KeyError, TypeError, UnicodeDecodeError, ConfigError) as error:
            raise RunDirError(
                f"{folder / 'run.yaml'} is damaged ({error}): restore it or use another --run-dir."
            ) from error

    def seed_dir(self, game: str, seed: int) -> SeedDir:
        """The folder of one game and seed, made or not."""
        return SeedDir(self.path / game / f"seed-{seed}", game, seed)

    def seed_dirs(self, below: Path | None = None) -> list[SeedDir]:
        """Games and seeds that exist in this run at, above or below the path ``below``, in order.

        Raises:
            RunDirError: there is none.
        """
        at = (below or self.path).absolute()
        found = []
        for folder in self.path.absolute().glob("*/seed-*"):
            number = folder.name.removeprefix("seed-")
            related = folder.is_relative_to(at) or at.is_relative_to(folder)
            if related and folder.parent.name in GAMES and number.isdigit():
                found.append(self.seed_dir(folder.parent.name, int(number)))
        if not found:
            raise RunDirError(f"{at} holds no game yet: run 'lapo train-idm GAME --run-dir {self.path}' first.")
        return sorted(found, key=lambda seed_dir: (seed_dir.game, seed_dir.seed))

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the whole run against other processes that want the whole run."""
        with _lock(self.path):
            yield


def _changed_keys(old: Config, new: Config) -> list[str]:
    """Dotted keys whose values differ, apart from those that no training depends on."""

    def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in values.items():
            found.update(flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value})
        return found

    before, after = flat(old.model_dump()), flat(new.model_dump())
    harmless = ("evaluation.", "checkpoint_seconds")
    return [key for key in after if before.get(key) != after[key] and not key.startswith(harmless)]


@contextmanager
def _lock(folder: Path) -> Iterator[None]:
    folder.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout as error:
        raise RunDirError(
            f"Another lapo process is working in {folder}: wait for it to end, or use another --run-dir."
        ) from error
    try:
        yield
    finally:
        lock.release()
