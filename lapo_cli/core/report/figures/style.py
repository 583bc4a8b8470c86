"""What all figures share: colours with markers, and how axes become a PNG file or an SVG for a page."""

import io
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib

from lapo_cli.core.files import atomic_path

Axes = Any
Draw = Callable[[Axes], None]
"""Draws one panel."""

# Okabe and Ito's palette, which is told apart without full colour vision, without the yellow that white swallows.
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "*")
# Stand-ins for colours that differ between light and dark pages; as they are, they suit a PNG on white.
INK, FAINT = "#222426", "#8a8d91"
_ON_PAGES = {INK: "var(--ink)", FAINT: "var(--faint)"}

_SETTINGS: dict[str, Any] = {
    "text.parse_math": False,  # A name with two dollar signs is no formula.
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 9.5,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "grid.color": FAINT,
    "legend.frameon": False,
    "legend.fontsize": 9,
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), INK),
}
_UNUSED_ID = re.compile(r' id="(?!fig-)[^"]*"')


def color(index: int) -> str:
    """The colour of series number ``index``."""
    return COLORS[index % len(COLORS)]


def marker(index: int) -> str:
    """Its marker; colour and marker together repeat after thirty."""
    return MARKERS[index % len(MARKERS)]


def legend_below(axes: Axes, columns: int = 2, **options: Any) -> None:
    """A legend half an inch below the axes, where it covers no data; none without labels."""
    if axes.get_legend_handles_labels()[0]:
        height = axes.get_position().height * axes.figure.get_figheight()
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.52 / height), ncols=columns, **options)


def svg(draw: Draw, name: str, *, width: float = 4.3, height: float = 3.0) -> str:
    """One panel as an SVG element for an HTML page, whose text is text and follows the page's colours.

    Args:
        draw: the figure, with its data.
        name: unique in the page; the identifiers within the SVG begin with it.
        width, height: inches.
    """
    with _figure(1, 1, width, height) as (figure, grid), matplotlib.rc_context({"svg.hashsalt": name}):
        draw(grid[0][0])
        text = io.StringIO()
        figure.savefig(text, format="svg", transparent=True, bbox_inches="tight", metadata={"Date": None}, dpi=110)
    content = text.getvalue()
    content = content[content.index("<svg") :]
    content = re.sub(r"<metadata>.*?</metadata>", "", content, flags=re.DOTALL)
    used = set(re.findall(r'(?:url\(|href=")#([^")]+)', content))
    for number, identifier in enumerate(sorted(used)):
        content = re.sub(rf'(id="|#){re.escape(identifier)}(?=["\)])', rf"\1fig-{name}-{number}", content)
    content = _UNUSED_ID.sub("", content)
    for mine, of_page in _ON_PAGES.items():
        content = content.replace(mine, of_page)
    # The page sets its size.
    return re.sub(r'<svg ([^>]*?)(?:height|width)="[^"]*pt" ([^>]*?)(?:height|width)="[^"]*pt"', r"<svg \1\2", content)


def png(file: Path, panels: Sequence[tuple[str, Draw]]) -> Path:
    """Write titled panels side by side into a PNG file; returns it."""
    across = min(4, len(panels))
    down = -(-len(panels) // across)
    with _figure(down, across, 6.4 * across, 4.2 * down) as (figure, grid):
        cells = [cell for row in grid for cell in row]
        for axes, (title, draw) in zip(cells, panels, strict=False):
            draw(axes)
            axes.set_title(title)
        for axes in cells[len(panels) :]:
            axes.set_visible(False)
        figure.tight_layout()
        with atomic_path(file) as temporary:
            figure.savefig(temporary, dpi=120, bbox_inches="tight")
    return file


@contextmanager
def _figure(down: int, across: int, width: float, height: float) -> Iterator[tuple[Any, Any]]:
    """A figure without a window, in the style of all figures, and its axes, row by row."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_SETTINGS):  # type: ignore[arg-type]
        figure = Figure(figsize=(width, height))
        FigureCanvasAgg(figure)
        yield figure, figure.subplots(down, across, squeeze=False)
