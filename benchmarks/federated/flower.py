"""Flower's deployment runtime beside ours: what the same payload costs the server, and the wire.

One array of float32 goes down and comes back up, which is Flower's best case. Beside that, the same
array as our default plan has it sent: down as float32, up in 8 bits a number. Both run on this
machine at one time and are measured in turn. Flower runs without TLS, keys, signatures or a synced
store; ours with all of them. Bytes are counted between the devices and the server, by a relay that
understands neither.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.child import Fields
from benchmarks.cluster.subject import Cluster
from benchmarks.federated.protocol import all_ok, between, counted, idle_share
from benchmarks.peers import Child, Environment
from benchmarks.rows import Row
from benchmarks.run import Run
from benchmarks.timing import Estimate, Sample, measure, median, ratio

VERSION = "1.42.0"
_ENVIRONMENT = Environment("flower", (f"flwr=={VERSION}",))
# One linear whose B is the array; its A, which goes down only, has 200 numbers.
_RANK, _WIDTHS, _ELEMENTS = 200, {"q_proj": [1, 576]}, 115_200
_FEW, _MANY = 1, 5
_GOAL = 20


@dataclass(frozen=True, slots=True)
class _Cost:
    """Of one client-round: CPU seconds of the server with and without what is used idle, of all
    processes on the server's side, and bytes."""

    cpu_s: float
    busy_s: float
    all_s: float
    up: float
    down: float


def rows(subject: object, run: Run) -> Iterator[Row]:
    """CPU of the server a client-round, and bytes, of both, and how many times less ours are."""
    devices, times = (20, 1) if run.quick else (60, 3)
    python = _ENVIRONMENT.python(run.say)
    server = "benchmarks.federated.protocol_server"
    with (
        Cluster(server=server) as cluster,
        Child("benchmarks.federated.protocol_client") as fleet,
        Child("benchmarks.federated.relay") as our_relay,
        Child("benchmarks.federated.relay") as their_relay,
        tempfile.TemporaryDirectory(prefix="flower-") as folder,
        Child("benchmarks.peers.flower", Path(folder), python=python) as flower,
    ):
        run.say("a cluster with a coordinator")
        ours = _Ours(cluster, fleet, our_relay, devices)
        run.say("Flower's SuperLink and two SuperNodes")
        theirs = _Theirs(flower, their_relay)
        run.say("both idle")
        ours.rest(5.0 if run.quick else 20.0)
        theirs.rest(5.0 if run.quick else 20.0)
        costs: list[tuple[_Cost, _Cost]] = []
        for number in range(times):
            run.say(f"{devices} devices take part, then Flower, {number + 1} of {times}")
            costs.append((ours.cost(), theirs.cost()))
    yield from _rows(run, costs, ours, theirs)
    run.say(f"{devices} devices that send 8 bits a number")
    with (
        Cluster(server=server) as cluster,
        Child("benchmarks.federated.protocol_client") as fleet,
        Child("benchmarks.federated.relay") as relay,
    ):
        coded = _Ours(cluster, fleet, relay, devices, bits=8)
        cost = coded.cost()
    yield _coded_row(run, cost, costs, coded, theirs)


class _Ours:
    """The product's gateway and coordinator, and devices that call them by a relay."""

    def __init__(
        self, cluster: Cluster, fleet: Child, relay: Child, devices: int, bits: int = 32
    ) -> None:
        self._cluster, self._fleet, self._relay = cluster, fleet, relay
        self._devices, self._rounds, self._idle = devices, 0, 0.0
        told = cluster.server.ask(
            "deploy_rounds",
            goal=_GOAL,
            devices=devices,
            layers=1,
            rank=_RANK,
            bits=bits,
            upload_memory=64_000_000,
            widths=_WIDTHS,
        )
        host, _, port = str(cluster.ours["address"]).rpartition(":")
        through = relay.ask("open", port=int(port))["port"]
        target = {**cluster.ours, "address": f"{host}:{through}"}
        fleet.ask("prepare", target=target, devices=devices, shapes=told["shapes"], bits=bits)
        all_ok(fleet.ask("enrol", at_once=10))
        self.payload_bytes = int(told["payload_bytes"])

    @property
    def how(self) -> str:
        return (
            f"{self._devices * self._rounds} client-rounds: connect, signed check-in, durable "
            f"lease, the adapter ({_ELEMENTS} float32 and a small A), an update of "
            f"{self.payload_bytes} bytes, receipt, disconnect; TLS, a store that is synced to "
            f"disk, aggregation after every {_GOAL} included; processes of gateway and coordinator"
        )

    def rest(self, seconds: float) -> None:
        """See what is used when nobody calls."""
        self._idle = idle_share(self._cluster, seconds)

    def cost(self) -> _Cost:
        """One round of every device."""
        before, sent = self._read()
        work: list[Fields] = []

        def all_take_part() -> None:
            work.append(self._fleet.ask("take_part", at_once=10, fetch=True))
            all_ok(work[-1])
            self._rounds += 1
            counted(self._cluster, self._devices * self._rounds, _GOAL)

        took: Sample = measure(all_take_part)
        after, sent_after = self._read()
        used = sum(between(before, after, f"{part}_cpu_s") for part in ("gateway", "coordinator"))
        return _Cost(
            used / self._devices,
            (used - self._idle * took.wall_s) / self._devices,
            between(before, after, "all_cpu_s") / self._devices,
            between(sent, sent_after, "up") / self._devices,
            between(sent, sent_after, "down") / self._devices,
        )

    def _read(self) -> tuple[Fields, Fields]:
        return self._cluster.server.ask("federated_usage"), self._relay.ask("passed")


class _Theirs:
    """Flower, its SuperNodes calling by a relay."""

    def __init__(self, flower: Child, relay: Child) -> None:
        self._flower, self._relay, self._idle = flower, relay, 0.0
        through = relay.ask("open", port=flower.ask("start_link")["port"])["port"]
        self._nodes = int(flower.ask("start_nodes", port=through)["nodes"])
        self.walls: list[tuple[float, float]] = []

    @property
    def how(self) -> str:
        walls = ", ".join(f"{many:.0f} and {few:.0f} s" for many, few in self.walls)
        return (
            f"deployment runtime, {self._nodes} SuperNodes, one array of {_ELEMENTS} float32, the "
            f"client adds random numbers; SuperLink and its ServerApp, runs of {_MANY} rounds less "
            f"runs of {_FEW}, so that starting the app is left out ({walls}); without TLS, "
            "telemetry off"
        )

    def rest(self, seconds: float) -> None:
        """See what is used while SuperNodes poll and nothing runs."""
        self._idle = float(self._flower.ask("idle", seconds=seconds)["share"])

    def cost(self) -> _Cost:
        """A long run less a short one."""
        few, many = (self._run(rounds) for rounds in (_FEW, _MANY))
        self.walls.append((many["wall_s"], few["wall_s"]))
        each = self._nodes * (_MANY - _FEW)
        cpu_s = between(few, many, "cpu_s")
        idle_s = self._idle * between(few, many, "wall_s")
        up, down = (between(few, many, way) / each for way in ("up", "down"))
        return _Cost(cpu_s / each, (cpu_s - idle_s) / each, cpu_s / each, up, down)

    def _run(self, rounds: int) -> Fields:
        before = self._relay.ask("passed")
        told = self._flower.ask("rounds", rounds=rounds, elements=_ELEMENTS)
        after = self._relay.ask("passed")
        return {**told, **{way: between(before, after, way) for way in ("up", "down")}}


def _rows(
    run: Run, costs: Sequence[tuple[_Cost, _Cost]], ours: _Ours, theirs: _Theirs
) -> Iterator[Row]:
    peer = f"flower {VERSION}"
    both = (
        f"measured in turn, {len(costs)} times, both running all the time, less what each uses "
        f"idle; ours: {ours.how}. Flower: {theirs.how}"
    )

    def row(figure: str, values: Sequence[float], unit: str, **wanted: object) -> Row:
        return run.row(figure, median(values), unit, both, peer=peer, **wanted)  # type: ignore[arg-type]

    for name, side in (("ours", 0), ("Flower", 1)):
        own = [pair[side] for pair in costs]
        about = "same payload, " + name
        yield row(f"{about}: server CPU a client-round", [1e3 * each.busy_s for each in own], "ms")
        yield row(f"{about}: bytes up a client-round", [each.up / 1e3 for each in own], "KB")
        yield row(f"{about}: bytes down a client-round", [each.down / 1e3 for each in own], "KB")
    yield row(
        "same payload: Flower's server CPU over ours",
        [b.busy_s / a.busy_s for a, b in costs],
        "times",
        reach=20.0,
        sense=">=",
    )
    yield row(
        "same payload: Flower's server CPU over that of all processes of ours",
        [b.cpu_s / a.all_s for a, b in costs],
        "times",
    )
    yield run.row(
        "same payload: our bytes over Flower's, up and down",
        ratio([a.up + a.down for a, _ in costs], [b.up + b.down for _, b in costs]),
        "times",
        f"all bytes of all TCP connections between devices and server; {both}",
        reach=1.0,
        peer=peer,
    )


def _coded_row(
    run: Run,
    cost: _Cost,
    costs: Sequence[tuple[_Cost, _Cost]],
    ours: _Ours,
    theirs: _Theirs,
) -> Row:
    """What of the bytes is left where devices send what the default plan has them send."""
    flower = median([each.up + each.down for _, each in costs]).value
    return run.row(
        "same array, 8 bits a number up: our bytes over Flower's, up and down",
        Estimate((cost.up + cost.down) / flower, 1),
        "times",
        f"unlike in the rows above, what goes up is rounded, at random and right on average: "
        f"{cost.up / 1e3:.0f} KB up and {cost.down / 1e3:.0f} KB down a client-round; ours: "
        f"{ours.how}. Flower, which sends float32: {theirs.how}",
        peer=f"flower {VERSION}",
    )
