"""Ten times as many requests as an engine can answer."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.cluster.engine import Script
from benchmarks.cluster.subject import Cluster
from benchmarks.rows import Row
from benchmarks.run import Run
from benchmarks.timing import Estimate

_SLOTS, _SERVICE_S, _TIMES = 4, 0.1, 10
_CONNECTIONS, _DEADLINE_S = 16, 10.0


def rows(subject: None, run: Run) -> Iterator[Row]:
    """Goodput, how fast the rest is refused, and what it costs in memory."""
    seconds = 5 if run.quick else 60
    capacity = _SLOTS / _SERVICE_S
    with Cluster() as cluster:
        cluster.deploy(Script(pause_s=_SERVICE_S, slots=_SLOTS), tier={"parallel": _SLOTS})
        cluster.until_answered()
        # What imports and caches take is no growth.
        cluster.ask("open_loop", rate=capacity, seconds=2, connections=_CONNECTIONS)
        before = cluster.usage()
        run.say(f"{_TIMES * capacity:g} requests/s for {seconds} s")
        seen = cluster.ask(
            "open_loop",
            rate=_TIMES * capacity,
            seconds=seconds,
            connections=_CONNECTIONS,
            deadline_s=_DEADLINE_S,
        )
        after = cluster.usage()
    statuses = seen["statuses"]
    asked = sum(statuses.values())
    refused = statuses.get("RESOURCE_EXHAUSTED", 0)
    how = (
        f"{_TIMES * capacity:g} requests/s, sent evenly over {_CONNECTIONS} connections for "
        f"{seconds} s ({seen['sent_s']:.1f} s to send them), at an engine of {_SLOTS} slots and "
        f"{_SERVICE_S:g} s; {_told(statuses)}"
    )
    yield run.row(
        "overload: goodput of capacity",
        Estimate(100 * seen["in_time"] / seconds / capacity, asked),
        "%",
        f"answers that ended within the {seconds} s, of {capacity:g} a second; {how}",
        reach=90.0,
        sense=">=",
    )
    p95 = seen["refused_seconds"]["p95"]
    yield run.row(
        "overload: refusals, p95",
        None if p95 is None else Estimate(1e3 * p95, refused),
        "ms",
        f"time to RESOURCE_EXHAUSTED at the caller; {how}",
        reach=100.0,
    )
    yield run.row(
        "overload: neither answered nor refused",
        Estimate(asked - refused - statuses.get("OK", 0), asked),
        "requests",
        how,
        reach=0.0,
    )
    answered = seen["seconds"]["p95"]
    yield run.row(
        "overload: answers, p95",
        None if answered is None else Estimate(1e3 * answered, statuses.get("OK", 0)),
        "ms",
        f"the queue is bounded, and with it the wait; {how}",
    )
    yield run.row(
        "overload: growth of the gateway's memory",
        Estimate((after["gateway_rss"] - before["gateway_rss"]) / 1e6, 1),
        "MB",
        f"resident, from {before['gateway_rss'] / 1e6:.0f} MB before; {how}",
        reach=50.0,
    )
    yield run.row(
        "overload: CPU time of all server processes a request",
        Estimate(1e3 * (after["cpu_s"] - before["cpu_s"]) / asked, asked),
        "ms",
        how,
    )


def _told(statuses: dict[str, int]) -> str:
    return ", ".join(f"{count} {status}" for status, count in sorted(statuses.items()))
