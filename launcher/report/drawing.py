"""Small figures as inline SVG that follow the page's colours, light or dark, and its font.

Figures are drawn in placeholder colours, which the SVG replaces by the page's CSS variables.
"""

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from launcher.errors import MissingToolError

INK, FAINT, PAPER = "#010101", "#020202", "#030303"
SERIES = ("#040401", "#040402", "#040403", "#040404", "#040405", "#040406")
_VARIABLES = {INK: "--ink-soft", FAINT: "--line", PAPER: "--card"}
_VARIABLES |= {color: f"--series-{number}" for number, color in enumerate(SERIES, 1)}

_WIDTH, _HEIGHT = 4.9, 2.75  # inches of 72 points: full width on a phone, without scaling

_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 9.5,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": FAINT,
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "grid.color": FAINT,
    "grid.linewidth": 0.7,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "xtick.minor.size": 0,
    "ytick.minor.size": 0,
    "lines.linewidth": 1.8,
    "lines.solid_capstyle": "round",
    "legend.frameon": False,
    "legend.fontsize": 9,
    "legend.handlelength": 1.1,
    "legend.columnspacing": 1.2,
    "figure.facecolor": "none",
    "figure.constrained_layout.use": True,
}


@dataclass(frozen=True)
class Figure:
    """A drawing with its heading and a one-sentence caption."""

    title: str
    caption: str
    svg: str


class Sheet:
    """A matplotlib figure: draw on `axes`; `svg` is set once the `sheet` context is left."""

    def __init__(self, axes: Any) -> None:
        self.axes = axes
        self.svg = ""

    def legend(self, columns: int = 3) -> None:
        """The names of all series above the axes."""
        handles, labels = self.axes.get_legend_handles_labels()
        if len(handles) > 1:
            self.axes.legend(
                handles,
                labels,
                loc="lower left",
                bbox_to_anchor=(-0.02, 1.0),
                ncols=min(columns, len(handles)),
                borderaxespad=0.2,
            )


@contextmanager
def sheet(name: str, height: float = 1.0) -> Iterator[Sheet]:
    """Opens axes to draw on; `name` must be unique on the page.

    Raises:
        MissingToolError: matplotlib is not installed.
    """
    try:
        import matplotlib
        from matplotlib.figure import Figure as Canvas
    except ImportError as error:
        raise MissingToolError(
            "the report's figures need matplotlib: pip install 'syncbn[report]'"
        ) from error
    # Ids in the SVG are hashes; without a salt, those of two figures on one page could collide.
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": name}):
        canvas = Canvas(figsize=(_WIDTH, _HEIGHT * height))
        opened = Sheet(canvas.add_subplot())
        yield opened
        text = io.StringIO()
        canvas.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    opened.svg = _for_page(text.getvalue())


def _for_page(svg: str) -> str:
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    for color, variable in _VARIABLES.items():
        svg = svg.replace(color, f"var({variable})")
    # var() works in style attributes, not in presentation attributes.
    svg = re.sub(r' (fill|stroke)="(var\([^"]*\))"', r' style="\1: \2"', svg)
    return re.sub(r"\n\s*", "\n", svg)


def number(value: Any) -> float:
    """A number of a journal, NaN for null, which stands for a number that is not finite."""
    return float("nan") if value is None else float(value)
