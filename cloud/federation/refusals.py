"""Why an update does not count: the reasons, each with its gRPC status, and their counters."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Final

from cloud.federation.database import Kept, Transaction


class Reason(StrEnum):
    """What was wrong. The word is the counter's, ``refused.<reason>``."""

    UNKNOWN_DEVICE = "unknown_device"
    BAD_PROOF = "bad_proof"
    NOT_ATTESTED = "not_attested"
    TOO_MANY_ENROLMENTS = "too_many_enrolments"
    UNKNOWN_LEASE = "unknown_lease"
    FOREIGN_LEASE = "foreign_lease"
    OTHER_DEVICE = "other_device"
    EXPIRED_LEASE = "expired_lease"
    USED_LEASE = "used_lease"
    REPLAYED = "replayed"
    ABORTED_LEASE = "aborted_lease"
    LATE = "late"
    GOAL_MET = "goal_met"
    STALE = "stale"
    OVERSIZED = "oversized"
    WRONG_BASE = "wrong_base"
    WRONG_ADAPTER = "wrong_adapter"
    WRONG_SHAPE = "wrong_shape"
    WRONG_DIGEST = "wrong_digest"
    NOT_FINITE = "not_finite"
    MALFORMED = "malformed"
    BAD_SIGNATURE = "bad_signature"
    NOT_MASKED = "not_masked"
    WRONG_PHASE = "wrong_phase"
    DROPPED_OUT = "dropped_out"
    SAID_OTHERWISE = "said_otherwise"


_STATUS: Final[dict[Reason, tuple[str, str]]] = {
    Reason.UNKNOWN_DEVICE: ("NOT_FOUND", "this device is not enrolled here; enrol it"),
    Reason.BAD_PROOF: ("PERMISSION_DENIED", "the challenge is not answered by this key in time"),
    Reason.NOT_ATTESTED: ("PERMISSION_DENIED", "the attestation is not accepted"),
    Reason.TOO_MANY_ENROLMENTS: (
        "RESOURCE_EXHAUSTED",
        "this caller's key has enrolled as many devices as it may for now",
    ),
    Reason.UNKNOWN_LEASE: ("NOT_FOUND", "there is no such lease"),
    Reason.FOREIGN_LEASE: ("PERMISSION_DENIED", "the lease is of another coordinator"),
    Reason.OTHER_DEVICE: ("PERMISSION_DENIED", "the lease was given to another device"),
    Reason.EXPIRED_LEASE: ("FAILED_PRECONDITION", "the lease has expired; check in again"),
    Reason.USED_LEASE: ("ALREADY_EXISTS", "the lease is used; one lease is one update"),
    Reason.REPLAYED: ("ALREADY_EXISTS", "this update was taken before; its status has the receipt"),
    Reason.ABORTED_LEASE: ("FAILED_PRECONDITION", "the lease was given back; check in again"),
    Reason.LATE: ("ABORTED", "the round is over; discard the update and check in again"),
    Reason.GOAL_MET: ("ABORTED", "the round has its updates; discard this one and check in again"),
    Reason.STALE: ("FAILED_PRECONDITION", "the adapter that it started from is too old"),
    Reason.OVERSIZED: ("INVALID_ARGUMENT", "the payload is longer than it may be"),
    Reason.WRONG_BASE: ("FAILED_PRECONDITION", "the update is for another base"),
    Reason.WRONG_ADAPTER: ("FAILED_PRECONDITION", "the update starts from another adapter"),
    Reason.WRONG_SHAPE: ("INVALID_ARGUMENT", "the update's tensors are not those of the plan"),
    Reason.WRONG_DIGEST: ("INVALID_ARGUMENT", "the payload is not the one of its sha256"),
    Reason.NOT_FINITE: ("INVALID_ARGUMENT", "the update holds numbers that are not finite"),
    Reason.MALFORMED: ("INVALID_ARGUMENT", "the payload is not an update"),
    Reason.BAD_SIGNATURE: ("PERMISSION_DENIED", "the signature is not the enrolled key's"),
    Reason.NOT_MASKED: ("FAILED_PRECONDITION", "the lease's round has no phases of masks"),
    Reason.WRONG_PHASE: ("FAILED_PRECONDITION", "the round is not in this phase yet"),
    Reason.DROPPED_OUT: ("ABORTED", "the round went on without this device; check in again"),
    Reason.SAID_OTHERWISE: ("ALREADY_EXISTS", "this device said something else in the phase"),
}


class Refused(Kept):
    """An update, or a call about one, that does not count; ``reason`` says why."""

    def __init__(self, reason: Reason, retry_after_s: float | None = None) -> None:
        status, words = _STATUS[reason]
        super().__init__(status, f"{reason}: {words}", retry_after_s)
        self.reason = reason


def count(tx: Transaction, name: str, by: int = 1) -> None:
    """Add to a counter."""
    count_all(tx, {name: by})


def count_all(tx: Transaction, by: Mapping[str, int]) -> None:
    """Add to some counters, by their names."""
    values = ", ".join(["(?, ?)"] * len(by))
    tx.run(
        f"INSERT INTO counters VALUES {values} "
        "ON CONFLICT (name) DO UPDATE SET value = counters.value + excluded.value",
        *(each for pair in by.items() for each in pair),
    )


def counters(tx: Transaction) -> dict[str, int]:
    """All counters by name."""
    rows = tx.all("SELECT name, value FROM counters ORDER BY name")
    return {str(name): int(value) for name, value in rows}
