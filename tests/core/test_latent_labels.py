"""The cache of latent labels: computed once, and refused when it is damaged."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch

from lapo_cli.core.data.store import open_store
from lapo_cli.core.errors import CorruptDataError
from lapo_cli.core.models.idm import InverseDynamicsModel
from lapo_cli.core.models.quantizers.base import Quantizer
from lapo_cli.core.training.context import Context
from lapo_cli.core.training.latent_labels import latent_labels


class _Means:
    """Stands in for the inverse dynamics model: every latent is the mean of its window."""

    size = 16

    def __init__(self, quantizer: Quantizer) -> None:
        self.calls, self.quantizer = 0, quantizer

    def latent_action(self, frames: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return frames.flatten(1).mean(1, keepdim=True).expand(-1, self.quantizer.la_dim)


@pytest.mark.parametrize("damage", ["empty", "cut", "longer", "header", "shape", "type"])
def test_labels_are_kept_and_refused_when_damaged(context: Callable[..., Context], tmp_path: Path, damage: str) -> None:
    video = open_store(context().data_dir, "maze", "train").video()
    ctx = replace(context(), data_dir=tmp_path / "data")
    means = _Means(ctx.config.model.quantizer.build())

    def labels(first: int = 0) -> np.ndarray[tuple[int, ...], np.dtype[np.float16]]:
        windows = np.append(video.windows()[first : first + 99], video.windows()[-1])
        return latent_labels(ctx, cast(InverseDynamicsModel, means), "means", video, windows)

    first = np.array(labels())
    calls = means.calls
    np.testing.assert_array_equal(labels(), first)
    assert means.calls == calls > 0
    before = set((tmp_path / "data" / "maze" / "latents").iterdir())
    assert not np.array_equal(labels(100), first)  # Of others, as many, with the same last one.
    for file in set((tmp_path / "data" / "maze" / "latents").iterdir()) - before:
        file.unlink()
    (file,) = (tmp_path / "data" / "maze" / "latents").glob("*.npy")
    whole = file.read_bytes()
    content = {
        "empty": b"",
        "cut": whole[:-100],
        "longer": whole + b"more",
        "header": b"x" + whole[1:],
    }
    if damage in content:
        file.write_bytes(content[damage])
    else:
        np.save(file, first[:50] if damage == "shape" else first.astype(np.float32))
    with pytest.raises(CorruptDataError, match=rf"{file} is damaged: delete it"):
        labels()
    file.unlink()
    np.testing.assert_array_equal(labels(), first)
