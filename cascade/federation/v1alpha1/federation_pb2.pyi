from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class NoLeaseReason(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    NO_LEASE_REASON_UNSPECIFIED: _ClassVar[NoLeaseReason]
    NO_LEASE_REASON_NO_ROUND: _ClassVar[NoLeaseReason]
    NO_LEASE_REASON_COHORT_FULL: _ClassVar[NoLeaseReason]
    NO_LEASE_REASON_TOO_SOON: _ClassVar[NoLeaseReason]
    NO_LEASE_REASON_OTHER_BASE: _ClassVar[NoLeaseReason]
    NO_LEASE_REASON_BUDGET_SPENT: _ClassVar[NoLeaseReason]

class AbortReason(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ABORT_REASON_UNSPECIFIED: _ClassVar[AbortReason]
    ABORT_REASON_OVER_BUDGET: _ClassVar[AbortReason]
    ABORT_REASON_CONDITIONS: _ClassVar[AbortReason]
    ABORT_REASON_NO_GAIN: _ClassVar[AbortReason]
    ABORT_REASON_FAILED: _ClassVar[AbortReason]
    ABORT_REASON_UNFIT: _ClassVar[AbortReason]

class Phase(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    PHASE_UNSPECIFIED: _ClassVar[Phase]
    PHASE_ADVERTISE_KEYS: _ClassVar[Phase]
    PHASE_SHARE_KEYS: _ClassVar[Phase]
    PHASE_UNMASK: _ClassVar[Phase]
    PHASE_SURVIVORS: _ClassVar[Phase]
NO_LEASE_REASON_UNSPECIFIED: NoLeaseReason
NO_LEASE_REASON_NO_ROUND: NoLeaseReason
NO_LEASE_REASON_COHORT_FULL: NoLeaseReason
NO_LEASE_REASON_TOO_SOON: NoLeaseReason
NO_LEASE_REASON_OTHER_BASE: NoLeaseReason
NO_LEASE_REASON_BUDGET_SPENT: NoLeaseReason
ABORT_REASON_UNSPECIFIED: AbortReason
ABORT_REASON_OVER_BUDGET: AbortReason
ABORT_REASON_CONDITIONS: AbortReason
ABORT_REASON_NO_GAIN: AbortReason
ABORT_REASON_FAILED: AbortReason
ABORT_REASON_UNFIT: AbortReason
PHASE_UNSPECIFIED: Phase
PHASE_ADVERTISE_KEYS: Phase
PHASE_SHARE_KEYS: Phase
PHASE_UNMASK: Phase
PHASE_SURVIVORS: Phase

class RetryWindow(_message.Message):
    __slots__ = ("earliest_s", "latest_s")
    EARLIEST_S_FIELD_NUMBER: _ClassVar[int]
    LATEST_S_FIELD_NUMBER: _ClassVar[int]
    earliest_s: float
    latest_s: float
    def __init__(self, earliest_s: _Optional[float] = ..., latest_s: _Optional[float] = ...) -> None: ...

class ChallengeRequest(_message.Message):
    __slots__ = ("public_key",)
    PUBLIC_KEY_FIELD_NUMBER: _ClassVar[int]
    public_key: bytes
    def __init__(self, public_key: _Optional[bytes] = ...) -> None: ...

class ChallengeResponse(_message.Message):
    __slots__ = ("challenge", "valid_s", "retry")
    CHALLENGE_FIELD_NUMBER: _ClassVar[int]
    VALID_S_FIELD_NUMBER: _ClassVar[int]
    RETRY_FIELD_NUMBER: _ClassVar[int]
    challenge: bytes
    valid_s: float
    retry: RetryWindow
    def __init__(self, challenge: _Optional[bytes] = ..., valid_s: _Optional[float] = ..., retry: _Optional[_Union[RetryWindow, _Mapping]] = ...) -> None: ...

class EnrolRequest(_message.Message):
    __slots__ = ("public_key", "challenge", "signature", "attestation", "profile")
    PUBLIC_KEY_FIELD_NUMBER: _ClassVar[int]
    CHALLENGE_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    ATTESTATION_FIELD_NUMBER: _ClassVar[int]
    PROFILE_FIELD_NUMBER: _ClassVar[int]
    public_key: bytes
    challenge: bytes
    signature: bytes
    attestation: Attestation
    profile: Profile
    def __init__(self, public_key: _Optional[bytes] = ..., challenge: _Optional[bytes] = ..., signature: _Optional[bytes] = ..., attestation: _Optional[_Union[Attestation, _Mapping]] = ..., profile: _Optional[_Union[Profile, _Mapping]] = ...) -> None: ...

class Attestation(_message.Message):
    __slots__ = ("kind", "evidence")
    KIND_FIELD_NUMBER: _ClassVar[int]
    EVIDENCE_FIELD_NUMBER: _ClassVar[int]
    kind: str
    evidence: bytes
    def __init__(self, kind: _Optional[str] = ..., evidence: _Optional[bytes] = ...) -> None: ...

class Profile(_message.Message):
    __slots__ = ("sdk_version", "architecture", "memory_bytes", "examples")
    SDK_VERSION_FIELD_NUMBER: _ClassVar[int]
    ARCHITECTURE_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    EXAMPLES_FIELD_NUMBER: _ClassVar[int]
    sdk_version: str
    architecture: str
    memory_bytes: int
    examples: int
    def __init__(self, sdk_version: _Optional[str] = ..., architecture: _Optional[str] = ..., memory_bytes: _Optional[int] = ..., examples: _Optional[int] = ...) -> None: ...

class EnrolResponse(_message.Message):
    __slots__ = ("device_id", "coordinator_id", "retry")
    DEVICE_ID_FIELD_NUMBER: _ClassVar[int]
    COORDINATOR_ID_FIELD_NUMBER: _ClassVar[int]
    RETRY_FIELD_NUMBER: _ClassVar[int]
    device_id: str
    coordinator_id: str
    retry: RetryWindow
    def __init__(self, device_id: _Optional[str] = ..., coordinator_id: _Optional[str] = ..., retry: _Optional[_Union[RetryWindow, _Mapping]] = ...) -> None: ...

class Conditions(_message.Message):
    __slots__ = ("idle", "charging", "unmetered", "temperature_c", "battery")
    IDLE_FIELD_NUMBER: _ClassVar[int]
    CHARGING_FIELD_NUMBER: _ClassVar[int]
    UNMETERED_FIELD_NUMBER: _ClassVar[int]
    TEMPERATURE_C_FIELD_NUMBER: _ClassVar[int]
    BATTERY_FIELD_NUMBER: _ClassVar[int]
    idle: bool
    charging: bool
    unmetered: bool
    temperature_c: float
    battery: float
    def __init__(self, idle: bool = ..., charging: bool = ..., unmetered: bool = ..., temperature_c: _Optional[float] = ..., battery: _Optional[float] = ...) -> None: ...

class CheckInRequest(_message.Message):
    __slots__ = ("device_id", "request_id", "profile", "conditions", "base_digest", "adapter_digest", "adapter_version", "signature")
    DEVICE_ID_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    PROFILE_FIELD_NUMBER: _ClassVar[int]
    CONDITIONS_FIELD_NUMBER: _ClassVar[int]
    BASE_DIGEST_FIELD_NUMBER: _ClassVar[int]
    ADAPTER_DIGEST_FIELD_NUMBER: _ClassVar[int]
    ADAPTER_VERSION_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    device_id: str
    request_id: bytes
    profile: Profile
    conditions: Conditions
    base_digest: str
    adapter_digest: str
    adapter_version: int
    signature: bytes
    def __init__(self, device_id: _Optional[str] = ..., request_id: _Optional[bytes] = ..., profile: _Optional[_Union[Profile, _Mapping]] = ..., conditions: _Optional[_Union[Conditions, _Mapping]] = ..., base_digest: _Optional[str] = ..., adapter_digest: _Optional[str] = ..., adapter_version: _Optional[int] = ..., signature: _Optional[bytes] = ...) -> None: ...

class CheckInResponse(_message.Message):
    __slots__ = ("lease", "retry", "no_lease_reason")
    LEASE_FIELD_NUMBER: _ClassVar[int]
    RETRY_FIELD_NUMBER: _ClassVar[int]
    NO_LEASE_REASON_FIELD_NUMBER: _ClassVar[int]
    lease: Lease
    retry: RetryWindow
    no_lease_reason: NoLeaseReason
    def __init__(self, lease: _Optional[_Union[Lease, _Mapping]] = ..., retry: _Optional[_Union[RetryWindow, _Mapping]] = ..., no_lease_reason: _Optional[_Union[NoLeaseReason, str]] = ...) -> None: ...

class Lease(_message.Message):
    __slots__ = ("lease_id", "round", "base_digest", "adapter_digest", "adapter_version", "adapter_manifest", "adapter_signature", "plan", "payload_format", "max_payload_bytes", "expires_in_s", "expires_at_s")
    LEASE_ID_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    BASE_DIGEST_FIELD_NUMBER: _ClassVar[int]
    ADAPTER_DIGEST_FIELD_NUMBER: _ClassVar[int]
    ADAPTER_VERSION_FIELD_NUMBER: _ClassVar[int]
    ADAPTER_MANIFEST_FIELD_NUMBER: _ClassVar[int]
    ADAPTER_SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    PLAN_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_FORMAT_FIELD_NUMBER: _ClassVar[int]
    MAX_PAYLOAD_BYTES_FIELD_NUMBER: _ClassVar[int]
    EXPIRES_IN_S_FIELD_NUMBER: _ClassVar[int]
    EXPIRES_AT_S_FIELD_NUMBER: _ClassVar[int]
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
    def __init__(self, lease_id: _Optional[str] = ..., round: _Optional[int] = ..., base_digest: _Optional[str] = ..., adapter_digest: _Optional[str] = ..., adapter_version: _Optional[int] = ..., adapter_manifest: _Optional[bytes] = ..., adapter_signature: _Optional[bytes] = ..., plan: _Optional[bytes] = ..., payload_format: _Optional[str] = ..., max_payload_bytes: _Optional[int] = ..., expires_in_s: _Optional[float] = ..., expires_at_s: _Optional[float] = ...) -> None: ...

class UploadRequest(_message.Message):
    __slots__ = ("header", "chunk", "commit")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    COMMIT_FIELD_NUMBER: _ClassVar[int]
    header: UploadHeader
    chunk: bytes
    commit: UploadCommit
    def __init__(self, header: _Optional[_Union[UploadHeader, _Mapping]] = ..., chunk: _Optional[bytes] = ..., commit: _Optional[_Union[UploadCommit, _Mapping]] = ...) -> None: ...

class UploadHeader(_message.Message):
    __slots__ = ("device_id", "lease_id", "payload_bytes", "payload_sha256", "offset", "base_digest", "adapter_version", "examples", "signature")
    DEVICE_ID_FIELD_NUMBER: _ClassVar[int]
    LEASE_ID_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_BYTES_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_SHA256_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    BASE_DIGEST_FIELD_NUMBER: _ClassVar[int]
    ADAPTER_VERSION_FIELD_NUMBER: _ClassVar[int]
    EXAMPLES_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    device_id: str
    lease_id: str
    payload_bytes: int
    payload_sha256: str
    offset: int
    base_digest: str
    adapter_version: int
    examples: int
    signature: bytes
    def __init__(self, device_id: _Optional[str] = ..., lease_id: _Optional[str] = ..., payload_bytes: _Optional[int] = ..., payload_sha256: _Optional[str] = ..., offset: _Optional[int] = ..., base_digest: _Optional[str] = ..., adapter_version: _Optional[int] = ..., examples: _Optional[int] = ..., signature: _Optional[bytes] = ...) -> None: ...

class UploadCommit(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class UploadResponse(_message.Message):
    __slots__ = ("receipt", "retry")
    RECEIPT_FIELD_NUMBER: _ClassVar[int]
    RETRY_FIELD_NUMBER: _ClassVar[int]
    receipt: Receipt
    retry: RetryWindow
    def __init__(self, receipt: _Optional[_Union[Receipt, _Mapping]] = ..., retry: _Optional[_Union[RetryWindow, _Mapping]] = ...) -> None: ...

class UploadWholeRequest(_message.Message):
    __slots__ = ("header", "payload")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    header: UploadHeader
    payload: bytes
    def __init__(self, header: _Optional[_Union[UploadHeader, _Mapping]] = ..., payload: _Optional[bytes] = ...) -> None: ...

class UploadWholeResponse(_message.Message):
    __slots__ = ("receipt", "retry")
    RECEIPT_FIELD_NUMBER: _ClassVar[int]
    RETRY_FIELD_NUMBER: _ClassVar[int]
    receipt: Receipt
    retry: RetryWindow
    def __init__(self, receipt: _Optional[_Union[Receipt, _Mapping]] = ..., retry: _Optional[_Union[RetryWindow, _Mapping]] = ...) -> None: ...

class Receipt(_message.Message):
    __slots__ = ("lease_id", "round", "payload_sha256", "committed_at_s")
    LEASE_ID_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_SHA256_FIELD_NUMBER: _ClassVar[int]
    COMMITTED_AT_S_FIELD_NUMBER: _ClassVar[int]
    lease_id: str
    round: int
    payload_sha256: str
    committed_at_s: float
    def __init__(self, lease_id: _Optional[str] = ..., round: _Optional[int] = ..., payload_sha256: _Optional[str] = ..., committed_at_s: _Optional[float] = ...) -> None: ...

class UploadStatusRequest(_message.Message):
    __slots__ = ("device_id", "lease_id")
    DEVICE_ID_FIELD_NUMBER: _ClassVar[int]
    LEASE_ID_FIELD_NUMBER: _ClassVar[int]
    device_id: str
    lease_id: str
    def __init__(self, device_id: _Optional[str] = ..., lease_id: _Optional[str] = ...) -> None: ...

class UploadStatusResponse(_message.Message):
    __slots__ = ("offset", "payload_sha256", "receipt", "expires_in_s", "retry")
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_SHA256_FIELD_NUMBER: _ClassVar[int]
    RECEIPT_FIELD_NUMBER: _ClassVar[int]
    EXPIRES_IN_S_FIELD_NUMBER: _ClassVar[int]
    RETRY_FIELD_NUMBER: _ClassVar[int]
    offset: int
    payload_sha256: str
    receipt: Receipt
    expires_in_s: float
    retry: RetryWindow
    def __init__(self, offset: _Optional[int] = ..., payload_sha256: _Optional[str] = ..., receipt: _Optional[_Union[Receipt, _Mapping]] = ..., expires_in_s: _Optional[float] = ..., retry: _Optional[_Union[RetryWindow, _Mapping]] = ...) -> None: ...

class AbortRequest(_message.Message):
    __slots__ = ("device_id", "lease_id", "signature", "reason")
    DEVICE_ID_FIELD_NUMBER: _ClassVar[int]
    LEASE_ID_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    device_id: str
    lease_id: str
    signature: bytes
    reason: AbortReason
    def __init__(self, device_id: _Optional[str] = ..., lease_id: _Optional[str] = ..., signature: _Optional[bytes] = ..., reason: _Optional[_Union[AbortReason, str]] = ...) -> None: ...

class AbortResponse(_message.Message):
    __slots__ = ("retry",)
    RETRY_FIELD_NUMBER: _ClassVar[int]
    retry: RetryWindow
    def __init__(self, retry: _Optional[_Union[RetryWindow, _Mapping]] = ...) -> None: ...

class ReportMetricsRequest(_message.Message):
    __slots__ = ("device_id", "report_id", "counters", "histograms", "signature")
    DEVICE_ID_FIELD_NUMBER: _ClassVar[int]
    REPORT_ID_FIELD_NUMBER: _ClassVar[int]
    COUNTERS_FIELD_NUMBER: _ClassVar[int]
    HISTOGRAMS_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    device_id: str
    report_id: bytes
    counters: _containers.RepeatedCompositeFieldContainer[Counter]
    histograms: _containers.RepeatedCompositeFieldContainer[Histogram]
    signature: bytes
    def __init__(self, device_id: _Optional[str] = ..., report_id: _Optional[bytes] = ..., counters: _Optional[_Iterable[_Union[Counter, _Mapping]]] = ..., histograms: _Optional[_Iterable[_Union[Histogram, _Mapping]]] = ..., signature: _Optional[bytes] = ...) -> None: ...

class Counter(_message.Message):
    __slots__ = ("name", "value")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    name: str
    value: int
    def __init__(self, name: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...

class Histogram(_message.Message):
    __slots__ = ("name", "bounds", "counts")
    NAME_FIELD_NUMBER: _ClassVar[int]
    BOUNDS_FIELD_NUMBER: _ClassVar[int]
    COUNTS_FIELD_NUMBER: _ClassVar[int]
    name: str
    bounds: _containers.RepeatedScalarFieldContainer[float]
    counts: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, name: _Optional[str] = ..., bounds: _Optional[_Iterable[float]] = ..., counts: _Optional[_Iterable[int]] = ...) -> None: ...

class ReportMetricsResponse(_message.Message):
    __slots__ = ("retry",)
    RETRY_FIELD_NUMBER: _ClassVar[int]
    retry: RetryWindow
    def __init__(self, retry: _Optional[_Union[RetryWindow, _Mapping]] = ...) -> None: ...

class ExchangeRequest(_message.Message):
    __slots__ = ("device_id", "lease_id", "phase", "payload", "signature")
    DEVICE_ID_FIELD_NUMBER: _ClassVar[int]
    LEASE_ID_FIELD_NUMBER: _ClassVar[int]
    PHASE_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    device_id: str
    lease_id: str
    phase: Phase
    payload: bytes
    signature: bytes
    def __init__(self, device_id: _Optional[str] = ..., lease_id: _Optional[str] = ..., phase: _Optional[_Union[Phase, str]] = ..., payload: _Optional[bytes] = ..., signature: _Optional[bytes] = ...) -> None: ...

class ExchangeResponse(_message.Message):
    __slots__ = ("complete", "messages", "retry", "result", "expires_in_s")
    COMPLETE_FIELD_NUMBER: _ClassVar[int]
    MESSAGES_FIELD_NUMBER: _ClassVar[int]
    RETRY_FIELD_NUMBER: _ClassVar[int]
    RESULT_FIELD_NUMBER: _ClassVar[int]
    EXPIRES_IN_S_FIELD_NUMBER: _ClassVar[int]
    complete: bool
    messages: _containers.RepeatedCompositeFieldContainer[PhaseMessage]
    retry: RetryWindow
    result: bytes
    expires_in_s: float
    def __init__(self, complete: bool = ..., messages: _Optional[_Iterable[_Union[PhaseMessage, _Mapping]]] = ..., retry: _Optional[_Union[RetryWindow, _Mapping]] = ..., result: _Optional[bytes] = ..., expires_in_s: _Optional[float] = ...) -> None: ...

class PhaseMessage(_message.Message):
    __slots__ = ("device_id", "payload")
    DEVICE_ID_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    device_id: str
    payload: bytes
    def __init__(self, device_id: _Optional[str] = ..., payload: _Optional[bytes] = ...) -> None: ...
