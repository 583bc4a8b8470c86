"""``lapo evaluate``: evaluate the policies of a run and compare them."""

from typing import Annotated

import typer

from lapo_cli.cli.options import Execution, Output, Overrides, RunPath
from lapo_cli.cli.tables import summary_parts
from lapo_cli.cli.terminal import terminal


def evaluate(
    path: RunPath,
    overrides: Overrides,
    execution: Execution,
    output: Output,
    episodes: Annotated[
        int | None,
        typer.Option(
            min=2,
            help="Episodes of each policy, on unseen levels; short for --set evaluation.episodes=N.",
            show_default="the run's",
        ),
    ] = None,
) -> None:
    """Evaluate the policies in RUN_DIR and print the table of their returns."""
    with terminal(output) as here:
        from lapo_cli.core import pipeline

        run = overrides.on_run(path, *([] if episodes is None else [f"evaluation.episodes={episodes}"]))
        summary = pipeline.evaluate(run, path, execution.options(), here.progress)
        here.result({"run_dir": run.path, **summary.as_json()}, *summary_parts(summary, plain=here.plain))
        if summary.failures:
            raise typer.Exit(1)
