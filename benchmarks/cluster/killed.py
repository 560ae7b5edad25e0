"""What callers see when a replica, or the gateway, is killed without warning."""

from __future__ import annotations

import time
from collections.abc import Iterator

from benchmarks.child import Fields
from benchmarks.cluster.engine import Script
from benchmarks.cluster.server import TIER
from benchmarks.cluster.subject import Cluster
from benchmarks.rows import Row
from benchmarks.run import Run
from benchmarks.timing import Estimate, median
from cloud.gateway import deployment_name

_PAUSE_S, _TOKENS = 0.05, 200  # a stream of 10 s
_UNDER_WAY_S = 2.0
_STREAM_DEADLINE_S = 30.0
_DEADLINE_S = 3.0
_FOLLOWING = 200
_HOW = "an engine that writes a word every 50 ms; SIGKILL to the replica's process"


def rows(subject: None, run: Run) -> Iterator[Row]:
    """Of two replicas one is killed; then the only one; then the gateway."""
    rounds = 1 if run.quick else 6
    with Cluster() as cluster:
        yield from _one_of_two(cluster, run, rounds)
        yield from _lone(cluster, run, rounds)


def _one_of_two(cluster: Cluster, run: Run, rounds: int) -> Iterator[Row]:
    cluster.deploy(Script(pause_s=_PAUSE_S), tier=_replicas(2))
    cluster.until_answered()
    ends: list[float] = []
    wrong = followed = failed = 0
    told: set[str] = set()
    for number in range(rounds):
        run.say(f"killing one of two replicas, {number + 1} of {rounds}")
        cluster.until_running(2)
        streams = cluster.beside(
            "together", callers=4, tokens=_TOKENS, deadline_s=_STREAM_DEADLINE_S, apart_s=0.2
        )
        time.sleep(_UNDER_WAY_S)
        at = cluster.kill(deployment_name(TIER))
        following = cluster.ask("count", callers=4, requests=_FOLLOWING, deadline_s=_DEADLINE_S)
        followed += _FOLLOWING
        failed += following["failed"]
        if following["failed"]:
            run.say(f"{following['statuses']}: {following['problem']}")
        for outcome in streams.result()["outcomes"]:
            if outcome["status"] == "OK":  # it was on the other one
                continue
            told.add(f"{outcome['status']}: {outcome['problem']}")
            ends.append(outcome["ended"] - at)
            wrong += outcome["status"] != "UNAVAILABLE"
    statuses = "; ".join(sorted(told)) or "none was cut"
    how = f"4 streams over 2 replicas, one of which is killed 2 s later, {rounds} times; {_HOW}"
    yield run.row(
        "one of two replicas killed: slowest end of a cut stream",
        Estimate(max(ends), len(ends)) if ends else None,
        "s",
        f"from the kill to the status at the caller ({statuses}); {how}",
        reach=1.0,
    )
    yield run.row(
        "one of two replicas killed: cut streams that did not end with UNAVAILABLE",
        Estimate(wrong, len(ends)),
        "streams",
        how,
        reach=0.0,
    )
    yield run.row(
        f"one of two replicas killed: failed of the {followed} following requests",
        Estimate(failed, followed),
        "requests",
        f"{_FOLLOWING} by 4 callers, none of which asks again, from the kill on; {how}",
        reach=0.0,
    )


def _lone(cluster: Cluster, run: Run, rounds: int) -> Iterator[Row]:
    cluster.deploy(Script(pause_s=_PAUSE_S), tier=_replicas(1))
    for deployment, name in ((deployment_name(TIER), "lone replica"), ("gateway", "gateway")):
        back: list[float] = []
        longest = 0.0
        for number in range(rounds):
            run.say(f"killing the {name}, {number + 1} of {rounds}")
            cluster.until_answered()
            time.sleep(_UNDER_WAY_S)
            at = cluster.kill(deployment)
            seen = cluster.until_answered()
            back.append(seen["at"] - at)
            longest = max(longest, seen["longest_s"])
        how = f"asked again and again with a deadline of 1 s; killed {rounds} times; {_HOW}"
        yield run.row(
            f"{name} killed: serving again, slowest",
            Estimate(max(back), len(back)),
            "s",
            f"from the kill to the end of the first answer; {how}",
            reach=5.0,
        )
        yield run.row(f"{name} killed: serving again, median", median(back), "s", how)
        yield run.row(
            f"{name} killed: longest that a call with a deadline of 1 s took",
            Estimate(longest, rounds),
            "s",
            f"0.2 s are left for a busy machine; {how}",
            reach=1.2,
        )


def _replicas(count: int) -> Fields:
    return {
        "parallel": 16,
        "autoscaling": {"min_replicas": count, "max_replicas": count},
    }
