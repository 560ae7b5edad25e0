"""What the way through the cluster adds to an answer of a real model."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.cluster.subject import Cluster
from benchmarks.rows import Row
from benchmarks.run import Run
from benchmarks.timing import median
from cascade import download

_MODEL = "qwen2.5-coder-0.5b-instruct-q4_k_m"
_TIER = {"model": _MODEL, "context_tokens": 512, "parallel": 1}
_DEADLINE_S = 300.0


def rows(subject: None, run: Run) -> Iterator[Row]:
    """The share of the wall time that is not the engine's."""
    download.pull(_MODEL)
    rounds, tokens = (2, 16) if run.quick else (9, 128)
    shares, cpu_shares, walls = [], [], []
    with Cluster() as cluster:
        cluster.deploy(None, tier=_TIER)
        cluster.until_answered(within_s=120.0)
        for number in range(rounds):
            run.say(f"answer {number + 1} of {rounds}")
            known = len(cluster.engine_seconds())
            before = cluster.usage()
            (outcome,) = cluster.ask("together", callers=1, tokens=tokens, deadline_s=_DEADLINE_S)[
                "outcomes"
            ]
            cpu_s = cluster.usage()["gateway_cpu_s"] - before["gateway_cpu_s"]
            (engine_s,) = cluster.engine_seconds()[known:]
            wall_s = outcome["ended"] - outcome["began"]
            walls.append(wall_s)
            shares.append(100 * (1 - engine_s / wall_s))
            cpu_shares.append(100 * cpu_s / wall_s)
    how = (
        f"{_MODEL} on one thread streams up to {tokens} tokens to one caller over TLS, "
        "on a new connection each time"
    )
    yield run.row(
        "gateway's share of a streamed answer",
        median(shares),
        "%",
        "1 − the engine's time, from the request in the replica to its last event, over the "
        f"caller's, from the call to its end, connecting included; {how}",
        reach=2.0,
    )
    yield run.row(
        "gateway's CPU time over a streamed answer's wall time", median(cpu_shares), "%", how
    )
    yield run.row("streamed answer of a real tier, wall time", median(walls), "s", how)
