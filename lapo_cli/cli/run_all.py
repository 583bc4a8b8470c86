"""``lapo run-all`` and ``run-chain``: every stage in order, of all games and seeds or of one."""

from pathlib import Path
from typing import Annotated

import typer

from lapo_cli.cli.options import (
    DEFAULT_PRESET,
    Baselines,
    ChainDevices,
    Devices,
    Execution,
    GameName,
    Logging,
    Output,
    Overrides,
    Reconfigure,
    RunPreset,
    Scratch,
    Seed,
    Serial,
    share,
)
from lapo_cli.cli.tables import plan_table, stage_table, summary_parts
from lapo_cli.cli.terminal import terminal
from lapo_cli.core.envs.base import parse_games
from lapo_cli.core.errors import UsageError
from lapo_cli.core.launchers.base import LAUNCHERS


def run_all(
    games: Annotated[str, typer.Option(metavar="all|GAME,GAME,…", help="Games to run.")],
    overrides: Overrides,
    execution: Execution,
    logging: Logging,
    output: Output,
    seeds: Annotated[
        str, typer.Option(metavar="N,N,…", help="Training seeds; each game runs once with each seed.")
    ] = "0",
    preset: RunPreset = None,
    run_dir: Annotated[Path | None, typer.Option(help="Run directory.", show_default="runs/PRESET")] = None,
    reconfigure: Reconfigure = False,
    jobs: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Games and seeds to run in parallel, each with its GPUs or an equal share of the CPU.",
            show_default="1; on a cluster, as many as it has room for",
        ),
    ] = None,
    launcher: Annotated[
        str,
        typer.Option(metavar="NAME", help="What runs the jobs: 'local', 'ray', 'slurm', or one that a plugin adds."),
    ] = "local",
    launcher_set: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=VALUE",
            help="A setting of the launcher, repeatable. ray: address, cpus, gpus, retries. slurm: partition, account, "
            "minutes, cpus, gpus, memory_mb, grace, retries, options, poll.",
            show_default="none",
        ),
    ] = None,
    scratch: Scratch = None,
    devices: ChainDevices = 1,
    serial: Serial = False,
    baselines: Baselines = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would run and what is finished; run nothing.")
    ] = False,
) -> None:
    """Run everything in order: data, stages 1 to 3, PPO from scratch, evaluation and one table.

    Finished stages are skipped, interrupted ones are resumed.

    A game that fails is reported at the end (exit code 1) and does not stop the others.

    Missing data is fetched first, from the source that the key data.source names: the official files with the preset
    'paper', the bundled demonstrations with 'quick'.
    """
    with terminal(output) as here:
        names = parse_games([games], execution.data_dir)
        LAUNCHERS.get(launcher)  # A misspelt name is reported before the second that loading PyTorch takes.
        numbers = _seeds(seeds)
        where = run_dir or Path("runs", preset or DEFAULT_PRESET)
        config, preset = overrides.configuration(where, preset)

        from lapo_cli.core import pipeline
        from lapo_cli.core.run_dir import RunDir

        run = RunDir.prepare(where, config, preset, reconfigure=reconfigure)
        options = execution.options(
            wandb=logging.wandb,
            jobs=jobs,
            side_by_side=not serial,
            launcher=launcher,
            launcher_settings=tuple(launcher_set or ()),
            scratch=scratch,
            baselines=baselines,
            devices=devices,
        )
        if dry_run:
            planned = pipeline.plan(run, names, numbers, options)
            script = pipeline.preview(run, names, numbers, options)
            document = {"run_dir": where, "plan": planned, **({"script": script} if script else {})}
            here.result(document, plan_table(planned, plain=here.plain), script)
            return
        summary = pipeline.run_all(run, names, numbers, options, here.progress)
        here.result({"run_dir": run.path, **summary.as_json()}, *summary_parts(summary, plain=here.plain))
        if summary.failures:
            raise typer.Exit(1)


def run_chain(
    game: GameName,
    overrides: Overrides,
    execution: Execution,
    logging: Logging,
    output: Output,
    seed: Seed = 0,
    preset: RunPreset = None,
    run_dir: Annotated[Path | None, typer.Option(help="Run directory.", show_default="runs/PRESET")] = None,
    scratch: Scratch = None,
    devices: Devices = 1,
    serial: Serial = False,
    baselines: Baselines = False,
) -> None:
    """Run all of one game and seed: what 'run-all' does for each, as a job of its own.

    For engines and shell loops that start one process for each game and seed, on any number of machines with the same
    run directory. What is finished is skipped, what was interrupted is resumed, and a second process with the same game
    and seed waits for the first. 'lapo evaluate RUN_DIR' makes the table.
    """
    with terminal(output) as here:
        game, *others = parse_games([game], execution.data_dir)
        if others:
            raise UsageError("One process runs one game: name one, or use 'lapo run-all --games'.")
        where = run_dir or Path("runs", preset or DEFAULT_PRESET)
        config, preset = overrides.configuration(where, preset)
        share(devices)

        from lapo_cli.core import pipeline
        from lapo_cli.core.run_dir import RunDir

        run = RunDir.prepare(where, config, preset)
        options = execution.options(wandb=logging.wandb, side_by_side=not serial, scratch=scratch, baselines=baselines)
        results = pipeline.run_chain(run, game, seed, options, here.progress)
        here.result({"run_dir": run.path, "stages": results}, stage_table(results, plain=here.plain))


def _seeds(text: str) -> list[int]:
    words = [word.strip() for word in text.split(",")]
    if not all(word.isascii() and word.isdigit() and len(word) < 10 for word in words):
        raise UsageError(f"'--seeds {text}' is not a list of seeds: give whole numbers with commas, for example 0,1,2.")
    return list(dict.fromkeys(int(word) for word in words))
