"""What keeps a configuration from starting that its text does not show: files that are named in it,
and the licence inside a bundle. Nothing is started here."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path

from cryptography import x509

from cascade.errors import CascadeError
from cascade.wire import KeyRing
from cloud.config import ClusterConfig, TierConfig


def access_problems(config: ClusterConfig) -> Iterator[str]:
    """One line for each file about callers that cannot be used."""
    gateway = config.gateway
    if gateway.api_keys_file is not None:
        if not gateway.api_keys_file.is_file():
            yield f"gateway.api_keys_file: there is no file {gateway.api_keys_file}"
        else:
            try:
                KeyRing.load(gateway.api_keys_file)
            except (CascadeError, OSError, UnicodeDecodeError) as problem:
                yield f"gateway.api_keys_file: {problem}"
    if gateway.tls.client_ca is not None:
        try:
            x509.load_pem_x509_certificates(gateway.tls.client_ca.read_bytes())
        except (OSError, ValueError) as problem:
            yield f"gateway.tls.client_ca: {gateway.tls.client_ca} holds no certificate: {problem}"
    if gateway.jwt is not None:
        yield from _token_problems(config)


def licence_problem(tier: TierConfig, bundle: Path) -> str | None:
    """Why a tier over a bundle may not answer for money; ``None`` where it may.

    Arguments:
        bundle: its folder, verified when it is loaded; here the licence alone is read.
    """
    from edge.bundle import inspect

    try:
        manifest = inspect(bundle)
    except CascadeError as problem:
        return f"tier {tier.name}: {problem}"
    if manifest.commercial_use:
        return None
    return (
        f"tier {tier.name}: commercial is true, but {manifest.licence}, the licence of the bundle "
        f"{manifest.name}, does not allow that; take another model"
    )


def _token_problems(config: ClusterConfig) -> Iterator[str]:
    if importlib.util.find_spec("jwt") is None:
        yield 'gateway.jwt needs PyJWT: pip install "edge-cloud-cascade[cloud]"'
        return
    from cloud.tokens import check_keys

    given = config.gateway.jwt
    if given is not None:
        try:
            check_keys(given)
        except CascadeError as problem:
            yield str(problem)
