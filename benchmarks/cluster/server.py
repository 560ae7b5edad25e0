"""The cluster as a child: ``python -m benchmarks.cluster.server FOLDER``. Ray and all replicas are
below it, and are gone when it ends."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from benchmarks.child import Fields, serve
from benchmarks.cluster.engine import FixedTier, Peer, Script, TimedTier, engine_seconds
from cascade.wire import KeyRing, new_key
from cloud import processes
from cloud.config import ClusterConfig, GatewayConfig, TierConfig
from cloud.front_door import GatewayFiles
from cloud.local_ray import replica_logging, start_ray
from cloud.tls import ensure_local_tls

TIER = "tier1"
_PEER_APP = "peer"
_CPUS = 8  # a promise to Ray: the engines do not compute
_STUBS = "cascade.v1.inference_pb2_grpc.add_InferenceServiceServicer_to_server"
_ONE_WAY = "benchmarks.cluster.engine.add_one_way"


def main(kind: type[Server] | None = None, *further: str) -> None:
    """Serve until standard input ends.

    Arguments:
        kind: the server; ``Server`` by default.
        further: what else of it may be asked for.
    """
    processes.adopt_orphans()
    server = (kind or Server)(Path(sys.argv[1]))
    names = ("start", "deploy", "deploy_peer", "kill", "running", "gateways", "usage")
    handlers: dict[str, Callable[..., Fields]] = {
        name: getattr(server, name) for name in (*names, "engine_seconds", *further)
    }
    try:
        serve(lambda: handlers)
    finally:
        # Not asked to stop: there is nothing to save, and Ctrl-C shall not wait.
        processes.end_descendants(frozenset(), grace_s=0.0)


class Server:
    """What the parent may ask for; every method answers with a JSON object.

    Arguments:
        folder: for Ray's files, certificates, keys and scripts.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._scripts = 0

    def start(self, port: int, grpc_port: int = 0, http_port: int = 0) -> Fields:
        """Start Ray; with ports also Ray Serve's own proxies, without TLS."""
        tls = ensure_local_tls(self._folder / "tls", "127.0.0.1")
        key = new_key()
        keys = self._folder / "api-keys"
        KeyRing({}).with_key("benchmarks", key).save(keys)
        self._port = port
        self._files = GatewayFiles(tls.certificate, tls.key, keys, self._folder / "requests.jsonl")
        start_ray(self._folder, num_cpus=_CPUS)
        if grpc_port:
            from ray import serve as ray_serve
            from ray.serve.config import gRPCOptions
            from ray.serve.schema import LoggingConfig

            cast(Any, ray_serve).shutdown()
            ray_serve.start(
                proxy_location="HeadOnly",
                http_options={"host": "127.0.0.1", "port": http_port},
                grpc_options=gRPCOptions(
                    port=grpc_port, grpc_servicer_functions=[_STUBS, _ONE_WAY]
                ),
                logging_config=LoggingConfig(log_level="WARNING", enable_access_log=False),
            )
        return {"ca": tls.ca.read_text(), "key": key}

    def deploy(
        self,
        script: Fields | None = None,
        tier: Fields | None = None,
        gateway: Fields | None = None,
    ) -> Fields:
        """Deploy our gateway over one tier, or replace what is deployed; waits until it runs.

        Arguments:
            script: of the fixed engine; ``None`` runs the engine that ``tier`` names, timed.
            tier, gateway: keys of the configuration.
        """
        from ray import serve as ray_serve

        import cloud.app
        from cloud.gateway import APP_NAME

        described = {"name": TIER, "model": "fixed.gguf", **(tier or {})}
        config = ClusterConfig(
            gateway=GatewayConfig(**{"port": self._port, **(gateway or {})}),
            tiers=(TierConfig.model_validate(described),),
        )
        if script is None:
            from cloud.startup import model_files

            app = cloud.app.build_app(
                config, self._files, model_files(config), tier_class=TimedTier
            )
        else:
            self._scripts += 1  # another file is another version, which Serve rolls out
            path = self._folder / f"script-{self._scripts}.json"
            Script(**script).save(path)
            app = cloud.app.build_app(config, self._files, {TIER: path}, tier_class=FixedTier)
        began = time.monotonic()
        ray_serve.run(app, name=APP_NAME, route_prefix=None, logging_config=replica_logging())
        return {"seconds": time.monotonic() - began}

    def deploy_peer(self, script: Fields) -> Fields:
        """Deploy the same engine behind Ray Serve's own gRPC proxy."""
        from ray import serve as ray_serve

        deployment = ray_serve.deployment(
            name="peer", max_ongoing_requests=1024, ray_actor_options={"num_cpus": 1}
        )(Peer)
        ray_serve.run(
            deployment.bind(Script(**script)),
            name=_PEER_APP,
            route_prefix="/peer",
            logging_config=replica_logging(),
        )
        return {}

    def kill(self, deployment: str) -> Fields:
        """SIGKILL one replica; ``at`` is the monotonic time."""
        pid = min(self._replicas(deployment))
        at = time.monotonic()
        os.kill(pid, signal.SIGKILL)
        return {"at": at}

    def gateways(self) -> Fields:
        """How each running gateway is, and how many calls it has handed to the tier."""
        from cloud.control_socket import figures

        told = figures()
        calls = [each[TIER]["calls"] for each in cast(list[Any], told["gateways"])]
        return {"states": told["states"], "calls": calls}

    def running(self) -> Fields:
        """Running replicas of the tier, as Ray Serve knows them."""
        from ray import serve as ray_serve

        from cloud.gateway import APP_NAME, deployment_name

        app = ray_serve.status().applications[APP_NAME]
        states = app.deployments[deployment_name(TIER)].replica_states
        return {"tier": sum(n for state, n in states.items() if state == "RUNNING")}

    def usage(self) -> Fields:
        """CPU seconds of everything below this process so far, of the gateways and of the tier's
        replicas; how long the gateways' threads have waited for a core; the gateways' resident
        bytes."""
        family = processes.descendants(os.getpid())
        gateways = self._replicas("gateway")
        return {
            "cpu_s": sum(cpu_s(pid) for pid in family),
            "gateway_cpu_s": sum(cpu_s(pid) for pid in gateways),
            "tier_cpu_s": sum(cpu_s(pid) for pid in self._replicas("tier-")),
            "gateway_waited_s": sum(_waited_s(pid) for pid in gateways),
            "gateway_rss": sum(resident_bytes(pid) for pid in gateways),
        }

    def engine_seconds(self) -> Fields:
        """What the engine of a real tier took for each answer so far."""
        return {"seconds": engine_seconds(self._folder)}

    def _replicas(self, deployment: str) -> list[int]:
        name = f"ServeReplica:cascade:{deployment}".encode()
        found = []
        for pid in processes.descendants(os.getpid()):
            try:
                command = Path(f"/proc/{pid}/cmdline").read_bytes()
            except OSError:
                continue
            if name in command:
                found.append(pid)
        return found


def cpu_s(pid: int) -> float:
    """Of one process, with its children that have ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return sum(int(field) for field in fields[11:15]) / os.sysconf("SC_CLK_TCK")


def _waited_s(pid: int) -> float:
    """How long the threads of a process were ready to run and did not, as other things ran."""
    waited = 0
    for file in Path(f"/proc/{pid}/task").glob("*/schedstat"):
        try:
            waited += int(file.read_text().split()[1])
        except OSError:
            continue
    return waited / 1e9


def resident_bytes(pid: int) -> int:
    """Of one process; 0 where it is gone."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except OSError:
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    main()
