"""The demo's picture: accuracy against the share of requests escalated, as PNG and as inline SVG.

The style is ``cascade.report.drawing``'s.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from cascade.cli.demo.results import DemoResult
from cascade.report.drawing import (
    CURVE,
    DASHED,
    DOTTED,
    INK,
    ORACLE,
    POINT,
    RANDOM,
    from_the_middle,
    in_axes,
    in_percent,
    new_axes,
    png_bytes,
    svg_element,
    write_labels,
)
from cascade.report.reading import percent

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def png(result: DemoResult) -> bytes:
    """The picture as PNG, 1500 × 900 pixels, white background.

    Raises:
        CascadeError: matplotlib is not installed.
    """
    return png_bytes(_draw(result))


def svg(result: DemoResult) -> str:
    """The picture as an ``<svg>`` element; see ``cascade.report.drawing.svg_element``.

    Raises:
        CascadeError: matplotlib is not installed.
    """
    return svg_element(_draw(result))


def _draw(result: DemoResult) -> Figure:
    figure, axes = new_axes()
    curve = result.curve
    axes.plot(curve.share, curve.oracle, color=ORACLE, linewidth=1.6, linestyle=DASHED)
    axes.plot(curve.share, curve.random, color=RANDOM, linewidth=1.6, linestyle=DOTTED)
    axes.plot(curve.share, curve.accuracy, color=CURVE, linewidth=2.4)
    escalated, accuracy = 1 - result.cascade.local_share, result.cascade.accuracy
    low, high = result.cascade.accuracy_ci
    axes.plot([escalated, escalated], [low, high], color=POINT, linewidth=1.6, zorder=3)
    axes.plot([escalated], [accuracy], "o", color=POINT, markersize=9, zorder=4, markeredgewidth=0)
    in_percent(axes, "x")
    in_percent(axes, "y")
    axes.set_xlim(-0.02, 1.02)
    lowest = min(low, *(float(line.min()) for line in (curve.accuracy, curve.random)))
    highest = max(high, float(curve.oracle.max()))
    space = max(0.1 * (highest - lowest), 0.02)
    axes.set_ylim(lowest - space, highest + space)
    axes.set_xlabel("requests sent to the cloud, least confident first", color=INK)
    axes.set_ylabel("accuracy", color=INK)
    _label(axes, result, escalated, accuracy)
    return figure


def _label(axes: Axes, result: DemoResult, escalated: float, accuracy: float) -> None:
    curve = result.curve
    grid = np.linspace(0, 1, 201)
    oracle, random, ranked = (
        in_axes(axes, grid, np.interp(grid, curve.share, line))
        for line in (curve.oracle, curve.random, curve.accuracy)
    )
    bar = in_axes(axes, np.full(60, escalated), np.linspace(*result.cascade.accuracy_ci, 60))
    point = in_axes(axes, np.array([escalated]), np.array([accuracy]))
    write_labels(
        axes,
        (
            (_this_run(result), POINT, point),
            ("by the device's confidence", CURVE, from_the_middle(ranked)),
            ("oracle: who is right is known", ORACLE, from_the_middle(oracle)),
            ("at random", RANDOM, from_the_middle(random)),
        ),
        (oracle, random, ranked, bar),
    )


def _this_run(result: DemoResult) -> str:
    local, right = percent(result.cascade.local_share, 0), percent(result.cascade.accuracy, 0)
    return f"this run: {local} on the device,\n{right} right"
