"""How evenly the codes of each codebook are used."""

from collections.abc import Sequence

import numpy as np

from lapo_cli.core.report.figures.style import FAINT, Axes, color, legend_below

_STYLES = ("-", "--", "-.", ":")


def draw(axes: Axes, counts: Sequence[Sequence[int]]) -> None:
    """Shares of the codes of every codebook, the most used first; even use would be the dotted line."""
    for book, of_book in enumerate(counts):
        share = np.sort(np.array(of_book, float))[::-1] / max(1, sum(of_book))
        axes.step(
            range(1, len(share) + 1), share, where="mid", color=color(book), linestyle=_STYLES[book % len(_STYLES)],
            label=f"codebook {book + 1}: {np.count_nonzero(share)} of {len(share)} used",
        )  # fmt: skip
    axes.axhline(1 / max(1, max(map(len, counts))), color=FAINT, linestyle=":", label="even use")
    axes.set_ylim(bottom=0)
    axes.set_xlabel("code, most used first")
    axes.set_ylabel("share of held-out frames")
    legend_below(axes, 1)
