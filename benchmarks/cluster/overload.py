"""Ten times as many requests as an engine can answer, at one gateway and at two."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.child import Fields
from benchmarks.cluster.engine import Script
from benchmarks.cluster.subject import Cluster
from benchmarks.rows import Row
from benchmarks.run import Run
from benchmarks.timing import Estimate

_SLOTS, _SERVICE_S, _TIMES = 4, 0.1, 10
_CAPACITY = _SLOTS / _SERVICE_S
_CONNECTIONS, _DEADLINE_S = 16, 10.0


def rows(subject: None, run: Run) -> Iterator[Row]:
    """Goodput, how fast the rest is refused, and what it costs in memory and in CPU time."""
    seconds = 5 if run.quick else 60
    with Cluster() as cluster:
        for gateways in (1, 2):
            cluster.deploy(
                Script(pause_s=_SERVICE_S, slots=_SLOTS),
                tier={"parallel": _SLOTS},
                gateway={"replicas": gateways},
            )
            cluster.until_answered()
            # What imports and caches take is no growth.
            cluster.ask("open_loop", rate=_CAPACITY, seconds=2, connections=_CONNECTIONS)
            before = cluster.usage()
            said = "" if gateways == 1 else f", {gateways} gateways"
            run.say(f"{_TIMES * _CAPACITY:g} requests/s for {seconds} s{said}")
            seen = cluster.ask(
                "open_loop",
                rate=_TIMES * _CAPACITY,
                seconds=seconds,
                connections=_CONNECTIONS,
                deadline_s=_DEADLINE_S,
            )
            after = cluster.usage()
            used = {name: after[name] - before[name] for name in before}
            used["rss_before"] = before["gateway_rss"]
            yield from _told(run, seen, used, said, seconds=seconds)


def _told(run: Run, seen: Fields, used: Fields, said: str, *, seconds: int) -> Iterator[Row]:
    statuses = seen["statuses"]
    asked = sum(statuses.values())
    refused, answered = statuses.get("RESOURCE_EXHAUSTED", 0), statuses.get("OK", 0)
    told = ", ".join(f"{count} {status}" for status, count in sorted(statuses.items()))
    how = (
        f"{_TIMES * _CAPACITY:g} requests/s, sent evenly over {_CONNECTIONS} TLS connections by "
        f"one process for {seconds} s ({seen['sent_s']:.1f} s to send them), each serialised "
        "beforehand, its answer not parsed and nothing sent again, at an engine of "
        f"{_SLOTS} slots and {_SERVICE_S:g} s{said}; {told}. The gateways' threads waited "
        f"{used['gateway_waited_s']:.1f} s for a core that something else had"
    )
    yield run.row(
        f"overload: goodput of capacity{said}",
        Estimate(100 * seen["in_time"] / seconds / _CAPACITY, asked),
        "%",
        f"answers that ended within the {seconds} s, of {_CAPACITY:g} a second; {how}",
        reach=90.0,
        sense=">=",
    )
    p95 = seen["refused_seconds"]["p95"]
    yield run.row(
        f"overload: refusals, p95{said}",
        None if p95 is None else Estimate(1e3 * p95, refused),
        "ms",
        f"time to RESOURCE_EXHAUSTED at the caller; {how}",
        reach=100.0,
    )
    yield run.row(
        f"overload: neither answered nor refused{said}",
        Estimate(asked - refused - answered, asked),
        "requests",
        how,
        reach=0.0,
    )
    p95 = seen["seconds"]["p95"]
    yield run.row(
        f"overload: answers, p95{said}",
        None if p95 is None else Estimate(1e3 * p95, answered),
        "ms",
        f"the queue is bounded, and with it the wait; {how}",
    )
    yield run.row(
        f"overload: growth of the gateways' memory{said}",
        Estimate(used["gateway_rss"] / 1e6, 1),
        "MB",
        f"resident, from {used['rss_before'] / 1e6:.0f} MB before; {how}",
        reach=50.0,
    )
    for what, cpu_s in (
        ("the gateways", used["gateway_cpu_s"]),
        ("the tier's replica", used["tier_cpu_s"]),
        ("Ray's own processes", used["cpu_s"] - used["gateway_cpu_s"] - used["tier_cpu_s"]),
        ("the callers", seen["cpu_s"]),
    ):
        yield run.row(
            f"overload: CPU time of {what} a request{said}",
            Estimate(1e3 * cpu_s / asked, asked),
            "ms",
            f"by the kernel's counters, answered and refused ones together; {how}",
        )
