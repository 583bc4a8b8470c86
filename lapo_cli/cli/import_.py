"""``lapo import``: videos of one's own, without or with actions."""

from pathlib import Path
from typing import Annotated

import typer

from lapo_cli.cli.options import DataDir, Output, Preparing
from lapo_cli.cli.tables import stores_table
from lapo_cli.cli.terminal import terminal
from lapo_cli.core.envs.base import ENVIRONMENTS
from lapo_cli.core.errors import UsageError
from lapo_cli.core.registry import plain_name


def import_(
    data_dir: DataDir,
    preparing: Preparing,
    output: Output,
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the data set.")],
    paths: Annotated[
        list[str],
        typer.Argument(
            metavar="PATH…",
            help="Video files (mp4, webm, mkv, avi, gif, …), npz files of frames, folders of them or of PNG or JPEG "
            "images (one clip a folder), or patterns such as 'clips/*.mp4'.",
        ),
    ],
    size: Annotated[int, typer.Option(min=16, max=512, help="Pixels per side of the stored frames.")] = 64,
    test_fraction: Annotated[
        float, typer.Option(min=0.01, max=0.5, help="Fraction of the frames that become test frames, by whole clips.")
    ] = 0.1,
    actions: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="True actions of some or all frames: a CSV file of frame,action or clip,frame,action, or for one clip "
            "an npy file; frames count from 0.",
            show_default="none",
        ),
    ] = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Replace a data set of that name, and decode all clips again.")
    ] = False,
) -> None:
    """Import videos as a data set: every clip, and what follows a hard cut, becomes an episode.

    An interrupted import resumes: clips that were decoded are kept; one that was being decoded starts over.
    """
    with terminal(output) as here:
        name = plain_name(name)

        from lapo_cli.core.data import download
        from lapo_cli.core.data.sources.video import VideoImporter

        preparation = preparing.preparation(size)
        scratch = download.scratch_folder(data_dir, name)
        importer = VideoImporter(name, tuple(paths), scratch, preparation, test_fraction, actions)
        plan = download.plan_import(name, data_dir, importer, fresh=fresh)
        if plan.replaced and not fresh:
            earlier = next(iter(plan.replaced.values()))
            raise UsageError(
                f"{name} is there already, from {earlier.source}: choose another name, or replace it with --fresh."
            )
        if name in ENVIRONMENTS:
            here.say(f"{name} is a game: the clips take the place of its demonstrations, and stages that act play it.")
        if not plan.offers:
            here.say(f"{name} is here already, of the same clips and options; --fresh imports it again.")
        stores = list(download.carry_out(plan, here.progress).values())
        here.result({"data_dir": data_dir, "stores": stores}, stores_table(stores, plain=here.plain))
