"""The steps after which a local cluster answers: model files, port, Ray, certificate, keys, the
deployment, and a first answer of every tier.

Whose process this is and how it ends is ``supervisor``.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import socket
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Final

from cascade.errors import CascadeError, ClusterError, RemoteError
from cascade.home import cluster_dir, trust_dir
from cascade.remote import DeviceReport, Transfer
from cascade.request import Constraints, DataClass, Message, Request
from cascade.signing import TrustStore
from cascade.wire import ClientProfile, GrpcRemote, KeyRing, new_key
from cloud import session
from cloud.config import ClusterConfig, TierConfig, is_model_path
from cloud.control import Progress
from cloud.errors import ModelUnusable
from cloud.ladders import load_ladders
from cloud.local_ray import start_ray
from cloud.tls import TlsPaths, ensure_local_tls

_log = logging.getLogger(__name__)

_READY_TIMEOUT_S: Final = 120.0
_WARM_UP_S: Final = 120.0
_POLL_S: Final = 0.2
_KEY_NAME: Final = "local"


def model_files(config: ClusterConfig) -> dict[str, Path]:
    """The model of each tier on this machine: a GGUF file, or the folder of a bundle or model.
    Tiers whose model is elsewhere have none.

    Raises:
        ClusterError: one is not there; the message says how to get it.
    """
    return {tier.name: model_file(tier) for tier in config.tiers if tier.local}


def model_file(tier: TierConfig) -> Path:
    """The model of one tier on this machine; see ``model_files``."""
    if tier.engine == "onnx_classifier":
        from cloud.engines.onnx_classifier import bundle_folder

        return bundle_folder(tier)
    if tier.engine == "onnx":
        from edge import bundle_path

        folder = bundle_path(tier.model).absolute()
        if not folder.is_dir():
            raise ClusterError(f"tier {tier.name}: there is no bundle {folder}")
        return folder
    if tier.engine == "transformers":
        folder = Path(tier.model).expanduser().absolute()
        if not (folder / "config.json").is_file():
            raise ClusterError(f"tier {tier.name}: there is no model folder {folder}")
        return folder
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


def check_port(config: ClusterConfig) -> None:
    """Raise ``ClusterError`` where the gateway's port cannot be used."""
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


def client_address(config: ClusterConfig) -> str:
    """``host:port`` of the gateway for clients on this machine."""
    host = config.gateway.host
    # Addresses that mean "every interface" cannot be connected to.
    host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, host)
    return f"{host}:{config.gateway.port}"


def start(
    config: ClusterConfig, model_files: Mapping[str, Path], folder: Path, on_progress: Progress
) -> ClientProfile:
    """Start everything and have every tier answer once. Returns how to reach the gateway.

    Arguments:
        folder: for Ray's own files.

    Raises:
        ClusterError: it cannot start; what runs already is left to the caller.
    """
    on_progress("starting Ray")
    # ray is imported in there and not before: it reads its settings when it is imported.
    start_ray(folder, num_cpus=max(os.cpu_count() or 1, config.threads))
    from ray import serve

    from cloud.app import build_app
    from cloud.front_door import GatewayFiles
    from cloud.gateway import APP_NAME

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
        app = build_app(config, files, model_files, load_ladders(config, TrustStore(trust_dir())))
        serve.run(app, name=APP_NAME, route_prefix=None)
    except RuntimeError:
        _log.exception("the deployment failed")
        raise ClusterError(_why_not_deployed()) from None
    profile = ClientProfile(client_address(config), ca_pem, key)
    on_progress("warming up")
    asyncio.run(_prove(config, model_files, profile))
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
    config: ClusterConfig, model_files: Mapping[str, Path], profile: ClientProfile
) -> None:
    """Wait until the gateway says that it serves, then have every tier answer once."""
    remote = GrpcRemote(profile)
    try:
        await _until_serving(remote, time.monotonic() + _READY_TIMEOUT_S)
        for tier in config.tiers:
            await _warm_up(remote, tier, model_files.get(tier.name))
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


async def _warm_up(remote: GrpcRemote, tier: TierConfig, model_file: Path | None) -> None:
    request = Request((Message("user", "Is water wet?"),), options=("yes", "no"))
    if tier.reads == "tensors" and model_file is not None:
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
