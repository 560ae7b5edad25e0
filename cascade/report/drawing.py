"""The style of all pictures: palette, frame, labels beside their lines, PNG and inline SVG.

Drawn by matplotlib without a display. An SVG carries CSS variables instead of colours, so that the
page it is put into decides between light and dark.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from cascade.errors import CascadeError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette (2008): colour-blind people tell it apart; line styles do without colour.
CURVE = "#0072b2"
ORACLE = "#009e73"
POINT = "#d55e00"
RANDOM = "#6b7280"
INK = "#1f2328"
FRAME = "#c9ced6"
_VARIABLES = {
    CURVE: "var(--curve)",
    ORACLE: "var(--oracle)",
    POINT: "var(--point)",
    RANDOM: "var(--muted)",
    INK: "var(--ink)",
    FRAME: "var(--frame)",
}
DASHED, DOTTED = (0, (6, 3)), (0, (1, 2))

WIDTH_IN, HEIGHT_IN = 7.5, 4.5
# Rough size of a character of a label, as shares of the axes.
_CHARACTER_WIDTH, _LINE_HEIGHT = 0.0136, 0.05

Points = NDArray[np.float64]


def new_axes() -> tuple[Figure, Axes]:
    """An empty figure of 7.5 × 4.5 inches in this style.

    Raises:
        CascadeError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise CascadeError(
            "the picture needs matplotlib: pip install 'edge-cloud-cascade[tune]'"
        ) from None
    figure = Figure(figsize=(WIDTH_IN, HEIGHT_IN), layout="constrained")
    axes = figure.add_subplot()
    _frame(axes)
    return figure, axes


def new_panels(rows: int, columns: int) -> tuple[Figure, list[Axes]]:
    """An empty figure 7.5 inches wide with panels in this style, row by row.

    Raises:
        CascadeError: matplotlib is not installed.
    """
    figure, axes = new_axes()
    axes.remove()
    figure.set_size_inches(WIDTH_IN, HEIGHT_IN / 2 * rows)
    panels = [figure.add_subplot(rows, columns, place + 1) for place in range(rows * columns)]
    for panel in panels:
        _frame(panel)
    return figure, panels


def _frame(axes: Axes) -> None:
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(FRAME)
    axes.grid(axis="y", color=FRAME, linewidth=0.6, alpha=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(colors=INK, length=0)


def in_percent(axes: Axes, which: Literal["x", "y"]) -> None:
    """Label an axis of rates in whole percentages."""
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    axis = axes.xaxis if which == "x" else axes.yaxis
    axis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=" %"))
    if which == "y":  # 2.5 % steps would be labelled wrongly
        axis.set_major_locator(MaxNLocator(nbins=8, steps=[1, 2, 5, 10]))


def png_bytes(figure: Figure) -> bytes:
    """The picture as PNG, 1500 pixels wide (× 900 of ``new_axes``), white background."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=200, facecolor="white")
    return buffer.getvalue()


def svg_element(figure: Figure) -> str:
    """The picture as an ``<svg>`` element with a transparent background, coloured by CSS variables.

    It refers to ``--curve --oracle --point --muted --ink --frame``.
    """
    import matplotlib

    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "path", "svg.hashsalt": "cascade"}):
        metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(buffer, format="svg", transparent=True, metadata=metadata)
    text = buffer.getvalue()
    for color, variable in _VARIABLES.items():
        text = text.replace(color, variable)
    # The page names and sizes the picture; a declaration belongs to a file of its own.
    element = text[text.index("<svg") :]
    wide, high = (72 * float(inches) for inches in figure.get_size_inches())
    size = f'width="{wide:g}pt" height="{high:g}pt" '
    return element.replace(size, 'aria-hidden="true" ', 1)


def write_labels(
    axes: Axes, labels: Sequence[tuple[str, str, Points]], taken: Sequence[Points]
) -> None:
    """Write each name beside its line, where there is most room.

    Arguments:
        labels: text, colour, and the points beside one of which it may stand, as shares of the
            axes, shape ``[points, 2]``.
        taken: points that no label should cover, likewise.
    """
    full = list(taken)
    for text, color, anchors in labels:
        center, box = _roomiest(text, anchors, np.concatenate(full))
        full.append(box)
        axes.text(
            *center,
            text,
            color=color,
            transform=axes.transAxes,
            ha="center",
            va="center",
            fontsize=10,
            fontweight="bold",
            linespacing=1.25,
        )


def from_the_middle(line: Points) -> Points:
    """Some of a line's points, the nearest to its middle first, none at its ends."""
    inner = line[10:-10:5]
    return inner[np.argsort(np.abs(inner[:, 0] - 0.5), kind="stable")]


def in_axes(axes: Axes, x: NDArray[np.float64], y: NDArray[np.float64]) -> Points:
    """Points, shape ``[points, 2]``, as shares of the axes."""
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    return np.stack([(x - left) / (right - left), (y - bottom) / (top - bottom)], axis=1)


def _roomiest(text: str, anchors: Points, taken: Points) -> tuple[tuple[float, float], Points]:
    """Centre of the label's best place beside one of ``anchors``, and points that fill its box.

    The best place touches nothing; among those, the nearest to its anchor.
    """
    lines = text.split("\n")
    width = _CHARACTER_WIDTH * max(map(len, lines)) / 2
    height = _LINE_HEIGHT * len(lines) / 2
    best, best_score = (0.5, 0.5), -np.inf
    for x, y in anchors:
        for away in (0.03, 0.05, 0.08, 0.12):
            for across, up in (
                (0, 1),
                (0, -1),
                (1, 0),
                (-1, 0),
                (1, 1),
                (1, -1),
                (-1, 1),
                (-1, -1),
            ):
                center = np.array([x + across * (width + away), y + up * (height + away)])
                inside = min(*(center - (width, height)), *(1 - center - (width, height)))
                gaps = np.maximum(np.abs(taken - center) - (width, height), 0)
                room = float(np.hypot(gaps[:, 0], gaps[:, 1]).min())
                score = min(room, 0.03) + min(0.0, inside) * 10 - 0.1 * away - 0.01 * abs(across)
                if score > best_score:
                    best, best_score = (float(center[0]), float(center[1])), score
    wide, high = np.meshgrid(np.linspace(-width, width, 15), np.linspace(-height, height, 5))
    return best, np.stack([best[0] + wide.ravel(), best[1] + high.ravel()], axis=1)
