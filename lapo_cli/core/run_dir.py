"""The run directory: its layout, what is finished in it, and who may write to it.

::

    runs/<name>/run.yaml                       format, version, configuration
                <game>/seed-<n>/<stage>/       config.yaml  state.pt  metrics.jsonl  model.safetensors  done.json
                              evaluation/  measurements/
                summary.json  summary.md  report.html  devices/  slurm/

``done.json`` is written last. It names the configuration and the inputs by fingerprint, so a stage is run again when,
and only when, an input or a section of the configuration that it depends on has changed; a stage folder without it is
unfinished and resumes from ``state.pt``. An expert also keeps weights of earlier steps, ``step-<n>.safetensors``. No
result is deleted: a stage that is replaced is renamed to ``<stage>.old-<n>``.

Weights, ``state.pt``, ``done.json`` and ``config.yaml`` are checked against digests: what was altered is refused.
"""

import hashlib
import io
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import safetensors
import safetensors.torch
import torch
import yaml
from pydantic import TypeAdapter
from torch import Tensor
from typing_extensions import TypedDict

import lapo_cli
from lapo_cli.core.config import Config
from lapo_cli.core.config_loading import flat, parse_config
from lapo_cli.core.errors import ConfigError, CorruptDataError, MissingInputError, RunDirError, shortened
from lapo_cli.core.files import (
    atomic_path,
    atomic_write_bytes,
    atomic_write_json,
    atomic_write_text,
    exclusive,
    exclusive_of_workers,
    parse_json,
    read_json,
    read_yaml,
    set_aside,
    sha256_file,
)
from lapo_cli.core.progress import Progress, Silent

FORMAT = 2
WEIGHTS = "model.safetensors"
STATE = "state.pt"
_LOCK = ".lock"
_LEFT = re.compile(r"\.lock|\.run\..*\.tmp\.yaml|run\.yaml")
_STATE_MAGIC = b"lapo-state-1"
_STAMPS = ("key", "label", "lapo_version", "torch_version", "device")
_AGAIN = "run that stage again with --fresh"


class Done(TypedDict):
    """The content of ``done.json``.

    Attributes:
        key: fingerprint of all that the stage depended on.
        results: numbers to report, JSON-like.
        outputs: name -> SHA-256 of each weights file; of a stage without any, ``results`` -> their fingerprint.
        digest: fingerprint of the rest.
    """

    key: str
    lapo_version: str
    results: dict[str, Any]
    outputs: dict[str, str]
    digest: str


_DONE = TypeAdapter(Done)


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

    def done(self) -> Done | None:
        """The content of ``done.json``, or None while the stage is unfinished.

        Raises:
            CorruptDataError: the file is there and is not what this tool wrote.
        """
        file = self.path / "done.json"
        try:
            done = read_json(file, _DONE, _AGAIN)
        except FileNotFoundError:
            return None
        if fingerprint({name: value for name, value in done.items() if name != "digest"}) != done["digest"]:
            raise CorruptDataError(f"{file} is damaged: {_AGAIN}.")
        return done

    def read_config(self) -> dict[str, Any]:
        """The content of ``config.yaml``: what the stage was begun with; empty while it was not.

        Raises:
            CorruptDataError: the file is not what this tool wrote, or the stage is finished and the file is missing.
        """
        file = self.path / "config.yaml"
        if not file.exists() and not (self.path / "done.json").exists():
            return {}
        try:
            content: dict[str, Any] = read_yaml(file)
            key = {name: value for name, value in content.items() if name not in _STAMPS}
            if fingerprint(key) != content["key"]:
                raise ValueError("it was altered")
        except (ValueError, KeyError, TypeError, AttributeError, FileNotFoundError) as error:
            raise CorruptDataError(f"{file} is missing or damaged: {_AGAIN}.") from error
        return content

    def require_done(self, command: str | None = None) -> Done:
        """The content of ``done.json``.

        Raises:
            MissingInputError: the stage is not finished; the message names the ``command`` that does it, if given.
        """
        done = self.done()
        if done is None:
            what = "it" if command is None else f"'{command}'"
            raise MissingInputError(f"Stage '{self.name}' is not finished in {self.path.parent}: run {what} first.")
        return done

    def begin(self, key: Mapping[str, Any], *, fresh: bool, label: str = "", device: str = "") -> bool:
        """Make the folder ready to work in.

        Nothing is deleted: a finished or half-finished stage that is replaced is set aside as ``<stage>.old-<n>``.

        Args:
            key: all the stage depends on: configuration sections, seed, and inputs by fingerprint.
            fresh: start over: what is there is set aside too.
            label: what reports call the stage.
            device: what it is begun on, for reports.

        Returns:
            False if the stage is done already, for just this key.
        """
        digest = fingerprint(key)
        if self.path.exists():
            done = None if fresh else self.done()
            if done is not None and done["key"] == digest:
                return False
            if fresh or self.try_read_config().get("key") != digest:
                set_aside(self.path)
        marker = self.path / "config.yaml"
        if not marker.exists():
            stamps = zip(_STAMPS, (digest, label, lapo_cli.__version__, str(torch.__version__), device), strict=True)
            content = {**dict(stamps), **json.loads(json.dumps(key))}
            atomic_write_text(marker, yaml.safe_dump(content, sort_keys=False))
        return True

    def try_read_config(self) -> dict[str, Any]:
        """The content of ``config.yaml``; empty where it is missing or damaged."""
        try:
            return self.read_config()
        except CorruptDataError:
            return {}

    def finish(self, results: Mapping[str, Any]) -> None:
        """Mark the stage done, with its ``results`` and the digests of what it made; drop the resume state."""
        outputs = {file.name: sha256_file(file) for file in sorted(self.path.glob("*.safetensors"))}
        content = {
            "key": self.read_config()["key"],
            "lapo_version": lapo_cli.__version__,
            "results": json.loads(json.dumps(results)),
            "outputs": outputs or {"results": fingerprint(results)},
        }
        atomic_write_json(self.path / "done.json", {**content, "digest": fingerprint(content)})
        (self.path / STATE).unlink(missing_ok=True)

    def output_fingerprint(self, command: str) -> str:
        """Fingerprint of a finished stage's outputs, to be named among a later stage's inputs."""
        return fingerprint(self.require_done(command)["outputs"])

    def save_state(self, state: Mapping[str, Any]) -> None:
        """Write the resume checkpoint atomically, after a line with its digest; plain types and tensors only."""
        # Through memory, because PyTorch reports a full disk as a RuntimeError.
        buffer = io.BytesIO()
        torch.save(dict(state), buffer)
        content = buffer.getbuffer()
        with atomic_path(self.path / STATE) as temporary, temporary.open("wb") as file:
            file.write(b"%s %s\n" % (_STATE_MAGIC, hashlib.sha256(content).hexdigest().encode()))
            file.write(content)

    def load_state(self) -> dict[str, Any] | None:
        """The resume checkpoint, or None.

        Raises:
            CorruptDataError: it is damaged.
        """
        file = self.path / STATE
        try:
            header, _, content = file.read_bytes().partition(b"\n")
        except FileNotFoundError:
            return None
        try:
            if header != b"%s %s" % (_STATE_MAGIC, hashlib.sha256(content).hexdigest().encode()):
                raise ValueError("another digest")
            state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
            if not isinstance(state, dict):
                raise TypeError("not a mapping")
        except Exception as error:  # PyTorch raises whatever its unpickler does.
            raise CorruptDataError(
                f"The checkpoint {file} is damaged: run the same command with --fresh to start the stage over."
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
        """Read ``model.safetensors`` into modules; see :func:`load_weights`."""
        load_weights(self.path / WEIGHTS, modules)


def load_weights(file: Path, modules: Mapping[str, torch.nn.Module]) -> None:
    """Read a weights file into modules of the same names and shapes.

    Raises:
        CorruptDataError: the file is missing, damaged, of other shapes, or not the one that ``done.json`` beside it
            names; or a value is not finite.
    """
    done = StageDir(file.parent).done()
    try:
        content = file.read_bytes()
        if done is not None and hashlib.sha256(content).hexdigest() != done["outputs"].get(file.name):
            raise ValueError("another digest")
        tensors = safetensors.torch.load(content)
        for name, module in modules.items():
            mine = {k.removeprefix(f"{name}."): v for k, v in tensors.items() if k.startswith(f"{name}.")}
            if not all(value.isfinite().all() for value in mine.values()):
                raise ValueError("not finite")
            try:
                module.load_state_dict(mine)
            except RuntimeError as error:
                raise CorruptDataError(
                    f"The weights {file} do not fit the networks of this version of lapo: {_AGAIN}."
                ) from error
    except (OSError, safetensors.SafetensorError, RuntimeError, ValueError, KeyError, TypeError) as error:
        raise CorruptDataError(f"The weights {file} are missing or damaged: {_AGAIN}.") from error


def read_about(file: Path) -> dict[str, Any]:
    """The header of a weights file: stage, game, seed, networks, version.

    Raises:
        CorruptDataError: it is no weights file of this tool.
    """
    try:
        with safetensors.safe_open(file, "pt") as content:
            about = parse_json(content.metadata()["about"])
        if not isinstance(about["stage"], str) or not isinstance(about["game"], str):
            raise TypeError("not a header")
    except (OSError, safetensors.SafetensorError, ValueError, KeyError, TypeError) as error:
        raise CorruptDataError(f"{file} is damaged or no weights file of lapo: give the folder of a stage.") from error
    assert isinstance(about, dict)
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

    def lock(self, wait: Progress | None = None) -> AbstractContextManager[None]:
        """Keep other processes from working on this game and seed, until the block or the process ends.

        Args:
            wait: wait for another process that does, and report it there.

        Raises:
            RunDirError: another process does, and ``wait`` is None.
        """
        return exclusive_of_workers(self.path / _LOCK, _busy(self.path), wait)

    def lock_worker(self, name: str) -> AbstractContextManager[None]:
        """In a worker of the process that holds the lock: keep it held until this worker has ended too."""
        return exclusive(self.path / f"{_LOCK}-{name}", _busy(self.path))


@dataclass(frozen=True)
class RunDir:
    """A run: one configuration, any games and seeds.

    Attributes:
        pending: what :meth:`save` has to do: write ``run.yaml``, write it in place of another one, or nothing.
    """

    path: Path
    config: Config
    preset: str
    pending: Literal["create", "replace"] | None = field(default=None, compare=False)

    @classmethod
    def create(cls, path: Path, config: Config, preset: str, *, reconfigure: bool = False) -> "RunDir":
        """:meth:`prepare` a run and :meth:`save` it."""
        run = cls.prepare(path, config, preset, reconfigure=reconfigure)
        run.save()
        return run

    @classmethod
    def prepare(cls, path: Path, config: Config, preset: str, *, reconfigure: bool = False) -> "RunDir":
        """A new run, or an old one of the same configuration; nothing is written before :meth:`save`.

        What no training depends on may differ: it holds for the run that is returned, and ``run.yaml`` stays as it is.

        Args:
            reconfigure: give an existing run the new configuration; stages that depend on what changed will run again.

        Raises:
            RunDirError: the folder holds something else, or a run of another configuration.
        """
        file = path / "run.yaml"
        # Listed first: another process may make the run just now. Its lock and the unfinished file are also what
        # remains of a run that could not be made, for example on a full disk.
        is_other = path.exists() and (not path.is_dir() or any(not _LEFT.fullmatch(e.name) for e in path.iterdir()))
        if not file.exists():
            if is_other:
                raise RunDirError(f"{path} exists and is not a run directory: choose another --run-dir or empty it.")
            return cls(path, config, preset, pending="create")
        if not reconfigure:
            _require_same(cls.open(path), config)
        return cls(path, config, preset, pending="replace" if reconfigure else None)

    def save(self) -> None:
        """Write ``run.yaml`` where that is necessary, once it is clear that the work can begin.

        Of several processes that make the same run at once, each waits for the others.

        Raises:
            RunDirError: one of those had another configuration; or another process works on a run whose
                configuration is to be replaced.
        """
        if self.pending is None:
            return
        content = {
            "format": FORMAT,
            "lapo_version": lapo_cli.__version__,
            "preset": self.preset,
            "config": self.config.model_dump(mode="json"),
        }
        with ExitStack() as stack:
            if self.pending == "replace":  # Or those who work on it would go on with the old configuration.
                for seed_dir in self._seed_dirs(self.path.absolute()):
                    stack.enter_context(seed_dir.lock())
            stack.enter_context(self.lock(Silent()))
            file = self.path / "run.yaml"
            if self.pending == "create" and file.exists():
                _require_same(RunDir.open(self.path), self.config)
            else:
                atomic_write_text(file, yaml.safe_dump(content, sort_keys=False))

    @classmethod
    def open(cls, path: Path) -> "RunDir":
        """Open the run that ``path`` lies in: its root, or anything below it.

        Raises:
            RunDirError: it lies in none, or in one of another format.
        """
        if not path.exists():
            raise RunDirError(f"There is no folder {path}: check the path, or make a run by 'lapo run-all'.")
        for folder in (path.absolute(), *path.absolute().parents):
            if (folder / "run.yaml").is_file():
                return cls._read(folder)
        raise RunDirError(
            f"{path} is not a run directory (no run.yaml there or above it): "
            "'lapo train-idm GAME' or 'lapo run-all' makes one."
        )

    @classmethod
    def _read(cls, folder: Path) -> "RunDir":
        file = folder / "run.yaml"
        try:
            content = read_yaml(file)
            if not isinstance(content, dict):
                raise ValueError("it is not a mapping")
            version, made_by = content["format"], str(content.get("lapo_version"))
            if version != FORMAT:
                raise RunDirError(
                    f"{file} is of run format {shortened(str(version))}, made by lapo {shortened(made_by)}, and this "
                    f"lapo {lapo_cli.__version__} reads format {FORMAT}: use that version, or another --run-dir."
                )
            return cls(folder, parse_config(content["config"]), str(content["preset"]))
        except ConfigError as error:
            raise RunDirError(
                f"{file} has a configuration that does not fit here: {str(error).rstrip('.?')}. Give the plugins that "
                "it was made with by --plugin, or use another --run-dir."
            ) from error
        except (ValueError, KeyError) as error:
            why = f"{error} is missing" if isinstance(error, KeyError) else str(error).rstrip(".")
            raise RunDirError(f"{file} is damaged ({why}): restore it or use another --run-dir.") from error

    def overrides(self) -> list[str]:
        """``KEY=VALUE`` words that make the configuration of ``run.yaml`` this one."""
        try:
            there = RunDir._read(self.path).config
        except FileNotFoundError:
            return []
        mine, theirs = flat(self.config), flat(there)
        return [f"{key}={json.dumps(value)}" for key, value in mine.items() if theirs.get(key) != value]

    def seed_dir(self, game: str, seed: int) -> SeedDir:
        """The folder of one game and seed, made or not."""
        return SeedDir(self.path / game / f"seed-{seed}", game, seed)

    def seed_dirs(self, below: Path | None = None) -> list[SeedDir]:
        """Games and seeds that exist in this run at, above or below the path ``below``, in order.

        Raises:
            RunDirError: there is none.
        """
        at = (below or self.path).absolute()
        found = sorted(self._seed_dirs(at), key=lambda seed_dir: (seed_dir.game, seed_dir.seed))
        if not found:
            raise RunDirError(f"{at} holds no game yet: run 'lapo train-idm GAME --run-dir {self.path}' first.")
        return found

    def _seed_dirs(self, at: Path) -> Iterator[SeedDir]:
        for folder in self.path.absolute().glob("*/seed-*"):
            number = folder.name.removeprefix("seed-")
            related = folder.is_relative_to(at) or at.is_relative_to(folder)
            if related and folder.is_dir() and re.fullmatch("0|[1-9][0-9]*", number):
                yield self.seed_dir(folder.parent.name, int(number))

    def lock(self, wait: Progress | None = None) -> AbstractContextManager[None]:
        """Keep other processes from writing ``run.yaml`` and the summary; see :meth:`SeedDir.lock`."""
        return exclusive(self.path / _LOCK, _busy(self.path), wait)


def _require_same(run: RunDir, config: Config) -> None:
    """Refuse another configuration than that of the run, apart from what no training depends on.

    Raises:
        RunDirError: it differs.
    """
    changed = _changed_keys(run.config, config)
    if changed:
        raise RunDirError(
            f"{run.path} is a run of another configuration ({', '.join(changed[:3])} differ): use the same "
            "--preset, --config and --set, or another --run-dir, or the option --reconfigure of run-all or train-idm, "
            "which gives this run the new configuration and sets the results aside that depend on it."
        )


def _changed_keys(old: Config, new: Config) -> list[str]:
    """Dotted keys whose values differ, apart from those that no training depends on."""
    before, after = flat(old), flat(new)
    harmless = ("evaluation.", "checkpoint_seconds", "extra_stages")
    return [key for key in after if before.get(key) != after[key] and not key.startswith(harmless)]


def _busy(folder: Path) -> RunDirError:
    return RunDirError(f"Another lapo process is working in {folder}: wait for it to end, or use another --run-dir.")
