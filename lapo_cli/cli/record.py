"""``lapo train-expert`` and ``lapo record``: your own demonstrations."""

from pathlib import Path
from typing import Annotated

import typer

from lapo_cli.cli.options import DEFAULT_PRESET, Acting, GameName, Logging, Output, Overrides, Reconfigure, RunPreset
from lapo_cli.cli.tables import recordings_table, stage_table
from lapo_cli.cli.terminal import terminal
from lapo_cli.core.envs.base import ENVIRONMENTS


def train_expert(
    game: GameName,
    overrides: Overrides,
    acting: Acting,
    logging: Logging,
    output: Output,
    preset: RunPreset = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the weights, the levels and the actions.")] = 0,
    steps: Annotated[
        int | None,
        typer.Option(min=1, help="Environment steps; short for --set expert.steps=N.", show_default="the preset's"),
    ] = None,
    run_dir: Annotated[Path | None, typer.Option(help="Run directory.", show_default="runs/GAME-expert-PRESET")] = None,
    reconfigure: Reconfigure = False,
) -> None:
    """Train an expert to record: PPO from scratch with Procgen's standard settings.

    'lapo evaluate RUN_DIR' evaluates it on unseen levels.
    """
    with terminal(output) as here:
        game = ENVIRONMENTS.get(game).name
        where = run_dir or Path("runs", f"{game}-expert-{preset or DEFAULT_PRESET}")
        config, preset = overrides.configuration(where, preset, *([] if steps is None else [f"expert.steps={steps}"]))

        from lapo_cli.core import pipeline
        from lapo_cli.core.run_dir import RunDir

        run = RunDir.prepare(where, config, preset, reconfigure=reconfigure)
        options = acting.options(wandb=logging.wandb)
        results = pipeline.run_stage(run, "expert", [run.seed_dir(game, seed)], options, here.progress)
        here.result({"run_dir": run.path, "stages": results}, stage_table(results, plain=here.plain))


def record(
    game: GameName,
    acting: Acting,
    output: Output,
    policy: Annotated[
        list[str] | None,
        typer.Option(
            metavar="planner|random|PATH",
            help="Policy to record: the game's planner, the random policy, or the folder or weights file of a trained "
            "stage; repeatable: environment n then follows policy n modulo their number.",
            show_default="planner",
        ),
    ] = None,
    epsilon: Annotated[
        list[float] | None,
        typer.Option(
            min=0,
            max=1,
            help="Fraction of actions replaced by random ones; once for all policies or once for each.",
            show_default="0",
        ),
    ] = None,
    frames: Annotated[int, typer.Option(min=3, help="Minimum number of training frames.")] = 131_072,
    test_frames: Annotated[
        int, typer.Option(min=0, help="Minimum number of test frames, on other levels, which trainings need; 0: none.")
    ] = 0,
    greedy: Annotated[
        bool, typer.Option("--greedy/--sampled", help="Take the most probable action of a network, or sample.")
    ] = False,
    num_envs: Annotated[int, typer.Option(min=1, help="Parallel environments.")] = 64,
    seed: Annotated[
        int, typer.Option(min=0, max=999_999_999, help="Seed of the levels and of all random choices.")
    ] = 0,
    to: Annotated[Path, typer.Option(metavar="FOLDER", help="Folder for the logs.")] = Path("runs/recorded"),
) -> None:
    """Record a policy as replay logs, one byte a frame, for 'lapo download GAME --from FOLDER'.

    An interrupted recording resumes where it stopped.
    """
    with terminal(output) as here:
        game = ENVIRONMENTS.get(game).name

        from lapo_cli.core.compute import resolve
        from lapo_cli.core.recording.demonstrations import record_demonstrations

        recorded = record_demonstrations(
            game,
            policy or ["planner"],
            epsilon or [0.0],
            to,
            frames={"train": frames, **({"test": test_frames} if test_frames else {})},
            num_envs=num_envs,
            seed=seed,
            greedy=greedy,
            compute=resolve(acting.device),
            fresh=acting.fresh,
            progress=here.progress,
        )
        here.result(
            {"folder": to, "logs": recorded},
            recordings_table(recorded, plain=here.plain),
            f"To use them: lapo download {game} --from {to}",
        )
