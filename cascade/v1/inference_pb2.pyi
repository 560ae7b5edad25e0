from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Role(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ROLE_UNSPECIFIED: _ClassVar[Role]
    ROLE_SYSTEM: _ClassVar[Role]
    ROLE_USER: _ClassVar[Role]
    ROLE_ASSISTANT: _ClassVar[Role]

class DataClass(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    DATA_CLASS_UNSPECIFIED: _ClassVar[DataClass]
    DATA_CLASS_PUBLIC: _ClassVar[DataClass]
    DATA_CLASS_PERSONAL: _ClassVar[DataClass]
    DATA_CLASS_NEVER_LEAVE: _ClassVar[DataClass]

class FinishReason(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    FINISH_REASON_UNSPECIFIED: _ClassVar[FinishReason]
    FINISH_REASON_STOP: _ClassVar[FinishReason]
    FINISH_REASON_LENGTH: _ClassVar[FinishReason]
ROLE_UNSPECIFIED: Role
ROLE_SYSTEM: Role
ROLE_USER: Role
ROLE_ASSISTANT: Role
DATA_CLASS_UNSPECIFIED: DataClass
DATA_CLASS_PUBLIC: DataClass
DATA_CLASS_PERSONAL: DataClass
DATA_CLASS_NEVER_LEAVE: DataClass
FINISH_REASON_UNSPECIFIED: FinishReason
FINISH_REASON_STOP: FinishReason
FINISH_REASON_LENGTH: FinishReason

class AnswerRequest(_message.Message):
    __slots__ = ("open", "draft", "draft_done", "feedback")
    OPEN_FIELD_NUMBER: _ClassVar[int]
    DRAFT_FIELD_NUMBER: _ClassVar[int]
    DRAFT_DONE_FIELD_NUMBER: _ClassVar[int]
    FEEDBACK_FIELD_NUMBER: _ClassVar[int]
    open: Open
    draft: DraftChunk
    draft_done: DraftDone
    feedback: Feedback
    def __init__(self, open: _Optional[_Union[Open, _Mapping]] = ..., draft: _Optional[_Union[DraftChunk, _Mapping]] = ..., draft_done: _Optional[_Union[DraftDone, _Mapping]] = ..., feedback: _Optional[_Union[Feedback, _Mapping]] = ...) -> None: ...

class Open(_message.Message):
    __slots__ = ("request_id", "task_id", "messages", "tensors", "free_text", "options", "json_schema", "regex", "sampling", "constraints", "device", "score", "drafting", "adapter", "reads_following")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    TASK_ID_FIELD_NUMBER: _ClassVar[int]
    MESSAGES_FIELD_NUMBER: _ClassVar[int]
    TENSORS_FIELD_NUMBER: _ClassVar[int]
    FREE_TEXT_FIELD_NUMBER: _ClassVar[int]
    OPTIONS_FIELD_NUMBER: _ClassVar[int]
    JSON_SCHEMA_FIELD_NUMBER: _ClassVar[int]
    REGEX_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_FIELD_NUMBER: _ClassVar[int]
    CONSTRAINTS_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    SCORE_FIELD_NUMBER: _ClassVar[int]
    DRAFTING_FIELD_NUMBER: _ClassVar[int]
    ADAPTER_FIELD_NUMBER: _ClassVar[int]
    READS_FOLLOWING_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    task_id: str
    messages: Messages
    tensors: Tensors
    free_text: FreeText
    options: Options
    json_schema: str
    regex: str
    sampling: Sampling
    constraints: Constraints
    device: DeviceReport
    score: bool
    drafting: Drafting
    adapter: str
    reads_following: bool
    def __init__(self, request_id: _Optional[str] = ..., task_id: _Optional[str] = ..., messages: _Optional[_Union[Messages, _Mapping]] = ..., tensors: _Optional[_Union[Tensors, _Mapping]] = ..., free_text: _Optional[_Union[FreeText, _Mapping]] = ..., options: _Optional[_Union[Options, _Mapping]] = ..., json_schema: _Optional[str] = ..., regex: _Optional[str] = ..., sampling: _Optional[_Union[Sampling, _Mapping]] = ..., constraints: _Optional[_Union[Constraints, _Mapping]] = ..., device: _Optional[_Union[DeviceReport, _Mapping]] = ..., score: bool = ..., drafting: _Optional[_Union[Drafting, _Mapping]] = ..., adapter: _Optional[str] = ..., reads_following: bool = ...) -> None: ...

class Drafting(_message.Message):
    __slots__ = ("tolerance",)
    TOLERANCE_FIELD_NUMBER: _ClassVar[int]
    tolerance: float
    def __init__(self, tolerance: _Optional[float] = ...) -> None: ...

class Messages(_message.Message):
    __slots__ = ("messages",)
    MESSAGES_FIELD_NUMBER: _ClassVar[int]
    messages: _containers.RepeatedCompositeFieldContainer[Message]
    def __init__(self, messages: _Optional[_Iterable[_Union[Message, _Mapping]]] = ...) -> None: ...

class Message(_message.Message):
    __slots__ = ("role", "content")
    ROLE_FIELD_NUMBER: _ClassVar[int]
    CONTENT_FIELD_NUMBER: _ClassVar[int]
    role: Role
    content: str
    def __init__(self, role: _Optional[_Union[Role, str]] = ..., content: _Optional[str] = ...) -> None: ...

class Tensors(_message.Message):
    __slots__ = ("tensors",)
    TENSORS_FIELD_NUMBER: _ClassVar[int]
    tensors: _containers.RepeatedCompositeFieldContainer[Tensor]
    def __init__(self, tensors: _Optional[_Iterable[_Union[Tensor, _Mapping]]] = ...) -> None: ...

class Tensor(_message.Message):
    __slots__ = ("name", "dtype", "shape", "data")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    name: str
    dtype: str
    shape: _containers.RepeatedScalarFieldContainer[int]
    data: bytes
    def __init__(self, name: _Optional[str] = ..., dtype: _Optional[str] = ..., shape: _Optional[_Iterable[int]] = ..., data: _Optional[bytes] = ...) -> None: ...

class FreeText(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Options(_message.Message):
    __slots__ = ("options",)
    OPTIONS_FIELD_NUMBER: _ClassVar[int]
    options: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, options: _Optional[_Iterable[str]] = ...) -> None: ...

class Sampling(_message.Message):
    __slots__ = ("max_tokens", "temperature", "top_p", "seed", "stop", "top_k", "min_p", "repetition_penalty")
    MAX_TOKENS_FIELD_NUMBER: _ClassVar[int]
    TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    TOP_P_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    STOP_FIELD_NUMBER: _ClassVar[int]
    TOP_K_FIELD_NUMBER: _ClassVar[int]
    MIN_P_FIELD_NUMBER: _ClassVar[int]
    REPETITION_PENALTY_FIELD_NUMBER: _ClassVar[int]
    max_tokens: int
    temperature: float
    top_p: float
    seed: int
    stop: _containers.RepeatedScalarFieldContainer[str]
    top_k: int
    min_p: float
    repetition_penalty: float
    def __init__(self, max_tokens: _Optional[int] = ..., temperature: _Optional[float] = ..., top_p: _Optional[float] = ..., seed: _Optional[int] = ..., stop: _Optional[_Iterable[str]] = ..., top_k: _Optional[int] = ..., min_p: _Optional[float] = ..., repetition_penalty: _Optional[float] = ...) -> None: ...

class Constraints(_message.Message):
    __slots__ = ("allowed_tiers", "max_cost_usd", "max_remote_calls", "data_class", "residency", "commercial")
    ALLOWED_TIERS_FIELD_NUMBER: _ClassVar[int]
    MAX_COST_USD_FIELD_NUMBER: _ClassVar[int]
    MAX_REMOTE_CALLS_FIELD_NUMBER: _ClassVar[int]
    DATA_CLASS_FIELD_NUMBER: _ClassVar[int]
    RESIDENCY_FIELD_NUMBER: _ClassVar[int]
    COMMERCIAL_FIELD_NUMBER: _ClassVar[int]
    allowed_tiers: _containers.RepeatedScalarFieldContainer[str]
    max_cost_usd: float
    max_remote_calls: int
    data_class: DataClass
    residency: str
    commercial: bool
    def __init__(self, allowed_tiers: _Optional[_Iterable[str]] = ..., max_cost_usd: _Optional[float] = ..., max_remote_calls: _Optional[int] = ..., data_class: _Optional[_Union[DataClass, str]] = ..., residency: _Optional[str] = ..., commercial: bool = ...) -> None: ...

class DeviceReport(_message.Message):
    __slots__ = ("confidence", "raw_score", "base_digest", "adapter_digest", "tokenizer_digest", "signals", "ladder_digest", "answer_sha256", "kept")
    CONFIDENCE_FIELD_NUMBER: _ClassVar[int]
    RAW_SCORE_FIELD_NUMBER: _ClassVar[int]
    BASE_DIGEST_FIELD_NUMBER: _ClassVar[int]
    ADAPTER_DIGEST_FIELD_NUMBER: _ClassVar[int]
    TOKENIZER_DIGEST_FIELD_NUMBER: _ClassVar[int]
    SIGNALS_FIELD_NUMBER: _ClassVar[int]
    LADDER_DIGEST_FIELD_NUMBER: _ClassVar[int]
    ANSWER_SHA256_FIELD_NUMBER: _ClassVar[int]
    KEPT_FIELD_NUMBER: _ClassVar[int]
    confidence: float
    raw_score: float
    base_digest: str
    adapter_digest: str
    tokenizer_digest: str
    signals: Signals
    ladder_digest: str
    answer_sha256: str
    kept: int
    def __init__(self, confidence: _Optional[float] = ..., raw_score: _Optional[float] = ..., base_digest: _Optional[str] = ..., adapter_digest: _Optional[str] = ..., tokenizer_digest: _Optional[str] = ..., signals: _Optional[_Union[Signals, _Mapping]] = ..., ladder_digest: _Optional[str] = ..., answer_sha256: _Optional[str] = ..., kept: _Optional[int] = ...) -> None: ...

class Signals(_message.Message):
    __slots__ = ("logprobs", "entropies", "margins")
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    ENTROPIES_FIELD_NUMBER: _ClassVar[int]
    MARGINS_FIELD_NUMBER: _ClassVar[int]
    logprobs: _containers.RepeatedScalarFieldContainer[float]
    entropies: _containers.RepeatedScalarFieldContainer[float]
    margins: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, logprobs: _Optional[_Iterable[float]] = ..., entropies: _Optional[_Iterable[float]] = ..., margins: _Optional[_Iterable[float]] = ...) -> None: ...

class DraftChunk(_message.Message):
    __slots__ = ("offset", "text", "tokens", "lengths")
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    LENGTHS_FIELD_NUMBER: _ClassVar[int]
    offset: int
    text: str
    tokens: _containers.RepeatedScalarFieldContainer[int]
    lengths: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, offset: _Optional[int] = ..., text: _Optional[str] = ..., tokens: _Optional[_Iterable[int]] = ..., lengths: _Optional[_Iterable[int]] = ...) -> None: ...

class DraftDone(_message.Message):
    __slots__ = ("tokens", "complete")
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    COMPLETE_FIELD_NUMBER: _ClassVar[int]
    tokens: int
    complete: bool
    def __init__(self, tokens: _Optional[int] = ..., complete: bool = ...) -> None: ...

class Feedback(_message.Message):
    __slots__ = ("correct", "correction")
    CORRECT_FIELD_NUMBER: _ClassVar[int]
    CORRECTION_FIELD_NUMBER: _ClassVar[int]
    correct: bool
    correction: str
    def __init__(self, correct: bool = ..., correction: _Optional[str] = ...) -> None: ...

class AnswerEvent(_message.Message):
    __slots__ = ("request_id", "accepted", "tokens", "verification", "finish", "following")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    ACCEPTED_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    VERIFICATION_FIELD_NUMBER: _ClassVar[int]
    FINISH_FIELD_NUMBER: _ClassVar[int]
    FOLLOWING_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    accepted: Accepted
    tokens: TokenChunk
    verification: DraftVerification
    finish: Finish
    following: _containers.RepeatedCompositeFieldContainer[AnswerEvent]
    def __init__(self, request_id: _Optional[str] = ..., accepted: _Optional[_Union[Accepted, _Mapping]] = ..., tokens: _Optional[_Union[TokenChunk, _Mapping]] = ..., verification: _Optional[_Union[DraftVerification, _Mapping]] = ..., finish: _Optional[_Union[Finish, _Mapping]] = ..., following: _Optional[_Iterable[_Union[AnswerEvent, _Mapping]]] = ...) -> None: ...

class Accepted(_message.Message):
    __slots__ = ("tier", "model")
    TIER_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    tier: str
    model: str
    def __init__(self, tier: _Optional[str] = ..., model: _Optional[str] = ...) -> None: ...

class TokenChunk(_message.Message):
    __slots__ = ("text", "count")
    TEXT_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    text: str
    count: int
    def __init__(self, text: _Optional[str] = ..., count: _Optional[int] = ...) -> None: ...

class DraftVerification(_message.Message):
    __slots__ = ("kept_tokens",)
    KEPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    kept_tokens: int
    def __init__(self, kept_tokens: _Optional[int] = ...) -> None: ...

class Finish(_message.Message):
    __slots__ = ("reason", "usage", "cost_usd", "tier", "model", "confidence", "reasons", "server_s", "raw_score", "speed")
    REASON_FIELD_NUMBER: _ClassVar[int]
    USAGE_FIELD_NUMBER: _ClassVar[int]
    COST_USD_FIELD_NUMBER: _ClassVar[int]
    TIER_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    CONFIDENCE_FIELD_NUMBER: _ClassVar[int]
    REASONS_FIELD_NUMBER: _ClassVar[int]
    SERVER_S_FIELD_NUMBER: _ClassVar[int]
    RAW_SCORE_FIELD_NUMBER: _ClassVar[int]
    SPEED_FIELD_NUMBER: _ClassVar[int]
    reason: FinishReason
    usage: Usage
    cost_usd: float
    tier: str
    model: str
    confidence: float
    reasons: _containers.RepeatedScalarFieldContainer[str]
    server_s: float
    raw_score: float
    speed: Speed
    def __init__(self, reason: _Optional[_Union[FinishReason, str]] = ..., usage: _Optional[_Union[Usage, _Mapping]] = ..., cost_usd: _Optional[float] = ..., tier: _Optional[str] = ..., model: _Optional[str] = ..., confidence: _Optional[float] = ..., reasons: _Optional[_Iterable[str]] = ..., server_s: _Optional[float] = ..., raw_score: _Optional[float] = ..., speed: _Optional[_Union[Speed, _Mapping]] = ...) -> None: ...

class Speed(_message.Message):
    __slots__ = ("read_tokens", "read_s", "written_tokens", "written_s")
    READ_TOKENS_FIELD_NUMBER: _ClassVar[int]
    READ_S_FIELD_NUMBER: _ClassVar[int]
    WRITTEN_TOKENS_FIELD_NUMBER: _ClassVar[int]
    WRITTEN_S_FIELD_NUMBER: _ClassVar[int]
    read_tokens: int
    read_s: float
    written_tokens: int
    written_s: float
    def __init__(self, read_tokens: _Optional[int] = ..., read_s: _Optional[float] = ..., written_tokens: _Optional[int] = ..., written_s: _Optional[float] = ...) -> None: ...

class Usage(_message.Message):
    __slots__ = ("prompt_tokens", "completion_tokens")
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    COMPLETION_TOKENS_FIELD_NUMBER: _ClassVar[int]
    prompt_tokens: int
    completion_tokens: int
    def __init__(self, prompt_tokens: _Optional[int] = ..., completion_tokens: _Optional[int] = ...) -> None: ...
