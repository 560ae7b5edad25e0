"""Flower's deployment runtime beside ours: what the same payload costs the server.

Flower's best case is one array; ours is the adapter as it is, in its tensors. Flower runs without
TLS, keys, signatures or a synced store; ours with all of them.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.cluster.subject import Cluster
from benchmarks.federated.protocol import all_ok, between, counted, idle_share
from benchmarks.peers import Child, Environment
from benchmarks.rows import Row
from benchmarks.run import Run
from benchmarks.timing import Estimate

VERSION = "1.42.0"
_ENVIRONMENT = Environment("flower", (f"flwr=={VERSION}",))
# B of q and v of all 30 layers at rank 5: as many numbers as A and B at rank 2.
_LAYERS, _RANK, _ELEMENTS = 30, 5, 115_200
_FEW, _MANY = 2, 8
_GOAL = 20


def rows(subject: object, run: Run) -> Iterator[Row]:
    """CPU of the server a client-round, of both, and how many times less ours is."""
    devices, times = (20, 1) if run.quick else (60, 3)
    server = "benchmarks.federated.protocol_server"
    with Cluster(server=server) as cluster, Child("benchmarks.federated.protocol_client") as fleet:
        run.say("a cluster with a coordinator")
        told = cluster.server.ask(
            "deploy_rounds",
            goal=_GOAL,
            devices=devices,
            layers=_LAYERS,
            rank=_RANK,
            bits=32,
            upload_memory=64_000_000,
        )
        fleet.ask("prepare", target=cluster.ours, devices=devices, shapes=told["shapes"], bits=32)
        all_ok(fleet.ask("enrol", at_once=10))
        idle = idle_share(cluster, 5.0 if run.quick else 20.0)
        before, began = cluster.server.ask("federated_usage"), time.monotonic()
        for _ in range(times):
            run.say(f"{devices} devices take part")
            all_ok(fleet.ask("take_part", at_once=10))
        counted(cluster, devices * times, _GOAL)
        after = cluster.server.ask("federated_usage")
        wall_s = time.monotonic() - began
    total, size = devices * times, int(told["payload_bytes"])
    ours = sum(between(before, after, f"{part}_cpu_s") for part in ("gateway", "coordinator"))
    ours -= idle * wall_s
    yield run.row(
        "same payload, ours: server CPU a client-round",
        Estimate(1e3 * ours / total, total),
        "ms",
        f"{total} client-rounds of {size} bytes in {2 * _LAYERS} tensors of float32, with TLS, "
        "signatures and a store that is synced to disk, aggregation included, less what both use "
        f"when nobody calls ({1e3 * idle:.0f} ms a second)",
    )
    peer = f"flower {VERSION}"
    if run.quick:
        yield run.row(
            "same payload, Flower: server CPU a client-round", None, "ms", "not in a short run"
        )
        return
    python = _ENVIRONMENT.python(run.say)
    with (
        tempfile.TemporaryDirectory(prefix="flower-") as folder,
        Child("benchmarks.peers.flower", Path(folder), python=python) as flower,
    ):
        run.say("Flower's SuperLink and two SuperNodes")
        nodes = int(flower.ask("start")["nodes"])
        run.say(f"Flower, {_FEW} and then {_MANY} rounds")
        few = flower.ask("rounds", rounds=_FEW, elements=_ELEMENTS)
        many = flower.ask("rounds", rounds=_MANY, elements=_ELEMENTS)
    measured = nodes * (_MANY - _FEW)
    theirs = (float(many["cpu_s"]) - float(few["cpu_s"])) / measured
    how = (
        f"deployment runtime, {nodes} SuperNodes, one array of {_ELEMENTS} float32, the client "
        f"adds 1; SuperLink and its ServerApp, a run of {_MANY} rounds less one of {_FEW}, so that "
        f"starting the app is left out ({many['wall_s']:.0f} s and {few['wall_s']:.0f} s); without "
        "TLS, telemetry off"
    )
    yield run.row(
        "same payload, Flower: server CPU a client-round",
        Estimate(1e3 * theirs, measured),
        "ms",
        how,
        peer=peer,
    )
    yield run.row(
        "same payload: Flower's server CPU over ours",
        Estimate(theirs * total / ours, total),
        "times",
        how,
        reach=20.0,
        sense=">=",
        peer=peer,
    )
