"""What is to hold, before it meets any rows, and what rows show of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from cascade import certify
from cascade.certificate import Kind, Method
from cascade.certify import Target
from cascade.errors import InvalidInput
from cascade.metrics import clopper_pearson_interval
from cascade.pair import Pair
from cascade.rows import Bools, Floats

AIMS: Final[dict[str, Kind]] = {
    "risk": "selective_risk",
    "excess": "excess_error",
    "net": "net_error",
    "escalation": "escalation_share",
    "cost": "cost_usd",
    "deadline": "deadline_misses",
}
"""How targets are called on the command line."""

_LOCAL: Final = ("selective_risk", "escalation_share")
_RISKS: Final = ("selective_risk", "excess_error", "net_error")


@dataclass(frozen=True, slots=True)
class Aim:
    """A target before it meets any rows.

    Arguments:
        kind, alpha: as in ``cascade.certify``.
        method: of the p-values; ``None`` for the target's default.
        most_usd: what no request can cost; needed for ``cost_usd``.
        deadline_s: needed for ``deadline_misses``.
    """

    kind: Kind
    alpha: float
    method: Method | None = None
    most_usd: float | None = None
    deadline_s: float | None = None

    def target(self, rows: Pair) -> Target:
        """This target on these rows.

        Raises:
            InvalidInput: the rows lack what it takes, or a number is out of range.
        """
        method: dict[str, Method] = {} if self.method is None else {"method": self.method}
        if self.kind == "selective_risk":
            return certify.selective_risk(rows.correct, alpha=self.alpha, **method)
        if self.kind == "escalation_share":
            return certify.escalation_share(len(rows), alpha=self.alpha)
        cloud, cloud_correct = self._cloud(rows)
        if self.kind == "excess_error":
            return certify.excess_error(rows.correct, cloud_correct, alpha=self.alpha, **method)
        if self.kind == "net_error":
            return certify.net_error(rows.correct, cloud_correct, alpha=self.alpha, **method)
        if self.kind == "cost_usd":
            if self.most_usd is None:
                raise InvalidInput(
                    "most-usd", "is missing; a cost target needs a bound on one request"
                )
            local = rows.column(rows.local, "cost_usd")
            device = np.zeros(len(rows)) if local is None else _whole(rows.local, "cost_usd", local)
            remote = device + _measured(rows, cloud, "cost_usd")
            return certify.cost_usd(
                remote, alpha=self.alpha, most=self.most_usd, local=device, **method
            )
        if self.deadline_s is None:
            raise InvalidInput("deadline-s", "is missing; a deadline target needs the seconds")
        local_s = _measured(rows, rows.local, "latency_s")
        both_s = local_s + _measured(rows, cloud, "latency_s")
        return certify.deadline_misses(
            local_s > self.deadline_s, both_s > self.deadline_s, alpha=self.alpha
        )

    def _cloud(self, rows: Pair) -> tuple[str, Bools]:
        if rows.cloud is None or rows.cloud_correct is None:
            raise InvalidInput(
                "target",
                f"{self.name} needs a second tier, and the records have {rows.local} alone",
            )
        return rows.cloud, rows.cloud_correct

    @property
    def alone(self) -> bool:
        """Whether it asks nothing of the tiers above."""
        return self.kind in _LOCAL

    @property
    def name(self) -> str:
        """As the command line calls it."""
        return next(name for name, kind in AIMS.items() if kind == self.kind)


@dataclass(frozen=True, slots=True)
class Observed:
    """What the test part shows of one promise.

    Arguments:
        kind, alpha: the promise's.
        rows: over which the mean goes.
        observed: the mean loss; ``None`` where no row counts.
        interval: two-sided 95 %: exact for 0/1 losses (Clopper and Pearson 1934), else the normal
            approximation. Rows are taken as independent.
    """

    kind: Kind
    alpha: float
    rows: int
    observed: float | None
    interval: tuple[float, float] | None


def settled(target: Target, little_gain: Bools) -> Target:
    """The target where some requests stay on the device, accepted or not: there an answer that is
    not accepted costs what an accepted one does.

    Arguments:
        little_gain: those requests, shape ``[rows]``.
    """
    if not little_gain.any():
        return target
    return replace(target, escalated=np.where(little_gain, target.local, target.escalated))


def observe(target: Target, accepted: Bools) -> Observed:
    """The mean loss when just these rows are answered locally, with its interval."""
    losses = (
        target.local[accepted]
        if target.accepted_only
        else np.where(accepted, target.local, target.escalated)
    )
    n = len(losses)
    if not n:
        return Observed(target.kind, target.alpha, 0, None, None)
    mean = float(losses.mean())
    if target.low == 0 and ((losses == 0) | (losses == 1)).all():
        interval = clopper_pearson_interval(int(losses.sum()), n)
    else:
        half = 1.96 * float(losses.std()) / math.sqrt(n)
        interval = (max(target.low, mean - half), min(target.high, mean + half))
    return Observed(target.kind, target.alpha, n, mean, interval)


def goes_up(aims: Sequence[Aim]) -> bool:
    """Whether thresholds are tested from the lowest up: where no target bounds an error, the most
    escalation is wanted that the others allow."""
    return not any(aim.kind in _RISKS for aim in aims)


def _measured(rows: Pair, tier: str, name: str) -> Floats:
    values = rows.column(tier, name)
    if values is None:
        raise InvalidInput("target", f"needs {name} of {tier}, which the records do not have")
    return _whole(tier, name, values)


def _whole(tier: str, name: str, values: Floats) -> Floats:
    if missing := int(np.isnan(values).sum()):
        raise InvalidInput("target", f"needs {name} of {tier}, and {missing} records lack it")
    return values
