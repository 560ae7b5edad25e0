"""The figures of a cascade on weighted rows, many weightings at a time.

A weight is how often a row counts: ones give the figures of ``cascade.metrics`` on the rows as they
are, and the counts of a resample give them on that resample, without the sort that each would need.
The tests hold them to ``cascade.metrics`` on rows that are really repeated.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

from cascade.pair import Pair
from cascade.replay.hull import heights_under_hulls
from cascade.rows import Bools, Floats

Weights = NDArray[np.int64]

UNITS: Final[dict[str, str]] = {
    "coverage": "share",
    "unverified": "share",
    "escalated": "share",
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
    "deferral_auc_by_gain": "",
    "deferral_auc_by_gain_normalised": "",
    "deferral_auc_gain_lead": "",
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
    "saved_local_tokens": "tokens",
}
"""Every figure but ``handoff_to_match.TIER``, with its unit; those in seconds are in ``times``.
Costs, bytes and tokens are means over all requests. ``escalated_cloud_only`` is the time of the
same requests had they been sent at once; ``wasted_local_tokens`` are those decoded for requests
that then escalated, and ``saved_local_tokens`` those that an early stop spared of them.
``unverified`` answers stay on the device without being accepted."""

_CPTS: Final = {"cpt_50": 0.5, "cpt_80": 0.8}
_BINS: Final = 10
_HANDOFF: Final = "handoff_to_match."
_SETTINGS: Final = np.linspace(0.0, 1.0, 51)  # escalation shares at which AIQ takes its points


@dataclass(frozen=True, slots=True)
class _Averages:
    """Columns to be averaged. Not stacked: of a million rows the copy costs more than the sums.

    Arguments:
        values: by name, shape ``[rows]``; 0 where a number is missing.
        known: where it is not, for the columns that miss some.
    """

    values: Mapping[str, Floats]
    known: Mapping[str, Floats]

    @classmethod
    def of(cls, columns: Mapping[str, Floats]) -> _Averages:
        values, known = dict(columns), {}
        for name, column in columns.items():
            missing = np.isnan(column)
            if missing.any():
                known[name] = (~missing).astype(np.float64)
                values[name] = np.where(missing, 0.0, column)
        return cls(values, known)

    def under(self, heavy: Floats) -> dict[str, Floats]:
        """Each column's mean over the rows that have it, shapes ``[weightings]``."""
        total = heavy.sum(axis=1)
        return {
            name: _over(heavy @ column, heavy @ self.known[name] if name in self.known else total)
            for name, column in self.values.items()
        }


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
        """AIQ of the settings "escalate 0, 2 … 100 %".

        Arguments:
            base: mean cost where nothing is escalated, shape ``[weightings]``.
            spent: what escalating each tie costs, shape ``[weightings, ties]``.
        """
        shares = self.escalated / self.escalated[:, -1:]
        cost = base[:, None] + np.cumsum(spent, axis=1) / self.escalated[:, -1:]
        costs, quality = np.empty((2, len(base), len(_SETTINGS)))
        for i in range(len(base)):
            share = np.append(0.0, shares[i])
            costs[i] = np.interp(_SETTINGS, share, np.append(base[i], cost[i]))
            quality[i] = np.interp(_SETTINGS, share, np.append(self.weak[i], self.after[i]))
        return heights_under_hulls(costs, quality)


class Figures:
    """The figures of one policy on one set of rows.

    Arguments:
        rows: the two tiers' rows.
        confidence: of the local answers, in [0, 1], shape ``[rows]``; NaN where there is none:
            these rows rank lowest, and calibration does not count them.
        accepted: which of them the policy keeps, shape ``[rows]``.
        unverified: which stay without being kept, shape ``[rows]``; none by default.
        stops: after how many tokens a decode is stopped, 0 where it is not, shape ``[rows]``; never
            by default.
        matches: whether the answers of other tiers are right, by name, for handoff-to-match; NaN
            where they gave none.
    """

    def __init__(
        self,
        rows: Pair,
        confidence: Floats,
        accepted: Bools,
        matches: Mapping[str, Floats] | None = None,
        *,
        unverified: Bools | None = None,
        stops: NDArray[np.int64] | None = None,
    ) -> None:
        right = rows.correct.astype(np.float64)
        cloud = None if rows.cloud_correct is None else rows.cloud_correct.astype(np.float64)
        known = ~np.isnan(confidence)
        score = confidence if known.all() else np.where(known, confidence, 0.0)
        stays = accepted if unverified is None else accepted | unverified
        self._order = np.argsort(score)
        self._rising, self._right = score[self._order], right[self._order]
        self._known = None if known.all() else known[self._order]
        self._gain = None if cloud is None else (cloud - right)[self._order]
        self._starts = np.flatnonzero(np.append(True, np.diff(self._rising) > 0))
        edges = np.linspace(0, 1, _BINS + 1)[1:-1]
        self._bins = np.searchsorted(self._rising, edges, side="left").tolist()
        self._matches = tuple(matches or ())
        self._usd: Floats | None = None
        # What is averaged over rows; names with a blank are not figures themselves.
        averaged = {
            "coverage": accepted.astype(np.float64),
            "kept wrong": accepted * (1 - right),
            "local_accuracy": right,
            "brier": (confidence - right) ** 2,
        }
        if cloud is not None:
            mine = np.where(stays, right, cloud)
            averaged |= {
                "accuracy": mine,
                "cloud_accuracy": cloud,
                "excess_error": cloud * (1 - mine),
                "only cloud": cloud * (1 - right),
                "only local": right * (1 - cloud),
            }
            averaged |= {f"match {name}": each for name, each in (matches or {}).items()}
        if unverified is not None:
            averaged["unverified"] = unverified.astype(np.float64)
            averaged["escalated"] = (~stays).astype(np.float64)
        averaged |= self._uses(rows, ~stays, stops)
        self._averages = _Averages.of(averaged)

    def of(self, weights: Weights) -> dict[str, Floats]:
        """Every figure for each weighting; NaN where it cannot be told.

        Arguments:
            weights: how often each row counts, shape ``[weightings, rows]``; no row all zeros.

        Returns:
            float64 arrays of shape ``[weightings]``, by the names in ``UNITS``, then
            ``handoff_to_match.TIER``. Figures that need a second tier are left out without one.
        """
        heavy = weights.astype(np.float64)
        found = self._averages.under(heavy)
        found["selective_risk"] = _over(found["kept wrong"], found["coverage"])
        sorted_ = heavy[:, self._order]
        group, group_right = self._grouped(sorted_), self._grouped(sorted_ * self._right)
        found["auroc"] = _auroc(group, group_right)
        found["aurc"] = self._aurc(group, group_right)
        found["ece"] = self._ece(sorted_)
        if self._gain is not None:
            gain = self._grouped(sorted_ * self._gain)
            self._against_cloud(_Curve.of(group, gain, found["local_accuracy"]), sorted_, found)
        if "cloud_tokens" in found and "bytes_up" in found:
            saved = found["cloud_only_cloud_tokens"] - found["cloud_tokens"]
            found["cloud_tokens_saved_per_byte"] = _over(saved, found["bytes_up"])
        handoffs = [name for name in found if name.startswith(_HANDOFF)]
        return {name: found[name] for name in (*UNITS, *handoffs) if name in found}

    def _uses(self, rows: Pair, up: Bools, stops: NDArray[np.int64] | None) -> dict[str, Floats]:
        """Columns of what requests take; sets up the costs of escalating, too."""
        found: dict[str, Floats] = {}
        wrote = rows.column(rows.local, "completion_tokens")
        if wrote is not None:
            spared = np.zeros(len(rows))
            if stops is not None:
                spared = np.where(stops > 0, wrote - stops, 0.0)
                found["saved_local_tokens"] = spared
            found["wasted_local_tokens"] = np.where(up, wrote - spared, 0.0)
        if rows.cloud is None:
            return found
        for name in ("cost_usd", "bytes_up"):
            cloud, local = rows.column(rows.cloud, name), rows.column(rows.local, name)
            if cloud is None:
                continue
            # A device of which it was not measured uses none.
            own = np.zeros(len(rows)) if local is None else local
            found[name] = own + np.where(up, cloud, 0.0)
            found[f"cloud_only_{name}"] = cloud
            if name == "cost_usd":
                found["local usd"], self._usd = own, cloud[self._order]
        read, wrote = (rows.column(rows.cloud, f"{n}_tokens") for n in ("prompt", "completion"))
        if read is not None and wrote is not None:
            found["cloud_tokens"] = np.where(up, read + wrote, 0.0)
            found["cloud_only_cloud_tokens"] = read + wrote
        return found

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
        # Of each tie's first row from above, and of the last row of all.
        harmonic = _harmonic(int(total.max()).bit_length())
        before = harmonic[above.astype(np.int64)]
        h = np.concatenate([harmonic[total.astype(np.int64)], before[:, :-1]], axis=1) - before
        rate = _over(wrong, group, empty=0.0)
        area: Floats = np.sum(errors * h + rate * (group - above * h), axis=1) / total[:, 0]
        return area

    def _ece(self, sorted_: Floats) -> Floats:
        gap, apart = np.zeros(len(sorted_)), self._right - self._rising
        total = sorted_.sum(axis=1)
        if self._known is not None:
            apart, total = np.where(self._known, apart, 0.0), sorted_ @ self._known
        for low, high in zip([0, *self._bins], [*self._bins, len(apart)], strict=True):
            gap += np.abs(sorted_[:, low:high] @ apart[low:high])
        return _over(gap, total)

    def _against_cloud(self, curve: _Curve, sorted_: Floats, found: dict[str, Floats]) -> None:
        """Adds the figures that compare with the cloud."""
        weak, strong = found["local_accuracy"], found["cloud_accuracy"]
        found["net_error"] = strong - found["accuracy"]
        gap = np.where(strong - weak < 1e-12, np.nan, strong - weak)
        found["pgr"] = (found["accuracy"] - weak) / gap
        found["deferral_auc"] = auc = curve.area()
        found["deferral_auc_random"] = chance = (weak + strong) / 2
        # Up to the top over a share ``up``, flat, and down at the end.
        up, down = found["only cloud"], found["only local"]
        found["deferral_auc_oracle"] = best = weak + up - up**2 / 2 - down**2 / 2
        room = np.where(best - chance < 1e-12, np.nan, best - chance)
        found["deferral_auc_normalised"] = (auc - chance) / room
        found["apgr"] = (auc - weak) / gap
        for name, recovered in _CPTS.items():
            found[name] = curve.first_share(weak + recovered * gap)
        for name in self._matches:
            found[f"{_HANDOFF}{name}"] = curve.first_share(found[f"match {name}"])
        if self._usd is not None:
            found["aiq"] = curve.aiq(found["local usd"], self._grouped(sorted_ * self._usd))


@lru_cache(maxsize=1)
def _harmonic(bits: int) -> Floats:
    """H(0) … H(2^bits - 1), at least. Resamples of one file need the same ones."""
    return np.append(0.0, np.cumsum(1 / np.arange(1, 1 << bits)))


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
