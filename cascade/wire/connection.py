"""One channel to one cluster, opened at the first call: keys, certificates, and the wording of
what goes wrong on the way.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import grpc

from cascade.errors import RemoteError
from cascade.wire.profile import ClientProfile
from cascade.wire.status import sent_status

API_KEY_HEADER: Final = "x-api-key"
_TOO_LARGE: Final = "SERVER: Received message larger"
TOKEN_HEADER: Final = "authorization"
_CHANNEL_OPTIONS: Final = (
    # Only the code below retries, so that max_remote_calls is true.
    ("grpc.enable_retries", 0),
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.initial_reconnect_backoff_ms", 100),
    # Also bounds one attempt to connect: an address that swallows packets fails in 1.5 s.
    ("grpc.min_reconnect_backoff_ms", 1_500),
    ("grpc.max_reconnect_backoff_ms", 500),
    # Two clients in one process must not share a connection, and with it a certificate authority.
    ("grpc.use_local_subchannel_pool", 1),
)


class Connection:
    """The channel that ``profile`` describes. Use one instance on one event loop, and close it
    there."""

    def __init__(self, profile: ClientProfile) -> None:
        self._profile = profile
        self._channel: grpc.aio.Channel | None = None

    @property
    def channel(self) -> grpc.aio.Channel:
        """The channel; made when it is first asked for."""
        if self._channel is None:
            options: list[tuple[str, Any]] = list(_CHANNEL_OPTIONS)
            if self._profile.server_name is not None:
                options.append(("grpc.ssl_target_name_override", self._profile.server_name))
            self._channel = grpc.aio.secure_channel(
                self._profile.address,
                grpc.ssl_channel_credentials(
                    self._profile.ca_pem, self._profile.key_pem, self._profile.certificate_pem
                ),
                options=options,
            )
        return self._channel

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """What goes with every call.

        Raises:
            RemoteError: UNAUTHENTICATED; the token's file cannot be read.
        """
        sent: list[tuple[str, str]] = []
        if self._profile.api_key:
            sent.append((API_KEY_HEADER, self._profile.api_key))
        if self._profile.token_file is not None:
            sent.append((TOKEN_HEADER, f"Bearer {_token(self._profile.token_file)}"))
        return tuple(sent)

    async def close(self) -> None:
        """Close the channel. Calls under way end with CANCELLED."""
        channel, self._channel = self._channel, None
        if channel is not None:
            await channel.close()

    def error(self, error: grpc.aio.AioRpcError, deadline_s: float) -> RemoteError:
        """A failed call in words for users; ``deadline_s`` is what it was given."""
        code = error.code()
        sent = sent_status(error)
        if sent is not None:
            return RemoteError(code.name, sent.message, sent.retry_after_s)
        if code is grpc.StatusCode.DEADLINE_EXCEEDED:
            return too_late(deadline_s)
        address = self._profile.address
        if code is grpc.StatusCode.UNAVAILABLE:
            reason = error.details() or ""
            if "handshake" in reason.lower() or "CERTIFICATE" in reason:
                return RemoteError(
                    code.name,
                    f"no trusted connection to {address}: its certificate does not fit this "
                    "profile; copy the cluster's current client.json",
                )
            return RemoteError(
                code.name,
                f"no connection to the cluster at {address}; is it running "
                "(`cascade cluster status`)?",
            )
        if code is grpc.StatusCode.CANCELLED and self._channel is not None:
            # Nobody here cancelled: so ends, in gRPC's core, what reaches a server that shuts down.
            return RemoteError(
                "UNAVAILABLE",
                f"the cluster at {address} closed the connection before it read the call",
            )
        if (error.details() or "").startswith(_TOO_LARGE):
            # gRPC's own code for it would tell a device to come back later.
            return RemoteError("INVALID_ARGUMENT", "the request is larger than this cluster reads")
        return RemoteError(code.name, f"the call to {address} failed")


def _token(path: Path) -> str:
    try:
        words = path.read_text().split()
    except (OSError, UnicodeDecodeError):
        words = []
    if len(words) != 1 or not words[0].isascii():
        raise RemoteError("UNAUTHENTICATED", f"the file {path} does not hold one token; renew it")
    return words[0]


def too_late(deadline_s: float) -> RemoteError:
    """The error of a call whose time is up."""
    return RemoteError("DEADLINE_EXCEEDED", f"no complete answer within {deadline_s:g} s")
