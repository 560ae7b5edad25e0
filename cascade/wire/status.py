"""Errors as gRPC statuses with google.rpc details, and back.

A status that this project's server sent on purpose carries an ``ErrorInfo`` of our domain: its
message is written for users. Any other status comes from the transport and its text is not shown.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from cascade.errors import CascadeError, InvalidInput, NotFound, RemoteError

DOMAIN: Final = "edge-cloud-cascade"
# Refusals of an overloaded server are alike, and take a tenth of a millisecond to put together.
_KEPT: Final = 64
INTERNAL_TEXT: Final = "the cluster failed to answer; its operator finds the request id in the log"


@dataclass(frozen=True, slots=True)
class SentStatus:
    """What a server of this project said about a failed call."""

    message: str
    retry_after_s: float | None


def status_of(error: BaseException) -> grpc.Status:
    """The status for an exception; anything unexpected is INTERNAL with a fixed text."""
    match error:
        case RemoteError():
            code = getattr(grpc.StatusCode, error.status, grpc.StatusCode.INTERNAL)
            return _status(code, error.message, retry_after_s=error.retry_after_s)
        case InvalidInput():
            return _status(grpc.StatusCode.INVALID_ARGUMENT, str(error), field=error.field)
        case NotFound():
            return _status(grpc.StatusCode.NOT_FOUND, str(error))
        case TimeoutError():
            return _status(grpc.StatusCode.DEADLINE_EXCEEDED, "the deadline passed")
        case CascadeError():
            return _status(grpc.StatusCode.FAILED_PRECONDITION, str(error))
        case _:
            return _status(grpc.StatusCode.INTERNAL, INTERNAL_TEXT)


def sent_status(error: grpc.aio.AioRpcError) -> SentStatus | None:
    """What our server said, or ``None`` when the status comes from the transport."""
    ours = False
    retry_after_s: float | None = None
    message = ""
    try:
        status = rpc_status.from_call(error)  # type: ignore[arg-type]
        if status is None:
            return None
        message = status.message
        for detail in status.details:
            info = error_details_pb2.ErrorInfo()
            retry = error_details_pb2.RetryInfo()
            if detail.Unpack(info):
                ours = info.domain == DOMAIN
            elif detail.Unpack(retry):
                retry_after_s = retry.retry_delay.ToNanoseconds() / 1e9
    except (ValueError, DecodeError):
        return None
    return SentStatus(message, retry_after_s) if ours else None


@lru_cache(maxsize=_KEPT)
def _status(
    code: grpc.StatusCode,
    message: str,
    *,
    field: str | None = None,
    retry_after_s: float | None = None,
) -> grpc.Status:
    line = " ".join(message.split())
    details = [_packed(error_details_pb2.ErrorInfo(reason=code.name, domain=DOMAIN))]
    if field is not None:
        violation = error_details_pb2.BadRequest.FieldViolation(field=field, description=line)
        details.append(_packed(error_details_pb2.BadRequest(field_violations=[violation])))
    if retry_after_s is not None:
        delay = duration_pb2.Duration()
        delay.FromNanoseconds(round(retry_after_s * 1e9))
        details.append(_packed(error_details_pb2.RetryInfo(retry_delay=delay)))
    return rpc_status.to_status(
        status_pb2.Status(code=code.value[0], message=line, details=details)
    )


def _packed(
    detail: error_details_pb2.ErrorInfo
    | error_details_pb2.BadRequest
    | error_details_pb2.RetryInfo,
) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(detail)
    return packed
