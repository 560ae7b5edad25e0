"""Figures that describe a cascade: intervals of rates, the deferral curve, ranking and calibration.

All of it is arithmetic on checked arrays, numpy alone (``clopper_pearson_interval`` alone needs
scipy). Guarantees are ``cascade.certify``. Rows with equal confidence are treated as if their order
were drawn at random, in expectation: no figure depends on the order in which rows are given.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike

from cascade.binomial import check_counts, check_level, clopper_pearson_interval
from cascade.errors import InvalidInput
from cascade.rows import Bools, Floats, labelled, numbers, outcomes, same_length

__all__ = [
    "Bin",
    "DeferralCurve",
    "PairedDifference",
    "aiq",
    "aurc",
    "auroc",
    "brier",
    "clopper_pearson_interval",
    "deferral_curve",
    "ece",
    "paired_difference",
    "percentile",
    "reliability",
    "wilson_interval",
]


def wilson_interval(successes: int, trials: int, level: float = 0.95) -> tuple[float, float]:
    """Score interval of a rate (Wilson 1927), within [0, 1].

    Arguments:
        successes, trials: counts, 0 ≤ successes ≤ trials, trials ≥ 1.
        level: confidence level in (0, 1).

    Raises:
        InvalidInput: counts or level out of range.
    """
    check_counts(successes, trials)
    z = _normal_quantile(level)
    rate, shrink = successes / trials, 1 + z * z / trials
    center = (rate + z * z / (2 * trials)) / shrink
    spread = z / shrink * math.sqrt(rate * (1 - rate) / trials + (z / (2 * trials)) ** 2)
    # Exact at the ends, where rounding would leave a dust of 1e-17.
    lower = 0.0 if successes == 0 else max(0.0, center - spread)
    upper = 1.0 if successes == trials else min(1.0, center + spread)
    return lower, upper


@dataclass(frozen=True, slots=True)
class PairedDifference:
    """Difference of two accuracies on the same rows.

    Arguments:
        difference: accuracy of the first minus that of the second, in [-1, 1].
        interval: its confidence interval, within [-1, 1].
        only_first, only_second: rows that one alone got right.
        n: rows.
    """

    difference: float
    interval: tuple[float, float]
    only_first: int
    only_second: int
    n: int


def paired_difference(first: ArrayLike, second: ArrayLike, level: float = 0.95) -> PairedDifference:
    """Accuracy of ``first`` minus accuracy of ``second``, with Tango's score interval.

    Tango 1998, Statistics in Medicine 17:891-908: all differences whose score test, with the
    nuisance parameter at its restricted maximum likelihood, is not rejected. It holds its level at
    small samples and few discordant pairs, where Wald's interval does not (Fagerland et al. 2014).

    Arguments:
        first, second: whether each answer was right, bool or 0/1, shapes ``[rows]``, same rows.
        level: confidence level in (0, 1).

    Raises:
        InvalidInput: bad shapes or values, different lengths, or level out of range.
    """
    one, two = outcomes("first", first), outcomes("second", second)
    same_length("first", one, "second", two)
    z = _normal_quantile(level)
    n, only_one, only_two = len(one), int(np.sum(one & ~two)), int(np.sum(~one & two))
    observed = (only_one - only_two) / n

    def score(delta: float) -> float:
        return _tango_score(only_one, only_two, n, delta)

    lower = -1.0 if only_two == n else _root(lambda d: score(d) - z, -1.0, observed)
    upper = 1.0 if only_one == n else _root(lambda d: score(d) + z, observed, 1.0)
    return PairedDifference(observed, (lower, upper), only_one, only_two, n)


@dataclass(frozen=True, slots=True)
class DeferralCurve:
    """Accuracy against the share of rows escalated, the least confident first.

    Arguments:
        share: 0, 1/n … 1, float64, shape ``[rows + 1]``.
        accuracy: of the cascade that escalates that share, same shape.
        random: the same when rows are escalated at random: a straight line.
        oracle: the same by who is right: first what only the remote model gets right, last what
            only the local one does.
    """

    share: Floats
    accuracy: Floats
    random: Floats
    oracle: Floats

    @property
    def auc(self) -> float:
        """Area under ``accuracy`` over share 0 … 1 (trapezoids), in [0, 1]."""
        return _area(self.accuracy, self.share)

    @property
    def normalised_auc(self) -> float | None:
        """(AUC - random) / (oracle - random): 1 is the oracle, 0 is chance, below 0 is worse.

        None where the order cannot matter: neither model is right alone on any row.
        """
        chance, best = _area(self.random, self.share), _area(self.oracle, self.share)
        if best - chance < 1e-12:
            return None
        return (self.auc - chance) / (best - chance)

    @property
    def gap_recovered(self) -> Floats | None:
        """PGR at every share: (accuracy - weak) / (strong - weak), the share of the gap between the
        two models that is won back (RouteLLM: Ong et al. 2024, arXiv 2406.18665).

        Above 1 where the cascade is better than the strong model. None where that is no better than
        the weak one: then there is no gap.
        """
        gap = self.accuracy[-1] - self.accuracy[0]
        if gap < 1e-12:
            return None
        recovered: Floats = (self.accuracy - self.accuracy[0]) / gap
        return recovered

    @property
    def apgr(self) -> float | None:
        """Area under PGR over share 0 … 1 (arXiv 2406.18665); 0.5 for random order."""
        recovered = self.gap_recovered
        return None if recovered is None else _area(recovered, self.share)

    def call_share(self, recovered: float) -> float | None:
        """CPT: the smallest share to escalate at which PGR reaches ``recovered``, e.g. 0.5.

        The first crossing, not an interpolation: the curve need not rise. None without a gap, and
        for more than the curve ever reaches.
        """
        curve = self.gap_recovered
        return None if curve is None else _first_reaching(curve, self.share, recovered)

    def share_to_match(self, accuracy: float) -> float | None:
        """Handoff-to-match: the smallest share to escalate at which the cascade is as accurate as a
        named model, whose ``accuracy`` on the same rows this is; None if it never is."""
        return _first_reaching(self.accuracy, self.share, accuracy)


def deferral_curve(
    confidence: ArrayLike, local_correct: ArrayLike, remote_correct: ArrayLike
) -> DeferralCurve:
    """The deferral curve, with random and oracle order beside it.

    Arguments:
        confidence: of the local answers, in [0, 1], shape ``[rows]``.
        local_correct, remote_correct: whether each was right, bool or 0/1, shapes ``[rows]``.

    Raises:
        InvalidInput: bad shapes or values, NaN, or different lengths.
    """
    floats, local = labelled(confidence, local_correct)
    remote = outcomes("remote_correct", remote_correct)
    same_length("confidence", floats, "remote_correct", remote)
    gain = remote.astype(np.float64) - local.astype(np.float64)
    share = np.arange(len(gain) + 1) / len(gain)

    def accuracy(gains: Floats) -> Floats:
        climbed: Floats = local.mean() + np.append(0.0, np.cumsum(gains)) / len(gain)
        return climbed

    return DeferralCurve(
        share=share,
        accuracy=accuracy(_ordered_by(floats, gain)),
        random=accuracy(np.full(len(gain), gain.mean())),
        oracle=accuracy(np.sort(gain)[::-1]),
    )


def aurc(confidence: ArrayLike, correct: ArrayLike) -> float:
    """Area under the risk-coverage curve: mean over k of the error among the k most confident.

    Geifman and El-Yaniv 2017, arXiv 1705.08500. In [0, 1]; lower is better.

    Arguments:
        confidence: in [0, 1], shape ``[rows]``.
        correct: bool or 0/1, shape ``[rows]``.

    Raises:
        InvalidInput: bad shapes or values, NaN, or different lengths.
    """
    floats, right = labelled(confidence, correct)
    wrong = _ordered_by(-floats, (~right).astype(np.float64))
    return float(np.mean(np.cumsum(wrong) / np.arange(1, len(wrong) + 1)))


def auroc(confidence: ArrayLike, correct: ArrayLike) -> float:
    """P(a right answer is more confident than a wrong one), ties counted half, in [0, 1].

    By midranks (Mann and Whitney 1947). Arguments are those of ``aurc``.

    Raises:
        InvalidInput: bad shapes or values, NaN, different lengths, or answers of one kind alone.
    """
    floats, right = labelled(confidence, correct)
    hits = int(right.sum())
    misses = len(right) - hits
    if not hits or not misses:
        raise InvalidInput("correct", "needs right and wrong answers, else there is no ranking")
    _, place, counts = np.unique(floats, return_inverse=True, return_counts=True)
    midranks = np.cumsum(counts) - (counts - 1) / 2
    rank_sum = float(midranks[place][right].sum())
    return (rank_sum - hits * (hits + 1) / 2) / (hits * misses)


@dataclass(frozen=True, slots=True)
class Bin:
    """One bar of a reliability diagram: rows with confidence in [lower, upper).

    The last bin includes 1. An empty bin has ``count`` 0 and NaN for both means.

    Arguments:
        lower, upper: edges in [0, 1].
        count: rows.
        confidence: mean confidence of these.
        accuracy: share of them that is right.
    """

    lower: float
    upper: float
    count: int
    confidence: float
    accuracy: float


def reliability(confidence: ArrayLike, correct: ArrayLike, bins: int = 10) -> tuple[Bin, ...]:
    """Bins of equal width over [0, 1], lowest first. Arguments are those of ``aurc``.

    Raises:
        InvalidInput: bad shapes or values, NaN, different lengths, or ``bins`` below 1.
    """
    floats, right = labelled(confidence, correct)
    if bins < 1:
        raise InvalidInput("bins", f"{bins} is below 1")
    edges = np.linspace(0, 1, bins + 1)
    place = np.searchsorted(edges[1:-1], floats, side="right")
    return tuple(
        _bin(float(edges[i]), float(edges[i + 1]), floats[place == i], right[place == i])
        for i in range(bins)
    )


def ece(confidence: ArrayLike, correct: ArrayLike, bins: int = 10) -> float:
    """Expected calibration error: mean |accuracy - confidence| of the bins, by count, in [0, 1].

    Guo et al. 2017, arXiv 1706.04599, eq. 3. Arguments and errors are those of ``reliability``.
    """
    diagram = [bar for bar in reliability(confidence, correct, bins) if bar.count]
    total = sum(bar.count for bar in diagram)
    return sum(bar.count * abs(bar.accuracy - bar.confidence) for bar in diagram) / total


def brier(confidence: ArrayLike, correct: ArrayLike) -> float:
    """Mean squared difference of confidence and outcome (Brier 1950), in [0, 1]; lower is better.

    Arguments and errors are those of ``aurc``.
    """
    floats, right = labelled(confidence, correct)
    return float(np.mean((floats - right) ** 2))


def aiq(cost: ArrayLike, performance: ArrayLike, max_cost: float | None = None) -> float | None:
    """Average improvement in quality of a router with several settings (RouterBench: Hu et al.
    2024, arXiv 2403.12031).

    The area under the non-decreasing convex hull of (cost, performance), from the cheapest setting
    to ``max_cost``, beyond the last point flat; over ``max_cost``. RouterBench divides by the range
    of costs instead, which is the same where the cheapest setting is free.

    Arguments:
        cost: of each setting, ≥ 0, in one unit, shape ``[settings]``.
        performance: of each, shape ``[settings]``.
        max_cost: common to the systems that are compared, at least every cost; by default the
            largest cost here.

    Returns:
        None where the largest cost is 0: there is no axis.

    Raises:
        InvalidInput: bad shapes, NaN, a negative cost, or one above ``max_cost``.
    """
    costs, quality = numbers("cost", cost), numbers("performance", performance)
    same_length("cost", costs, "performance", quality)
    if not (np.isfinite(costs).all() and np.isfinite(quality).all() and costs.min() >= 0):
        raise InvalidInput("cost", "and performance must be finite, and no cost below 0")
    end = float(costs.max()) if max_cost is None else max_cost
    if costs.max() > end:
        raise InvalidInput("max_cost", f"{end:g} is below a cost, {costs.max():g}")
    if end <= 0:
        return None
    x, y = _upper_hull(costs, quality)
    area = float(np.trapezoid(y, x)) + float(y[-1]) * (end - float(x[-1]))
    return area / end


def percentile(values: ArrayLike, percent: float) -> float:
    """The value below which ``percent`` % lie, interpolated between neighbours, in their own unit.

    Arguments:
        values: finite numbers, shape ``[rows]``, at least one.
        percent: 0 … 100.

    Raises:
        InvalidInput: no values, NaN or infinite ones, a wrong shape, or percent out of range.
    """
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or not len(array) or not np.isfinite(array).all():
        raise InvalidInput("values", "must be a one-dimensional array of finite numbers, not empty")
    if not 0 <= percent <= 100:
        raise InvalidInput("percent", f"{percent} is not in 0 … 100")
    return float(np.percentile(array, percent))


def _normal_quantile(level: float) -> float:
    check_level("level", level)
    return NormalDist().inv_cdf((1 + level) / 2)


def _tango_score(only_one: int, only_two: int, n: int, delta: float) -> float:
    """Score statistic for a true difference ``delta`` (Tango 1998, §2); falls in delta."""
    b = -only_one - only_two + (2 * n - only_one + only_two) * delta
    c = -only_two * delta * (1 - delta)
    # Restricted maximum likelihood of P(only the second is right).
    rate = (math.sqrt(max(0.0, b * b - 8 * n * c)) - b) / (4 * n)
    variance = n * (2 * rate + delta * (1 - delta))
    distance = only_one - only_two - n * delta
    if variance <= 0:
        return 0.0 if distance == 0 else math.copysign(math.inf, distance)
    return distance / math.sqrt(variance)


def _root(falling: Callable[[float], float], low: float, high: float) -> float:
    """Where a falling function crosses zero, to 1e-12, by bisection."""
    while high - low > 1e-12:
        middle = (low + high) / 2
        low, high = (middle, high) if falling(middle) > 0 else (low, middle)
    return (low + high) / 2


def _ordered_by(key: Floats, values: Floats) -> Floats:
    """``values`` by rising ``key``; each run of equal keys is replaced by its mean."""
    _, place, counts = np.unique(key, return_inverse=True, return_counts=True)
    means = np.bincount(place, weights=values) / counts
    return np.repeat(means, counts)


def _first_reaching(height: Floats, share: Floats, wanted: float) -> float | None:
    reached = height >= wanted - 1e-12
    return float(share[np.argmax(reached)]) if reached.any() else None


def _upper_hull(x: Floats, y: Floats) -> tuple[Floats, Floats]:
    """The upper convex hull, by rising x (Andrew 1979), cut at its highest point."""
    hull: list[tuple[float, float]] = []
    order = np.lexsort((-y, x))
    for c in zip(x[order].tolist(), y[order].tolist(), strict=True):
        if hull and c[0] == hull[-1][0]:
            continue  # the best of one cost came first
        while len(hull) >= 2:
            a, b = hull[-2:]
            if (b[0] - a[0]) * (c[1] - a[1]) < (b[1] - a[1]) * (c[0] - a[0]):
                break  # a right turn: b stays
            hull.pop()
        hull.append(c)
    top = max(range(len(hull)), key=lambda i: hull[i][1])
    xs, ys = zip(*hull[: top + 1], strict=True)
    return np.array(xs), np.array(ys)


def _area(height: Floats, share: Floats) -> float:
    return float(np.trapezoid(height, share))


def _bin(lower: float, upper: float, confidence: Floats, correct: Bools) -> Bin:
    if not len(confidence):
        return Bin(lower, upper, 0, math.nan, math.nan)
    return Bin(lower, upper, len(confidence), float(confidence.mean()), float(correct.mean()))
