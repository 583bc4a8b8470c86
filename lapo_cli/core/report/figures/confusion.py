"""Which true actions the members of each cluster of latent actions have."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from lapo_cli.core.report.figures.style import Axes


def draw(axes: Axes, table: NDArray[np.int64], rows: Sequence[str], columns: Sequence[str]) -> None:
    """Counts (rows, columns) as shares of their rows, written into the cells; columns that never occur are left out."""
    occur = np.flatnonzero(table.sum(0))
    share = table[:, occur] / np.maximum(1, table.sum(1, keepdims=True))
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for (row, column), value in np.ndenumerate(share):
        if value >= 0.005:
            dark = "white" if value > 0.5 else "#10263a"
            axes.text(column, row, f"{100 * value:.0f}", ha="center", va="center", color=dark, fontsize=7)
    axes.set_xticks(range(len(occur)), [columns[i] for i in occur], rotation=45, ha="right", fontsize=7.5)
    axes.set_yticks(range(len(rows)), rows, fontsize=7.5)
    axes.set_xlabel("true action (numbers: % of the row)")
    axes.grid(visible=False)
