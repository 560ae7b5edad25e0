"""What devices have reported of the two adapters that the last rollout compares, in the store.

Of one device no more than ``MOST_PER_DEVICE`` trials of a measure count, and never more events than
trials: nobody outweighs the others, a device that lies least of all.
"""

from __future__ import annotations

from typing import Final

from cascade.federation import fleet
from cascade.federation.terms import MetricsReport
from cloud.federation.database import Transaction

MOST_PER_DEVICE: Final = 200


def add(tx: Transaction, report: MetricsReport) -> None:
    """Add a report. That it is counted once is its caller's business."""
    compared = tx.one(
        "SELECT candidate_digest, parent_digest FROM rollouts WHERE state <> 'skipped' "
        "ORDER BY round DESC LIMIT 1"
    )
    adapters = {fleet.short(str(digest)) for digest in compared or ()}
    for (adapter, measure), (trials, events) in fleet.measured(
        report.counters, report.histograms
    ).items():
        if adapter not in adapters:
            continue
        row = tx.one(
            "SELECT trials, events FROM adapter_counts "
            "WHERE adapter = ? AND device = ? AND measure = ?",
            adapter,
            report.device_id,
            measure,
        )
        tried, happened = (0, 0) if row is None else (int(row[0]), int(row[1]))
        most = 1 if measure in fleet.ALONE else MOST_PER_DEVICE
        if tried >= most:  # nor any event: its request is not among those that count
            continue
        taken = min(trials, most - tried)
        of_taken = events if taken == trials else round(events * taken / trials)
        added = min(of_taken, tried + taken - happened)
        if not taken and not added:
            continue
        tx.run(
            "INSERT INTO adapter_counts VALUES (?, ?, ?, ?, ?) "
            "ON CONFLICT (adapter, device, measure) DO UPDATE SET "
            "trials = adapter_counts.trials + excluded.trials, "
            "events = adapter_counts.events + excluded.events",
            adapter,
            report.device_id,
            measure,
            taken,
            added,
        )


def of(tx: Transaction, adapter_digest: str) -> dict[str, tuple[int, int]]:
    """Trials and events of each measure, of all devices that run an adapter."""
    rows = tx.all(
        "SELECT measure, SUM(trials), SUM(events) FROM adapter_counts WHERE adapter = ? "
        "GROUP BY measure",
        fleet.short(adapter_digest),
    )
    return {str(row[0]): (int(row[1]), int(row[2])) for row in rows}


def devices(tx: Transaction, adapter_digest: str) -> int:
    """How many devices have reported of an adapter."""
    row = tx.one(
        "SELECT COUNT(DISTINCT device) FROM adapter_counts WHERE adapter = ?",
        fleet.short(adapter_digest),
    )
    return int(row[0]) if row else 0


def clear(tx: Transaction) -> None:
    """Forget what was reported: only what is served at the same time is compared."""
    tx.run("DELETE FROM adapter_counts")
