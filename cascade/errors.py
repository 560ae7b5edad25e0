"""Every error that this project raises on purpose, in one tree.

Each message is one line that names what is wrong and what to do about it, and is safe to show to a
user. ``exit_code`` is what the command line returns; ``RemoteError`` carries the gRPC status name.
Anything else that escapes is a defect.
"""

from __future__ import annotations

from typing import ClassVar


class CascadeError(Exception):
    """Base of all errors raised on purpose. Catch this to catch everything below."""

    exit_code: ClassVar[int] = 1


class InvalidInput(CascadeError, ValueError):
    """A request, option or file field is unusable. Fix the one that ``field`` names; call again.

    Arguments:
        field: the name of the offending field as the caller wrote it, e.g. ``"options"``.
        problem: what is wrong with it and what would be right, in one line.
    """

    exit_code: ClassVar[int] = 2

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{field}: {problem}")
        self.field = field
        self.problem = problem


class NotFound(CascadeError, LookupError):
    """A named thing (model, bundle, policy, profile) is not there. The message lists what is."""

    exit_code: ClassVar[int] = 3


class BundleError(CascadeError):
    """A bundle cannot be used. Rebuild it (``cascade bundle build``) or fetch it again."""

    exit_code: ClassVar[int] = 4


class Tampered(BundleError):
    """A file differs from what the publisher signed. ``file`` names it. Do not use the bundle."""

    def __init__(self, file: str, problem: str) -> None:
        super().__init__(f"{file}: {problem}")
        self.file = file


class UnknownPublisher(BundleError):
    """The signing key is not pinned on this device. Pin it only if you trust its owner."""


class DownloadError(CascadeError):
    """No source delivered the artifact, or its sha256 was wrong. Nothing was kept."""

    exit_code: ClassVar[int] = 5


class InfeasibleTarget(CascadeError):
    """The labels at hand cannot certify this risk. ``labels_needed`` estimates how many would.

    Arguments:
        message: one line for the user.
        labels_needed: number of certify labels at which the observed error would pass, or None
            where no number would (the observed error is above the target).
    """

    exit_code: ClassVar[int] = 6

    def __init__(self, message: str, labels_needed: int | None) -> None:
        super().__init__(message)
        self.labels_needed = labels_needed


class PolicyMismatch(CascadeError):
    """A policy is for another bundle or adapter than the one at hand. Install the right one.

    FAILED_PRECONDITION on the wire.
    """

    exit_code: ClassVar[int] = 6


class ClusterError(CascadeError):
    """The local cluster cannot be started, found or stopped. The message says what to do."""

    exit_code: ClassVar[int] = 7


class RemoteError(CascadeError):
    """The cluster refused or failed. ``status`` is the gRPC status name, e.g. ``"UNAVAILABLE"``.

    Arguments:
        status: gRPC status code name.
        message: the server's message, safe to show.
        retry_after_s: seconds to wait before the next try, where the server said so.
    """

    exit_code: ClassVar[int] = 8

    def __init__(self, status: str, message: str, retry_after_s: float | None = None) -> None:
        super().__init__(f"{status}: {message}")
        self.status = status
        self.message = message
        self.retry_after_s = retry_after_s


class DeadlineExceeded(CascadeError):
    """The request's deadline passed before there was any answer. Allow more time."""

    exit_code: ClassVar[int] = 9


class Cancelled(CascadeError):
    """The caller cancelled the request. Nothing is left running."""

    exit_code: ClassVar[int] = 130
