"""Sprite sheets keep every pixel."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lapo_cli.core.errors import CorruptDataError
from lapo_cli.core.evaluation import sheets


@settings(max_examples=15)
@given(count=st.integers(1, 40), height=st.integers(1, 9), width=st.sampled_from([1, 7, 96]), seed=st.integers(0, 99))
def test_cells_come_back_as_they_were(count: int, height: int, width: int, seed: int) -> None:
    cells = np.random.default_rng(seed).integers(0, 256, (count, height, width, 3), np.uint8)
    assert np.array_equal(sheets.decode(sheets.encode(cells), count, height, width), cells)


def test_a_row_ends_before_a_webp_would_be_too_wide() -> None:
    cells = np.zeros((300, 2, 96, 3), np.uint8)
    cells[:, 0, 0, 0] = np.arange(300) % 251
    assert sheets.columns(300, 96) < 300
    assert np.array_equal(sheets.decode(sheets.encode(cells), 300, 2, 96), cells)


def test_large_frames_lose_pixels_and_files_that_were_altered_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "a.webp"
    about = sheets.write(file, np.zeros((2, 210, 160, 3), np.uint8))
    assert about["size"] == (70, 54)
    assert sheets.read(file, about).shape == (2, 70, 54, 3)
    with pytest.raises(CorruptDataError):
        sheets.decode(file.read_bytes(), 3, 70, 54)
    file.write_bytes(file.read_bytes() + b"x")
    with pytest.raises(CorruptDataError, match="missing or damaged"):
        sheets.read(file, about)
