"""The process that owns a local cluster: it starts Ray, deploys the application, proves that it
answers, waits, and takes everything down again.

``python -m cloud.supervisor CONFIG`` is what ``up_detached`` runs in the background. How other
processes talk to it is ``control``.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import re
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Final

from cascade.errors import Cancelled, CascadeError, ClusterError, RemoteError
from cascade.home import cluster_dir
from cascade.remote import DeviceReport, Transfer
from cascade.request import Constraints, DataClass, Message, Request
from cascade.wire import ClientProfile, GrpcRemote, KeyRing, new_key, profile_path
from cloud import processes, session
from cloud.config import ClusterConfig, TierConfig, is_model_path, load_config
from cloud.control import (
    FAILURE,
    KEEP,
    PROGRESS,
    ClusterStatus,
    Progress,
    TierStatus,
    down,
    reset_prefix_caches,
    status,
    up_detached,
)
from cloud.errors import ModelUnusable
from cloud.local_ray import start_ray, stop_ray
from cloud.tls import TlsPaths, ensure_local_tls

__all__ = [
    "ClusterStatus",
    "TierStatus",
    "down",
    "reset_prefix_caches",
    "status",
    "up",
    "up_detached",
]

_log = logging.getLogger(__name__)

_READY_TIMEOUT_S: Final = 120.0
_WARM_UP_S: Final = 120.0
_POLL_S: Final = 0.2
_KILL_AFTER_S: Final = 3.0
_KEY_NAME: Final = "local"


def up(config: ClusterConfig, *, on_progress: Progress) -> None:
    """Run a cluster on this machine until SIGINT or SIGTERM. Call it on the main thread.

    Arguments:
        on_progress: told in one line what is being done.

    Raises:
        ClusterError: it cannot start; the message says what to do. Nothing is left running.
        Cancelled: a signal came before it was ready; likewise.
    """
    began = time.monotonic()
    model_files = _model_files(config)
    with session.claim(), _Interruptible() as signals:
        _check_port(config)
        _remove_remains()
        # Short: Ray's socket names must fit into 107 bytes.
        folder = Path(tempfile.mkdtemp(prefix="cascade-", dir="/tmp"))
        others = processes.descendants(os.getpid())
        processes.adopt_orphans()
        state = _state(config, folder)
        try:
            state.save()
            try:
                profile = _start(config, model_files, folder, on_progress)
            except (_Stopped, SystemExit):
                raise Cancelled("interrupted; the cluster was taken down again") from None
            signals.defer()
            with _control_socket(state.control_socket, config):
                profile.save(profile_path())
                replace(state, stage="ready").save()
                on_progress(f"ready at {state.address} in {time.monotonic() - began:.1f} s")
                _wait(signals)
            on_progress("stopping")
            _drain(config)
        finally:
            signals.defer()
            with contextlib.suppress(OSError):
                replace(state, stage="stopping").save()
            stop_ray()
            killed = processes.end_descendants(others, grace_s=_KILL_AFTER_S)
            if killed:
                _log.info("%d processes had to be killed", killed)
            shutil.rmtree(folder, ignore_errors=True)


class _Stopped(BaseException):
    """A signal arrived while the cluster was starting."""


class _Interruptible:
    """SIGINT and SIGTERM: raise ``_Stopped`` at once, or after ``defer`` only set ``stopped``."""

    def __init__(self) -> None:
        self.stopped = threading.Event()
        self._raising = True
        self._before: dict[int, object] = {}

    def __enter__(self) -> _Interruptible:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def defer(self) -> None:
        """From now on, do not interrupt what runs. Ray has put a handler of its own in place."""
        self._raising = False
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.stopped.set()
        if self._raising:
            self._raising = False
            raise _Stopped


def _model_files(config: ClusterConfig) -> dict[str, Path]:
    return {tier.name: _model_file(tier) for tier in config.tiers}


def _model_file(tier: TierConfig) -> Path:
    if tier.engine == "onnx_classifier":
        from cloud.engines.onnx_classifier import bundle_folder

        return bundle_folder(tier)
    if is_model_path(tier.model):
        path = Path(tier.model).expanduser().absolute()
        if not path.is_file():
            raise ClusterError(f"tier {tier.name}: there is no model file {path}")
        return path
    from cascade.download import cached

    found = cached(tier.model)
    if found is None:
        raise ClusterError(
            f"tier {tier.name}: the model {tier.model} is not on this machine; "
            f"run `cascade models pull {tier.model}`"
        )
    return found


def _check_port(config: ClusterConfig) -> None:
    host, port = config.gateway.host, config.gateway.port
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        # Connections of an earlier run that are still being forgotten do not count.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
            probe.listen(1)
        except OSError as error:
            raise ClusterError(
                f"port {port} on {host} cannot be used ({error.strerror or error}); end what uses "
                "it, or set another gateway.port in the configuration"
            ) from None


def _remove_remains() -> None:
    """A supervisor that was killed leaves its folder; the lock proves that it no longer runs."""
    remains = session.read_state()
    if remains is not None and Path(remains.folder).name.startswith("cascade-"):
        shutil.rmtree(remains.folder, ignore_errors=True)


def _state(config: ClusterConfig, folder: Path) -> session.SessionState:
    pid = os.getpid()
    return session.SessionState(
        pid=pid,
        begun=processes.start_time(pid) or "",
        stage="starting",
        address=_client_address(config),
        folder=str(folder),
        tiers=tuple((tier.name, tier.model_name) for tier in config.tiers),
    )


def _client_address(config: ClusterConfig) -> str:
    host = config.gateway.host
    # Addresses that mean "every interface" cannot be connected to.
    host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, host)
    return f"{host}:{config.gateway.port}"


def _start(
    config: ClusterConfig, model_files: dict[str, Path], folder: Path, on_progress: Progress
) -> ClientProfile:
    on_progress("starting Ray")
    # ray is imported in there and not before: it reads its settings when it is imported.
    start_ray(folder, num_cpus=max(os.cpu_count() or 1, config.threads))
    from ray import serve

    from cloud.app import build_app
    from cloud.gateway import APP_NAME, GatewayFiles

    tls, ca_pem = _tls(config)
    keys_file, key = _api_key(config)
    files = GatewayFiles(
        certificate=tls.certificate,
        key=tls.key,
        api_keys=keys_file,
        request_log=session.request_log_path(),
    )
    on_progress("loading " + ", ".join(f"{tier.model_name} ({tier.name})" for tier in config.tiers))
    try:
        serve.run(build_app(config, files, model_files), name=APP_NAME, route_prefix=None)
    except RuntimeError:
        _log.exception("the deployment failed")
        raise ClusterError(_why_not_deployed()) from None
    profile = ClientProfile(_client_address(config), ca_pem, key)
    on_progress("warming up")
    asyncio.run(_prove(config, model_files, profile))
    _reset_prefix_caches(config)
    return profile


def _why_not_deployed() -> str:
    """The line that matters in what Ray Serve knows about a failed deployment."""
    from ray import serve

    for app in serve.status().applications.values():
        for name, deployment in app.deployments.items():
            _log.error("%s: %s", name, deployment.message)
            cause = re.search(rf"{ModelUnusable.__name__}\S*: (.+)", deployment.message)
            if cause is not None:
                return cause[1].strip()
    return f"the gateway or a tier does not start; the cause is in {session.log_path()}"


def _tls(config: ClusterConfig) -> tuple[TlsPaths, bytes | None]:
    """The server's files, and what clients shall trust."""
    given = config.gateway.tls
    if given.certificate is not None and given.key is not None:
        for path in filter(None, (given.certificate, given.key, given.ca)):
            _check_readable("gateway.tls", path)
        trusted = None if given.ca is None else given.ca.read_bytes()
        return TlsPaths(given.certificate, given.certificate, given.key), trusted
    paths = ensure_local_tls(cluster_dir() / "tls", config.gateway.host)
    return paths, paths.ca.read_bytes()


def _api_key(config: ClusterConfig) -> tuple[Path, str]:
    """The file of all keys that may call, and this machine's own among them."""
    own = cluster_dir() / "api-keys"
    given = config.gateway.api_keys_file
    if given is not None:
        _check_readable("gateway.api_keys_file", given)
    key = new_key()
    # A profile that was copied to another device stays good over a restart.
    with contextlib.suppress(CascadeError):
        known = ClientProfile.load().api_key
        if KeyRing.load(own).owner(known) == _KEY_NAME:
            key = known
    KeyRing.load(given or own).with_key(_KEY_NAME, key).save(own)
    return own, key


def _check_readable(name: str, path: Path) -> None:
    if not os.access(path, os.R_OK):
        raise ClusterError(f"{name}: the file {path} cannot be read")


async def _prove(
    config: ClusterConfig, model_files: dict[str, Path], profile: ClientProfile
) -> None:
    """Wait until the gateway says that it serves, then have every tier answer once."""
    remote = GrpcRemote(profile)
    try:
        await _until_serving(remote, time.monotonic() + _READY_TIMEOUT_S)
        for tier in config.tiers:
            await _warm_up(remote, tier, model_files[tier.name])
    except RemoteError as error:
        raise ClusterError(f"the cluster does not answer its first request: {error}") from None
    finally:
        await remote.close()


async def _until_serving(remote: GrpcRemote, end: float) -> None:
    while True:
        try:
            if await remote.health() == "SERVING":
                return
        except RemoteError:
            if time.monotonic() > end:
                raise
        if time.monotonic() > end:
            raise ClusterError("the gateway is up, but its tiers are not ready in time")
        await asyncio.sleep(_POLL_S)


async def _warm_up(remote: GrpcRemote, tier: TierConfig, model_file: Path) -> None:
    request = Request((Message("user", "Is water wet?"),), options=("yes", "no"))
    if tier.reads == "tensors":
        from cloud.engines.onnx_classifier import sample_request

        sample = sample_request(model_file)
        if sample is None:  # its health alone says that it is ready
            return
        request = sample
    limits = Constraints(
        allowed_tiers=frozenset({tier.name}), data_class=DataClass(tier.data_classes[0])
    )
    request = replace(request, constraints=limits)
    events = remote.answer(request, DeviceReport(), deadline_s=_WARM_UP_S, transfer=Transfer())
    async for _ in events:
        pass


def _reset_prefix_caches(config: ClusterConfig) -> int:
    from ray import serve

    from cloud.gateway import APP_NAME, deployment_name

    tokens = 0
    for tier in config.tiers:
        handle = serve.get_deployment_handle(deployment_name(tier.name), APP_NAME)
        tokens += sum(handle.broadcast("reset_prefix_cache").results(timeout_s=_WARM_UP_S))
    return tokens


@contextlib.contextmanager
def _control_socket(path: Path, config: ClusterConfig) -> Iterator[None]:
    """Answer commands of this machine's user: one line in, one JSON line out."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(path))
        listener.listen()
        worker = threading.Thread(target=_serve_control, args=(listener, config), daemon=True)
        worker.start()
        yield
        # Wakes up the accept below.
        listener.shutdown(socket.SHUT_RDWR)
        worker.join()


def _serve_control(listener: socket.socket, config: ClusterConfig) -> None:
    while True:
        try:
            connection, _ = listener.accept()
        except OSError:
            return
        with connection, contextlib.suppress(OSError):
            connection.settimeout(_WARM_UP_S)
            with connection.makefile("rb") as lines:
                command = lines.readline()
            reply: dict[str, object] = {"error": "unknown command"}
            if command == b"reset_prefix_caches\n":
                try:
                    reply = {"tokens": _reset_prefix_caches(config)}
                except Exception:
                    _log.exception("the prefix caches were not reset")
                    reply = {"error": "failed"}
            connection.sendall((json.dumps(reply) + "\n").encode())


def _drain(config: ClusterConfig) -> None:
    """Let the answers that are under way finish; Ray Serve would cut them off."""
    from ray import serve

    from cloud.gateway import APP_NAME

    try:
        handle = serve.get_deployment_handle("gateway", APP_NAME)
        handle.drain.remote().result(timeout_s=config.gateway.drain_s + _KILL_AFTER_S)
    except Exception:
        _log.exception("the gateway was not drained")


def _wait(signals: _Interruptible) -> None:
    """Wait for a signal, or for Ray to break."""
    own = {pid: processes.start_time(pid) for pid in _ray_processes()}
    while not signals.stopped.wait(1.0):
        if any(processes.start_time(pid) != begun for pid, begun in own.items()):
            raise ClusterError("Ray ended by itself; the cluster was taken down")


def _ray_processes() -> list[int]:
    """Ray's two processes without which nothing works, children of this one."""
    names = {"gcs_server", "raylet"}
    return [
        pid for pid in processes.descendants(os.getpid()) if processes.command_name(pid) in names
    ]


def _stop_when_abandoned() -> None:
    """Until told to keep running, live no longer than the process that started this one."""

    def watch() -> None:
        if sys.stdin.buffer.readline() != KEEP:
            os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True, name="watch-parent").start()


def main(arguments: list[str]) -> int:
    """Run the supervisor in the background of another process; returns the exit code."""
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    _stop_when_abandoned()

    def report(line: str) -> None:
        print(f"{PROGRESS}{line}", flush=True)

    try:
        up(load_config(Path(arguments[0])), on_progress=report)
    except CascadeError as error:
        print(f"{FAILURE}{' '.join(str(error).split())}", flush=True)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
