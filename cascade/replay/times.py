"""Quantiles of latencies, with intervals by document.

Not by resampling: little bags are too coarse for a quantile in the tail. Woodruff's interval (1952,
JASA 47:635) takes that of the share below the quantile, linearised over documents, back to values.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from cascade.pair import Pair
from cascade.replay.bootstrap import Interval
from cascade.rows import Bools, Floats

PERCENTS = (50, 95)


def times(rows: Pair, accepted: Bools, documents: NDArray[np.int64]) -> dict[str, Interval]:
    """p50 and p95 by the names of ``UNITS``; those that were not measured are left out.

    Arguments:
        accepted: which local answers are kept, shape ``[rows]``.
        documents: the number of each row's document, shape ``[rows]``.
    """
    up, local = ~accepted, rows.column(rows.local, "latency_s")
    if rows.cloud is None:
        return {} if local is None else quantiles("", local, documents)
    cloud = rows.column(rows.cloud, "latency_s")
    if cloud is None:
        return {}
    found: dict[str, Interval] = {}
    if local is not None:
        both = local + cloud
        found |= quantiles("", np.where(up, both, local), documents)
        found |= quantiles("escalated_", both[up], documents[up])
    found |= quantiles("cloud_only_", cloud, documents)
    return found | quantiles("escalated_cloud_only_", cloud[up], documents[up])


def quantiles(name: str, seconds: Floats, documents: NDArray[np.int64]) -> dict[str, Interval]:
    """Both quantiles of the values that are known."""
    known = ~np.isnan(seconds)
    if not known.all():
        seconds, documents = seconds[known], documents[known]
    sample = _Sample.of(seconds, documents)
    return {f"{name}p{percent}_s": sample.quantile(percent / 100) for percent in PERCENTS}


def quantile_interval(
    values: Floats, documents: NDArray[np.int64], share: float, level: float = 0.95
) -> Interval:
    """A quantile and its interval; NaN without values, no interval with one document.

    Arguments:
        values: shape ``[rows]``; ``documents``: the number of each one's document.
        share: of the values below it, in (0, 1).
    """
    return _Sample.of(values, documents).quantile(share, level)


@dataclass(frozen=True, slots=True, eq=False)
class _Sample:
    """Values of documents, and what every quantile of them needs.

    Arguments:
        values, documents: of each row; ``rising``: the values, sorted.
        many: documents that have a value.
    """

    values: Floats
    documents: NDArray[np.int64]
    rising: Floats
    many: int

    @classmethod
    def of(cls, values: Floats, documents: NDArray[np.int64]) -> _Sample:
        many = int(np.count_nonzero(np.bincount(documents)))
        return cls(values, documents, np.sort(values), many)

    def quantile(self, share: float, level: float = 0.95) -> Interval:
        if not self.many:
            return Interval(math.nan, None, None)
        value = _at(self.rising, share)
        if self.many < 2:
            return Interval(value, None, None)
        excess = np.bincount(self.documents, weights=(self.values <= value) - share)
        error = math.sqrt(float(excess @ excess) * self.many / (self.many - 1)) / len(self.values)
        half = NormalDist().inv_cdf((1 + level) / 2) * error
        low, high = (_at(self.rising, min(1.0, max(0.0, share + each))) for each in (-half, half))
        return Interval(value, low, high)


def _at(rising: Floats, share: float) -> float:
    """As ``numpy.quantile``, of sorted values."""
    place = (len(rising) - 1) * share
    low = int(place)
    first, second = rising[low], rising[min(low + 1, len(rising) - 1)]
    return float(first + (second - first) * (place - low))
