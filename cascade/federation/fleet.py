"""What devices report of the adapter that they run, and by what names: counts alone, never text.

A counter is called ``adapter.ID.NAME``, where ID is the start of the adapter's digest, or ``base``
where a device runs none. A *measure* is the share of trials at which something unwanted happened.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from cascade.federation.terms import Histogram

BASE: Final = "base"

REQUESTS: Final = "requests"
ESCALATED: Final = "escalated"
CORRECTED: Final = "corrected"
AUDITED: Final = "audited"
AUDIT_ERRORS: Final = "audit_errors"
LOADS: Final = "loads"
LOAD_FAILURES: Final = "load_failures"
LATENCY: Final = "latency_s"

LATENCY_BOUNDS_S: Final = (0.1, 0.25, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
"""Of the histogram of how long answers took."""

MEASURES: Final[Mapping[str, tuple[str, str]]] = {
    "escalations": (ESCALATED, REQUESTS),
    "corrections": (CORRECTED, REQUESTS),
    "audit_errors": (AUDIT_ERRORS, AUDITED),
    "load_failures": (LOAD_FAILURES, LOADS),
}
"""Counters of events and of trials, by measure; beside these there is ``slower_than(bound)`` for
each of ``LATENCY_BOUNDS_S``."""

ALONE: Final = frozenset({"load_failures"})
"""Measures of which each device speaks once, and which are compared with nothing: the adapter that
ran before is applied nowhere meanwhile."""

_PREFIX: Final = "adapter"
_ID: Final = 16


def short(adapter_digest: str) -> str:
    """The adapter's id in names of counters."""
    return adapter_digest[:_ID] or BASE


def metric(adapter_digest: str, name: str) -> str:
    """A counter's or histogram's name."""
    return f"{_PREFIX}.{short(adapter_digest)}.{name}"


def slower_than(bound_s: float) -> str:
    """The measure of answers that took longer."""
    return f"slower_than_{bound_s:g}"


def measured(
    counters: Iterable[tuple[str, int]], histograms: Iterable[tuple[str, Histogram]]
) -> dict[tuple[str, str], tuple[int, int]]:
    """Trials and events of a report, by the adapter's id and the measure. There may be more events
    than trials: a correction can come in the report after its request's."""
    counts: dict[str, dict[str, int]] = {}
    for name, value in counters:
        if (parsed := _parsed(name)) is not None:
            counts.setdefault(parsed[0], {})[parsed[1]] = value
    found: dict[tuple[str, str], tuple[int, int]] = {}
    for adapter, of in counts.items():
        for measure, (events, trials) in MEASURES.items():
            found[adapter, measure] = of.get(trials, 0), of.get(events, 0)
    for name, each in histograms:
        parsed = _parsed(name)
        if parsed is None or parsed[1] != LATENCY or each.bounds != LATENCY_BOUNDS_S:
            continue
        for place, bound in enumerate(each.bounds):
            above = sum(each.counts[place + 1 :])
            found[parsed[0], slower_than(bound)] = sum(each.counts), above
    return {key: value for key, value in found.items() if any(value)}


def _parsed(name: str) -> tuple[str, str] | None:
    parts = name.split(".")
    return (parts[1], parts[2]) if len(parts) == 3 and parts[0] == _PREFIX else None
