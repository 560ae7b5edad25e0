"""Numbers that are counted while a program runs, and their text for Prometheus.

A ``Metric`` is a definition, shared by all that count and by what checks dashboards.
``Instruments`` counts and writes Prometheus' text format 0.0.4 with the standard library alone: a
device needs no client library. The gateway uses ``prometheus_client`` on such definitions
(``cloud.metrics``).
"""

from __future__ import annotations

import math
import re
import threading
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final, Literal

from cascade.errors import InvalidInput

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
OTHER: Final = "other"
"""What a label says of a value that it has no room for."""
NONE: Final = "none"
"""What a label says where there is no value."""

_NAME = re.compile(r"cascade_[a-z][a-z0-9_]*")
_LABEL = re.compile(r"[a-z][a-z_]*")

Labels = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric.

    Arguments:
        name: begins with ``cascade_`` and ends with its unit; a counter's with ``_total``.
        help: what it means, in one line.
        labels: names of its labels, in the order in which values are given.
        buckets: upper bounds of a histogram, rising; without +Inf.

    Raises:
        InvalidInput: the definition breaks one of these rules.
    """

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    help: str
    labels: Labels = ()
    buckets: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise InvalidInput("name", f"{self.name!r} does not begin with cascade_ or is no name")
        if (self.kind == "counter") != self.name.endswith("_total"):
            raise InvalidInput("name", f"{self.name}: counters, and only they, end with _total")
        if bool(self.buckets) != (self.kind == "histogram"):
            raise InvalidInput("buckets", f"of {self.name}: histograms, and only they, have some")
        if list(self.buckets) != sorted(set(self.buckets)) or math.inf in self.buckets:
            raise InvalidInput("buckets", f"of {self.name} are not rising and finite")
        if "\n" in self.help or not all(_LABEL.fullmatch(label) for label in self.labels):
            raise InvalidInput("labels", f"of {self.name} are no names, or its help has two lines")

    @property
    def series(self) -> tuple[str, ...]:
        """The names under which Prometheus finds it."""
        if self.kind != "histogram":
            return (self.name,)
        return tuple(f"{self.name}_{part}" for part in ("bucket", "count", "sum"))


class Instruments:
    """Counts ``metrics``; safe to use from any thread. Metrics without labels start at 0."""

    def __init__(self, metrics: Iterable[Metric]) -> None:
        self._lock = threading.Lock()
        self._values: dict[Metric, dict[Labels, _Value]] = {metric: {} for metric in metrics}
        for metric, series in self._values.items():
            if not metric.labels:
                series[()] = _Value(len(metric.buckets))

    def add(self, metric: Metric, amount: float = 1.0, /, *labels: str) -> None:
        """Count ``amount``, ≥ 0 for counters."""
        with self._lock:
            self._series(metric, labels).sum += amount

    def set(self, metric: Metric, value: float, /, *labels: str) -> None:
        """Set a gauge."""
        with self._lock:
            self._series(metric, labels).sum = value

    def observe(self, metric: Metric, value: float, /, *labels: str) -> None:
        """Put a value into a histogram."""
        with self._lock:
            series = self._series(metric, labels)
            series.sum += value
            series.counts[bisect_left(metric.buckets, value)] += 1

    def forget(self, metric: Metric) -> None:
        """Drop every series of a metric, where what they tell of may have gone."""
        with self._lock:
            self._values[metric].clear()

    def value(self, metric: Metric, /, *labels: str) -> float:
        """What was counted or set so far; of a histogram the number of its values."""
        with self._lock:
            series = self._values[metric].get(labels)
            if series is None:
                return 0.0
            return float(sum(series.counts)) if metric.buckets else series.sum

    def by_label(self, metric: Metric, label: str) -> dict[str, float]:
        """What was counted so far, summed by the values of one label."""
        place = metric.labels.index(label)
        sums: dict[str, float] = {}
        with self._lock:
            for labels, value in self._values[metric].items():
                sums[labels[place]] = sums.get(labels[place], 0.0) + value.sum
        return sums

    def text(self) -> str:
        """All of them in Prometheus' text format."""
        with self._lock:
            return "".join(
                line for metric, series in self._values.items() for line in _lines(metric, series)
            )

    def _series(self, metric: Metric, labels: Labels) -> _Value:
        assert len(labels) == len(metric.labels), metric.name
        series = self._values[metric]
        if labels not in series:
            series[labels] = _Value(len(metric.buckets))
        return series[labels]


class Bounded:
    """Keeps a label from taking ever more values: what there is no room for is called ``other``.

    Arguments:
        allowed: the values that are shown; where none is given, the first ``most`` that come.
    """

    def __init__(self, allowed: Iterable[str] = (), *, most: int = 20) -> None:
        self._known = set(allowed)
        self._room = 0 if self._known else most

    def __call__(self, value: str) -> str:
        """What the label says: ``value``, ``other``, or ``none`` for an empty one."""
        if not value:
            return NONE
        if value not in self._known:
            if len(self._known) >= self._room:
                return OTHER
            self._known.add(value)
        return value


class _Value:
    __slots__ = ("counts", "sum")

    def __init__(self, buckets: int) -> None:
        self.sum = 0.0
        self.counts = [0] * (buckets + 1) if buckets else []


def _lines(metric: Metric, series: Mapping[Labels, _Value]) -> Iterator[str]:
    yield f"# HELP {metric.name} {_escaped(metric.help)}\n# TYPE {metric.name} {metric.kind}\n"
    for labels, value in sorted(series.items()):
        pairs = list(zip(metric.labels, labels, strict=True))
        if not metric.buckets:
            yield f"{metric.name}{_braces(pairs)} {_number(value.sum)}\n"
            continue
        below = 0
        for bound, count in zip((*metric.buckets, math.inf), value.counts, strict=True):
            below += count
            yield f"{metric.name}_bucket{_braces([*pairs, ('le', _number(bound))])} {below}\n"
        yield f"{metric.name}_sum{_braces(pairs)} {_number(value.sum)}\n"
        yield f"{metric.name}_count{_braces(pairs)} {below}\n"


def _braces(pairs: list[tuple[str, str]]) -> str:
    inside = ",".join(f'{name}="{_escaped(value, quotes=True)}"' for name, value in pairs)
    return f"{{{inside}}}" if inside else ""


def _escaped(text: str, *, quotes: bool = False) -> str:
    text = text.replace("\\", r"\\").replace("\n", r"\n")
    return text.replace('"', r"\"") if quotes else text


def _number(value: float) -> str:
    if math.isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    return repr(int(value)) if value == int(value) and abs(value) < 1e15 else repr(value)
