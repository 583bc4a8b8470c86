"""Latent actions of any video, by the inverse dynamics model of a run.

The result is an npz file with an entry for every window of three successive frames, in the order of the video:

- ``window`` (T, 3) int64: the frames o_{t-1}, o_t, o_{t+1} by their numbers in the video, as it is decoded, from 0;
- ``time`` (T,) float64: seconds of o_t from the beginning of the video, NaN where frames have no times;
- ``z`` (T, la_dim) float32: the latent action between o_t and o_{t+1}, before quantization;
- ``codes`` (T, ...) int64: its codes, where the quantizer has codes;
- ``actions`` (T,) uint8: the true action predicted from it, where stage 3 has been decoded offline;
- ``about``: a JSON object as str that says what made it.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import lapo_cli
from lapo_cli.core.data.batches import gather_windows
from lapo_cli.core.data.clips import Clip, Findings, Frame, Preparation, read_clip
from lapo_cli.core.data.store import Video
from lapo_cli.core.errors import CorruptDataError
from lapo_cli.core.files import atomic_path, set_aside
from lapo_cli.core.models.idm import InverseDynamicsModel
from lapo_cli.core.training.context import Context
from lapo_cli.core.training.decoding import load_decoders
from lapo_cli.core.training.latent_labels import CHUNK, latent_actions
from lapo_cli.core.training.networks import IDM, load_idm
from lapo_cli.core.training.stage import is_current, output_fingerprint

_OFFLINE = "offline"


@dataclass(frozen=True)
class Labelled:
    """What :func:`label_clip` wrote.

    Attributes:
        path: the file.
        frames: that the video has.
        windows: T.
        labels: labelled frames of the decoder that predicted actions, None where there is none.
    """

    path: Path
    frames: int
    windows: int
    labels: int | None


def label_clip(ctx: Context, clip: Clip, preparation: Preparation, out: Path, *, threads: int) -> Labelled:
    """Write the latent actions of a clip; frames are decoded and used a few hundred at a time.

    Args:
        ctx: game and seed whose models are used.
        clip: the video.
        preparation: what becomes of its frames.
        out: the npz file; one that is there is set aside.
        threads: that decode.

    Raises:
        MissingInputError: stage 1 is not finished.
        CorruptDataError: the clip cannot be decoded, it has no window, or weights are damaged.
        DiskFullError: the disk is full.
    """
    idm = load_idm(ctx)
    labels, decoder = _decoder(ctx, idm)
    findings = Findings()
    parts: dict[str, list[NDArray[Any]]] = {}
    with ctx.progress.task(ctx.title(f"labelling {clip.path.name}"), clip.num_bytes, "bytes") as task:
        for frames in _blocks(read_clip(clip, preparation, findings, threads=threads)):
            for name, array in _label(ctx, idm, decoder, frames).items():
                parts.setdefault(name, []).append(array)
            task.update(findings.bytes_read)
        task.update(clip.num_bytes)
    for note in findings.notes:
        ctx.progress.log(f"{clip.path} {note}.")
    if not parts:
        raise CorruptDataError(f"{clip.path} has no three frames without a cut between them: give a longer video.")
    arrays = {name: np.concatenate(of_blocks) for name, of_blocks in parts.items()}
    about = {
        "lapo_version": lapo_cli.__version__,
        "video": str(clip.path),
        "frames": findings.decoded,
        "preparation": asdict(preparation),
        "run": str(ctx.seed_dir.run_path),
        "game": ctx.game,
        "seed": ctx.seed_dir.seed,
        "idm": output_fingerprint(ctx, IDM),
        "labels": labels,
    }
    with atomic_path(out) as temporary:
        np.savez(temporary, **arrays, about=json.dumps(about))
        set_aside(out)
    return Labelled(out, findings.decoded, len(arrays["z"]), labels)


def _decoder(ctx: Context, idm: InverseDynamicsModel) -> tuple[int | None, torch.nn.Module | None]:
    """The decoder from the most labelled frames, and how many these are; none where stage 3 is not finished."""
    folder = ctx.seed_dir.stage(_OFFLINE)
    if not is_current(ctx.seed_dir, _OFFLINE):
        return None, None
    return max(load_decoders(ctx, folder, idm.quantizer.la_dim).items())


def _blocks(frames: Iterator[Frame]) -> Iterator[list[Frame]]:
    """Stretches of frames that overlap by two, so that every window lies in exactly one of them."""
    block: list[Frame] = []
    for frame in frames:
        block.append(frame)
        if len(block) == CHUNK + 2:
            yield block
            block = block[-2:]
    if len(block) > 2:
        yield block


@torch.no_grad()
def _label(
    ctx: Context, idm: InverseDynamicsModel, decoder: Callable[[Tensor], Tensor] | None, frames: list[Frame]
) -> dict[str, NDArray[Any]]:
    """The arrays of the windows in successive frames; empty where there is none."""
    starts = np.array([frame.starts for frame in frames])
    pixels = np.stack([frame.pixels for frame in frames])
    centres = Video(pixels, starts, "").windows()
    if len(centres) == 0:
        return {}
    (z,) = latent_actions(ctx, idm, [torch.from_numpy(gather_windows(pixels, centres)).to(ctx.compute.device)])
    z = z.float()
    codes = idm.quantizer(z).codes
    numbers = np.array([frame.index for frame in frames])
    times = np.array([np.nan if frame.time is None else frame.time for frame in frames])
    found = {
        "window": numbers[centres[:, None] + np.array([-1, 0, 1])],
        "time": times[centres],
        "z": z.cpu().numpy(),
    }
    if codes is not None:
        found["codes"] = codes.cpu().numpy()
    if decoder is not None:
        found["actions"] = decoder(z).argmax(1).cpu().numpy().astype(np.uint8)
    return found
