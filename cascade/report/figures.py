"""The figures of a report, computed on all rows; the page's own arithmetic is held to them.

The statistics are ``cascade.metrics`` and ``cascade.binomial``. What is here chooses which of them
a reader needs, at which threshold, and for which groups.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from cascade import metrics
from cascade.binomial import clopper_pearson_interval, upper_bound
from cascade.early_stop import Savings
from cascade.gain import deferral_order
from cascade.report.evaluated import Evaluated
from cascade.report.front import FrontPoint, front
from cascade.report.pricing import Basis, Pricing, pricing
from cascade.rows import Bools, Floats

Interval = tuple[float, float]

DEFAULT_DELTA = 0.1
"""Level of the bounds where no certificate says another."""

MOST_GROUPS = 30
"""A group with more values than this is no breakdown; the page says that it was left out."""

_RESAMPLES, _RESAMPLE_ROWS = 200, 10_000


@dataclass(frozen=True, slots=True)
class Rate:
    """``count`` of ``n``; the interval is exact for errors, Wilson's for accuracies, at 95 %."""

    count: int
    n: int
    interval: Interval

    @property
    def value(self) -> float:
        """In [0, 1]."""
        return self.count / self.n


@dataclass(frozen=True, slots=True)
class Point:
    """The cascade at one threshold.

    Arguments:
        threshold: rows of at least this score are kept; ``None`` keeps nothing.
        kept: share of the rows that the device answers.
        risk: of the rows kept, those that are wrong; ``None`` where none is kept.
        unverified: share of the rows that stay on the device without being kept.
        risk_bound: one-sided 1 - delta bound of the error at this threshold (Clopper-Pearson).
        accuracy: of device and strong tier together; ``None`` without a strong tier.
        cost_usd: mean of a request, at the pricing's price.
        mean_latency_s, p95_latency_s: an escalated request waits for the device first; ``None``
            where a latency is not known.
    """

    threshold: float | None
    kept: Rate
    unverified: Rate
    risk: Rate | None
    risk_bound: float
    accuracy: Rate | None
    cost_usd: float
    mean_latency_s: float | None
    p95_latency_s: float | None


@dataclass(frozen=True, slots=True)
class Confusion:
    """Who was right, in rows."""

    both: int
    only_device: int
    only_strong: int
    neither: int


@dataclass(frozen=True, slots=True)
class GroupFigures:
    """The rows with one value of one group; ``risk`` and ``accuracy`` as in ``Point``."""

    group: str
    value: str
    n: int
    device: Rate
    strong: Rate | None
    confusion: Confusion | None
    point: Point | None


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure with its 95 % interval.

    Arguments:
        key: its name in JSON.
        value, interval: ``None`` where it cannot be told, e.g. a ranking of answers that are all
            right.
        method: of the interval.
    """

    key: str
    label: str
    value: float | None
    interval: Interval | None
    method: str


@dataclass(frozen=True, slots=True)
class Figures:
    """Everything that a report says in numbers.

    Arguments:
        delta: level of the bounds.
        alpha: the certified target of the error among kept answers, if there is one.
        point: at the policy's threshold; ``None`` without a policy.
        groups_left_out: names of groups with too many values.
        saved: what the policy's early stop saves; ``None`` without one.
    """

    n: int
    delta: float
    alpha: float | None
    basis: Basis
    price: float
    point: Point | None
    estimates: tuple[Estimate, ...]
    confusion: Confusion | None
    groups: tuple[GroupFigures, ...]
    groups_left_out: tuple[str, ...]
    front: tuple[FrontPoint, ...]
    reliability: tuple[metrics.Bin, ...]
    saved: Savings | None


def compute(rows: Evaluated) -> Figures:
    """Compute them.

    Raises:
        CascadeError: scipy is not installed.
    """
    certificate = rows.policy.certificate if rows.policy else None
    delta = certificate.delta if certificate else DEFAULT_DELTA
    promised = (
        {promise.kind: promise.alpha for promise in certificate.promises} if certificate else {}
    )
    costs = pricing(rows)
    everything = np.ones(len(rows), np.bool_)
    point = None
    if rows.policy is not None:
        point = at(rows, costs, rows.policy.threshold, delta)
    return Figures(
        n=len(rows),
        delta=delta,
        alpha=promised.get("selective_risk"),
        basis=costs.basis,
        price=costs.price,
        point=point,
        estimates=tuple(_estimates(rows, point)),
        confusion=_confusion(rows, everything),
        groups=tuple(_groups(rows, costs, delta)),
        groups_left_out=tuple(
            name for name, values in rows.groups.items() if len(set(values)) > MOST_GROUPS
        ),
        front=front(rows, costs),
        reliability=(
            metrics.reliability(rows.score[rows.known], rows.device.right[rows.known])
            if rows.known.any()
            else ()
        ),
        saved=rows.saved,
    )


def at(
    rows: Evaluated,
    costs: Pricing,
    threshold: float | None,
    delta: float,
    among: Bools | None = None,
) -> Point:
    """The cascade at a threshold.

    Arguments:
        among: the rows that count, shape ``[rows]``, at least one; all by default.
    """
    chosen = np.ones(len(rows), np.bool_) if among is None else among
    keep = (rows.score >= threshold if threshold is not None else np.zeros(len(rows), np.bool_))[
        chosen
    ]
    local = keep | rows.stays[chosen]
    right = rows.device.right[chosen]
    kept, wrong = int(keep.sum()), int(np.sum(keep & (right == 0)))
    accuracy = None
    cost = costs.device_usd[chosen]
    latency = rows.device.latency_s[chosen]
    if rows.strong is not None:
        accuracy = _accuracy(np.where(local, right, rows.strong.right[chosen]))
        cost = cost + np.where(local, 0.0, costs.cost_usd(rows.strong)[chosen])
        latency = latency + np.where(local, 0.0, rows.strong.latency_s[chosen])
    known = not np.isnan(latency).any()
    return Point(
        threshold=threshold,
        kept=_rate(kept, len(keep)),
        unverified=_rate(int(np.sum(local & ~keep)), len(keep)),
        risk=Rate(wrong, kept, clopper_pearson_interval(wrong, kept)) if kept else None,
        risk_bound=upper_bound(wrong, kept, delta),
        accuracy=accuracy,
        cost_usd=float(cost.mean()),
        mean_latency_s=float(latency.mean()) if known else None,
        p95_latency_s=metrics.percentile(latency, 95) if known else None,
    )


def _estimates(rows: Evaluated, point: Point | None) -> Iterator[Estimate]:
    score, right = rows.score, rows.device.right
    device = _accuracy(right)
    yield _of_rate("accuracy_device", f"accuracy of {rows.device.info.name} alone", device)
    if rows.strong is not None:
        strong = rows.strong.right
        name = rows.strong.info.name
        yield _of_rate("accuracy_strong", f"accuracy of {name} alone", _accuracy(strong))
        if point is not None and point.accuracy is not None:
            cascade = np.where(_kept(rows) | rows.stays, right, strong)
            yield _of_rate("accuracy_cascade", "accuracy of the cascade", point.accuracy)
            for key, label, other in (
                ("gain_device", f"cascade − {rows.device.info.name}", right),
                ("gain_strong", f"cascade − {name}", strong),
            ):
                paired = metrics.paired_difference(cascade, other)
                yield Estimate(key, label, paired.difference, paired.interval, "Tango, paired")
    if point is not None:
        yield _of_rate("kept", "share kept on the device", point.kept)
        if rows.policy is not None and rows.policy.min_gain is not None:
            label = "share that stays unverified: neither kept nor escalated"
            yield _of_rate("unverified", label, point.unverified)
        if point.risk is not None:
            yield Estimate(
                "risk",
                "error among the answers kept",
                point.risk.value,
                point.risk.interval,
                "Clopper-Pearson",
            )
    yield _resampled("auroc", f"AUROC of the {rows.score_name}", metrics.auroc, score, right)
    yield _resampled("aurc", "AURC: mean error over all coverages", metrics.aurc, score, right)
    if rows.policy is not None:  # an uncalibrated score has no calibration to speak of
        told, truth = score[rows.known], right[rows.known]
        if len(told):
            yield _resampled("ece", "ECE, 10 bins", metrics.ece, told, truth)
            yield _resampled("brier", "Brier score", metrics.brier, told, truth)
    if rows.strong is not None:
        columns = (score, right, rows.strong.right)
        label = "area under the deferral curve"
        yield _resampled("deferral_auc", label, _deferral_auc, *columns)
        yield _resampled(
            "deferral_auc_normalised",
            f"{label}, 0 = random, 1 = oracle",
            _normalised_auc,
            *columns,
            low=-np.inf,
        )
        if (order := gain_order(rows)) is not None:
            by_gain = (order, right, rows.strong.right)
            label = "area under the deferral curve, largest gain first"
            yield _resampled("deferral_auc_by_gain", label, _deferral_auc, *by_gain)
            yield _resampled(
                "deferral_auc_by_gain_normalised",
                f"{label}, 0 = random, 1 = oracle",
                _normalised_auc,
                *by_gain,
                low=-np.inf,
            )


def gain_order(rows: Evaluated) -> Floats | None:
    """What rows are ranked by where the largest gains are escalated first, as a confidence is, in
    [0, 1]; gains that cannot be told go first. ``None`` without a gain model."""
    gain = rows.verdicts.gain if rows.verdicts else None
    return None if gain is None else deferral_order(np.where(np.isnan(gain), 1.0, gain))


def _kept(rows: Evaluated) -> Bools:
    threshold = rows.policy.threshold if rows.policy else None
    return np.zeros(len(rows), np.bool_) if threshold is None else rows.score >= threshold


def _groups(rows: Evaluated, costs: Pricing, delta: float) -> Iterator[GroupFigures]:
    for name, values in rows.groups.items():
        known = sorted(set(values))
        if len(known) > MOST_GROUPS:
            continue
        array = np.array(values)
        for value in known:
            among: Bools = array == value
            threshold = rows.policy.threshold if rows.policy else None
            yield GroupFigures(
                group=name,
                value=value,
                n=int(among.sum()),
                device=_accuracy(rows.device.right[among]),
                strong=_accuracy(rows.strong.right[among]) if rows.strong else None,
                confusion=_confusion(rows, among),
                point=at(rows, costs, threshold, delta, among) if rows.policy else None,
            )


def _confusion(rows: Evaluated, among: Bools) -> Confusion | None:
    if rows.strong is None:
        return None
    one, two = rows.device.right[among] == 1, rows.strong.right[among] == 1
    return Confusion(
        both=int(np.sum(one & two)),
        only_device=int(np.sum(one & ~two)),
        only_strong=int(np.sum(~one & two)),
        neither=int(np.sum(~one & ~two)),
    )


def _accuracy(right: Floats) -> Rate:
    return _rate(int(right.sum()), len(right))


def _rate(count: int, n: int) -> Rate:
    return Rate(count, n, metrics.wilson_interval(count, n))


def _of_rate(key: str, label: str, rate: Rate) -> Estimate:
    return Estimate(key, label, rate.value, rate.interval, "Wilson")


def _deferral_auc(score: Floats, right: Floats, strong: Floats) -> float:
    return metrics.deferral_curve(score, right, strong).auc


def _normalised_auc(score: Floats, right: Floats, strong: Floats) -> float | None:
    return metrics.deferral_curve(score, right, strong).normalised_auc


def _resampled(
    key: str,
    label: str,
    statistic: Callable[..., float | None],
    *columns: Floats,
    low: float = 0.0,
    high: float = 1.0,
) -> Estimate:
    """A statistic of all rows with a normal interval, from the spread over resamples of the rows.

    m-out-of-n bootstrap: of more than 10,000 rows resamples of 10,000 are drawn, and their spread
    is scaled by √(m/n) (Bickel, Götze and van Zwet 1997). Resamples on which the statistic cannot
    be told are left out. The seed is fixed: equal rows give equal intervals.
    """
    method = f"bootstrap, {_RESAMPLES} resamples"
    value = _or_none(statistic, columns)
    if value is None:
        return Estimate(key, label, None, None, method)
    rng = np.random.default_rng(0)
    n = len(columns[0])
    m = min(n, _RESAMPLE_ROWS)
    drawn = (rng.integers(0, n, m) for _ in range(_RESAMPLES))
    values = [_or_none(statistic, tuple(column[row] for column in columns)) for row in drawn]
    told = [each for each in values if each is not None]
    if len(told) < _RESAMPLES / 2:
        return Estimate(key, label, value, None, method)
    spread = 1.96 * float(np.std(told)) * (m / n) ** 0.5
    return Estimate(
        key, label, value, (max(low, value - spread), min(high, value + spread)), method
    )


def _or_none(statistic: Callable[..., float | None], columns: tuple[Floats, ...]) -> float | None:
    if statistic is metrics.auroc and len(np.unique(columns[1])) < 2:
        return None
    return statistic(*columns)
