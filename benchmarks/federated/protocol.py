"""What a round costs the server: real signed gRPC clients with precomputed updates, TLS and durable
leases on, through the product's own gateway and coordinator on Ray Serve."""

from __future__ import annotations

import time
from collections.abc import Iterator

from benchmarks.child import Fields
from benchmarks.cluster.subject import Cluster
from benchmarks.peers import Child, PeerUnavailable
from benchmarks.rows import Row
from benchmarks.run import Run
from benchmarks.timing import Estimate

LAYERS, RANK, BITS = 4, 8, 8
GOAL, AT_ONCE = 100, 50
_UPLOAD_MEMORY = 16_000_000
_COUNTED_S = 120.0


def rows(subject: object, run: Run) -> Iterator[Row]:
    """CPU and memory of the server, and whether every update counts once."""
    devices, rounds = (100, 2) if run.quick else (1000, 2)
    server = "benchmarks.federated.protocol_server"
    with Cluster(server=server) as cluster, Child("benchmarks.federated.protocol_client") as fleet:
        run.say("a cluster with a coordinator")
        told = cluster.server.ask(
            "deploy_rounds",
            goal=GOAL,
            devices=devices,
            layers=LAYERS,
            rank=RANK,
            bits=BITS,
            upload_memory=_UPLOAD_MEMORY,
        )
        fleet.ask("prepare", target=cluster.ours, devices=devices, shapes=told["shapes"], bits=BITS)
        run.say("the cluster, idle")
        idle = idle_share(cluster, 5.0 if run.quick else 20.0)
        run.say(f"{devices} devices enrol")
        before = cluster.server.ask("federated_usage")
        all_ok(fleet.ask("enrol", at_once=AT_ONCE))
        enrolled = cluster.server.ask("federated_usage")
        began, began_at, walls = enrolled, time.monotonic(), []
        for number in range(rounds):
            run.say(f"round trip {number + 1} of {rounds} of every device")
            seen = fleet.ask("take_part", at_once=AT_ONCE)
            all_ok(seen)
            walls.append(float(seen["wall_s"]))
            again = int(seen["again"])
            if number == 0:
                first = cluster.server.ask("federated_usage")
        seen = counted(cluster, devices * rounds, GOAL)
        after = cluster.server.ask("federated_usage")
        wall_s = time.monotonic() - began_at
    total = devices * rounds
    size = int(told["payload_bytes"])
    how = (
        f"{devices} devices, each with a key and a TLS connection of its own, {AT_ONCE} at one "
        f"time, {rounds} times each: connect, signed check-in, durable lease, an update of {size} "
        f"bytes ({BITS} bits a number), receipt from a store that is synced to disk, disconnect; "
        f"a round is aggregated after every {GOAL} updates, signed and published; "
        f"{total / sum(walls):.0f} client-rounds/s; {again} devices came again"
    )
    gateway = between(began, after, "gateway_cpu_s")
    coordinator = between(began, after, "coordinator_cpu_s")
    parts = (
        f"processes of gateway ({1e3 * gateway / total:.2f} ms) and coordinator "
        f"({1e3 * coordinator / total:.2f} ms)"
    )
    yield run.row(
        "protocol: server CPU a client-round",
        Estimate(1e3 * (gateway + coordinator - idle * wall_s) / total, total),
        "ms",
        f"{parts}, less what both use when nobody calls ({1e3 * idle:.0f} ms a second); {how}",
        reach=5.0,
    )
    yield run.row(
        "protocol: server CPU a client-round, with what is used idle",
        Estimate(1e3 * (gateway + coordinator) / total, total),
        "ms",
        f"{parts}; {how}",
    )
    yield run.row(
        "protocol: CPU of all server processes a client-round",
        Estimate(1e3 * between(began, after, "all_cpu_s") / total, total),
        "ms",
        f"Ray's own processes included; {how}",
    )
    yield run.row(
        "protocol: server CPU an enrolment",
        Estimate(
            1e3
            * sum(between(before, enrolled, f"{part}_cpu_s") for part in ("gateway", "coordinator"))
            / devices,
            devices,
        ),
        "ms",
        f"challenge and signed answer on a connection of its own; {devices} devices",
    )
    yield run.row(
        "protocol: updates that do not count exactly once",
        Estimate(
            abs(total - int(seen["counted"]))
            + abs(total - int(seen["sum_of_rounds"]))
            + abs(total - int(seen["leases"])),
            total,
        ),
        "updates",
        f"of {total} receipts: {seen['leases']} leases used, {seen['counted']} updates "
        f"counted, {seen['sum_of_rounds']} in the {seen['rounds']} rounds that ended",
        reach=0.0,
    )
    yield run.row(
        "protocol: growth of the gateway's memory",
        Estimate((after["gateway_rss"] - first["gateway_rss"]) / 1e6, 1),
        "MB",
        f"resident, from {first['gateway_rss'] / 1e6:.0f} MB after the first time of every device "
        f"to after the last; {how}",
        reach=50.0,
    )
    yield run.row(
        "protocol: growth of the coordinator's memory",
        Estimate((after["coordinator_rss"] - first["coordinator_rss"]) / 1e6, 1),
        "MB",
        f"resident, from {first['coordinator_rss'] / 1e6:.0f} MB; {how}",
        reach=50.0,
    )
    yield run.row(
        "protocol: bytes up a client-round",
        Estimate(size / 1e3, total),
        "KB",
        f"the payload, B of the last {LAYERS} layers' q and v of SmolLM2-135M at rank {RANK}",
        reach=50.0,
    )


def idle_share(cluster: Cluster, seconds: float) -> float:
    """CPU seconds a second of gateway and coordinator when nobody calls."""
    before, began = cluster.server.ask("federated_usage"), time.monotonic()
    time.sleep(seconds)
    after = cluster.server.ask("federated_usage")
    used = sum(between(before, after, f"{part}_cpu_s") for part in ("gateway", "coordinator"))
    return used / (time.monotonic() - began)


def all_ok(seen: Fields) -> None:
    """Raise ``PeerUnavailable`` unless every device got through."""
    wrong = {status: n for status, n in seen["statuses"].items() if status != "OK"}
    if wrong:
        raise PeerUnavailable(f"devices were refused: {wrong}")


def counted(cluster: Cluster, total: int, goal: int) -> Fields:
    """What the store says once it has counted as many whole rounds as there are."""
    end = time.monotonic() + _COUNTED_S
    while True:
        seen = cluster.server.ask("counted")
        if seen["counted"] >= total // goal * goal or time.monotonic() > end:
            return seen
        time.sleep(0.5)


def between(before: Fields, after: Fields, name: str) -> float:
    """What was used of something."""
    return float(after[name]) - float(before[name])
