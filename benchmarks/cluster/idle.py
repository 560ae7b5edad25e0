"""Connections that are open and say nothing."""

from __future__ import annotations

import time
from collections.abc import Iterator

from benchmarks.cluster.engine import Script
from benchmarks.cluster.subject import Cluster
from benchmarks.rows import Row
from benchmarks.run import Run
from benchmarks.timing import Estimate, median

_REQUESTS, _AT_REST_S = 20, 10.0


def rows(subject: None, run: Run) -> Iterator[Row]:
    """What they take, and what a request beside them takes."""
    count = 300 if run.quick else 10_000
    with Cluster() as cluster:
        cluster.deploy(Script(), gateway={"idle_connection_s": 3600})
        cluster.until_answered()
        cluster.ask("count", callers=1, requests=_REQUESTS, deadline_s=10.0)
        before = cluster.usage()
        run.say(f"{count} idle connections")
        opened = cluster.ask("open_idle", connections=count)["open"]
        time.sleep(1.0)
        held = cluster.usage()
        time.sleep(_AT_REST_S)
        rested = cluster.usage()
        beside = [
            cluster.beside("count", callers=1, requests=1, deadline_s=10.0).result()
            for _ in range(_REQUESTS)
        ]
        cluster.ask("close_idle")
    grown = held["gateway_rss"] - before["gateway_rss"]
    how = (
        f"{opened} TLS connections from one process that have greeted (HTTP/2 preface and "
        "settings) and then say nothing"
    )
    yield run.row("idle connections held", Estimate(opened, 1), "connections", how, sense=">=")
    yield run.row(
        "idle connections: the gateway's memory for each",
        Estimate(grown / opened / 1024, opened),
        "KiB",
        f"growth of its resident memory, {grown / 1e6:.0f} MB in all; {how}",
    )
    yield run.row(
        "idle connections: the gateway's CPU time at rest",
        Estimate(100 * (rested["gateway_cpu_s"] - held["gateway_cpu_s"]) / _AT_REST_S, 1),
        "% of a core",
        f"over {_AT_REST_S:g} s; {how}",
    )
    answered = [1e3 * each["longest_s"] for each in beside if each["requests"]]
    yield run.row(
        "idle connections: a request beside them",
        median(answered),
        "ms",
        f"connecting included, to an engine that answers at once; {how}",
    )
    yield run.row(
        "idle connections: failed requests beside them",
        Estimate(sum(each["failed"] for each in beside), _REQUESTS),
        "requests",
        how,
        reach=0.0,
    )
