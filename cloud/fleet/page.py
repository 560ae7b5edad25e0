"""A simulation for people: a table, a picture, and one HTML file that needs nothing else.

Everything that comes from data is escaped. The picture's style is ``cascade.report.drawing``'s.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib.resources import files
from string import Template
from typing import TYPE_CHECKING, Final, cast

from cascade.report.drawing import (
    CURVE,
    DASHED,
    INK,
    ORACLE,
    POINT,
    RANDOM,
    in_percent,
    new_panels,
    png_bytes,
    svg_element,
)
from cascade.report.reading import html, percent
from cloud.fleet.figures import FleetResult, RoundFigures

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def _risk(each: RoundFigures) -> str:
    if each.risk is None:
        return "–"
    found, low, high = each.risk
    return f"{100 * found:.1f} ({100 * low:.1f}–{100 * high:.1f}) %"


_RISK: Final = "wrong of kept"
_RISK_OF: Final = {"risk": _RISK, "excess": "only teacher right"}
_RISK_NOTE: Final = {
    "risk": "is the share of wrong answers among those kept",
    "excess": "is the share of all test rows that are kept and wrong though the teacher is right",
}

COLUMNS: Final[tuple[tuple[str, Callable[[RoundFigures], str]], ...]] = (
    ("round", lambda each: str(each.round)),
    ("escalated", lambda each: percent(each.escalation)),
    ("kept, certified", lambda each: percent(each.coverage)),
    ("accuracy", lambda each: percent(each.accuracy)),
    (_RISK, _risk),
    ("end to end", lambda each: percent(each.end_to_end)),
    ("ECE", lambda each: f"{each.ece:.3f}"),
    ("out of scope", lambda each: _share(each.out_of_scope)),
    ("updates", lambda each: str(each.updates) if each.round else "–"),
    ("lost", lambda each: str(sum(each.lost.values())) if each.round else "–"),
    ("KB up, each", lambda each: _kilobytes(each.bytes_up_each)),
    ("KB down", lambda each: _kilobytes(each.bytes_down) if each.round else "–"),
    ("error", lambda each: _number(each.aggregation_error)),
    ("ε", lambda each: _number(each.epsilon)),
    ("candidate", lambda each: each.verdict or "–"),
)
"""Of the table: name, and what stands in a round's row."""


def table(result: FleetResult) -> list[str]:
    """The table as lines of text."""
    rows = [_names(result)]
    rows += [tuple(show(each) for _, show in COLUMNS) for each in result.rounds]
    widths = [max(len(row[place]) for row in rows) for place in range(len(COLUMNS))]
    return [
        "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True))
        for row in rows
    ]


def _names(result: FleetResult) -> tuple[str, ...]:
    risk = _RISK_OF[str(result.plan["target"])]
    return tuple(risk if name == _RISK else name for name, _ in COLUMNS)


def png(result: FleetResult) -> bytes:
    """The picture as PNG.

    Raises:
        CascadeError: matplotlib is not installed.
    """
    return png_bytes(_draw(result))


def html_page(result: FleetResult) -> str:
    """The whole page.

    Raises:
        CascadeError: matplotlib is not installed.
    """
    template = Template(files("cloud.fleet").joinpath("page.html").read_text("utf-8"))
    rows = "".join(
        "<tr>" + "".join(f"<td>{html(show(each))}</td>" for _, show in COLUMNS) + "</tr>\n"
        for each in result.rounds
    )
    return template.substitute(
        summary=html(summary(result)),
        names="".join(f'<th scope="col">{html(name)}</th>' for name in _names(result)),
        rows=rows,
        picture=svg_element(_draw(result)),
        picture_text=html("Six line charts over the rounds; the table has their figures."),
        start=html(_start(result)),
        risk=_risk_note(result),
        refused=html(refusals(result)),
        data=html(result.data),
        bundle=html(f"{result.bundle[0]} ({result.bundle[1][:12]}…)"),
        parts=html(", ".join(f"{name.replace('_', ' ')} {n}" for name, n in result.parts.items())),
        plan="".join(f"<dt>{html(key)}</dt><dd>{html(value)}</dd>" for key, value in _plan(result)),
    )


def summary(result: FleetResult) -> str:
    """What came of it, in a sentence or two."""
    first, last = result.rounds[0], result.rounds[-1]
    plan = result.plan
    kept = "" if result.complete else " The run was ended early."
    if result.ended:
        kept = f" No further round was opened: {result.ended}."
    kept = ran_out(result.lasting, last.round) + kept
    alpha = percent(cast(float, plan["alpha"]), 0)
    promise = f"at most {alpha} wrong among the answers kept"
    if plan["target"] == "excess":
        promise = f"at most {alpha} of all answers wrong that the teacher had right"
    masked = ""
    if plan["masked"]:
        abandoned = sum(each.verdict == "abandoned" for each in result.rounds)
        lost = sum(sum(each.lost.values()) for each in result.rounds)
        masked = (
            f" Updates were summed under masks, those of at least {plan['mask_threshold']} devices:"
            f" the cluster learned no device's own; devices lost to a round: {lost}; "
            f"rounds abandoned: {abandoned} of {last.round}."
        )
    private = ""
    if last.epsilon is not None and last.delta is not None:
        private = f" With noise: ε {last.epsilon:.2g} of all rounds, at δ {last.delta:.2g}."
    return (
        f"{plan['devices']} devices, {last.round} rounds: {percent(first.escalation)} of the test "
        f"rows were escalated before the first, {percent(last.escalation)} after the last"
        f"{_certified(result)} {promise}. The device alone was right on {percent(first.accuracy)}, "
        f"then on {percent(last.accuracy)}.{masked}{private}{kept}"
    )


def ran_out(lasting: tuple[int, int], rounds: int) -> str:
    """That devices have too few rows for so many rounds, as a sentence; empty where they have
    enough."""
    fewest, most = lasting
    if fewest >= rounds:
        return ""
    span = f"{fewest}" if fewest == most else f"{fewest} to {most}"
    return f" Devices have rows for {span} of the {rounds} rounds, and see nothing new after that."


def _certified(result: FleetResult) -> str:
    """At which thresholds; what they promise stands behind it."""
    without = [str(each.round) for each in result.rounds if each.threshold is None]
    if len(without) == len(result.rounds):
        return ": no threshold could be certified for"
    anew = result.plan["recertify"]
    what = ", at thresholds certified" if anew else ", at the first threshold certified"
    if without:
        what += f" (none could be in round {', '.join(without)})"
    return f"{what} for"


def _start(result: FleetResult) -> str:
    count = result.parts["starting"]
    learned = f", of an adapter that was trained on {count} labelled rows" if count else ""
    return f"Round 0 is before the first round{learned}."


def _risk_note(result: FleetResult) -> str:
    target = str(result.plan["target"])
    return (
        f"<em>{html(_RISK_OF[target].capitalize())}</em> {html(_RISK_NOTE[target])}, with its "
        "95&nbsp;% interval (Wilson)."
    )


def refusals(result: FleetResult) -> str:
    """What did not count, in all rounds."""
    counts: dict[str, int] = {}
    for each in result.rounds:
        for name, value in each.refused.items():
            counts[name] = counts.get(name, 0) + value
    said = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in sorted(counts.items()))
    return f"Refused updates: {said or 'none'}."


def _draw(result: FleetResult) -> Figure:
    figure, panels = new_panels(3, 2)
    shares: tuple[tuple[str, Mapping[str, tuple[str, Sequence[float | None]]]], ...] = (
        (
            "escalated at the certified threshold",
            {
                "test rows": (CURVE, [each.escalation for each in result.rounds]),
                "out of scope": (RANDOM, [each.out_of_scope for each in result.rounds]),
            },
        ),
        ("certified coverage", {"": (ORACLE, [each.coverage for each in result.rounds])}),
        ("accuracy on the device", {"": (CURVE, [each.accuracy for each in result.rounds])}),
        ("calibration error (ECE)", {"": (POINT, [each.ece for each in result.rounds])}),
    )
    numbers = [each.round for each in result.rounds]
    for axes, (title, lines) in zip(panels, shares, strict=False):
        _lines(axes, title, numbers, lines)
        in_percent(axes, "y")
        axes.set_ylim(0, 1.08)
    panels[3].set_ylim(0, max(0.1, 1.2 * max(each.ece for each in result.rounds)))
    _lines(
        panels[4],
        "KB up, each update",
        numbers,
        {"": (CURVE, [_thousands(each.bytes_up_each) for each in result.rounds])},
    )
    spent = [each.epsilon for each in result.rounds]
    if any(each is not None for each in spent):
        _lines(panels[5], "ε of all rounds", numbers, {"": (POINT, spent)})
    else:
        errors = [each.aggregation_error for each in result.rounds]
        _lines(panels[5], "aggregation error, relative", numbers, {"": (POINT, errors)})
    for axes in panels[4:]:
        axes.set_xlabel("round", color=INK)
    return figure


def _lines(
    axes: Axes,
    title: str,
    numbers: Sequence[int],
    lines: Mapping[str, tuple[str, Sequence[float | None]]],
) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.set_title(title, color=INK, fontsize=10, loc="left")
    for place, (name, (color, values)) in enumerate(lines.items()):
        drawn = [(x, y) for x, y in zip(numbers, values, strict=True) if y is not None]
        if not drawn:
            continue
        style = DASHED if place else "-"
        x, y = zip(*drawn, strict=True)
        axes.plot(
            x, y, color=color, linewidth=2, linestyle=style, marker="o", markersize=4, clip_on=False
        )
        if len(lines) > 1:
            axes.annotate(
                name,
                (x[-1], y[-1]),
                (-4, -14 if place else 6),  # lines of one height keep their names apart
                textcoords="offset points",
                color=color,
                ha="right",
            )
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.set_xlim(numbers[0] - 0.2, numbers[-1] + 0.2)
    axes.margins(y=0.2)
    axes.set_ylim(bottom=0)


def _plan(result: FleetResult) -> list[tuple[str, str]]:
    """What was asked for, in words; what is off is left out."""
    plan = result.plan
    partition = cast(Mapping[str, object], plan["partition"])
    attackers = cast(Mapping[str, float], plan["attackers"])
    how = dict(cast(Mapping[str, object], plan["aggregation"]))
    if how["noise_multiplier"] is None:
        del how["delta"]  # of ε, which there is none of
    shown = dict(plan) | {
        "partition": partition["kind"]
        if partition["kind"] != "dirichlet"
        else f"dirichlet:{partition['alpha']}",
        "attackers": f"{attackers['share']}:{attackers['kind']}" if attackers["share"] else None,
        "aggregation": how,
    }
    return [
        (key.replace("_", " "), _worded(value)) for key, value in shown.items() if value is not None
    ]


def _worded(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(
            f"{name.replace('_', ' ')} {_worded(each)}"
            for name, each in value.items()
            if each is not None
        )
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value))
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _share(value: float | None) -> str:
    return "–" if value is None else percent(value)


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.2g}"


def _thousands(value: float | None) -> float | None:
    return None if value is None else value / 1000


def _kilobytes(value: float | None) -> str:
    return "–" if value is None else f"{value / 1000:.1f}"
