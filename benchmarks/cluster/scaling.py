"""Replicas that come and go under load: autoscaling, sleep and waking, a rolling redeploy."""

from __future__ import annotations

import time
from collections.abc import Iterator

from benchmarks.child import Fields
from benchmarks.cluster.engine import Script
from benchmarks.cluster.subject import Cluster
from benchmarks.rows import Row
from benchmarks.run import Run
from benchmarks.timing import Estimate, median

_SERVICE_S = 0.1
_SCRIPT = Script(pause_s=_SERVICE_S)
_TARGET, _UP_S, _DOWN_S = 2.0, 1.0, 3.0
_MANY, _FEW = 8, 1
_DEADLINE_S = 20.0


def rows(subject: None, run: Run) -> Iterator[Row]:
    """1 → 2 → 1 replicas, 0 → 1, and a rolling redeploy."""
    rounds = 1 if run.quick else 6
    with Cluster() as cluster:
        yield from _up_and_down(cluster, run)
        yield from _asleep(cluster, run, rounds)
        yield from _redeploy(cluster, run, rounds)


def _up_and_down(cluster: Cluster, run: Run) -> Iterator[Row]:
    cluster.deploy(_SCRIPT, tier=_tier(1, 2))
    cluster.until_answered()
    cluster.until_running(1)
    load = {"tokens": 1, "deadline_s": _DEADLINE_S}
    run.say(f"{_MANY} callers until there are two replicas")
    began = time.monotonic()
    many = cluster.beside("closed_loop", callers=_MANY, seconds=30.0, **load)
    up_s = cluster.until_running(2) - began
    seen = [many.result()]
    run.say(f"{_FEW} caller until there is one replica")
    began = time.monotonic()
    few = cluster.beside("closed_loop", callers=_FEW, seconds=30.0, **load)
    down_s = cluster.until_running(1) - began
    seen.append(few.result())
    how = (
        f"an engine of {_SERVICE_S:g} s a request, {_TARGET:g} requests a replica aimed at, "
        f"scaled up after {_UP_S:g} s and down after {_DOWN_S:g} s; {_MANY} callers for 30 s, "
        f"then {_FEW} for 30 s, each asking again once it is answered; nobody asks twice"
    )
    yield _failed(run, "1 → 2 → 1 replicas", seen, how)
    yield run.row("1 → 2 replicas: time to the second one", Estimate(up_s, 1), "s", how)
    yield run.row("2 → 1 replicas: time to one", Estimate(down_s, 1), "s", how)


def _asleep(cluster: Cluster, run: Run, rounds: int) -> Iterator[Row]:
    cluster.deploy(_SCRIPT, tier=_tier(0, 1))
    first: list[float] = []
    last: list[float] = []
    seen: list[Fields] = []
    for number in range(rounds):
        run.say(f"asleep, {number + 1} of {rounds}")
        cluster.until_running(0)
        asked = cluster.ask("count", callers=4, requests=4, deadline_s=_DEADLINE_S)
        seen.append(asked)
        last.append(float(asked["longest_s"]))
        if asked["quickest_s"] is not None:
            first.append(float(asked["quickest_s"]))
    how = (
        f"4 callers ask a tier without replicas at one time, {rounds} times; all are held until "
        f"there is one; the answer itself takes {_SERVICE_S:g} s"
    )
    yield _failed(run, "0 → 1 replicas", seen, how)
    if first:
        yield run.row("0 → 1 replicas: time to the first answer", median(first), "s", how)
    yield run.row("0 → 1 replicas: first answers, the slowest of 4", median(last), "s", how)


def _redeploy(cluster: Cluster, run: Run, rounds: int) -> Iterator[Row]:
    cluster.deploy(_SCRIPT, tier=_tier(1, 1))
    cluster.until_answered()
    took: list[float] = []
    for devices in (True, False):
        who = "devices" if devices else "clients that never ask twice"
        seen: list[Fields] = []
        for number in range(rounds):
            run.say(f"redeploying under {who}, {number + 1} of {rounds}")
            load = cluster.beside(
                "closed_loop",
                callers=4,
                seconds=25.0,
                tokens=1,
                deadline_s=_DEADLINE_S,
                devices=devices,
            )
            time.sleep(2.0)
            took.append(cluster.deploy(_SCRIPT, tier=_tier(1, 1)))
            seen.append(load.result())
        how = (
            f"4 {who} ask for 25 s, on connections that they keep; another version of the gateway "
            f"and the tier is deployed after 2 s, {rounds} times; a device sends again, once, what "
            "the gateway did not begin to answer"
        )
        yield _failed(run, f"rolling redeploy, {who}", seen, how)
    yield run.row("rolling redeploy: time", median(took), "s", how)


def _failed(run: Run, name: str, seen: list[Fields], how: str) -> Row:
    failed = sum(each["failed"] for each in seen)
    asked = sum(sum(each["statuses"].values()) for each in seen)
    problem = next((each["problem"] for each in seen if each["problem"]), "")
    statuses = "; ".join(str(each["statuses"]) for each in seen if each["failed"])
    told = f" ({statuses}, e.g. {problem})" if failed else ""
    return run.row(
        f"{name}: failed requests", Estimate(failed, asked), "requests", how + told, reach=0.0
    )


def _tier(least: int, most: int) -> Fields:
    return {
        "parallel": 4,
        "autoscaling": {
            "min_replicas": least,
            "max_replicas": most,
            "target_ongoing_requests": _TARGET,
            "upscale_delay_s": _UP_S,
            "downscale_delay_s": _DOWN_S,
        },
    }
