"""Counts of what became of requests, by the adapter that ran: what a rollout is judged by.

Numbers alone; nothing of what was asked or answered.
"""

from __future__ import annotations

import bisect
import secrets
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from cascade.decision_record import DecisionRecord
from cascade.errors import CascadeError
from cascade.events import Answer
from cascade.federation import fleet
from cascade.federation.terms import Histogram
from cascade.monitor import Monitor
from cascade.request import Request


@dataclass(frozen=True, slots=True)
class Counted:
    """Counts that are to be sent once, under their own id."""

    report_id: bytes
    counters: tuple[tuple[str, int], ...]
    histograms: tuple[tuple[str, Histogram], ...]


class AdapterCounts:
    """An ``Observer`` that counts; give it to ``Device.open(observers=[…])``, and to
    ``Participant.report`` now and then.

    Arguments:
        adapter: says which adapter runs now; "" for none.
        monitor: of the same device: its audits and its users' complaints are counted, too.
    """

    def __init__(self, adapter: Callable[[], str], monitor: Monitor | None = None) -> None:
        self._adapter = adapter
        self._monitor = monitor
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()
        self._latencies: dict[str, list[int]] = {}
        self._unsent: Counted | None = None
        self._heard = self._of_monitor()

    def decided(self, record: DecisionRecord) -> None:
        """See ``Observer``."""

    def answered(self, request: Request, answer: Answer) -> None:
        """See ``Observer``."""
        adapter = self._adapter()
        place = bisect.bisect_left(fleet.LATENCY_BOUNDS_S, answer.latency.total_s)
        with self._lock:
            self._one(adapter, fleet.REQUESTS)
            if not answer.local or answer.remote_status is not None:
                self._one(adapter, fleet.ESCALATED)
            name = fleet.metric(adapter, fleet.LATENCY)
            buckets = self._latencies.setdefault(name, [0] * (len(fleet.LATENCY_BOUNDS_S) + 1))
            buckets[place] += 1

    def failed(self, request: Request, problem: CascadeError) -> None:
        """See ``Observer``: nobody answered, so it had gone up."""
        adapter = self._adapter()
        with self._lock:
            self._one(adapter, fleet.REQUESTS)
            self._one(adapter, fleet.ESCALATED)

    def applied(self, adapter: str, *, failed: bool) -> None:
        """An adapter was to be applied; see ``edge.Renewal``."""
        with self._lock:
            self._one(adapter, fleet.LOADS)
            if failed:
                self._one(adapter, fleet.LOAD_FAILURES)

    def take(self) -> Counted | None:
        """What is to be sent: the same again until it is ``sent``, so that a lost reply counts
        nothing twice. ``None`` where nothing happened."""
        heard = self._of_monitor()
        with self._lock:
            if self._unsent is None:
                for name, value in heard.items():
                    self._counts[name] += max(0, value - self._heard.get(name, 0))
                self._heard = heard
                counters = tuple(sorted((+self._counts).items()))
                if counters:
                    histograms = tuple(
                        (name, Histogram(fleet.LATENCY_BOUNDS_S, tuple(buckets)))
                        for name, buckets in sorted(self._latencies.items())
                    )
                    self._unsent = Counted(secrets.token_bytes(16), counters, histograms)
                    self._counts.clear()
                    self._latencies.clear()
            return self._unsent

    def sent(self, counted: Counted) -> None:
        """The cluster has them."""
        with self._lock:
            if self._unsent is counted:
                self._unsent = None

    def _one(self, adapter: str, name: str) -> None:
        self._counts[fleet.metric(adapter, name)] += 1

    def _of_monitor(self) -> dict[str, int]:
        """What the monitor knows of each adapter, since it was opened."""
        totals: Counter[str] = Counter()
        for kept in self._monitor.kept() if self._monitor is not None else ():
            health = kept.health
            for name, value in (
                (fleet.AUDITED, health.audits.labels),
                (fleet.AUDIT_ERRORS, health.audits.errors),
                (fleet.CORRECTED, health.accepted.errors),
            ):
                totals[fleet.metric(kept.key.adapter, name)] += value
        return dict(totals)
