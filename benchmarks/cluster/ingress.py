"""Our gateway beside Ray Serve's own gRPC proxy: the same engine, the same messages, in turn within
one run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from benchmarks.child import Fields
from benchmarks.cluster.engine import Script
from benchmarks.cluster.subject import Cluster
from benchmarks.hardware import package_version
from benchmarks.peers import PeerUnavailable
from benchmarks.rows import Row
from benchmarks.run import Run
from benchmarks.timing import median, ratio

_OURS, _THEIRS, _ONE_WAY = "our gateway", "Serve's proxy", "Serve's proxy, one-way"
_REQUESTS_REACH = {64: 1.3}
_TOKENS_REACH = {1: 1.0, 8: 1.5}
_STREAMS = 8


def rows(subject: None, run: Run) -> Iterator[Row]:
    """Requests and tokens a second of both, and ratios: above 1 we are faster."""
    peer = f"Ray Serve {package_version('ray')}, its own gRPC proxy"
    with Cluster(peer=True) as cluster:
        yield from _requests(cluster, run, peer)
        yield from _tokens(cluster, run, peer)


def _requests(cluster: Cluster, run: Run, peer: str) -> Iterator[Row]:
    _deploy(cluster, Script())
    rounds, seconds = (2, 1.0) if run.quick else (7, 4.0)
    for callers in (1, 8, 64):
        run.say(f"answers of one token, {callers} callers")
        load = {"callers": callers, "seconds": seconds, "tokens": 1}
        how = (
            f"answers of one token in one message of the engine, {callers} connections in one "
            f"process, each asking again once it is answered; {rounds} rounds of {seconds:g} s, "
            "sides in turn, Serve's own access log off. Ours: TLS, API key, checks, request log; "
            "accepted, token and finish in one gRPC message. Theirs: no TLS, the token in one"
        )
        compared = _Compared(f"requests, {callers} callers", "requests", how, peer)
        reach = _REQUESTS_REACH.get(callers)
        yield from compared.rows(run, _in_turn(cluster, rounds, load), reach)


def _tokens(cluster: Cluster, run: Run, peer: str) -> Iterator[Row]:
    rounds, seconds, tokens = (2, 1.0, 64) if run.quick else (7, 4.0, 256)
    for per_message, reach in _TOKENS_REACH.items():
        run.say(f"streams with {per_message} tokens a message")
        _deploy(cluster, Script(per_message=per_message))
        load = {"callers": _STREAMS, "seconds": seconds, "tokens": tokens}
        how = (
            f"{_STREAMS} callers stream answers of {tokens} tokens, {per_message} a message from "
            f"the engine to the caller on both sides; {rounds} rounds of {seconds:g} s, sides in "
            "turn. TLS on ours alone"
        )
        compared = _Compared(f"streamed tokens, {per_message} a message", "tokens", how, peer)
        yield from compared.rows(run, _in_turn(cluster, rounds, load), reach)


def _deploy(cluster: Cluster, script: Script) -> None:
    many = {"parallel": 256, "max_queued_requests": 256}
    cluster.deploy(script, tier=many, gateway={"max_concurrent_requests": 256})
    cluster.deploy_peer(script)
    for target in (cluster.ours, cluster.peer, cluster.peer_one_way):
        cluster.until_answered(target)


_Taken = dict[str, list[Fields]]


def _in_turn(cluster: Cluster, rounds: int, load: Fields) -> _Taken:
    """What callers saw of each side, in rounds that go back and forth; the first is not counted."""
    sides = {_OURS: cluster.ours, _THEIRS: cluster.peer, _ONE_WAY: cluster.peer_one_way}
    taken: _Taken = {name: [] for name in sides}
    for number in range(-1, rounds):
        for name in list(sides) if number % 2 else list(sides)[::-1]:
            before = cluster.usage()
            seen = cluster.client.ask("closed_loop", target=sides[name], **load)
            seen["tree_cpu_s"] = cluster.usage()["cpu_s"] - before["cpu_s"]
            if seen["statuses"].keys() != {"OK"}:
                told = ", ".join(f"{n} {status}" for status, n in seen["statuses"].items())
                raise PeerUnavailable(
                    f"{name} did not answer everything: {told} {seen['problem'][:300]}"
                )
            if number >= 0:
                taken[name].append(seen)
    return taken


@dataclass(frozen=True, slots=True)
class _Compared:
    """One load on all sides, as rows."""

    name: str
    counted: Literal["requests", "tokens"]
    how: str
    peer: str

    def rows(self, run: Run, taken: _Taken, reach: float | None) -> Iterator[Row]:
        rates = {
            side: [each[self.counted] / each["wall_s"] for each in seen]
            for side, seen in taken.items()
        }
        for side, values in rates.items():
            yield run.row(f"{self.name}, {side}", median(values), "1/s", self.how)
        for side, rpc in (
            (_THEIRS, "the same RPC"),
            (_ONE_WAY, "an RPC without an upstream, which costs Serve less"),
        ):
            yield run.row(
                f"{self.name}: ours over {side}",
                ratio(rates[_OURS], rates[side]),
                "×",
                f"ours over theirs, round by round, theirs by {rpc}; {self.how}",
                reach=reach if side == _THEIRS else None,
                sense=">=",
                peer=self.peer,
            )
        for side, seen in taken.items():
            yield run.row(
                f"{self.name}, {side}, CPU time of all server processes each",
                median([1e3 * each["tree_cpu_s"] / each[self.counted] for each in seen]),
                "ms",
                f"by the kernel's counters, in steps of 10 ms; {self.how}",
            )
