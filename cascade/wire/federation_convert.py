"""Federation messages to and from the words of ``cascade.federation``. What a device sent is
checked here once, for shape and range; whether it is right is the coordinator's business.
"""

from __future__ import annotations

import itertools
import math
import re
from dataclasses import asdict
from typing import Any, Final

from cascade.errors import InvalidInput, RemoteError
from cascade.federation.terms import (
    CHUNK_LIMIT_BYTES,
    PAYLOAD_LIMIT_BYTES,
    Abort,
    AbortReason,
    Attestation,
    CheckIn,
    CheckInReply,
    Committed,
    Enrolment,
    Histogram,
    Lease,
    MetricsReport,
    NoLease,
    Phase,
    PhaseMessage,
    PhaseReply,
    Receipt,
    RetryWindow,
    TrainingConditions,
    TrainingProfile,
    UploadHeader,
    UploadState,
)
from cascade.federation.v1alpha1 import federation_pb2 as pb

_SHA256 = re.compile(r"[0-9a-f]{64}")
_LEASE = re.compile(r"[A-Za-z0-9._-]{1,128}")
_KIND = re.compile(r"[a-z0-9._-]{1,64}")
_METRIC = re.compile(r"[a-z0-9_.]{1,64}")
_KEY_BYTES, _SIGNATURE_BYTES, _ID_BYTES = 32, 64, 16
_MOST_CHALLENGE, _MOST_EVIDENCE, _MOST_PHASE = 256, 16_384, 1 << 20
_MOST_WORD: Final = 64
_MOST_COUNTERS, _MOST_HISTOGRAMS, _MOST_BOUNDS = 64, 16, 64
_MOST_EXAMPLES: Final = 1_000_000
_MOST_RETRY_S: Final = 604_800.0

_NO_LEASE: Final[dict[NoLease, pb.NoLeaseReason]] = {
    "no_round": pb.NO_LEASE_REASON_NO_ROUND,
    "cohort_full": pb.NO_LEASE_REASON_COHORT_FULL,
    "too_soon": pb.NO_LEASE_REASON_TOO_SOON,
    "other_base": pb.NO_LEASE_REASON_OTHER_BASE,
    "budget_spent": pb.NO_LEASE_REASON_BUDGET_SPENT,
}
_ABORTS: Final[dict[AbortReason, pb.AbortReason]] = {
    AbortReason.UNSAID: pb.ABORT_REASON_UNSPECIFIED,
    AbortReason.OVER_BUDGET: pb.ABORT_REASON_OVER_BUDGET,
    AbortReason.CONDITIONS: pb.ABORT_REASON_CONDITIONS,
    AbortReason.NO_GAIN: pb.ABORT_REASON_NO_GAIN,
    AbortReason.FAILED: pb.ABORT_REASON_FAILED,
    AbortReason.UNFIT: pb.ABORT_REASON_UNFIT,
}
_PHASES: Final[dict[Phase, pb.Phase]] = {
    "advertise_keys": pb.PHASE_ADVERTISE_KEYS,
    "share_keys": pb.PHASE_SHARE_KEYS,
    "unmask": pb.PHASE_UNMASK,
    "survivors": pb.PHASE_SURVIVORS,
}


def public_key(request: pb.ChallengeRequest) -> bytes:
    """The key that a challenge is for."""
    return _sized("public_key", request.public_key, _KEY_BYTES)


def enrolment(request: pb.EnrolRequest) -> Enrolment:
    """What a device enrols with."""
    if not 1 <= len(request.challenge) <= _MOST_CHALLENGE:
        raise InvalidInput("challenge", f"must be 1 to {_MOST_CHALLENGE} bytes")
    attestation = None
    if request.HasField("attestation"):
        sent = request.attestation
        if not _KIND.fullmatch(sent.kind):
            raise InvalidInput("attestation.kind", "must be 1 to 64 characters of a-z 0-9 . _ -")
        if len(sent.evidence) > _MOST_EVIDENCE:
            raise InvalidInput("attestation.evidence", f"is longer than {_MOST_EVIDENCE} bytes")
        attestation = Attestation(sent.kind, sent.evidence)
    return Enrolment(
        public_key=_sized("public_key", request.public_key, _KEY_BYTES),
        challenge=request.challenge,
        signature=_sized("signature", request.signature, _SIGNATURE_BYTES),
        attestation=attestation,
        profile=_profile(request.profile),
    )


def enrolment_message(enrolment: Enrolment) -> pb.EnrolRequest:
    """The other way round."""
    given = enrolment.attestation
    return pb.EnrolRequest(
        public_key=enrolment.public_key,
        challenge=enrolment.challenge,
        signature=enrolment.signature,
        attestation=None
        if given is None
        else pb.Attestation(kind=given.kind, evidence=given.evidence),
        profile=_profile_message(enrolment.profile),
    )


def check_in(request: pb.CheckInRequest) -> CheckIn:
    """A device's check-in."""
    if request.adapter_digest or request.adapter_version:
        _sha256("adapter_digest", request.adapter_digest)
    state = request.conditions
    return CheckIn(
        device_id=_sha256("device_id", request.device_id),
        request_id=_sized("request_id", request.request_id, _ID_BYTES),
        base_digest=_sha256("base_digest", request.base_digest),
        adapter_digest=request.adapter_digest,
        adapter_version=_within("adapter_version", request.adapter_version, 0, 2**53),
        signature=_sized("signature", request.signature, _SIGNATURE_BYTES),
        profile=_profile(request.profile),
        conditions=TrainingConditions(
            idle=state.idle if state.HasField("idle") else None,
            charging=state.charging if state.HasField("charging") else None,
            unmetered=state.unmetered if state.HasField("unmetered") else None,
            temperature_c=_number(state, "temperature_c", -60, 150),
            battery=_number(state, "battery", 0, 1),
        ),
    )


def check_in_message(check_in: CheckIn) -> pb.CheckInRequest:
    """The other way round."""
    known: dict[str, Any] = {
        name: value for name, value in asdict(check_in.conditions).items() if value is not None
    }
    return pb.CheckInRequest(
        device_id=check_in.device_id,
        request_id=check_in.request_id,
        profile=_profile_message(check_in.profile),
        conditions=pb.Conditions(**known),
        base_digest=check_in.base_digest,
        adapter_digest=check_in.adapter_digest,
        adapter_version=check_in.adapter_version,
        signature=check_in.signature,
    )


def check_in_reply_message(reply: CheckInReply) -> pb.CheckInResponse:
    """The coordinator's answer to a check-in."""
    lease = reply.lease
    return pb.CheckInResponse(
        lease=None
        if lease is None
        else pb.Lease(
            lease_id=lease.lease_id,
            round=lease.round,
            base_digest=lease.base_digest,
            adapter_digest=lease.adapter_digest,
            adapter_version=lease.adapter_version,
            adapter_manifest=lease.adapter_manifest,
            adapter_signature=lease.adapter_signature,
            plan=lease.plan,
            payload_format=lease.payload_format,
            max_payload_bytes=lease.max_payload_bytes,
            expires_in_s=lease.expires_in_s,
            expires_at_s=lease.expires_at_s,
        ),
        retry=window_message(reply.retry),
        no_lease_reason=pb.NO_LEASE_REASON_UNSPECIFIED
        if reply.no_lease is None
        else _NO_LEASE[reply.no_lease],
    )


def check_in_reply(message: pb.CheckInResponse) -> CheckInReply:
    """The other way round."""
    reasons = {number: reason for reason, number in _NO_LEASE.items()}
    lease = None
    if message.HasField("lease"):
        sent = message.lease
        if not 1 <= sent.max_payload_bytes <= PAYLOAD_LIMIT_BYTES or sent.round < 1:
            raise RemoteError("INTERNAL", "the cluster sent a lease that is none")
        lease = Lease(
            lease_id=sent.lease_id,
            round=sent.round,
            base_digest=sent.base_digest,
            adapter_digest=sent.adapter_digest,
            adapter_version=sent.adapter_version,
            adapter_manifest=sent.adapter_manifest,
            adapter_signature=sent.adapter_signature,
            plan=sent.plan,
            payload_format=sent.payload_format,
            max_payload_bytes=sent.max_payload_bytes,
            expires_in_s=sent.expires_in_s,
            expires_at_s=sent.expires_at_s,
        )
    return CheckInReply(
        lease,
        window(message.retry),
        None if lease else reasons.get(message.no_lease_reason, "no_round"),
    )


def header(message: pb.UploadHeader) -> UploadHeader:
    """What a device says that it will upload."""
    return UploadHeader(
        device_id=_sha256("header.device_id", message.device_id),
        lease_id=_lease("header.lease_id", message.lease_id),
        payload_bytes=_within(
            "header.payload_bytes", message.payload_bytes, 1, PAYLOAD_LIMIT_BYTES
        ),
        payload_sha256=_sha256("header.payload_sha256", message.payload_sha256),
        offset=_within("header.offset", message.offset, 0, message.payload_bytes),
        base_digest=_sha256("header.base_digest", message.base_digest),
        adapter_version=_within("header.adapter_version", message.adapter_version, 1, 2**53),
        examples=_within("header.examples", message.examples, 1, _MOST_EXAMPLES),
        signature=_sized("header.signature", message.signature, _SIGNATURE_BYTES),
    )


def header_message(header: UploadHeader) -> pb.UploadHeader:
    """The other way round."""
    return pb.UploadHeader(
        device_id=header.device_id,
        lease_id=header.lease_id,
        payload_bytes=header.payload_bytes,
        payload_sha256=header.payload_sha256,
        offset=header.offset,
        base_digest=header.base_digest,
        adapter_version=header.adapter_version,
        examples=header.examples,
        signature=header.signature,
    )


def chunk(data: bytes) -> bytes:
    """A piece of a payload."""
    if not 1 <= len(data) <= CHUNK_LIMIT_BYTES:
        raise InvalidInput("chunk", f"must be 1 to {CHUNK_LIMIT_BYTES} bytes")
    return data


def whole_upload(request: pb.UploadWholeRequest) -> tuple[UploadHeader, bytes]:
    """An update that comes as one message."""
    sent = header(request.header)
    if sent.offset:
        raise InvalidInput("header.offset", "must be 0; `Upload` goes on with what was begun")
    return sent, chunk(request.payload)


def whole_upload_message(header: UploadHeader, payload: bytes) -> pb.UploadWholeRequest:
    """The other way round."""
    return pb.UploadWholeRequest(header=header_message(header), payload=payload)


def whole_committed_message(done: Committed) -> pb.UploadWholeResponse:
    """The reply to it."""
    return pb.UploadWholeResponse(
        receipt=_receipt_message(done.receipt), retry=window_message(done.retry)
    )


def committed_message(done: Committed) -> pb.UploadResponse:
    """The reply to a commit."""
    return pb.UploadResponse(
        receipt=_receipt_message(done.receipt), retry=window_message(done.retry)
    )


def committed(message: pb.UploadResponse | pb.UploadWholeResponse) -> Committed:
    """The other way round, of either."""
    return Committed(_receipt(message.receipt), window(message.retry))


def lease_of(request: pb.UploadStatusRequest) -> tuple[str, str]:
    """Device and lease that a status is asked for."""
    return _sha256("device_id", request.device_id), _lease("lease_id", request.lease_id)


def upload_state_message(state: UploadState) -> pb.UploadStatusResponse:
    """How far an upload is."""
    return pb.UploadStatusResponse(
        offset=state.offset,
        payload_sha256=state.payload_sha256,
        receipt=None if state.receipt is None else _receipt_message(state.receipt),
        expires_in_s=state.expires_in_s,
        retry=window_message(state.retry),
    )


def upload_state(message: pb.UploadStatusResponse) -> UploadState:
    """The other way round."""
    return UploadState(
        message.offset,
        message.payload_sha256,
        _receipt(message.receipt) if message.HasField("receipt") else None,
        message.expires_in_s,
        window(message.retry),
    )


def abort_request(request: pb.AbortRequest) -> Abort:
    """A lease given back."""
    reasons = {number: reason for reason, number in _ABORTS.items()}
    return Abort(
        device_id=_sha256("device_id", request.device_id),
        lease_id=_lease("lease_id", request.lease_id),
        signature=_sized("signature", request.signature, _SIGNATURE_BYTES),
        reason=reasons.get(request.reason, AbortReason.UNSAID),
    )


def abort_message(abort: Abort) -> pb.AbortRequest:
    """The other way round."""
    return pb.AbortRequest(
        device_id=abort.device_id,
        lease_id=abort.lease_id,
        signature=abort.signature,
        reason=_ABORTS[abort.reason],
    )


def report(request: pb.ReportMetricsRequest) -> MetricsReport:
    """A device's counts."""
    if len(request.counters) > _MOST_COUNTERS:
        raise InvalidInput("counters", f"has more than {_MOST_COUNTERS} entries")
    if len(request.histograms) > _MOST_HISTOGRAMS:
        raise InvalidInput("histograms", f"has more than {_MOST_HISTOGRAMS} entries")
    return MetricsReport(
        device_id=_sha256("device_id", request.device_id),
        report_id=_sized("report_id", request.report_id, _ID_BYTES),
        counters=tuple(
            (_metric("counters.name", each.name), _within("counters.value", each.value, 0, 2**53))
            for each in request.counters
        ),
        histograms=tuple(
            (_metric("histograms.name", each.name), _histogram(each)) for each in request.histograms
        ),
        signature=_sized("signature", request.signature, _SIGNATURE_BYTES),
    )


def report_message(report: MetricsReport) -> pb.ReportMetricsRequest:
    """The other way round."""
    return pb.ReportMetricsRequest(
        device_id=report.device_id,
        report_id=report.report_id,
        counters=[pb.Counter(name=name, value=value) for name, value in report.counters],
        histograms=[
            pb.Histogram(name=name, bounds=each.bounds, counts=each.counts)
            for name, each in report.histograms
        ],
        signature=report.signature,
    )


def phase_message(request: pb.ExchangeRequest) -> PhaseMessage:
    """A message of secure aggregation."""
    phases = {number: phase for phase, number in _PHASES.items()}
    if request.phase not in phases:
        raise InvalidInput("phase", "is not set or not known")
    if len(request.payload) > _MOST_PHASE:
        raise InvalidInput("payload", f"is longer than {_MOST_PHASE} bytes")
    return PhaseMessage(
        device_id=_sha256("device_id", request.device_id),
        lease_id=_lease("lease_id", request.lease_id),
        phase=phases[request.phase],
        payload=request.payload,
        signature=_sized("signature", request.signature, _SIGNATURE_BYTES),
    )


def exchange_message(message: PhaseMessage) -> pb.ExchangeRequest:
    """The other way round."""
    return pb.ExchangeRequest(
        device_id=message.device_id,
        lease_id=message.lease_id,
        phase=_PHASES[message.phase],
        payload=message.payload,
        signature=message.signature,
    )


def phase_reply_message(reply: PhaseReply) -> pb.ExchangeResponse:
    """What came of a phase."""
    return pb.ExchangeResponse(
        complete=reply.complete,
        result=reply.result,
        expires_in_s=reply.expires_in_s,
        retry=window_message(reply.retry),
    )


def phase_reply(message: pb.ExchangeResponse) -> PhaseReply:
    """The other way round."""
    if len(message.result) > _MOST_PHASE or not 0 <= message.expires_in_s < math.inf:
        raise RemoteError("INTERNAL", "the cluster sent a phase's result that is none")
    return PhaseReply(message.complete, message.result, message.expires_in_s, window(message.retry))


def window_message(window: RetryWindow) -> pb.RetryWindow:
    """When to call again."""
    return pb.RetryWindow(earliest_s=window.earliest_s, latest_s=window.latest_s)


def window(message: pb.RetryWindow) -> RetryWindow:
    """The other way round; what makes no sense is put right, so that a device always waits."""
    earliest = message.earliest_s if 0 <= message.earliest_s <= _MOST_RETRY_S else _MOST_RETRY_S
    latest = message.latest_s if message.latest_s <= _MOST_RETRY_S else _MOST_RETRY_S
    return RetryWindow(earliest, max(earliest, latest))


def _receipt_message(receipt: Receipt) -> pb.Receipt:
    return pb.Receipt(
        lease_id=receipt.lease_id,
        round=receipt.round,
        payload_sha256=receipt.payload_sha256,
        committed_at_s=receipt.committed_at_s,
    )


def _receipt(message: pb.Receipt) -> Receipt:
    return Receipt(message.lease_id, message.round, message.payload_sha256, message.committed_at_s)


def _profile(message: pb.Profile) -> TrainingProfile:
    for name in ("sdk_version", "architecture"):
        if len(getattr(message, name)) > _MOST_WORD:
            raise InvalidInput(f"profile.{name}", f"is longer than {_MOST_WORD} characters")
    return TrainingProfile(
        message.sdk_version,
        message.architecture,
        _within("profile.memory_bytes", message.memory_bytes, 0, 2**53),
        message.examples,
    )


def _profile_message(profile: TrainingProfile) -> pb.Profile:
    return pb.Profile(
        sdk_version=profile.sdk_version,
        architecture=profile.architecture,
        memory_bytes=profile.memory_bytes,
        examples=profile.examples,
    )


def _histogram(message: pb.Histogram) -> Histogram:
    bounds = tuple(message.bounds)
    rising = all(low < high for low, high in itertools.pairwise(bounds))
    if not 1 <= len(bounds) <= _MOST_BOUNDS or not rising or not all(map(math.isfinite, bounds)):
        raise InvalidInput("histograms.bounds", f"must be 1 to {_MOST_BOUNDS} rising numbers")
    if len(message.counts) != len(bounds) + 1:
        raise InvalidInput("histograms.counts", "must be one more than bounds")
    return Histogram(
        bounds, tuple(_within("histograms.counts", count, 0, 2**53) for count in message.counts)
    )


def _number(state: pb.Conditions, name: str, low: float, high: float) -> float | None:
    if not state.HasField(name):
        return None
    value = float(getattr(state, name))
    if not low <= value <= high:
        raise InvalidInput(f"conditions.{name}", f"is not in {low:g} … {high:g}")
    return value


def _within(field: str, value: int, low: int, high: int) -> int:
    if not low <= value <= high:
        raise InvalidInput(field, f"{value} is not in {low} … {high}")
    return value


def _sized(field: str, value: bytes, size: int) -> bytes:
    if len(value) != size:
        raise InvalidInput(field, f"must be {size} bytes")
    return value


def _sha256(field: str, value: str) -> str:
    if not _SHA256.fullmatch(value):
        raise InvalidInput(field, "must be 64 lower-case hex digits")
    return value


def _lease(field: str, value: str) -> str:
    if not _LEASE.fullmatch(value):
        raise InvalidInput(field, "must be 1 to 128 characters of A-Z a-z 0-9 . _ -")
    return value


def _metric(field: str, value: str) -> str:
    if not _METRIC.fullmatch(value):
        raise InvalidInput(field, "must be 1 to 64 characters of a-z 0-9 _ .")
    return value
