"""The values of the device protocol, as both sides use them; ``cascade.wire`` carries them.

Units and ranges are those of ``proto/cascade/federation/v1alpha1``.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Literal

PAYLOAD_LIMIT_BYTES: Final = 1 << 30
"""No lease allows a longer payload."""
CHUNK_LIMIT_BYTES: Final = 1 << 20
"""No chunk of an upload is longer."""

NoLease = Literal["no_round", "cohort_full", "too_soon", "other_base", "budget_spent"]
Phase = Literal["advertise_keys", "share_keys", "survivors", "unmask"]


class AbortReason(StrEnum):
    """Why a device gives a lease back."""

    UNSAID = "unsaid"
    OVER_BUDGET = "over_budget"
    CONDITIONS = "conditions"
    NO_GAIN = "no_gain"
    FAILED = "failed"
    UNFIT = "unfit"


@dataclass(frozen=True, slots=True)
class RetryWindow:
    """When to call again, in seconds from the arrival of the message."""

    earliest_s: float
    latest_s: float

    def draw(self, source: random.Random) -> float:
        """A moment in the window, evenly at random."""
        return source.uniform(self.earliest_s, self.latest_s)


@dataclass(frozen=True, slots=True)
class Challenge:
    """What an enrolment has to sign, good for ``valid_s``."""

    challenge: bytes
    valid_s: float
    retry: RetryWindow


@dataclass(frozen=True, slots=True)
class Attestation:
    """A platform's statement about a device, in its own format."""

    kind: str
    evidence: bytes


@dataclass(frozen=True, slots=True)
class TrainingProfile:
    """What a device is; 0 where it does not tell. ``examples`` is how many it could learn from."""

    sdk_version: str = ""
    architecture: str = ""
    memory_bytes: int = 0
    examples: int = 0


@dataclass(frozen=True, slots=True)
class TrainingConditions:
    """What state a device is in; ``None`` where it does not know."""

    idle: bool | None = None
    charging: bool | None = None
    unmetered: bool | None = None
    temperature_c: float | None = None
    battery: float | None = None


@dataclass(frozen=True, slots=True)
class Enrolment:
    """A device's request to be known. ``signature`` covers ``statements.enrolment(challenge)``."""

    public_key: bytes
    challenge: bytes
    signature: bytes
    attestation: Attestation | None = None
    profile: TrainingProfile = TrainingProfile()


@dataclass(frozen=True, slots=True)
class Enrolled:
    """A device that is known."""

    device_id: str
    coordinator_id: str
    retry: RetryWindow


@dataclass(frozen=True, slots=True)
class CheckIn:
    """A device's request to take part. ``signature`` covers ``statements.check_in(...)``."""

    device_id: str
    request_id: bytes
    base_digest: str
    adapter_digest: str
    adapter_version: int
    signature: bytes
    profile: TrainingProfile = TrainingProfile()
    conditions: TrainingConditions = TrainingConditions()


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to send one update, once.

    Arguments:
        adapter_digest, adapter_version, adapter_manifest, adapter_signature: what to start from.
        plan: JSON that ``cascade.federation.plan.RoundPlan`` reads.
        expires_in_s: from the arrival of the message; counts on whatever clock the device has.
        expires_at_s: by the coordinator's clock.
    """

    lease_id: str
    round: int
    base_digest: str
    adapter_digest: str
    adapter_version: int
    adapter_manifest: bytes
    adapter_signature: bytes
    plan: bytes
    payload_format: str
    max_payload_bytes: int
    expires_in_s: float
    expires_at_s: float


@dataclass(frozen=True, slots=True)
class CheckInReply:
    """A lease, or why there is none."""

    lease: Lease | None
    retry: RetryWindow
    no_lease: NoLease | None = None


@dataclass(frozen=True, slots=True)
class UploadHeader:
    """What will be uploaded. ``signature`` is ``sign_update``'s."""

    device_id: str
    lease_id: str
    payload_bytes: int
    payload_sha256: str
    offset: int
    base_digest: str
    adapter_version: int
    examples: int
    signature: bytes


@dataclass(frozen=True, slots=True)
class Receipt:
    """An update was kept, and counts once."""

    lease_id: str
    round: int
    payload_sha256: str
    committed_at_s: float


@dataclass(frozen=True, slots=True)
class Committed:
    """The reply to a commit."""

    receipt: Receipt
    retry: RetryWindow


@dataclass(frozen=True, slots=True)
class UploadState:
    """How far an upload is; with a receipt there is nothing left to send."""

    offset: int
    payload_sha256: str
    receipt: Receipt | None
    expires_in_s: float
    retry: RetryWindow


@dataclass(frozen=True, slots=True)
class Abort:
    """A lease given back. ``signature`` covers ``statements.abort(...)``."""

    device_id: str
    lease_id: str
    signature: bytes
    reason: AbortReason = AbortReason.UNSAID


@dataclass(frozen=True, slots=True)
class Histogram:
    """How many values lay at or below each of ``bounds``, and in the last count above them all."""

    bounds: tuple[float, ...]
    counts: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class MetricsReport:
    """A device's counts since its last report. ``signature`` covers ``statements.metrics(...)``."""

    device_id: str
    report_id: bytes
    counters: tuple[tuple[str, int], ...]
    histograms: tuple[tuple[str, Histogram], ...]
    signature: bytes


@dataclass(frozen=True, slots=True)
class PhaseMessage:
    """One device's message of one phase of secure aggregation. ``signature`` covers
    ``statements.exchange(...)``."""

    device_id: str
    lease_id: str
    phase: Phase
    payload: bytes
    signature: bytes


@dataclass(frozen=True, slots=True)
class PhaseReply:
    """What came of a phase, once it is complete.

    Arguments:
        result: ``cascade.federation.masking``'s ``Roster``, ``Delivered`` or ``Survivors``.
        expires_in_s: of the lease.
    """

    complete: bool
    result: bytes
    expires_in_s: float
    retry: RetryWindow
