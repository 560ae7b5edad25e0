"""What a store tells of its rounds at one time, in numbers: for metrics. Totals are those of all
gateways, for the store is theirs together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from cloud.federation.database import Transaction
from cloud.federation.leases import enrolled
from cloud.federation.refusals import counters

_REFUSED, _ABORTED = "refused.", "aborted."


@dataclass(frozen=True, slots=True)
class RoundFigures:
    """The numbers.

    Arguments:
        devices: that are enrolled.
        rounds: by state.
        leases: by state, of the last month.
        updates: since the store was made, by outcome ("committed", "dropped", "refused",
            "given_back") and reason, which is "" for the first two.
        update_bytes: of all that were committed.
        aggregation_error: relative, of the last round that knows it.
        epsilon: "before" and "after" the round that was opened last, where it has noise.
    """

    devices: int
    rounds: Mapping[str, int]
    leases: Mapping[str, int]
    updates: Mapping[tuple[str, str], int]
    update_bytes: int
    aggregation_error: float | None
    epsilon: Mapping[str, float]


def figures(tx: Transaction) -> RoundFigures:
    """The store's."""
    counts = counters(tx)
    updates = {(name, ""): counts.get(name, 0) for name in ("committed", "dropped")}
    for name, value in counts.items():
        for prefix, outcome in ((_REFUSED, "refused"), (_ABORTED, "given_back")):
            if name.startswith(prefix):
                updates[outcome, name.removeprefix(prefix)] = value
    error = tx.one(
        "SELECT aggregation_error FROM rounds WHERE aggregation_error IS NOT NULL "
        "ORDER BY number DESC LIMIT 1"
    )
    spent = tx.one("SELECT epsilon_before, epsilon_after FROM rounds ORDER BY number DESC LIMIT 1")
    told = dict(zip(("before", "after"), spent or (None, None), strict=True))
    return RoundFigures(
        devices=enrolled(tx),
        rounds=_by_state(tx, "rounds"),
        leases=_by_state(tx, "leases"),
        updates=updates,
        update_bytes=counts.get("committed_bytes", 0),
        aggregation_error=None if error is None else float(error[0]),
        epsilon={when: float(value) for when, value in told.items() if value is not None},
    )


def _by_state(tx: Transaction, table: str) -> dict[str, int]:
    rows = tx.all(f"SELECT state, COUNT(*) FROM {table} GROUP BY state")
    return {str(state): int(number) for state, number in rows}
