"""``python -m cloud.probe``: whether the gateway on this machine serves, for probes of containers.

Kubernetes' own gRPC probe speaks no TLS, and the gateway nothing else. Exit code 0 where it serves,
1 where it does not.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from cryptography import x509

from cascade.errors import CascadeError, ClusterError
from cascade.wire import ClientProfile, GrpcRemote
from cloud.config import ClusterConfig, load_config
from cloud.startup import client_address


def main(words: Sequence[str] | None = None) -> int:
    """Ask once and say what was answered."""
    parser = argparse.ArgumentParser(prog="python -m cloud.probe", description=__doc__)
    parser.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help="the cluster's YAML (default: ask what this machine's client profile names)",
    )
    parser.add_argument("--service", default="", help="of grpc.health.v1, e.g. tier/NAME")
    parser.add_argument("--timeout", type=float, default=5.0, metavar="SECONDS", help="(5)")
    args = parser.parse_args(words)
    try:
        profile = (
            replace(ClientProfile.load(), api_key="")
            if args.config is None
            else own_profile(load_config(args.config))
        )
        state = asyncio.run(_health(profile, args.service, args.timeout))
    except CascadeError as error:
        print(error, file=sys.stderr)
        return 1
    print(state)
    return 0 if state == "SERVING" else 1


def own_profile(config: ClusterConfig) -> ClientProfile:
    """How the gateway's own machine reaches it: over the loopback, by the name that its certificate
    carries, without a key, which health checks do not need.

    Raises:
        ClusterError: the configuration names no certificate, or none that can be read.
    """
    tls = config.gateway.tls
    if tls.certificate is None:
        raise ClusterError("gateway.tls.certificate is missing; probe without --config")
    try:
        certificate = x509.load_pem_x509_certificate(tls.certificate.read_bytes())
        trusted = None if tls.ca is None else tls.ca.read_bytes()
    except (OSError, ValueError):
        raise ClusterError(f"gateway.tls: {tls.certificate} is no readable certificate") from None
    return ClientProfile(client_address(config), trusted, "", _name(certificate))


def _name(certificate: x509.Certificate) -> str | None:
    """A name that the certificate is good for; ``None`` where it has only addresses."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return None
    # A wildcard is no name: any label in its place is one.
    found = [name.replace("*", "gateway") for name in names.get_values_for_type(x509.DNSName)]
    return found[0] if found else None


async def _health(profile: ClientProfile, service: str, timeout_s: float) -> str:
    remote = GrpcRemote(profile)
    try:
        return await remote.health(service, deadline_s=timeout_s)
    finally:
        await remote.close()


if __name__ == "__main__":
    sys.exit(main())
