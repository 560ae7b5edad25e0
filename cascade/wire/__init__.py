"""The wire: everything that knows gRPC and the generated stubs; nothing else imports them.

Devices use ``GrpcRemote`` with a ``ClientProfile``; servers use ``add_answerer`` with an
``Answerer``, behind an ``ApiKeyInterceptor``. Names are loaded when they are used: gRPC takes a
quarter of a second, and a device that stays offline does not need it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cascade.wire.access import ApiKeyInterceptor, KeyRing, caller, new_key
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
    from cascade.wire.profile import ClientProfile, check_address, profile_path
    from cascade.wire.server import INFERENCE_SERVICE, Answerer, CallRecord, add_answerer

_HOMES = {
    "API_KEY_HEADER": "cascade.wire.connection",
    "ARTIFACT_SERVICE": "cascade.wire.artifacts",
    "INFERENCE_SERVICE": "cascade.wire.server",
    "Answerer": "cascade.wire.server",
    "ApiKeyInterceptor": "cascade.wire.access",
    "ArtifactQuery": "cascade.wire.artifacts",
    "ArtifactSource": "cascade.wire.artifacts",
    "CallRecord": "cascade.wire.server",
    "ClientProfile": "cascade.wire.profile",
    "FilePiece": "cascade.wire.artifacts",
    "GrpcArtifacts": "cascade.wire.artifacts",
    "GrpcRemote": "cascade.wire.client",
    "KeyRing": "cascade.wire.access",
    "Offer": "cascade.wire.artifacts",
    "OfferedArtifact": "cascade.wire.artifacts",
    "OpenRequest": "cascade.wire.convert",
    "SignedBytes": "cascade.wire.artifacts",
    "add_answerer": "cascade.wire.server",
    "add_artifacts": "cascade.wire.artifacts",
    "caller": "cascade.wire.access",
    "check_address": "cascade.wire.profile",
    "new_key": "cascade.wire.access",
    "profile_path": "cascade.wire.profile",
}

__all__ = [
    "API_KEY_HEADER",
    "ARTIFACT_SERVICE",
    "INFERENCE_SERVICE",
    "Answerer",
    "ApiKeyInterceptor",
    "ArtifactQuery",
    "ArtifactSource",
    "CallRecord",
    "ClientProfile",
    "FilePiece",
    "GrpcArtifacts",
    "GrpcRemote",
    "KeyRing",
    "Offer",
    "OfferedArtifact",
    "OpenRequest",
    "SignedBytes",
    "add_answerer",
    "add_artifacts",
    "caller",
    "check_address",
    "new_key",
    "profile_path",
]


def __getattr__(name: str) -> object:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'cascade.wire' has no attribute {name!r}")
    return getattr(import_module(home), name)
