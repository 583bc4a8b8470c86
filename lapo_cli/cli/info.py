"""``lapo info``: facts for a bug report, and the table of configuration keys."""

import importlib.metadata
import os
import platform
from pathlib import Path
from typing import Annotated, Any

import typer

import lapo_cli
from lapo_cli.cli.options import DataDir, Output, PresetName
from lapo_cli.cli.tables import config_table, info_table
from lapo_cli.cli.terminal import terminal
from lapo_cli.core.files import free_space

_LIBRARIES = {"torch": "torch", "numpy": "numpy", "procgen": "procgen-mirror", "gym": "gym", "wandb": "wandb"}


def info(
    data_dir: DataDir,
    output: Output,
    show_config: Annotated[
        bool, typer.Option("--config", help="Show every configuration key, its value and its meaning instead.")
    ] = False,
    preset: PresetName = "paper",
) -> None:
    """Show versions, devices, the data folder and the games stored in it."""
    with terminal(output) as here:
        if show_config:
            from lapo_cli.core.config_loading import describe, load_config

            keys = describe(load_config(preset))
            here.result({"preset": preset, "config": keys}, config_table(keys, preset, plain=here.plain))
            return
        facts = _facts(data_dir)
        here.result(facts, info_table(facts, plain=here.plain))


def _facts(data_dir: Path) -> dict[str, Any]:
    import torch

    from lapo_cli.core import compute
    from lapo_cli.core.data.catalogue import list_games

    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {
        "lapo": lapo_cli.__version__,
        "python": platform.python_version(),
        **{name: _version(distribution) for name, distribution in _LIBRARIES.items()},
        "platform": platform.platform(),
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "cuda": torch.version.cuda if torch.cuda.is_available() else None,
        "gpus": gpus,
        "device": str(compute.resolve().device),
        "bf16": compute.resolve().bf16,
        "data_dir": data_dir.absolute(),
        "free_bytes": free_space(data_dir),
        "games": {
            row.game: {
                "frames": {split: store.num_frames for split, store in row.stores.items()},
                "problems": row.problems,
            }
            for row in list_games(data_dir)
            if row.stores or row.problems
        },
    }


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None
