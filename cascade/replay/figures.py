"""The figures of a cascade on weighted rows, many weightings at a time.

A weight is how often a row counts: ones give the figures of ``cascade.metrics`` on the rows as they
are, and the counts of a resample give them on that resample, without the sort that each would need.
The tests hold them to ``cascade.metrics`` on rows that are really repeated.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from cascade.metrics import aiq
from cascade.pair import Pair
from cascade.rows import Bools, Floats

Weights = NDArray[np.int64]

UNITS: Final[dict[str, str]] = {
    "coverage": "share",
    "selective_risk": "share",
    "local_accuracy": "share",
    "accuracy": "share",
    "cloud_accuracy": "share",
    "excess_error": "share",
    "net_error": "share",
    "auroc": "",
    "aurc": "",
    "ece": "",
    "brier": "",
    "pgr": "",
    "deferral_auc": "",
    "deferral_auc_random": "",
    "deferral_auc_oracle": "",
    "deferral_auc_normalised": "",
    "apgr": "",
    "cpt_50": "share",
    "cpt_80": "share",
    "aiq": "",
    "p50_s": "s",
    "p95_s": "s",
    "cloud_only_p50_s": "s",
    "cloud_only_p95_s": "s",
    "escalated_p50_s": "s",
    "escalated_p95_s": "s",
    "escalated_cloud_only_p50_s": "s",
    "escalated_cloud_only_p95_s": "s",
    "cost_usd": "$",
    "cloud_only_cost_usd": "$",
    "bytes_up": "B",
    "cloud_only_bytes_up": "B",
    "cloud_tokens": "tokens",
    "cloud_only_cloud_tokens": "tokens",
    "cloud_tokens_saved_per_byte": "tokens/B",
    "wasted_local_tokens": "tokens",
}
"""Every figure but ``handoff_to_match.TIER``, with its unit; costs, bytes and tokens are means over
all requests. ``escalated_cloud_only`` is the time of the same requests had they been sent at once;
``wasted_local_tokens`` are those decoded for requests that then escalated."""

_CPTS: Final = {"cpt_50": 0.5, "cpt_80": 0.8}
_BINS: Final = 10
_SETTINGS: Final = np.linspace(0.0, 1.0, 101)  # escalation shares at which AIQ takes its points


@dataclass(frozen=True, slots=True)
class Use:
    """What requests consume, each an array ``[rows]`` or ``None`` where it was not measured."""

    local: Floats | None
    cloud: Floats | None


@dataclass(frozen=True, slots=True)
class _Curve:
    """Deferral curves, the least confident first: straight within a tie, so corners are enough.

    Arguments:
        weak: accuracy where nothing is escalated, shape ``[weightings]``.
        rows: of each tie, shape ``[weightings, ties]``; ``escalated``: running sums of them.
        before, after: accuracy at the beginning and at the end of each tie, same shape.
    """

    weak: Floats
    rows: Floats
    escalated: Floats
    before: Floats
    after: Floats

    @classmethod
    def of(cls, rows: Floats, gain: Floats, weak: Floats) -> _Curve:
        escalated = np.cumsum(rows, axis=1)
        after = weak[:, None] + np.cumsum(gain, axis=1) / escalated[:, -1:]
        before = np.concatenate([weak[:, None], after[:, :-1]], axis=1)
        return cls(weak, rows, escalated, before, after)

    def area(self) -> Floats:
        sums: Floats = np.sum((self.before + self.after) / 2 * self.rows, axis=1)
        return sums / self.escalated[:, -1]

    def first_share(self, wanted: Floats) -> Floats:
        """The smallest share of rows at which each curve reaches what is wanted, row by row."""
        reached = self.after >= wanted[:, None] - 1e-12
        place = np.argmax(reached, axis=1)[:, None]
        start, end, rows, upto = (
            np.take_along_axis(each, place, axis=1)[:, 0]
            for each in (self.before, self.after, self.rows, self.escalated)
        )
        climbed = np.clip(_over(wanted - start, end - start, empty=1.0), 0, 1)
        share = (upto - rows + np.ceil(climbed * rows - 1e-9)) / self.escalated[:, -1]
        share = np.where(reached.any(axis=1), share, np.nan)
        return np.where(self.weak >= wanted - 1e-12, 0.0, share)

    def aiq(self, base: Floats, spent: Floats) -> Floats:
        """AIQ of the settings "escalate 0, 1 … 100 %".

        Arguments:
            base: mean cost where nothing is escalated, shape ``[weightings]``.
            spent: what escalating each tie costs, shape ``[weightings, ties]``.
        """
        shares = self.escalated / self.escalated[:, -1:]
        cost = base[:, None] + np.cumsum(spent, axis=1) / self.escalated[:, -1:]
        areas = np.full(len(base), np.nan)
        for i in range(len(base)):
            share = np.append(0.0, shares[i])
            area = aiq(
                np.interp(_SETTINGS, share, np.append(base[i], cost[i])),
                np.interp(_SETTINGS, share, np.append(self.weak[i], self.after[i])),
            )
            areas[i] = np.nan if area is None else area
        return areas


class Figures:
    """The figures of one policy on one set of rows.

    Arguments:
        rows: the two tiers' rows.
        confidence: of the local answers, in [0, 1], shape ``[rows]``.
        accepted: which of them the policy keeps, shape ``[rows]``.
        matches: whether the answers of other tiers are right, by name, for handoff-to-match; NaN
            where they gave none.
    """

    def __init__(
        self,
        rows: Pair,
        confidence: Floats,
        accepted: Bools,
        matches: Mapping[str, Floats] | None = None,
    ) -> None:
        self._accepted = accepted
        self._right = rows.correct.astype(np.float64)
        self._cloud = None if rows.cloud_correct is None else rows.cloud_correct.astype(np.float64)
        self._matches = dict(matches or {})
        self._confidence = confidence
        self._order = np.argsort(confidence, kind="stable")
        rising = confidence[self._order]
        self._starts = np.flatnonzero(np.append(True, np.diff(rising) > 0))
        edges = np.linspace(0, 1, _BINS + 1)[1:-1]
        self._bins = np.searchsorted(rising, edges, side="left").tolist()
        self._seconds = _use(rows, "latency_s")
        self._usd = _use(rows, "cost_usd", free=True)
        self._bytes = _use(rows, "bytes_up", free=True)
        read, wrote = _use(rows, "prompt_tokens"), _use(rows, "completion_tokens")
        self._local_tokens = wrote.local
        self._cloud_tokens = (
            None if read.cloud is None or wrote.cloud is None else read.cloud + wrote.cloud
        )
        self._harmonic = np.zeros(1)
        self._by_time: dict[str, tuple[Floats, NDArray[np.int64]]] = {}

    def of(self, weights: Weights) -> dict[str, Floats]:
        """Every figure for each weighting; NaN where it cannot be told.

        Arguments:
            weights: how often each row counts, shape ``[weightings, rows]``; no row all zeros.

        Returns:
            float64 arrays of shape ``[weightings]``, by the names in ``UNITS``, then
            ``handoff_to_match.TIER``. Figures that need a second tier are left out without one.
        """
        heavy = weights.astype(np.float64)
        total = heavy.sum(axis=1)
        found: dict[str, Floats] = {}

        def mean(values: Floats) -> Floats:
            return weighted_mean(heavy, values)

        kept = heavy @ self._accepted
        found["coverage"] = kept / total
        found["selective_risk"] = _over(heavy @ (self._accepted * (1 - self._right)), kept)
        found["local_accuracy"] = mean(self._right)
        found["brier"] = mean((self._confidence - self._right) ** 2)
        sorted_ = heavy[:, self._order]
        right = self._right[self._order]
        group, group_right = self._grouped(sorted_), self._grouped(sorted_ * right)
        found["auroc"] = _auroc(group, group_right)
        found["aurc"] = self._aurc(group, group_right)
        found["ece"] = self._ece(sorted_, right, total)
        if self._cloud is not None:
            group_gain = self._grouped(sorted_ * self._cloud[self._order]) - group_right
            curve = _Curve.of(group, group_gain, found["local_accuracy"])
            found |= self._against_cloud(heavy, curve, self._cloud)
        self._resources(heavy, weights, mean, found)
        return {name: found[name] for name in (*UNITS, *_rest(found)) if name in found}

    def _grouped(self, values: Floats) -> Floats:
        """Sums over rows of equal confidence, shape ``[weightings, distinct confidences]``."""
        if len(self._starts) == values.shape[1]:
            return values
        return np.add.reduceat(values, self._starts, axis=1)

    def _aurc(self, group: Floats, group_right: Floats) -> Floats:
        """Mean over k of the error among the k most confident, each tie in its expected order: with
        K rows and E errors before a tie of m rows and error rate e, the sum over its rows is
        Σ (E + j e) / (K + j) = E·h + e·(m − K·h), where h = H(K + m) − H(K)."""
        wrong = group - group_right
        total = group.sum(axis=1, keepdims=True)
        above = total - np.cumsum(group, axis=1)
        errors = wrong.sum(axis=1, keepdims=True) - np.cumsum(wrong, axis=1)
        harmonic = self._harmonic_to(int(total.max()))
        h = harmonic[(above + group).astype(np.int64)] - harmonic[above.astype(np.int64)]
        rate = _over(wrong, group, empty=0.0)
        area: Floats = np.sum(errors * h + rate * (group - above * h), axis=1) / total[:, 0]
        return area

    def _harmonic_to(self, most: int) -> Floats:
        if len(self._harmonic) <= most:
            self._harmonic = np.append(0.0, np.cumsum(1 / np.arange(1, most + 1)))
        return self._harmonic

    def _ece(self, sorted_: Floats, right: Floats, total: Floats) -> Floats:
        confidence = self._confidence[self._order]
        gap = np.zeros(len(total))
        for low, high in zip([0, *self._bins], [*self._bins, len(right)], strict=True):
            gap += np.abs(sorted_[:, low:high] @ (right[low:high] - confidence[low:high]))
        return gap / total

    def _against_cloud(self, heavy: Floats, curve: _Curve, cloud: Floats) -> dict[str, Floats]:
        found: dict[str, Floats] = {}
        mine, weak = np.where(self._accepted, self._right, cloud), curve.weak
        found["accuracy"] = accuracy = weighted_mean(heavy, mine)
        found["cloud_accuracy"] = strong = weighted_mean(heavy, cloud)
        found["excess_error"] = weighted_mean(heavy, cloud * (1 - mine))
        found["net_error"] = strong - accuracy
        gap = np.where(strong - weak < 1e-12, np.nan, strong - weak)
        found["pgr"] = (accuracy - weak) / gap
        found["deferral_auc"] = auc = curve.area()
        found["deferral_auc_random"] = chance = (weak + strong) / 2
        gain = cloud - self._right
        up, down = (weighted_mean(heavy, each.astype(np.float64)) for each in (gain > 0, gain < 0))
        # Up to the top over a share ``up``, flat, and down at the end.
        found["deferral_auc_oracle"] = best = weak + up - up**2 / 2 - down**2 / 2
        room = np.where(best - chance < 1e-12, np.nan, best - chance)
        found["deferral_auc_normalised"] = (auc - chance) / room
        found["apgr"] = (auc - weak) / gap
        for name, recovered in _CPTS.items():
            found[name] = curve.first_share(weak + recovered * gap)
        for name, right in self._matches.items():
            found[f"handoff_to_match.{name}"] = curve.first_share(weighted_mean(heavy, right))
        if self._usd.local is not None and self._usd.cloud is not None:
            spent = self._grouped((heavy * self._usd.cloud)[:, self._order])
            found["aiq"] = curve.aiq(weighted_mean(heavy, self._usd.local), spent)
        return found

    def _resources(
        self,
        heavy: Floats,
        weights: Weights,
        mean: Callable[[Floats], Floats],
        found: dict[str, Floats],
    ) -> None:
        up = ~self._accepted
        if self._local_tokens is not None:
            found["wasted_local_tokens"] = mean(self._local_tokens * up)
        if self._cloud is None:
            if self._seconds.local is not None:
                self._times("", self._seconds.local, weights, found)
            return
        for name, use in (("cost_usd", self._usd), ("bytes_up", self._bytes)):
            if use.local is not None and use.cloud is not None:
                found[name] = mean(use.local + use.cloud * up)
                found[f"cloud_only_{name}"] = mean(use.cloud)
        if self._cloud_tokens is not None:
            found["cloud_tokens"] = mean(self._cloud_tokens * up)
            found["cloud_only_cloud_tokens"] = whole = mean(self._cloud_tokens)
            if "bytes_up" in found:
                saved = whole - found["cloud_tokens"]
                found["cloud_tokens_saved_per_byte"] = _over(saved, found["bytes_up"])
        local, cloud = self._seconds.local, self._seconds.cloud
        if cloud is not None:
            self._times("cloud_only_", cloud, weights, found)
            self._times("escalated_cloud_only_", cloud, weights, found, only=up)
            if local is not None:
                self._times("", local + cloud * up, weights, found)
                self._times("escalated_", local + cloud, weights, found, only=up)

    def _times(
        self,
        name: str,
        seconds: Floats,
        weights: Weights,
        found: dict[str, Floats],
        *,
        only: Bools | None = None,
    ) -> None:
        if name not in self._by_time:
            known = ~np.isnan(seconds) if only is None else ~np.isnan(seconds) & only
            places = np.flatnonzero(known)
            order = places[np.argsort(seconds[places], kind="stable")]
            self._by_time[name] = seconds[order], order
        rising, order = self._by_time[name]
        for percent in (50, 95):
            values = weighted_quantiles(rising, weights[:, order], percent / 100)
            found[f"{name}p{percent}_s"] = values


def _use(rows: Pair, name: str, *, free: bool = False) -> Use:
    """What both tiers use of one thing; a device of which it was not measured uses none of it where
    that is the rule."""
    local = rows.column(rows.local, name)
    if local is None and free:
        local = np.zeros(len(rows))
    return Use(local, None if rows.cloud is None else rows.column(rows.cloud, name))


def _rest(found: Mapping[str, Floats]) -> list[str]:
    return [name for name in found if name not in UNITS]


def weighted_mean(heavy: Floats, values: Floats) -> Floats:
    """Means over the rows that have the number, shape ``[weightings]``."""
    known = ~np.isnan(values)
    if known.all():
        mean: Floats = heavy @ values / heavy.sum(axis=1)
        return mean
    return _over(heavy @ np.where(known, values, 0.0), heavy @ known)


def _over(above: Floats, below: Floats, empty: float = np.nan) -> Floats:
    quotient: Floats = np.divide(
        above, below, out=np.full(above.shape, empty), where=np.asarray(below) != 0
    )
    return quotient


def _auroc(group: Floats, group_right: Floats) -> Floats:
    wrong = group - group_right
    below = np.cumsum(wrong, axis=1) - wrong / 2
    return _over(np.sum(group_right * below, axis=1), group_right.sum(axis=1) * wrong.sum(axis=1))


def weighted_quantiles(rising: Floats, weights: Weights, share: float) -> Floats:
    """Quantiles of sorted values under weights in the same order, shape ``[weightings]``."""
    return np.array([_quantile(rising, each, share) for each in np.cumsum(weights, axis=1)])


def _quantile(rising: Floats, counts: NDArray[np.int64], share: float) -> float:
    """As ``numpy.percentile`` of the values, each as often as it counts.

    Arguments:
        counts: running sums of how often.
    """
    n = int(counts[-1]) if len(counts) else 0
    if not n:
        return float("nan")
    place = (n - 1) * share
    low = int(place)
    first, second = np.searchsorted(counts, [low, min(low + 1, n - 1)], side="right")
    return float(rising[first] + (rising[second] - rising[first]) * (place - low))
