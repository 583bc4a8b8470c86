"""Options that several subcommands share, each defined once.

A group is a dataclass whose fields are annotated as Typer options; :func:`grouped` lets a command take whole groups.
"""

import dataclasses
import functools
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from lapo_cli.core import files
from lapo_cli.core.errors import UsageError

if TYPE_CHECKING:
    from lapo_cli.core.config import Config
    from lapo_cli.core.data.clips import Fit, Preparation
    from lapo_cli.core.pipeline import Options
    from lapo_cli.core.run_dir import RunDir


def _data_dir() -> Path:
    """The default, which Typer asks for before any command runs: an error has to be one of Typer's."""
    try:
        return files.data_dir()
    except UsageError as error:
        raise typer.BadParameter(str(error)) from error


DataDir = Annotated[
    Path,
    typer.Option(
        default_factory=_data_dir,
        show_default="$LAPO_DATA_DIR, else ~/.lapo/data",
        help="Folder of the demonstrations.",
    ),
]
GameName = Annotated[
    str,
    typer.Argument(metavar="GAME", help="Name of a game; 'lapo download --list' shows them."),
]
PresetName = Annotated[
    str,
    typer.Option(
        help="Configuration to start from: 'paper' is meant for a GPU, 'quick' takes minutes on two CPU cores."
    ),
]
DEFAULT_PRESET = "paper"
RunPreset = Annotated[
    str | None,
    typer.Option(
        help="Configuration to start from: 'paper' is meant for a GPU, 'quick' takes minutes on two CPU cores.",
        show_default=f"that of the run; of a new run, '{DEFAULT_PRESET}'",
    ),
]
Seed = Annotated[int, typer.Option(min=0, help="Seed of the weights and of the order of the data.")]
Scratch = Annotated[
    Path | None,
    typer.Option(
        help="Folder on a disk of the machine that computes, to which the frames are copied before they are used.",
        show_default="none",
    ),
]
Serial = Annotated[
    bool,
    typer.Option(
        "--serial",
        help="Run the stages of a game one after another. By default those that do not need one another run in "
        "parallel on a CPU, at most one for each thread, which takes more memory.",
    ),
]
Baselines = Annotated[
    bool,
    typer.Option(
        "--baselines",
        help="Also train ceilings, related methods and the paper's ablations: BC on all true labels and on the few, a "
        "supervised inverse dynamics model, relabelling by one (VPT), RL without a decoder, and LAPO online without a "
        "quantizer.",
    ),
]
Reconfigure = Annotated[
    bool,
    typer.Option(
        "--reconfigure",
        help="Change the configuration of an existing run; results that depend on what changed are set aside.",
        rich_help_panel="Configuration",
    ),
]
Devices = Annotated[
    int,
    typer.Option(
        min=1,
        help="Devices of this machine that train a model of stage 1 or 2 together, each on its share of every batch: "
        "GPUs, or processes on the CPU. For several machines there is torchrun.",
    ),
]
ChainDevices = Annotated[
    int,
    typer.Option(
        min=1,
        help="Devices of a machine that train the models of stages 1 and 2 together, for each game and seed: GPUs, or "
        "processes on the CPU.",
    ),
]
RunPath = Annotated[
    Path,
    typer.Argument(
        metavar="RUN_DIR",
        help="A run directory, or a folder of one game or seed in it; the run's configuration is used.",
    ),
]


def share(devices: int) -> None:
    """Start this command line once more on each of several devices, wait for them, and end as they do."""
    if devices == 1:
        return
    from lapo_cli.core import distributed

    if not distributed.is_started():
        raise typer.Exit(distributed.launch(sys.argv[1:], devices))


_CONFIGURATION = "Configuration"
_OUTPUT = "Output"


def _load_plugins(files: list[Path] | None) -> list[Path] | None:
    from lapo_cli.core.plugins import load_plugin

    for file in files or []:
        load_plugin(file)
    return files


@dataclasses.dataclass(frozen=True, kw_only=True)
class Output:
    """What every command takes: how it reports, and the plugins it starts with."""

    json: Annotated[
        bool,
        typer.Option(
            "--json", help="Print one JSON document on stdout; everything else goes to stderr.", rich_help_panel=_OUTPUT
        ),
    ] = False
    quiet: Annotated[
        bool, typer.Option("--quiet", help="Show results and errors only, no progress.", rich_help_panel=_OUTPUT)
    ] = False
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.", rich_help_panel=_OUTPUT)] = (
        False
    )
    plugin: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            envvar="LAPO_PLUGIN",
            is_eager=True,  # Loaded first, so that the other options know what it adds.
            callback=_load_plugins,
            help="Python file that adds environments, sources, quantizers, policy targets, stages or launchers; "
            "repeatable.",
            show_default="none",
        ),
    ] = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Overrides:
    """What differs from the configuration one starts from; ``--set`` wins over ``--config``."""

    config: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="YAML file with any part of the configuration.",
            show_default="none",
            rich_help_panel=_CONFIGURATION,
        ),
    ] = None
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Set one configuration key, for example stage1.lr=3e-4; repeatable. 'lapo info --config' lists them.",
            show_default="none",
            rich_help_panel=_CONFIGURATION,
        ),
    ] = None

    def on_preset(self, preset: str, *flags: str) -> "Config":
        """The configuration of a new run; ``flags`` are ``KEY=VALUE`` words of the command's own options."""
        from lapo_cli.core.config_loading import load_config

        return load_config(preset, self.config, [*(self.set_ or []), *flags])

    def configuration(self, where: Path, preset: str | None, *flags: str) -> "tuple[Config, str]":
        """The configuration of the run at ``where``, which may be new, and its preset: by default the run's own."""
        if preset is None and (where / "run.yaml").exists():
            run = self.on_run(where, *flags)
            return run.config, run.preset
        preset = preset or DEFAULT_PRESET
        return self.on_preset(preset, *flags), preset

    def on_run(self, path: Path, *flags: str) -> "RunDir":
        """The run that ``path`` lies in; ``flags`` are ``KEY=VALUE`` words of the command's own options.

        What is overridden holds for the stages of this command, which record it, and not for the run.
        """
        from lapo_cli.core.config_loading import override
        from lapo_cli.core.run_dir import RunDir

        run = RunDir.open(path)
        return dataclasses.replace(run, config=override(run.config, [*(self.set_ or []), *flags], self.config))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preparing:
    """What becomes of the frames of a video."""

    crop: Annotated[bool, typer.Option("--crop", help="Cut frames to their middle square instead of stretching.")] = (
        False
    )
    letterbox: Annotated[
        bool, typer.Option("--letterbox", help="Add black bars to make frames square instead of stretching.")
    ] = False
    fps: Annotated[
        float | None,
        typer.Option(min=0.01, max=240, help="Frames per second to take.", show_default="every frame"),
    ] = None
    skip_still: Annotated[bool, typer.Option("--skip-still", help="Leave out frames that equal the one before.")] = (
        False
    )

    def preparation(self, size: int = 64) -> "Preparation":
        """These options as the core takes them; frames become ``size`` pixels wide and high."""
        from lapo_cli.core.data.clips import Preparation

        if self.crop and self.letterbox:
            raise UsageError("--crop and --letterbox cannot be used together: give one of them.")
        fit: Fit = "crop" if self.crop else "letterbox" if self.letterbox else "stretch"
        return Preparation(size, fit, self.fps, self.skip_still)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Device:
    """On which device a command computes."""

    device: Annotated[
        str, typer.Option(metavar="auto|cpu|cuda[:N]", help="Device to compute on; auto: a GPU if there is one.")
    ] = "auto"

    def options(self, **more: Any) -> "Options":
        """These options as the core takes them; ``more`` are further fields of its class."""
        from lapo_cli.core.pipeline import Options

        return Options(**dataclasses.asdict(self), **more)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Acting(Device):
    """On which device a command that needs no demonstrations computes, and whether it starts over."""

    fresh: Annotated[
        bool,
        typer.Option(
            "--fresh",
            help="Start over; what exists is set aside as NAME.old-N, evaluations are made again.",
        ),
    ] = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Execution(Acting):
    """On which device a command computes, from which demonstrations, and whether it starts over."""

    data_dir: DataDir


@dataclasses.dataclass(frozen=True, kw_only=True)
class Logging:
    """Where metrics go besides ``metrics.jsonl`` and TensorBoard."""

    wandb: Annotated[
        bool, typer.Option("--wandb", help="Log metrics to Weights & Biases too (needs the extra 'wandb').")
    ] = False


def grouped(command: Callable[..., None]) -> Callable[..., None]:
    """Show Typer each field of the command's dataclass parameters as an option of its own, after the other options."""
    groups: dict[str, type[Any]] = {}
    own: list[inspect.Parameter] = []
    shared: list[inspect.Parameter] = []
    for parameter in inspect.signature(command).parameters.values():
        if not dataclasses.is_dataclass(parameter.annotation):
            own.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY))
            continue
        group: Any = parameter.annotation
        groups[parameter.name] = group
        hints = get_type_hints(group, include_extras=True)
        for field in dataclasses.fields(group):
            default = inspect.Parameter.empty if field.default is dataclasses.MISSING else field.default
            shared.append(
                inspect.Parameter(
                    field.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=hints[field.name]
                )
            )

    @functools.wraps(command)
    def with_groups(**values: Any) -> None:
        for name, group in groups.items():
            values[name] = group(**{field.name: values.pop(field.name) for field in dataclasses.fields(group)})
        command(**values)

    with_groups.__signature__ = inspect.Signature([*own, *shared])  # type: ignore[attr-defined]
    return with_groups
