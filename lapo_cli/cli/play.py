"""``lapo play``: act in the learned world model by the keyboard."""

import contextlib
import webbrowser
from typing import Annotated

import typer

from lapo_cli.cli.options import DataDir, Device, Output, Overrides, RunPath
from lapo_cli.cli.terminal import terminal


def play(
    path: RunPath,
    overrides: Overrides,
    device: Device,
    output: Output,
    data_dir: DataDir,
    port: Annotated[int, typer.Option(min=0, max=65_535, help="Port to listen on; 0: any that is free.")] = 0,
    browser: Annotated[bool, typer.Option("--browser/--no-browser", help="Open the page in a browser.")] = True,
) -> None:
    """Act in the world model of RUN_DIR: choose latent actions by key, and see the next frame that it predicts.

    A page on this machine alone, until Ctrl-C. Of several games and seeds below RUN_DIR the first is played.
    """
    with terminal(output) as here:
        from lapo_cli.core import pipeline

        run = overrides.on_run(path)
        with pipeline.play(run, path, device.options(data_dir=data_dir), here.progress, port) as server:
            here.result({"url": server.url}, f"Play at {server.url} (Ctrl-C ends it).")
            if browser:
                webbrowser.open(server.url)
            with contextlib.suppress(KeyboardInterrupt):
                server.serve_forever()
