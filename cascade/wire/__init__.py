"""The wire: everything that knows gRPC and the generated stubs; nothing else imports them.

Devices use ``GrpcRemote`` with a ``ClientProfile``; servers use ``add_answerer`` with an
``Answerer``, behind an ``ApiKeyInterceptor``.
"""

from __future__ import annotations

from cascade.wire.access import ApiKeyInterceptor, KeyRing, caller, new_key
from cascade.wire.client import API_KEY_HEADER, GrpcRemote
from cascade.wire.convert import OpenRequest, Unsupported
from cascade.wire.profile import ClientProfile, check_address, profile_path
from cascade.wire.server import INFERENCE_SERVICE, Answerer, CallRecord, add_answerer

__all__ = [
    "API_KEY_HEADER",
    "INFERENCE_SERVICE",
    "Answerer",
    "ApiKeyInterceptor",
    "CallRecord",
    "ClientProfile",
    "GrpcRemote",
    "KeyRing",
    "OpenRequest",
    "Unsupported",
    "add_answerer",
    "caller",
    "check_address",
    "new_key",
    "profile_path",
]
