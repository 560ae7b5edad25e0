"""What the cluster refuses with: each error is the gRPC status that the caller sees.

Raised by the ladder, the gateway and the engines; ``cascade.wire`` puts them on the wire.
"""

from __future__ import annotations

from cascade.errors import CascadeError, RemoteError


class ConfigError(CascadeError, ValueError):
    """The cluster's configuration is unusable. The message has one line for each problem."""

    exit_code = 2


class ModelUnusable(CascadeError):
    """A tier's model file is missing or no model that its engine can load. Pull it again."""


class LicenceForbids(RemoteError):
    """A licence does not allow commercial use, and that is what it would be for. Take another."""

    def __init__(self, what: str, licence: str) -> None:
        super().__init__(
            "FAILED_PRECONDITION",
            f"{licence}, the licence of {what}, does not allow commercial use",
        )


class NoTierAllowed(RemoteError):
    """No tier satisfies the request's constraints. Loosen the one that the message names."""

    def __init__(self, message: str) -> None:
        super().__init__("FAILED_PRECONDITION", message)


class Overloaded(RemoteError):
    """The cluster takes no more requests now. Come back after ``retry_after_s``."""

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__("RESOURCE_EXHAUSTED", message, retry_after_s)


class QuotaExceeded(RemoteError):
    """The caller has used what it may. Come back after ``retry_after_s``, or ask the operator.

    Arguments:
        quota: the limit, as the configuration calls it.
        retry_after_s: ``None`` where waiting does not help.
    """

    def __init__(self, quota: str, message: str, retry_after_s: float | None) -> None:
        super().__init__("RESOURCE_EXHAUSTED", message, retry_after_s)
        self.quota = quota


class TierUnavailable(RemoteError):
    """The tier's replica was lost or is being replaced. One retry is worth it."""

    def __init__(self, tier: str) -> None:
        super().__init__("UNAVAILABLE", f"{tier} lost the replica that was answering; try again")


class ProviderUnavailable(RemoteError):
    """The provider behind a tier does not answer, or not us; its operator finds why in the log."""

    def __init__(self) -> None:
        super().__init__("UNAVAILABLE", "the provider behind this tier does not answer now")


class EngineFailed(RemoteError):
    """The engine broke; its operator finds the cause in the replica's log."""

    def __init__(self) -> None:
        super().__init__("INTERNAL", "the model failed to answer; the operator's log says why")


__all__ = [
    "ConfigError",
    "EngineFailed",
    "LicenceForbids",
    "ModelUnusable",
    "NoTierAllowed",
    "Overloaded",
    "ProviderUnavailable",
    "QuotaExceeded",
    "TierUnavailable",
]
