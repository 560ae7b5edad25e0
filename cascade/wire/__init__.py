"""The wire: everything that knows gRPC and the generated stubs; nothing else imports them.

Devices use ``GrpcRemote`` with a ``ClientProfile``; servers use ``add_answerer`` with an
``Answerer``, behind an ``AccessInterceptor``. Names are loaded when they are used: gRPC takes a
quarter of a second, and a device that stays offline does not need it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cascade.wire.access import (
        AccessInterceptor,
        ApiKeys,
        Authenticator,
        Caller,
        ClientCertificates,
        Shown,
        caller,
        caller_name,
        current_caller,
        unauthenticated,
    )
    from cascade.wire.artifacts import (
        ARTIFACT_SERVICE,
        ArtifactQuery,
        ArtifactSource,
        FilePiece,
        GrpcArtifacts,
        Offer,
        OfferedArtifact,
        SignedBytes,
        add_artifacts,
    )
    from cascade.wire.client import GrpcRemote
    from cascade.wire.connection import API_KEY_HEADER
    from cascade.wire.convert import OpenRequest
    from cascade.wire.federation import (
        FEDERATION_SERVICE,
        FederationSource,
        Upload,
        add_federation,
    )
    from cascade.wire.federation_client import GrpcFederation
    from cascade.wire.keys import ApiKey, KeyFile, KeyRing, editing_keys, new_key
    from cascade.wire.profile import ClientProfile, check_address, profile_path
    from cascade.wire.server import INFERENCE_SERVICE, Answerer, CallRecord, add_answerer
    from cascade.wire.status import status_of

_HOMES = {
    "API_KEY_HEADER": "cascade.wire.connection",
    "ARTIFACT_SERVICE": "cascade.wire.artifacts",
    "FEDERATION_SERVICE": "cascade.wire.federation",
    "INFERENCE_SERVICE": "cascade.wire.server",
    "AccessInterceptor": "cascade.wire.access",
    "Answerer": "cascade.wire.server",
    "ApiKey": "cascade.wire.keys",
    "ApiKeys": "cascade.wire.access",
    "ArtifactQuery": "cascade.wire.artifacts",
    "ArtifactSource": "cascade.wire.artifacts",
    "Authenticator": "cascade.wire.access",
    "CallRecord": "cascade.wire.server",
    "Caller": "cascade.wire.access",
    "ClientCertificates": "cascade.wire.access",
    "ClientProfile": "cascade.wire.profile",
    "FederationSource": "cascade.wire.federation",
    "FilePiece": "cascade.wire.artifacts",
    "GrpcArtifacts": "cascade.wire.artifacts",
    "GrpcFederation": "cascade.wire.federation_client",
    "GrpcRemote": "cascade.wire.client",
    "KeyFile": "cascade.wire.keys",
    "KeyRing": "cascade.wire.keys",
    "Offer": "cascade.wire.artifacts",
    "OfferedArtifact": "cascade.wire.artifacts",
    "OpenRequest": "cascade.wire.convert",
    "Shown": "cascade.wire.access",
    "SignedBytes": "cascade.wire.artifacts",
    "Upload": "cascade.wire.federation",
    "add_answerer": "cascade.wire.server",
    "add_artifacts": "cascade.wire.artifacts",
    "add_federation": "cascade.wire.federation",
    "caller": "cascade.wire.access",
    "caller_name": "cascade.wire.access",
    "check_address": "cascade.wire.profile",
    "current_caller": "cascade.wire.access",
    "editing_keys": "cascade.wire.keys",
    "new_key": "cascade.wire.keys",
    "profile_path": "cascade.wire.profile",
    "status_of": "cascade.wire.status",
    "unauthenticated": "cascade.wire.access",
}

__all__ = [
    "API_KEY_HEADER",
    "ARTIFACT_SERVICE",
    "FEDERATION_SERVICE",
    "INFERENCE_SERVICE",
    "AccessInterceptor",
    "Answerer",
    "ApiKey",
    "ApiKeys",
    "ArtifactQuery",
    "ArtifactSource",
    "Authenticator",
    "CallRecord",
    "Caller",
    "ClientCertificates",
    "ClientProfile",
    "FederationSource",
    "FilePiece",
    "GrpcArtifacts",
    "GrpcFederation",
    "GrpcRemote",
    "KeyFile",
    "KeyRing",
    "Offer",
    "OfferedArtifact",
    "OpenRequest",
    "Shown",
    "SignedBytes",
    "Upload",
    "add_answerer",
    "add_artifacts",
    "add_federation",
    "caller",
    "caller_name",
    "check_address",
    "current_caller",
    "editing_keys",
    "new_key",
    "profile_path",
    "status_of",
    "unauthenticated",
]


def __getattr__(name: str) -> object:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'cascade.wire' has no attribute {name!r}")
    return getattr(import_module(home), name)
