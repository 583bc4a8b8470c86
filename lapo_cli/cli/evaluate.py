"""``lapo evaluate``: evaluate the policies of runs and compare them."""

from typing import Annotated

import typer

from lapo_cli.cli.options import Execution, Output, Overrides
from lapo_cli.cli.report import RunPaths
from lapo_cli.cli.tables import summary_parts
from lapo_cli.cli.terminal import terminal


def evaluate(
    paths: RunPaths,
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
    """Evaluate the policies in RUN_DIR, print the table of their returns and make the report.

    Of several runs, each is evaluated, and a comparison of them is written into the first.
    """
    with terminal(output) as here:
        from lapo_cli.core import pipeline
        from lapo_cli.core.report.page import make

        flags = [] if episodes is None else [f"evaluation.episodes={episodes}"]
        runs = [(overrides.on_run(path, *flags), path) for path in paths]
        summaries = [pipeline.evaluate(run, path, execution.options(), here.progress) for run, path in runs]
        documents = [{"run_dir": run.path, **s.as_json()} for (run, _), s in zip(runs, summaries, strict=True)]
        parts = [part for summary in summaries for part in summary_parts(summary, plain=here.plain)]
        if len(paths) == 1:
            here.result(documents[0], *parts)
        else:
            file = make(paths)
            here.result({"runs": documents, "comparison": file}, *parts, f"Written: {file}")
        if any(summary.failures for summary in summaries):
            raise typer.Exit(1)
