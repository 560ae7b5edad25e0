"""The constraints on escalation, as one pure function: what stands in the way, all of it, in order.

``Situation`` is what they look at, measured beforehand by ``cascade.egress``. Constraints are
filters, looked at before any cost is weighed, and money comes last among them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from cascade.budget import BudgetState
from cascade.conditions import Conditions
from cascade.errors import CascadeError, InvalidInput, RemoteError
from cascade.latency import fits
from cascade.policy import Reason, obstacles_to_escalation
from cascade.request import Constraints

PII: Final = "pii:"
DETECTOR_FAILED: Final = "detector_failed"
"""Stands in the place of a kind where the detector broke: then nothing is sent."""


@dataclass(frozen=True, slots=True)
class Situation:
    """What is known when a request might leave the device.

    Arguments:
        cluster: whether a cluster is configured.
        remaining_s: what is left of the deadline for the cluster, in seconds.
        p95_s: measured 95th percentile of each tier's latency in seconds, for requests of this
            form; tiers that are not in it are unknown.
        circuit_open: whether the cluster is being left alone.
        budget: what is left of the money; ``None`` without limits.
        budget_unreadable: there are limits, but nobody can tell what is left.
        pii: kinds found in the request that may not leave, each once.
    """

    cluster: bool
    remaining_s: float
    p95_s: dict[str, float] = field(default_factory=dict)
    conditions: Conditions = field(default_factory=Conditions)
    circuit_open: bool = False
    budget: BudgetState | None = None
    budget_unreadable: bool = False
    pii: tuple[str, ...] = ()


def obstacles(limits: Constraints, situation: Situation) -> tuple[str, ...]:
    """Every reason why a request with these limits may not leave the device now, in order; empty
    when it may."""
    own = obstacles_to_escalation(limits, cluster=situation.cluster)
    before = tuple(reason for reason in own if reason is Reason.NEVER_LEAVE)
    return (
        *before,
        *(f"{PII}{kind}" for kind in situation.pii),
        *own[len(before) :],
        *_passing(limits, situation),
    )


def refusal(stands: tuple[str, ...]) -> CascadeError:
    """The error for a request that only the cluster could answer and that may not be sent."""
    status = next((_STATUS[reason] for reason in stands if reason in _STATUS), None)
    why = ", ".join(stands)
    if Reason.NO_CLUSTER in stands:
        return InvalidInput(
            "prefer", "is cloud, but no cluster is configured; give --cloud, or cloud=… in code"
        )
    if status is None:
        return InvalidInput(
            "constraints", f"forbid escalation ({why}), and the device is not to answer"
        )
    return RemoteError(status, f"the cluster was not asked ({why}), and the device has no answer")


_STATUS: Final[dict[str, str]] = {
    Reason.OFFLINE: "UNAVAILABLE",
    Reason.CIRCUIT_OPEN: "UNAVAILABLE",
    Reason.DEADLINE_TOO_SHORT: "DEADLINE_EXCEEDED",
    Reason.BUDGET_DAY: "RESOURCE_EXHAUSTED",
    Reason.BUDGET_RATE: "RESOURCE_EXHAUSTED",
    Reason.BUDGET_UNREADABLE: "RESOURCE_EXHAUSTED",
}
"""How a passing obstacle reads to those who know gRPC's words; the others lie in the request."""


def _passing(limits: Constraints, now: Situation) -> list[Reason]:
    """Obstacles that time may remove."""
    conditions, budget = now.conditions, now.budget
    share = conditions.battery_share
    found: list[Reason] = []
    if conditions.connectivity == "offline":
        found.append(Reason.OFFLINE)
    if conditions.connectivity == "metered" and not limits.metered_ok:
        found.append(Reason.METERED)
    if share is not None and share < limits.min_battery and not conditions.charging:
        found.append(Reason.BATTERY_LOW)
    if now.circuit_open:
        found.append(Reason.CIRCUIT_OPEN)
    if not fits(now.remaining_s, now.p95_s, limits.allowed_tiers):
        found.append(Reason.DEADLINE_TOO_SHORT)
    if budget is not None and not budget.day_covers:
        found.append(Reason.BUDGET_DAY)
    if budget is not None and not budget.bucket_covers:
        found.append(Reason.BUDGET_RATE)
    if now.budget_unreadable:
        found.append(Reason.BUDGET_UNREADABLE)
    return found
