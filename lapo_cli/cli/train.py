"""``lapo train-idm``, ``train-policy``, ``decode-offline``, ``finetune-online`` and ``run-stage``: one stage each."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from lapo_cli.cli.options import (
    DEFAULT_PRESET,
    Devices,
    Execution,
    GameName,
    Logging,
    Output,
    Overrides,
    Reconfigure,
    RunPath,
    RunPreset,
    Seed,
    share,
)
from lapo_cli.cli.tables import stage_table
from lapo_cli.cli.terminal import Terminal, terminal
from lapo_cli.core.envs.base import parse_games
from lapo_cli.core.errors import UsageError

if TYPE_CHECKING:
    from lapo_cli.core.pipeline import Options
    from lapo_cli.core.run_dir import RunDir
    from lapo_cli.core.training.stage import StageResult

Init = Literal["latent", "latent-rl-only", "scratch"]
_STAGE_OF: dict[Init, str] = {"latent": "online", "latent-rl-only": "rl-only", "scratch": "scratch"}


def train_idm(
    game: GameName,
    overrides: Overrides,
    execution: Execution,
    logging: Logging,
    output: Output,
    preset: RunPreset = None,
    seed: Seed = 0,
    run_dir: Annotated[Path | None, typer.Option(help="Run directory.", show_default="runs/GAME-PRESET")] = None,
    reconfigure: Reconfigure = False,
    devices: Devices = 1,
) -> None:
    """Stage 1: learn latent actions from frames (inverse dynamics model and world model)."""
    with terminal(output) as here:
        game, *others = parse_games([game], execution.data_dir)  # Errors come before PyTorch is loaded, which is slow.
        if others:
            raise UsageError("Only one game can be trained at a time: name one, or use 'lapo run-all --games'.")
        where = run_dir or Path("runs", f"{game}-{preset or DEFAULT_PRESET}")
        config, preset = overrides.configuration(where, preset)
        share(devices)

        from lapo_cli.core import pipeline
        from lapo_cli.core.run_dir import RunDir

        run = RunDir.prepare(where, config, preset, reconfigure=reconfigure)
        options = execution.options(wandb=logging.wandb)
        _report(here, run, pipeline.run_stage(run, "idm", [run.seed_dir(game, seed)], options, here.progress))


def train_policy(
    path: RunPath,
    overrides: Overrides,
    execution: Execution,
    logging: Logging,
    output: Output,
    devices: Devices = 1,
) -> None:
    """Stage 2: learn a policy over latent actions by behaviour cloning."""
    with terminal(output) as here:
        run = overrides.on_run(path)
        share(devices)
        _run_below(here, run, "policy", path, execution.options(wandb=logging.wandb))


def decode_offline(
    path: RunPath,
    overrides: Overrides,
    execution: Execution,
    logging: Logging,
    output: Output,
    labels: Annotated[
        str | None,
        typer.Option(
            metavar="N,N,…",
            help="Numbers of labelled frames, one decoder for each; short for --set offline.labels=[…].",
            show_default="the run's",
        ),
    ] = None,
) -> None:
    """Stage 3, offline: decode latent actions into true actions from a few labelled frames."""
    with terminal(output) as here:
        run = overrides.on_run(path, *([] if labels is None else [f"offline.labels=[{labels}]"]))
        _run_below(here, run, "offline", path, execution.options(wandb=logging.wandb))


def finetune_online(
    path: RunPath,
    overrides: Overrides,
    execution: Execution,
    logging: Logging,
    output: Output,
    init: Annotated[
        Init,
        typer.Option(
            help="Start from the latent policy with a decoder, from the latent policy without one, or from new weights "
            "(the PPO baseline)."
        ),
    ] = "latent",
    steps: Annotated[
        int | None,
        typer.Option(min=1, help="Environment steps; short for --set online.steps=N.", show_default="the run's"),
    ] = None,
) -> None:
    """Stage 3, online: decode latent actions and fine-tune by reinforcement learning (PPO)."""
    with terminal(output) as here:
        run = overrides.on_run(path, *([] if steps is None else [f"online.steps={steps}"]))
        _run_below(here, run, _STAGE_OF[init], path, execution.options(wandb=logging.wandb))


def run_stage(
    stage: Annotated[str, typer.Argument(metavar="STAGE", help="Name of the stage.")],
    path: RunPath,
    overrides: Overrides,
    execution: Execution,
    logging: Logging,
    output: Output,
) -> None:
    """Run any stage by its name, for example one that a plugin adds."""
    with terminal(output) as here:
        _run_below(here, overrides.on_run(path), stage, path, execution.options(wandb=logging.wandb))


def _run_below(here: Terminal, run: "RunDir", stage: str, path: Path, options: "Options") -> None:
    """Run a stage of every game and seed at or below ``path``."""
    from lapo_cli.core import pipeline

    _report(here, run, pipeline.run_stage(run, stage, run.seed_dirs(path), options, here.progress))


def _report(here: Terminal, run: "RunDir", results: "list[StageResult]") -> None:
    here.result({"run_dir": run.path, "stages": results}, stage_table(results, plain=here.plain))
