"""The picture: accuracy against the share of requests escalated, as PNG and as inline SVG.

Drawn by matplotlib without a display. The SVG carries CSS variables instead of colours, so that the
page it is put into decides between light and dark.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from cascade.cli.demo.results import DemoResult
from cascade.cli.demo.wording import percent
from cascade.errors import CascadeError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette (2008): colour-blind people tell it apart; line styles do without colour.
_CURVE = "#0072b2"
_ORACLE = "#009e73"
_POINT = "#d55e00"
_RANDOM = "#6b7280"
_INK = "#1f2328"
_FRAME = "#c9ced6"
_VARIABLES = {
    _CURVE: "var(--curve)",
    _ORACLE: "var(--oracle)",
    _POINT: "var(--point)",
    _RANDOM: "var(--muted)",
    _INK: "var(--ink)",
    _FRAME: "var(--frame)",
}

_WIDTH_IN, _HEIGHT_IN = 7.5, 4.5
# Rough size of a character of a label, as shares of the axes.
_CHARACTER_WIDTH, _LINE_HEIGHT = 0.0136, 0.05


def png(result: DemoResult) -> bytes:
    """The picture as PNG, 1500 × 900 pixels, white background.

    Raises:
        CascadeError: matplotlib is not installed.
    """
    buffer = io.BytesIO()
    _draw(result).savefig(buffer, format="png", dpi=200, facecolor="white")
    return buffer.getvalue()


def svg(result: DemoResult) -> str:
    """The picture as an ``<svg>`` element with a transparent background, coloured by CSS variables.

    It refers to ``--curve --oracle --point --muted --ink --frame``.

    Raises:
        CascadeError: matplotlib is not installed.
    """
    figure = _draw(result)
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
    size = f'width="{72 * _WIDTH_IN:g}pt" height="{72 * _HEIGHT_IN:g}pt" '
    return element.replace(size, 'aria-hidden="true" ', 1)


def _draw(result: DemoResult) -> Figure:
    try:
        from matplotlib.figure import Figure
        from matplotlib.ticker import MaxNLocator, PercentFormatter
    except ImportError:
        raise CascadeError(
            "the picture needs matplotlib: pip install 'edge-cloud-cascade[tune]'"
        ) from None
    figure = Figure(figsize=(_WIDTH_IN, _HEIGHT_IN), layout="constrained")
    axes = figure.add_subplot()
    curve = result.curve
    axes.plot(curve.share, curve.oracle, color=_ORACLE, linewidth=1.6, linestyle=(0, (6, 3)))
    axes.plot(curve.share, curve.random, color=_RANDOM, linewidth=1.6, linestyle=(0, (1, 2)))
    axes.plot(curve.share, curve.accuracy, color=_CURVE, linewidth=2.4)
    escalated, accuracy = 1 - result.cascade.local_share, result.cascade.accuracy
    low, high = result.cascade.accuracy_ci
    axes.plot([escalated, escalated], [low, high], color=_POINT, linewidth=1.6, zorder=3)
    axes.plot([escalated], [accuracy], "o", color=_POINT, markersize=9, zorder=4, markeredgewidth=0)
    _frame(axes)
    axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=" %"))
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=" %"))
    # Ticks at whole percentages: 2.5 % steps would be labelled wrongly.
    axes.yaxis.set_major_locator(MaxNLocator(nbins=8, steps=[1, 2, 5, 10]))
    axes.set_xlim(-0.02, 1.02)
    lowest = min(low, *(float(line.min()) for line in (curve.accuracy, curve.random)))
    highest = max(high, float(curve.oracle.max()))
    space = max(0.1 * (highest - lowest), 0.02)
    axes.set_ylim(lowest - space, highest + space)
    axes.set_xlabel("requests sent to the cloud, least confident first", color=_INK)
    axes.set_ylabel("accuracy", color=_INK)
    _label(axes, result, escalated, accuracy)
    return figure


def _frame(axes: Axes) -> None:
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(_FRAME)
    axes.grid(axis="y", color=_FRAME, linewidth=0.6, alpha=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(colors=_INK, length=0)


def _label(axes: Axes, result: DemoResult, escalated: float, accuracy: float) -> None:
    """Write each name beside its line, where there is most room."""
    curve = result.curve
    grid = np.linspace(0, 1, 201)
    lines = {
        color: _in_axes(axes, grid, np.interp(grid, curve.share, line))
        for color, line in (
            (_ORACLE, curve.oracle),
            (_RANDOM, curve.random),
            (_CURVE, curve.accuracy),
        )
    }
    bar = np.linspace(*result.cascade.accuracy_ci, 60)
    taken = [*lines.values(), _in_axes(axes, np.full(60, escalated), bar)]
    point = _in_axes(axes, np.array([escalated]), np.array([accuracy]))
    for text, color, anchors in (
        (_this_run(result), _POINT, point),
        ("by the device's confidence", _CURVE, _from_the_middle(lines[_CURVE])),
        ("oracle: who is right is known", _ORACLE, _from_the_middle(lines[_ORACLE])),
        ("at random", _RANDOM, _from_the_middle(lines[_RANDOM])),
    ):
        center, box = _roomiest(text, anchors, np.concatenate(taken))
        taken.append(box)
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


def _this_run(result: DemoResult) -> str:
    local, right = percent(result.cascade.local_share, 0), percent(result.cascade.accuracy, 0)
    return f"this run: {local} on the device,\n{right} right"


def _from_the_middle(line: NDArray[np.float64]) -> NDArray[np.float64]:
    """Some of a line's points, the nearest to its middle first, none at its ends."""
    inner = line[10:-10:5]
    return inner[np.argsort(np.abs(inner[:, 0] - 0.5), kind="stable")]


def _in_axes(axes: Axes, x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    """Points, shape ``[points, 2]``, as shares of the axes."""
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    return np.stack([(x - left) / (right - left), (y - bottom) / (top - bottom)], axis=1)


def _roomiest(
    text: str, anchors: NDArray[np.float64], taken: NDArray[np.float64]
) -> tuple[tuple[float, float], NDArray[np.float64]]:
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
