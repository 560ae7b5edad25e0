"""What can be promised: bounds on mean losses, each from its own columns of the certify rows.

A row is one request of which both outcomes are known. At threshold t the device answers it when its
confidence is at least t, and then it costs the row's *local* loss; otherwise it is escalated and
costs its *escalated* loss. A target bounds the mean, over all rows or over those answered locally.

Which promises rise with t and which fall matters when several are asked for at once: the selective
risk usually falls as t rises, excess and net error always do so or nearly so; the escalation share
always rises, money nearly always. So two of different kinds leave an interval of thresholds, which
may be empty. Deadline misses may go either way.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cascade.certificate import Kind, Method
from cascade.certify import p_values
from cascade.errors import InvalidInput
from cascade.rows import Floats, numbers, outcomes, same_length, unit_floats


@dataclass(frozen=True, slots=True, eq=False)
class Target:
    """Mean loss ≤ ``alpha``. Made by the functions below.

    Arguments:
        kind: which loss is meant.
        alpha: its largest tolerated mean, strictly between ``low`` and ``high``.
        low, high: the range of the loss of one row.
        local, escalated: loss of each row if the device answers and if the cluster does, within
            [low, high], shape ``[rows]``.
        accepted_only: the mean goes over the locally answered rows; otherwise over all.
        method: how p-values are computed.
    """

    kind: Kind
    alpha: float
    low: float
    high: float
    local: Floats
    escalated: Floats
    accepted_only: bool
    method: Method

    @property
    def unit_alpha(self) -> float:
        """``alpha`` on the scale on which losses go from 0 to 1."""
        return self.to_unit(self.alpha)

    def to_unit(self, loss: float) -> float:
        """A loss on the scale on which losses go from 0 to 1."""
        return (loss - self.low) / (self.high - self.low)

    def from_unit(self, loss: float) -> float:
        """The reverse of ``to_unit``, kept within the range."""
        return min(self.high, max(self.low, self.low + loss * (self.high - self.low)))

    def take(self, rows: NDArray[np.int64]) -> Self:
        """The same target on some of the rows."""
        return replace(self, local=self.local[rows], escalated=self.escalated[rows])

    def totals(self, confidence: Floats, thresholds: Floats) -> tuple[Floats, Floats]:
        """Sum of the losses, on the scale from 0 to 1, and number of rows that count.

        Arguments:
            confidence: shape ``[rows]``.
            thresholds: shape ``[thresholds]``.

        Returns:
            two float64 arrays, shape ``[thresholds]``.
        """
        order = np.argsort(confidence, kind="stable")
        first = np.searchsorted(confidence[order], thresholds, side="left")
        local, escalated = (self._unit(loss)[order] for loss in (self.local, self.escalated))
        # Sums from the top down and from the bottom up: those of 0/1 losses are exact in float64.
        total = np.append(np.cumsum(local[::-1])[::-1], 0.0)[first]
        if self.accepted_only:
            return total, (len(confidence) - first).astype(np.float64)
        total = total + np.concatenate([[0.0], np.cumsum(escalated)])[first]
        return total, np.full(len(thresholds), float(len(confidence)))

    def p_values(self, confidence: Floats, thresholds: Floats) -> Floats:
        """P-value of "the mean is above alpha" at each threshold, shape ``[thresholds]``."""
        return self.p_values_at(self.unit_alpha, confidence, thresholds)

    def p_values_at(self, unit_alpha: float, confidence: Floats, thresholds: Floats) -> Floats:
        """As ``p_values``, for another alpha on the scale from 0 to 1."""
        if self.method == "betting":
            return np.array(
                [p_values.betting(self.counted(confidence, t), unit_alpha) for t in thresholds]
            )
        return self.p_values_of(*self.totals(confidence, thresholds), unit_alpha)

    def p_values_of(self, total: ArrayLike, rows: ArrayLike, unit_alpha: float) -> Floats:
        """P-values from sums and counts alone, elementwise. Betting would need the rows in order;
        for it this is the Hoeffding-Bentkus p-value, which is seldom smaller."""
        if self.method == "clopper_pearson":
            return p_values.clopper_pearson(total, rows, unit_alpha)
        return p_values.hoeffding_bentkus(total, rows, unit_alpha)

    def counted(self, confidence: Floats, threshold: float) -> Floats:
        """The losses that count at one threshold, on the scale from 0 to 1, in the order of the
        rows."""
        accepted = confidence >= threshold
        if self.accepted_only:
            return self._unit(self.local[accepted])
        return self._unit(np.where(accepted, self.local, self.escalated))

    def _unit(self, loss: Floats) -> Floats:
        return (loss - self.low) / (self.high - self.low)


def selective_risk(
    correct: ArrayLike, *, alpha: float, method: Method = "clopper_pearson"
) -> Target:
    """P(wrong | answered locally) ≤ alpha.

    Arguments:
        correct: whether each local answer is right, bool or 0/1, shape ``[rows]``; with another
            method than ``clopper_pearson`` also grades in [0, 1], the loss being 1 - grade.
        alpha: in (0, 1).

    Raises:
        InvalidInput: bad shapes, NaN, or numbers out of range.
    """
    local = 1 - _grades("correct", correct, method)
    return _target("selective_risk", alpha, local, np.zeros_like(local), method, accepted_only=True)


def excess_error(
    correct: ArrayLike,
    cloud_correct: ArrayLike,
    *,
    alpha: float,
    method: Method = "clopper_pearson",
) -> Target:
    """P(answered locally, wrong, and the cluster would have been right) ≤ alpha, over all requests.

    The share of requests that a cascade harms, compared with sending everything to the cluster. It
    is at least the difference between the two error rates (``net_error``), for it does not set off
    requests on which only the device is right; so a bound on it bounds that difference too. It is
    the default because it is 0/1: exact, and much easier to certify than a difference.

    Arguments:
        correct, cloud_correct: whether the device's and the cluster's answers are right, shapes
            ``[rows]``; with another method than ``clopper_pearson`` also grades in [0, 1], the loss
            being what the cluster's grade is above the device's.
        alpha: in (0, 1).

    Raises:
        InvalidInput: bad shapes, NaN, or numbers out of range.
    """
    device, cloud = _both(correct, cloud_correct, method)
    local = np.maximum(cloud - device, 0.0)
    return _target("excess_error", alpha, local, np.zeros_like(local), method)


def net_error(
    correct: ArrayLike, cloud_correct: ArrayLike, *, alpha: float, method: Method = "betting"
) -> Target:
    """Error rate of the cascade minus that of the cluster alone ≤ alpha, over all requests.

    Signed: requests on which only the device is right count as gains. A loss of -1, 0 or 1 a row,
    mostly 0, which is where betting is strong and Hoeffding-Bentkus weak.

    Arguments:
        correct, cloud_correct: as for ``excess_error``; grades are fine.
        alpha: in (-1, 1); 0 says "no worse than the cluster".

    Raises:
        InvalidInput: bad shapes, NaN, numbers out of range, or the method ``clopper_pearson``.
    """
    if method == "clopper_pearson":
        raise InvalidInput(
            "method",
            "clopper_pearson takes losses of 0 and 1, and these are signed; "
            "take 'betting', 'hoeffding_bentkus', or excess_error",
        )
    device, cloud = _both(correct, cloud_correct, method)
    local = cloud - device
    return _target("net_error", alpha, local, np.zeros_like(local), method, low=-1.0)


def escalation_share(rows: int, *, alpha: float) -> Target:
    """P(escalated) ≤ alpha. Needs no labels, only the confidences of ``rows`` requests.

    Raises:
        InvalidInput: no rows, or alpha out of range.
    """
    if rows < 1:
        raise InvalidInput("rows", f"{rows} is below 1")
    return _target("escalation_share", alpha, np.zeros(rows), np.ones(rows), "clopper_pearson")


def cost_usd(
    escalated: ArrayLike,
    *,
    alpha: float,
    most: float,
    local: ArrayLike | None = None,
    method: Method = "hoeffding_bentkus",
) -> Target:
    """Mean cost of a request ≤ alpha dollars.

    Arguments:
        escalated: what each request costs at the cluster, in dollars, 0 … most, shape ``[rows]``.
        alpha: in dollars, above 0, below ``most``.
        most: what no request can cost, from prices and limits (``max_tokens``) and not from these
            rows. Nothing can be promised about a mean that one request may ruin. The nearer to the
            true costs, the fewer rows are needed.
        local: what each costs on the device, in dollars; nothing by default.

    Raises:
        InvalidInput: bad shapes, NaN, or numbers out of range.
    """
    if not 0 < most < np.inf:
        raise InvalidInput("most", f"{most} is not a finite number of dollars above 0")
    remote = _dollars("escalated", escalated, most)
    device = np.zeros_like(remote) if local is None else _dollars("local", local, most)
    same_length("escalated", remote, "local", device)
    _check_exact("escalated", method, device / most, remote / most)
    return _target("cost_usd", alpha, device, remote, method, high=float(most))


def deadline_misses(
    local_missed: ArrayLike, escalated_missed: ArrayLike, *, alpha: float
) -> Target:
    """P(the answer comes after its deadline) ≤ alpha, over all requests.

    Arguments:
        local_missed, escalated_missed: whether each request would be late if the device answers it,
            and if it is escalated (then with the time of the local decode before it), bool or 0/1,
            shapes ``[rows]``.
        alpha: in (0, 1).

    Raises:
        InvalidInput: bad shapes, NaN, or anything but false/true or 0/1.
    """
    local = outcomes("local_missed", local_missed).astype(np.float64)
    remote = outcomes("escalated_missed", escalated_missed).astype(np.float64)
    same_length("local_missed", local, "escalated_missed", remote)
    return _target("deadline_misses", alpha, local, remote, "clopper_pearson")


def _target(
    kind: Kind,
    alpha: float,
    local: Floats,
    escalated: Floats,
    method: Method,
    *,
    accepted_only: bool = False,
    low: float = 0.0,
    high: float = 1.0,
) -> Target:
    if not low < alpha < high:
        raise InvalidInput("alpha", f"{alpha} is not between {low:g} and {high:g}")
    return Target(kind, float(alpha), low, high, local, escalated, accepted_only, method)


def _both(correct: ArrayLike, cloud_correct: ArrayLike, method: Method) -> tuple[Floats, Floats]:
    device = _grades("correct", correct, method)
    cloud = _grades("cloud_correct", cloud_correct, method)
    same_length("correct", device, "cloud_correct", cloud)
    return device, cloud


def _grades(field: str, values: ArrayLike, method: Method) -> Floats:
    if method != "clopper_pearson":
        return unit_floats(field, values)
    labels = numbers(field, values)
    _check_exact(field, method, labels)
    return labels


def _check_exact(field: str, method: Method, *losses: Floats) -> None:
    if method == "clopper_pearson" and not all(
        ((loss == 0) | (loss == 1)).all() for loss in losses
    ):
        raise InvalidInput(
            field,
            "must hold only false/true or 0/1 for exact binomial p-values; "
            "for grades or amounts in between take method='hoeffding_bentkus' or 'betting'",
        )


def _dollars(field: str, values: ArrayLike, most: float) -> Floats:
    dollars = numbers(field, values)
    if np.isnan(dollars).any():
        raise InvalidInput(field, "contains NaN; drop or repair those rows first")
    if dollars.min() < 0 or dollars.max() > most:
        raise InvalidInput(field, f"must lie between 0 and most, which is {most:g}")
    return dollars
