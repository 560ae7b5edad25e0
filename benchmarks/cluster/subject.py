"""What is measured: a cluster of one group's own, and callers beside it."""

from __future__ import annotations

import random
import shutil
import socket
import tempfile
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Self

from benchmarks.child import Fields
from benchmarks.cluster.client import Target
from benchmarks.cluster.engine import Script
from benchmarks.peers import Child, PeerUnavailable
from cloud import processes
from cloud.session import FOLDER_VARIABLE

_POLL_S = 0.1
_PORTS = range(7500, 9500)  # Ray's workers take theirs above


class Cluster:
    """Ray, our gateway and callers, in processes that end with the ``with`` block.

    Arguments:
        peer: also start Ray Serve's own proxies.
        server: the module of the server's process.

    ``ours``, ``peer`` and ``peer_one_way`` are what callers call.
    """

    def __init__(self, *, peer: bool = False, server: str = "benchmarks.cluster.server") -> None:
        # Short: Ray's socket names must fit into 107 bytes.
        self._folder = Path(tempfile.mkdtemp(prefix="cascade-bench-", dir="/tmp"))
        self.server = Child(server, self._folder)
        self.client = Child("benchmarks.cluster.client")
        self._other_client = Child("benchmarks.cluster.client")
        self._beside = ThreadPoolExecutor(1)
        self._with_peer = peer

    def __enter__(self) -> Self:
        try:
            port, grpc_port, http_port = _free_ports(3)
            proxies = {"grpc_port": grpc_port, "http_port": http_port} if self._with_peer else {}
            reply = self.server.ask("start", port=port, **proxies)
        except BaseException as problem:
            self.__exit__(type(problem), problem, problem.__traceback__)
            raise
        self.ours = asdict(Target(f"127.0.0.1:{port}", reply["ca"], reply["key"]))
        theirs = f"127.0.0.1:{grpc_port}"
        self.peer = asdict(Target(theirs, application="peer"))
        self.peer_one_way = asdict(Target(theirs, one_way=True, application="peer"))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            for child in (self.client, self._other_client, self.server):
                child.__exit__(kind, error, trace)
            self._beside.shutdown()
        finally:
            # Where the server was killed, Ray's processes are still there; they carry the folder.
            processes.kill_with_variable(FOLDER_VARIABLE, str(self._folder))
            shutil.rmtree(self._folder, ignore_errors=True)

    def deploy(
        self, script: Script | None, *, tier: Fields | None = None, gateway: Fields | None = None
    ) -> float:
        """Deploy, or replace what is deployed; the seconds that it took."""
        fields = None if script is None else asdict(script)
        reply = self.server.ask("deploy", script=fields, tier=tier, gateway=gateway)
        return float(reply["seconds"])

    def deploy_peer(self, script: Script) -> None:
        """Deploy the same engine behind Ray Serve's own proxy."""
        self.server.ask("deploy_peer", script=asdict(script))

    def usage(self) -> Fields:
        """CPU seconds and resident bytes of the server's processes; see ``Server.usage``."""
        return self.server.ask("usage")

    def engine_seconds(self) -> list[float]:
        """What the engine of a real tier took for each answer so far."""
        return list(self.server.ask("engine_seconds")["seconds"])

    def until_answered(self, target: Fields | None = None, *, within_s: float = 60.0) -> Fields:
        """Wait until there is an answer, from our gateway where it is not said whose.

        Raises:
            PeerUnavailable: there is none in time.
        """
        seen = self.client.ask("until_answered", target=target or self.ours, seconds=within_s)
        if not seen["answered"]:
            raise PeerUnavailable(f"no answer within {within_s:g} s: {seen['problem']}")
        return seen

    def beside(self, do: str, **fields: object) -> Future[Fields]:
        """Have other callers call our gateway while this process goes on."""
        return self._beside.submit(self._other_client.ask, do, target=self.ours, **fields)

    def ask(self, do: str, **fields: object) -> Fields:
        """Have callers call our gateway."""
        return self.client.ask(do, target=self.ours, **fields)

    def kill(self, deployment: str) -> float:
        """SIGKILL one of its replicas; the monotonic time."""
        return float(self.server.ask("kill", deployment=deployment)["at"])

    def gateways(self) -> Fields:
        """How each running gateway is; see ``Server.gateways``."""
        return self.server.ask("gateways")

    def until_running(self, replicas: int, *, within_s: float = 90.0) -> float:
        """Wait until so many replicas of the tier run; the monotonic time.

        Raises:
            PeerUnavailable: there are more or fewer for too long.
        """
        end = time.monotonic() + within_s
        while (running := self.server.ask("running")["tier"]) != replicas:
            if time.monotonic() > end:
                raise PeerUnavailable(
                    f"{running} replicas run after {within_s:g} s, not {replicas}"
                )
            time.sleep(_POLL_S)
        return time.monotonic()


def _free_ports(count: int) -> list[int]:
    found: list[int] = []
    # Two gateways may listen on one port: runs beside each other must not choose alike.
    for port in random.sample(_PORTS, len(_PORTS)):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            found.append(port)
            if len(found) == count:
                return found
    raise OSError("no free ports")
