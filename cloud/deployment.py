"""The cluster as ``serve deploy``, ``serve run`` and KubeRay start it: ``cloud.deployment:build``.

``supervisor`` starts a cluster of one machine and makes an authority and a key for it. Here the
operator brings both: everything that the gateway needs is a file that the configuration names.
"""

# No `from __future__ import annotations`: Ray reads the annotation of `build` and wants the class.

import os
from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_validator
from ray.serve import Application

from cascade.errors import ClusterError
from cascade.home import trust_dir
from cascade.signing import TrustStore
from cloud.access_check import access_problems
from cloud.app import build_app
from cloud.config import ClusterConfig, is_model_path, load_config, parse_config
from cloud.errors import ConfigError
from cloud.front_door import GatewayFiles
from cloud.ladders import load_ladders
from cloud.startup import model_files
from cloud.tier_adapters import checked


class DeployArgs(BaseModel):
    """``args`` of the application in a Serve config file; unknown ones are refused.

    Arguments:
        config: the cluster's YAML itself. Paths in it must be absolute.
        config_file: the file that holds it, on every node; relative paths in it are taken from its
            own folder. Give one of the two.
        request_log: one JSON line a request goes there; by default into the replica's own log.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    config: str | None = Field(default=None, min_length=1)
    config_file: Path | None = Field(default=None, strict=False)
    request_log: Path | None = Field(default=None, strict=False)

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.config is None) == (self.config_file is None):
            raise ValueError("give config (the YAML itself) or config_file (its path), one of both")
        return self

    def cluster(self) -> ClusterConfig:
        """The checked configuration.

        Raises:
            NotFound: there is no such file.
            ConfigError: with one line for each problem.
        """
        if self.config is None:
            return load_config(self.config_file)
        config = parse_config(self.config, "args.config")
        _check_absolute(config)
        return config


def build(args: DeployArgs) -> Application:
    """The application of a configuration, for Ray Serve, which calls this on a node of the cluster.

    The gateway takes its certificate and keys from ``gateway.tls`` and ``gateway.api_keys_file``;
    models of the catalog must be under ``CASCADE_HOME`` of the nodes already. No file is made or
    fetched here.

    Raises:
        NotFound: there is no such configuration.
        ConfigError: it is not good, or leaves out what only the supervisor can do without; or a
            ladder is altered, or of a publisher that is not pinned on this node.
        ClusterError: a file that it names is not there, or an adapter must not be served.
    """
    config = args.cluster()
    if config.federation is not None and config.federation.signing_key is None:
        raise ConfigError(
            "federation.signing_key is missing; only `cascade cluster up` uses this machine's own"
        )
    ladders = load_ladders(config, TrustStore(trust_dir()))
    files = gateway_files(config, args.request_log)
    models = model_files(config)
    return build_app(config, files, models, ladders, checked(config))


def gateway_files(config: ClusterConfig, request_log: Path | None = None) -> GatewayFiles:
    """The files that the configuration names, found readable.

    Raises:
        ConfigError: it does not name them; one line for each.
        ClusterError: one cannot be read.
    """
    tls, keys = config.gateway.tls, config.gateway.api_keys_file
    if tls.certificate is None or tls.key is None or keys is None:
        named = {"tls.certificate": tls.certificate, "tls.key": tls.key, "api_keys_file": keys}
        raise ConfigError(
            "\n".join(
                f"gateway.{name} is missing; only `cascade cluster up` makes one itself"
                for name, path in named.items()
                if path is None
            )
        )
    gateway = config.gateway
    counts = gateway.quotas.any or (gateway.jwt is not None and gateway.jwt.single_use)
    if counts and gateway.replicas > 1 and gateway.replicas_per_node is None:
        raise ConfigError(
            "gateway.replicas_per_node is missing; with quotas or single-use tokens it says on how "
            "many nodes they are counted"
        )
    for name, path in (
        ("tls.certificate", tls.certificate),
        ("tls.key", tls.key),
        ("api_keys_file", keys),
    ):
        if not path.is_file() or not os.access(path, os.R_OK):
            raise ClusterError(f"gateway.{name}: the file {path} cannot be read on this node")
    problems = list(access_problems(config))
    if problems:
        raise ClusterError("\n".join(problems))
    if request_log is not None and not os.access(request_log.parent, os.W_OK):
        raise ClusterError(f"request_log: nothing can be written to {request_log.parent}")
    return GatewayFiles(
        certificate=tls.certificate, key=tls.key, api_keys=keys, request_log=request_log
    )


def _check_absolute(config: ClusterConfig) -> None:
    """An inlined configuration has no folder that relative paths could be taken from."""
    gateway = config.gateway
    named: dict[str, Path | None] = {
        "gateway.tls.certificate": gateway.tls.certificate,
        "gateway.tls.key": gateway.tls.key,
        "gateway.tls.ca": gateway.tls.ca,
        "gateway.tls.client_ca": gateway.tls.client_ca,
        "gateway.api_keys_file": gateway.api_keys_file,
        "gateway.quotas.file": gateway.quotas.file,
        "gateway.audit.file": gateway.audit.file,
    }
    if gateway.jwt is not None and "://" not in gateway.jwt.jwks:
        named["gateway.jwt.jwks"] = Path(gateway.jwt.jwks)
    if config.federation is not None:
        named["federation.signing_key"] = config.federation.signing_key
        if config.federation.store is not None and "://" not in config.federation.store:
            named["federation.store"] = Path(config.federation.store)
        if config.federation.gate is not None:
            named |= config.federation.gate.paths
    if gateway.registry is not None and "://" not in gateway.registry:
        named["gateway.registry"] = Path(gateway.registry)
    named |= {f"ladders[{place}]": path for place, path in enumerate(config.ladders)}
    for place, tier in enumerate(config.tiers):
        if tier.provider is not None:
            named[f"tiers[{place}].provider.api_key_file"] = tier.provider.api_key_file
        elif tier.local:
            if is_model_path(tier.model):
                named[f"tiers[{place}].model"] = Path(tier.model)
            for name, path in tier.files_of_adapters.items():
                named[f"tiers[{place}].adapters.{name}"] = Path(path)
    wrong = [
        f"args.config: {name} must be an absolute path, or use config_file (it is {str(path)!r})"
        for name, path in named.items()
        if path is not None and not path.is_absolute()
    ]
    if wrong:
        raise ConfigError("\n".join(wrong))
