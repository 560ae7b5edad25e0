"""The steps after which a local cluster answers: model files, port, Ray, certificate, keys, the
deployment, and a first answer of every tier.

Whose process this is and how it ends is ``supervisor``.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
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
from cascade.wire import ClientProfile, GrpcRemote, editing_keys, new_key
from cloud import session
from cloud.access_check import access_problems, licence_problem
from cloud.accounting import WARM_UP_KEY
from cloud.config import ClusterConfig, TierConfig, is_model_path
from cloud.control import Progress
from cloud.errors import ModelUnusable
from cloud.federation.planned import check_federation
from cloud.ladders import load_ladders
from cloud.local_ray import replica_logging, start_ray
from cloud.placement import placement_problems, this_machine
from cloud.served_adapters import ServedAdapters
from cloud.tls import TlsPaths, ensure_local_client, ensure_local_tls

_log = logging.getLogger(__name__)

_READY_TIMEOUT_S: Final = 120.0
_WARM_UP_S: Final = 120.0
_POLL_S: Final = 0.2
_KEY_NAME: Final = "local"
_TRIAL_KEY_S: Final = 3600.0


def model_files(config: ClusterConfig) -> dict[str, Path]:
    """The model of each tier on this machine: a GGUF file, or the folder of a bundle or model.
    Tiers whose model is elsewhere have none.

    Raises:
        ClusterError: one is not there, its licence forbids what the cluster is for, or a file about
            callers cannot be used; the message says what to do.
    """
    files = {tier.name: model_file(tier) for tier in config.tiers if tier.local}
    problems = list(access_problems(config))
    problems += filter(None, (licence(config, tier, files.get(tier.name)) for tier in config.tiers))
    if problems:
        raise ClusterError("\n".join(problems))
    return files


def licence(config: ClusterConfig, tier: TierConfig, model: Path | None) -> str | None:
    """Why a tier may not run in a commercial deployment, by what is inside its model."""
    if not config.commercial or model is None or not model.is_dir():
        return None
    return licence_problem(tier, model)


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
    config: ClusterConfig,
    model_files: Mapping[str, Path],
    adapters: ServedAdapters,
    folder: Path,
    on_progress: Progress,
) -> ClientProfile:
    """Start everything and have every tier answer once. Returns how to reach the gateway.

    Arguments:
        folder: for Ray's own files.

    Raises:
        ClusterError: it cannot start; what runs already is left to the caller.
    """
    check_federation(config)
    if config.gateway.nodes > 1:
        raise ClusterError(
            f"gateway: {config.gateway.replicas} replicas with {config.gateway.on_one_node} on a "
            f"node need {config.gateway.nodes} machines; leave replicas_per_node out on one"
        )
    cpus = max(os.cpu_count() or 1, config.threads)
    # Ray would wait for such a node for ever.
    problems = list(placement_problems(config, [this_machine(cpus)]))
    if problems:
        raise ClusterError("\n".join(problems))
    on_progress("starting Ray")
    # ray is imported in there and not before: it reads its settings when it is imported.
    start_ray(folder, num_cpus=cpus)
    from ray import serve

    from cloud.app import build_app
    from cloud.front_door import GatewayFiles
    from cloud.gateway import APP_NAME

    tls, ca_pem, own_ca = _tls(config)
    keys_file = session.api_keys_path()
    key, trial_key = _api_keys(keys_file)
    files = GatewayFiles(
        certificate=tls.certificate,
        key=tls.key,
        api_keys=keys_file,
        request_log=session.request_log_path(),
        ca=own_ca,
        quotas=session.quotas_path(),
        audit=session.audit_path(),
    )
    on_progress("loading " + ", ".join(f"{tier.model_name} ({tier.name})" for tier in config.tiers))
    try:
        ladders = load_ladders(config, TrustStore(trust_dir()))
        app = build_app(config, files, model_files, ladders, adapters)
        serve.run(app, name=APP_NAME, route_prefix=None, logging_config=replica_logging())
    except RuntimeError:
        _log.exception("the deployment failed")
        raise ClusterError(_why_not_deployed()) from None
    profile = _with_certificate(config, ClientProfile(client_address(config), ca_pem, key))
    on_progress("warming up")
    try:
        asyncio.run(_prove(config, model_files, replace(profile, api_key=trial_key)))
    finally:
        with editing_keys(keys_file) as ring:
            ring.without(WARM_UP_KEY).save(keys_file)
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


def _tls(config: ClusterConfig) -> tuple[TlsPaths, bytes | None, Path | None]:
    """The server's files, what clients shall trust, and this machine's own authority, if there is
    one."""
    given, folder = config.gateway.tls, _tls_folder()
    if given.certificate is not None and given.key is not None:
        for path in filter(None, (given.certificate, given.key, given.ca)):
            _check_readable("gateway.tls", path)
        trusted = None if given.ca is None else given.ca.read_bytes()
        # This machine has to show a certificate too, and nobody else gives it one.
        own = None if given.client_ca is None else ensure_local_tls(folder, config.gateway.host).ca
        return TlsPaths(given.certificate, given.certificate, given.key), trusted, own
    paths = ensure_local_tls(folder, config.gateway.host)
    return paths, paths.ca.read_bytes(), paths.ca


def _tls_folder() -> Path:
    return cluster_dir() / "tls"


def _with_certificate(config: ClusterConfig, profile: ClientProfile) -> ClientProfile:
    """The profile with a certificate of this machine, where every connection must show one."""
    tls = config.gateway.tls
    if tls.client_ca is None or tls.client_port is not None:
        return profile
    certificate, key = ensure_local_client(_tls_folder(), _KEY_NAME)
    return replace(profile, certificate_pem=certificate.read_bytes(), key_pem=key.read_bytes())


def _api_keys(path: Path) -> tuple[str, str]:
    """This machine's own key, and one for the first requests; both are in the file then."""
    key, trial = new_key(), new_key()
    # Should this process die, the key for the first requests dies too.
    ends = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=_TRIAL_KEY_S)
    with editing_keys(path) as ring:
        # A profile that was copied to another device stays good over a restart.
        with contextlib.suppress(CascadeError):
            known = ClientProfile.load().api_key
            if ring.owner(known) == _KEY_NAME:
                key = known
        ring.with_key(_KEY_NAME, key).with_key(WARM_UP_KEY, trial, expires=ends).save(path)
    return key, trial


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
