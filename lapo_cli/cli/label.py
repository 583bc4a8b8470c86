"""``lapo label``: the latent actions of any video."""

from pathlib import Path
from typing import Annotated

import typer

from lapo_cli.cli.options import Execution, Output, Preparing, RunPath
from lapo_cli.cli.terminal import terminal
from lapo_cli.core.errors import UsageError


def label(
    path: RunPath,
    preparing: Preparing,
    execution: Execution,
    output: Output,
    video: Annotated[
        str,
        typer.Argument(metavar="VIDEO", help="A video file, an npz file of frames, or a folder of PNG or JPEG images."),
    ],
    out: Annotated[Path, typer.Option(metavar="FILE.npz", help="File to write.")] = Path("latents.npz"),
) -> None:
    """Infer the latent actions of a video with a trained inverse dynamics model.

    Writes, for every three successive frames, the latent action z, its codes, and if 'decode-offline' has run the
    predicted true action. Without options for the frames, those of the import are used.
    """
    with terminal(output) as here:
        if out.suffix != ".npz":
            raise UsageError(f"--out {out} does not end in .npz: give a name that does.")

        from lapo_cli.core import pipeline
        from lapo_cli.core.run_dir import RunDir

        run = RunDir.open(path)
        chosen = preparing.preparation() if preparing != Preparing() else None
        made = pipeline.label(run, path, video, out, chosen, execution.options(), here.progress)
        predicted = "" if made.labels is None else f", with actions predicted from {made.labels:,} labelled frames"
        here.result(
            {"labelled": made},
            f"{made.path}: latent actions of {made.windows:,} windows in {made.frames:,} frames{predicted}.",
        )
