"""What the report shows of a game and seed besides returns, measured once and kept as small files.

``<game>/seed-<n>/measurements/`` holds ``demonstrations.json`` with the data's origin, returns and a film, and, of a
finished stage 1, ``latents.json`` (what a latent action is) and ``imagination.json`` (what it does in the world model).
A measurement is made again when, and only when, what it was made from has changed.
"""

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter

import lapo_cli
from lapo_cli.core.data.store import FrameStore
from lapo_cli.core.errors import LapoError, RunDirError
from lapo_cli.core.evaluation import imagination, latents, sheets
from lapo_cli.core.files import atomic_write_json, exclusive, read_json
from lapo_cli.core.run_dir import fingerprint
from lapo_cli.core.training.context import Context
from lapo_cli.core.training.networks import IDM

FOLDER = "measurements"
DEMONSTRATIONS = "demonstrations (expert)"
_ANY: TypeAdapter[dict[str, Any]] = TypeAdapter(dict[str, Any])
_FILM_FRAMES, _FILM_EVERY = 100, 2
_VERSION = 2


def measure(ctx: Context) -> None:
    """Make all measurements that are not there yet; a finished stage 1 that cannot be measured is noted."""
    with suppress(LapoError):  # An expert needs no data.
        demonstrations(ctx)
    try:
        made = ctx.seed_dir.stage(IDM).done()
        if made is not None:
            source = [made["outputs"], ctx.open_store("test").manifest.fingerprint, latents.projection()]
            _kept(ctx, "latents", source, lambda folder: latents.measure(ctx))
            _kept(ctx, "imagination", source, lambda folder: imagination.measure(ctx, folder))
    except LapoError as error:
        ctx.progress.log(ctx.title(f"is not measured for the report: {error}"))


def demonstrations(ctx: Context) -> NDArray[np.float64]:
    """Returns (E,) of the recorded episodes that ended; also keeps where they came from and a film of one.

    Raises:
        MissingInputError, CorruptDataError: the stores are not there, or damaged.
    """
    train, test = ctx.open_store("train"), ctx.open_store("test")
    source = [train.manifest.fingerprint, test.manifest.fingerprint]
    kept = _kept(ctx, "demonstrations", source, lambda folder: _demonstrations(ctx, folder, train, test))
    return np.array(kept["returns"], np.float64)


def _demonstrations(ctx: Context, folder: Path, train: FrameStore, test: FrameStore) -> dict[str, Any]:
    starts = np.append(np.flatnonzero(test.episode_starts), len(test.frames))
    # The first episode that is there from its beginning; frames before the first start continue one that is not.
    first = np.arange(*starts[:2])[::_FILM_EVERY][:_FILM_FRAMES]
    film = {
        **sheets.write(folder / "demonstrations.webp", np.asarray(test.frames[first])),
        "levels": 1,
        "every": _FILM_EVERY,
        "lengths": [len(first)],
    }
    return {
        "method": DEMONSTRATIONS,
        "stores": {"train": train.manifest.as_dict(), "test": test.manifest.as_dict()},
        "action_names": list(ctx.env.action_names),
        "reference_returns": [ctx.env.random_return, ctx.env.expert_return],
        "film": film,
        "returns": train.episode_returns().tolist(),
    }


def _kept(ctx: Context, name: str, source: Any, make: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
    """A measurement from ``source``, made now or kept from before; one process makes it at a time."""
    folder = ctx.seed_dir.path / FOLDER
    file, key = folder / f"{name}.json", fingerprint([_VERSION, source])

    def kept() -> dict[str, Any] | None:
        if not file.exists() or ctx.fresh:
            return None
        content = read_json(file, _ANY, "delete it and run 'lapo evaluate' again")
        return content if content.get("key") == key else None

    found = kept()
    if found is not None:
        return found
    busy = RunDirError(f"Another lapo process is measuring in {folder}.")
    with exclusive(folder / f".{name}.lock", busy, wait=ctx.progress):
        found = kept()
        if found is not None:
            return found
        made = {
            "key": key,
            "lapo_version": lapo_cli.__version__,
            "game": ctx.game,
            "seed": ctx.seed_dir.seed,
            **make(folder),
        }
        atomic_write_json(file, made)
        return made
