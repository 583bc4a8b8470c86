"""``lapo report``: make the report of a run again, or compare runs, from what is there."""

from pathlib import Path
from typing import Annotated

import typer

from lapo_cli.cli.options import Output
from lapo_cli.cli.terminal import terminal

RunPaths = Annotated[
    list[Path],
    typer.Argument(
        metavar="RUN_DIR...",
        help="A run directory, or a folder of one game or seed in it; of several runs, a comparison is written into "
        "the first.",
    ),
]


def report(paths: RunPaths, output: Output) -> None:
    """Make the report of RUN_DIR from the files that are there, also while it is running.

    Nothing is played or measured for it: 'lapo evaluate' does that, and makes the report too.
    """
    with terminal(output) as here:
        from lapo_cli.core.report.page import make

        file = make(paths)
        here.result({"file": file}, f"Written: {file}")
