"""The charts of a report as pictures for papers, drawn on all rows. Needs matplotlib."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from cascade.binomial import upper_bound
from cascade.metrics import deferral_curve, wilson_interval
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
    write_labels,
)
from cascade.report.evaluated import Evaluated
from cascade.report.figures import Figures, Rate
from cascade.report.front import FrontPoint, kept_counts
from cascade.report.reading import percent
from cascade.rows import Floats

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_GRID = np.linspace(0, 1, 201)
_SETTLED = 0.1  # bounds of fewer rows than this share would only stretch the picture


def pngs(rows: Evaluated, figures: Figures) -> dict[str, bytes]:
    """The pictures by file name, 1500 × 900 pixels each.

    Raises:
        CascadeError: matplotlib is not installed.
    """
    pictures = {
        "risk-coverage.png": _risk_coverage(rows, figures),
        "reliability.png": _reliability(rows, figures),
    }
    if rows.strong is not None:
        pictures["deferral.png"] = _deferral(rows, figures)
        pictures["front-cost.png"] = _front(figures, [point.cost_usd for point in figures.front])
        waits = [point.p95_latency_s for point in figures.front]
        if None not in waits:
            known = [wait for wait in waits if wait is not None]
            pictures["front-latency.png"] = _front(figures, known, latency=True)
    return pictures


def _deferral(rows: Evaluated, figures: Figures) -> bytes:
    assert rows.strong is not None
    figure, axes = new_axes()
    curve = deferral_curve(rows.score, rows.device.right, rows.strong.right)
    axes.plot(curve.share, curve.oracle, color=ORACLE, linewidth=1.6, linestyle=DASHED)
    axes.plot(curve.share, curve.random, color=RANDOM, linewidth=1.6, linestyle=DOTTED)
    axes.plot(curve.share, curve.accuracy, color=CURVE, linewidth=2.4)
    _limits(axes, [curve.accuracy, curve.random, curve.oracle, *_whisker(figures)])
    axes.set_xlim(-0.02, 1.02)
    in_percent(axes, "x")
    in_percent(axes, "y")
    axes.set_xlabel(
        f"answered by {rows.strong.info.name}, lowest {rows.score_name} first", color=INK
    )
    axes.set_ylabel("accuracy", color=INK)
    lines = [
        in_axes(axes, _GRID, np.interp(_GRID, curve.share, line))
        for line in (curve.accuracy, curve.oracle, curve.random)
    ]
    names = (f"by the {rows.score_name}", "oracle: who is right is known", "at random")
    labels = [
        (name, color, from_the_middle(line))
        for name, color, line in zip(names, (CURVE, ORACLE, RANDOM), lines, strict=True)
    ]
    point = figures.point
    if point is not None and point.accuracy is not None:
        escalated = 1 - point.kept.value - point.unverified.value
        _here(axes, escalated, point.accuracy)
        where = in_axes(axes, np.array([escalated]), np.array([point.accuracy.value]))
        kept, right = percent(point.kept.value, 0), percent(point.accuracy.value, 0)
        text = f"policy: {kept} kept,\n{right} right"
        labels.insert(0, (text, POINT, where))
    write_labels(axes, labels, lines)
    return png_bytes(figure)


def _risk_coverage(rows: Evaluated, figures: Figures) -> bytes:
    figure, axes = new_axes()
    order = np.argsort(-rows.score, kind="stable")
    wrong = np.append(0, np.cumsum(1 - rows.device.right[order])).astype(np.int64)
    kept = kept_counts(rows.score[order])
    kept = kept[kept > 0]
    share, risk = kept / len(rows), wrong[kept] / kept
    bound = np.array([upper_bound(int(wrong[k]), int(k), figures.delta) for k in kept])
    settled = share >= _SETTLED
    axes.plot(share, bound, color=POINT, linewidth=1.6, linestyle=DASHED)
    axes.plot(share, risk, color=CURVE, linewidth=2.4)
    tops = [float(bound[settled].max()), figures.alpha or 0.0]
    if figures.alpha is not None:
        axes.axhline(figures.alpha, color=RANDOM, linewidth=1.6, linestyle=DOTTED)
    axes.set_xlim(-0.02, 1.02)
    axes.set_ylim(0, min(1.0, 1.15 * max(*tops, 0.02)))
    in_percent(axes, "x")
    in_percent(axes, "y")
    axes.set_xlabel("answers kept on the device", color=INK)
    axes.set_ylabel("share of these that is wrong", color=INK)
    lines = [in_axes(axes, _GRID, np.interp(_GRID, share, line)) for line in (risk, bound)]
    level = percent(1 - figures.delta, 0)
    labels = [
        ("observed", CURVE, from_the_middle(lines[0])),
        (f"bound at {level}, each threshold alone", POINT, from_the_middle(lines[1])),
    ]
    if figures.alpha is not None:
        lines.append(in_axes(axes, _GRID, np.full(201, figures.alpha)))
        name = f"certified target, {percent(figures.alpha)}"
        labels.append((name, RANDOM, from_the_middle(lines[2])))
    if figures.point is not None and figures.point.risk is not None:
        x, y = figures.point.kept.value, figures.point.risk.value
        axes.plot([x], [y], "o", color=POINT, markersize=9, zorder=4, markeredgewidth=0)
    write_labels(axes, labels, lines)
    return png_bytes(figure)


def _reliability(rows: Evaluated, figures: Figures) -> bytes:
    figure, axes = new_axes()
    filled = [bar for bar in figures.reliability if bar.count]
    for bar in filled:
        height = bar.count / figures.n
        axes.bar(bar.lower, height, bar.upper - bar.lower, align="edge", color=CURVE, alpha=0.15)
        ends = wilson_interval(round(bar.accuracy * bar.count), bar.count)
        axes.plot([bar.confidence] * 2, ends, color=CURVE, linewidth=1.6)
    axes.plot([0, 1], [0, 1], color=RANDOM, linewidth=1.6, linestyle=DOTTED)
    confidences = [bar.confidence for bar in filled]
    axes.plot(confidences, [bar.accuracy for bar in filled], "o-", color=CURVE, linewidth=2.4)
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1.02)
    in_percent(axes, "y")
    axes.set_xlabel(f"{rows.score_name}; bars: share of the {figures.n:,} rows", color=INK)
    axes.set_ylabel("share that is right", color=INK)
    return png_bytes(figure)


def _front(figures: Figures, across: list[float], *, latency: bool = False) -> bytes:
    figure, axes = new_axes()
    scale = 1.0 if latency else 1000.0
    placed = [(scale * x, point) for x, point in zip(across, figures.front, strict=True)]
    curve = [(x, point.accuracy) for x, point in placed if not point.tier]
    axes.plot(*zip(*curve, strict=True), color=CURVE, linewidth=1.6, alpha=0.6)
    good = [(x, point.accuracy) for x, point in placed if not point.tier and point.efficient]
    if good:
        axes.plot(*zip(*good, strict=True), "o", color=CURVE, markersize=4)
    alone: list[tuple[float, FrontPoint]] = [(x, point) for x, point in placed if point.tier]
    for x, point in alone:
        axes.plot([x], [point.accuracy], "s", color="white", markeredgecolor=INK, markersize=9)
    here = figures.point
    if here is not None and here.accuracy is not None:
        place = here.p95_latency_s if latency else 1000 * here.cost_usd
        if place is not None:
            _here(axes, place, here.accuracy)
    accuracies = np.array([point.accuracy for point in figures.front])
    _limits(axes, [accuracies, *_whisker(figures)])
    axes.margins(x=0.08)
    in_percent(axes, "y")
    assumed = "" if figures.basis == "recorded" else ", at an assumed price"
    name = "95th percentile of the latency, s" if latency else f"US$ for 1,000 requests{assumed}"
    axes.set_xlabel(name, color=INK)
    axes.set_ylabel("accuracy", color=INK)
    xs, ys = (np.array(values) for values in zip(*curve, strict=True))
    labels = [
        (f"{point.tier} alone", INK, in_axes(axes, np.array([x]), np.array([point.accuracy])))
        for x, point in alone
    ]
    write_labels(axes, labels, [in_axes(axes, xs, ys)])
    return png_bytes(figure)


def _here(axes: Axes, x: float, accuracy: Rate) -> None:
    """The policy's threshold, with the interval of its accuracy."""
    axes.plot([x, x], accuracy.interval, color=POINT, linewidth=1.6, zorder=3)
    axes.plot([x], [accuracy.value], "o", color=POINT, markersize=9, zorder=4, markeredgewidth=0)


def _whisker(figures: Figures) -> list[Floats]:
    if figures.point is None or figures.point.accuracy is None:
        return []
    return [np.array(figures.point.accuracy.interval)]


def _limits(axes: Axes, lines: list[Floats]) -> None:
    """Room above and below."""
    low, high = min(line.min() for line in lines), max(line.max() for line in lines)
    space = max(0.1 * (high - low), 0.02)
    axes.set_ylim(low - space, high + space)
