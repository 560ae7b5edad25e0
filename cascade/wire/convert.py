"""Between the wire's messages and this project's values, both ways, with every check on the way in.

Pure functions. ``open_message`` and ``event_messages`` write; ``read_open`` and ``read_events``
read what a stranger sent and therefore check all of it. Calls, deadlines and statuses are in
``client`` and ``server``.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import Final, Literal

import numpy as np

from cascade.draft import Drafting, DraftProposal, IncomingDraft
from cascade.errors import InvalidInput
from cascade.remote import (
    Accepted,
    Chunk,
    DeviceReport,
    EventsAtOnce,
    Finished,
    RemoteEvent,
    Speed,
    Verified,
)
from cascade.request import (
    Constraints,
    DataClass,
    Message,
    Request,
    check_adapter,
    check_options,
    check_output,
)
from cascade.sampling import GREEDY, MAX_SEED, Sampling
from cascade.signals import EMPTY_SIGNALS, Float32s, Signals
from cascade.tensor import MAX_TENSORS, Tensor, check_tensors
from cascade.v1 import inference_pb2 as pb

DEFAULT_REMOTE_CALLS: Final = 2
MAX_REMOTE_CALLS: Final = 16
MAX_STOPS: Final = 8
MAX_KEPT: Final = 1_000_000
_SEEDS: Final = MAX_SEED + 1
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_MAX_NAME = 256

Role = Literal["system", "user", "assistant"]
_ROLE_TO_WIRE: Final = {
    "system": pb.ROLE_SYSTEM,
    "user": pb.ROLE_USER,
    "assistant": pb.ROLE_ASSISTANT,
}
_ROLE_FROM_WIRE: Final[dict[int, Role]] = {
    pb.ROLE_SYSTEM: "system",
    pb.ROLE_USER: "user",
    pb.ROLE_ASSISTANT: "assistant",
}
_CLASS_TO_WIRE: Final = {
    DataClass.PUBLIC: pb.DATA_CLASS_PUBLIC,
    DataClass.PERSONAL: pb.DATA_CLASS_PERSONAL,
    DataClass.NEVER_LEAVE: pb.DATA_CLASS_NEVER_LEAVE,
}
_CLASS_FROM_WIRE: Final = {
    pb.DATA_CLASS_UNSPECIFIED: DataClass.PERSONAL,
    **{wire: value for value, wire in _CLASS_TO_WIRE.items()},
}
_REASON_FROM_WIRE: Final[dict[int, Literal["stop", "length"]]] = {
    pb.FINISH_REASON_STOP: "stop",
    pb.FINISH_REASON_LENGTH: "length",
}


@dataclass(frozen=True, slots=True)
class OpenRequest:
    """A checked request as the gateway sees it.

    Arguments:
        messages: the conversation, oldest first; the last is a user's and not empty. None where
            tensors are asked about.
        options: the allowed answers, at least two and all different, or empty for free text.
        json_schema, regex: what the answer has to keep; at most one of them, and neither beside
            options.
        max_tokens: upper bound on the tokens of the answer, ≥ 1; ``None`` means the tier's default.
        stop: strings before whose first a free answer ends; at most 8, none empty.
        constraints: ``deadline_s`` is what is left of the call's deadline.
        tensors: a classifier's inputs, well formed; ``options`` are then its labels.
        traceparent: the device's W3C trace context; empty where it sent none.
        score: whether the answer's raw score is asked for.
        adapter: of the tier's model; empty for the model alone.
        drafting: the tolerance of a draft that follows, in [0, 1); ``None`` where none does.
        incoming: that draft on its way.
        draft: that draft, once somebody has waited for it.
        reads_following: the device reads several events in one message.
    """

    request_id: str
    messages: tuple[Message, ...]
    traceparent: str = field(default="", compare=False, kw_only=True)
    options: tuple[str, ...] = ()
    json_schema: str | None = None
    regex: str | None = None
    task_id: str = ""
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    sampling: Sampling = GREEDY
    constraints: Constraints = field(default_factory=Constraints)
    report: DeviceReport = field(default_factory=DeviceReport)
    tensors: tuple[Tensor, ...] = ()
    score: bool = False
    adapter: str = ""
    drafting: float | None = None
    incoming: IncomingDraft | None = field(default=None, compare=False, repr=False)
    draft: DraftProposal | None = None
    reads_following: bool = False


def open_message(
    request: Request,
    report: DeviceReport,
    *,
    max_remote_calls: int,
    drafting: Drafting | None = None,
) -> pb.AnswerRequest:
    """The first message of a call.

    Arguments:
        max_remote_calls: calls that are left, this one included, 1 to 16.
        drafting: how a draft that follows is to be judged; ``None`` where none does.
    """
    limits = request.constraints
    message = pb.Open(
        request_id=request.request_id,
        task_id=request.task_id,
        sampling=_sampling_message(request),
        constraints=pb.Constraints(
            allowed_tiers=sorted(limits.allowed_tiers or ()),
            max_cost_usd=limits.max_cost_usd,
            max_remote_calls=max_remote_calls,
            data_class=_CLASS_TO_WIRE[limits.data_class],
            residency=limits.residency,
            commercial=limits.commercial,
        ),
        device=pb.DeviceReport(
            confidence=report.confidence,
            raw_score=report.raw_score,
            base_digest=report.base_digest,
            adapter_digest=report.adapter_digest,
            tokenizer_digest=report.tokenizer_digest,
            ladder_digest=report.ladder_digest,
            answer_sha256=report.answer_sha256,
            kept=min(report.kept, MAX_KEPT),
            signals=pb.Signals(
                logprobs=report.signals.logprobs.tolist(),
                entropies=report.signals.entropies.tolist(),
                margins=report.signals.margins.tolist(),
            ),
        ),
        score=request.score,
        drafting=None if drafting is None else pb.Drafting(tolerance=drafting.tolerance),
        adapter=request.adapter,
        reads_following=True,
    )
    if request.tensors:
        message.tensors.tensors.extend(
            pb.Tensor(name=each.name, dtype=each.dtype, shape=each.shape, data=each.data)
            for each in request.tensors
        )
    else:
        message.messages.messages.extend(
            pb.Message(role=_ROLE_TO_WIRE[turn.role], content=turn.content)
            for turn in request.messages
        )
    if request.options:
        message.options.options.extend(request.options)
    elif request.json_schema is not None:
        message.json_schema = request.json_schema
    elif request.regex is not None:
        message.regex = request.regex
    else:
        message.free_text.SetInParent()
    return pb.AnswerRequest(open=message)


def _sampling_message(request: Request) -> pb.Sampling:
    sampling = request.sampling
    return pb.Sampling(
        max_tokens=request.max_tokens,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        min_p=sampling.min_p,
        repetition_penalty=sampling.repetition_penalty,
        # On the wire 0 stands for none, so that the seed 0 needs another name.
        seed=None if sampling.seed is None else sampling.seed or _SEEDS,
        stop=request.stop,
    )


def read_open(
    message: pb.AnswerRequest, *, deadline_s: float, traceparent: str = ""
) -> OpenRequest:
    """Check the first message of a call.

    Arguments:
        traceparent: see ``OpenRequest``.

    Raises:
        InvalidInput: naming the field that is out of its range.
    """
    if message.WhichOneof("kind") != "open":
        raise InvalidInput("open", "is missing; the first message of a call must be `open`")
    sent = message.open
    if not _REQUEST_ID.fullmatch(sent.request_id):
        raise InvalidInput("request_id", "must be 1 to 64 characters of A-Z a-z 0-9 . _ -")
    if len(sent.task_id) > _MAX_NAME:
        raise InvalidInput("task_id", f"is longer than {_MAX_NAME} characters")
    tensors = _read_tensors(sent)
    messages = () if tensors else _read_messages(sent)
    output = sent.WhichOneof("output")
    options = tuple(sent.options.options)
    json_schema = sent.json_schema if output == "json_schema" else None
    regex = sent.regex if output == "regex" else None
    stop = _read_stop(sent.sampling)
    if output == "options":
        check_options(options)
    if tensors and not options:
        raise InvalidInput("options", "are missing; name the labels among which to classify")
    check_output(options, json_schema, regex, stop)
    check_adapter(sent.adapter)
    return OpenRequest(
        request_id=sent.request_id,
        messages=messages,
        traceparent=traceparent,
        options=options,
        json_schema=json_schema,
        regex=regex,
        task_id=sent.task_id,
        max_tokens=sent.sampling.max_tokens or None,
        stop=stop,
        sampling=_read_sampling(sent.sampling),
        constraints=_read_constraints(sent.constraints, deadline_s),
        report=_read_report(sent.device),
        tensors=tensors,
        score=sent.score,
        adapter=sent.adapter,
        drafting=_read_drafting(sent),
        reads_following=sent.reads_following,
    )


def _read_drafting(sent: pb.Open) -> float | None:
    if not sent.HasField("drafting"):
        return None
    tolerance = float(sent.drafting.tolerance)
    if not 0 <= tolerance < 1:
        raise InvalidInput("drafting.tolerance", f"{tolerance} is not in 0 … 1, 1 excluded")
    if sent.WhichOneof("input") == "tensors" or sent.WhichOneof("output") == "options":
        raise InvalidInput("drafting", "is for free answers; leave it out")
    return tolerance


def _read_tensors(sent: pb.Open) -> tuple[Tensor, ...]:
    if sent.WhichOneof("input") != "tensors":
        return ()
    if len(sent.tensors.tensors) > MAX_TENSORS:
        raise InvalidInput("tensors", f"has more than {MAX_TENSORS} arrays")
    tensors = tuple(
        Tensor(each.name, each.dtype, tuple(each.shape), each.data) for each in sent.tensors.tensors
    )
    check_tensors(tensors)
    return tensors


def _read_messages(sent: pb.Open) -> tuple[Message, ...]:
    kind = sent.WhichOneof("input")
    if kind is None:
        raise InvalidInput("input", "is missing; set `messages` or `tensors`")
    turns = sent.messages.messages
    if not turns:
        raise InvalidInput("messages", "is empty; give at least one user message")
    for index, turn in enumerate(turns):
        if turn.role not in _ROLE_FROM_WIRE:
            raise InvalidInput(f"messages[{index}].role", "is not system, user or assistant")
        if turn.role == pb.ROLE_USER and not turn.content.strip():
            name = "prompt" if index == len(turns) - 1 else f"messages[{index}].content"
            raise InvalidInput(name, "is empty; write what you want to ask")
    if turns[-1].role != pb.ROLE_USER:
        raise InvalidInput("messages", "must end with a message of the role user")
    return tuple(Message(_ROLE_FROM_WIRE[turn.role], turn.content) for turn in turns)


def _read_stop(sent: pb.Sampling) -> tuple[str, ...]:
    if len(sent.stop) > MAX_STOPS:
        raise InvalidInput("sampling.stop", f"has {len(sent.stop)} strings; at most {MAX_STOPS}")
    if not all(sent.stop):
        raise InvalidInput("sampling.stop", "contains an empty string")
    return tuple(sent.stop)


def _read_sampling(sent: pb.Sampling) -> Sampling:
    sampling = Sampling(
        temperature=sent.temperature,
        top_p=sent.top_p or 1.0,
        top_k=sent.top_k,
        min_p=sent.min_p,
        repetition_penalty=sent.repetition_penalty or 1.0,
        seed=sent.seed % _SEEDS if sent.seed else None,
    )
    sampling.check("sampling.")
    return sampling


def _read_constraints(sent: pb.Constraints, deadline_s: float) -> Constraints:
    max_cost_usd = sent.max_cost_usd if sent.HasField("max_cost_usd") else None
    if max_cost_usd is not None and not 0 <= max_cost_usd < math.inf:
        raise InvalidInput(
            "constraints.max_cost_usd", f"{max_cost_usd} is not an amount of at least 0"
        )
    if sent.max_remote_calls > MAX_REMOTE_CALLS:
        raise InvalidInput(
            "constraints.max_remote_calls",
            f"{sent.max_remote_calls} is above {MAX_REMOTE_CALLS}",
        )
    if sent.data_class not in _CLASS_FROM_WIRE:
        raise InvalidInput("constraints.data_class", f"{sent.data_class} is not a known data class")
    if len(sent.residency) > _MAX_NAME:
        raise InvalidInput("constraints.residency", f"is longer than {_MAX_NAME} characters")
    return Constraints(
        deadline_s=deadline_s,
        allowed_tiers=frozenset(sent.allowed_tiers) or None,
        max_cost_usd=max_cost_usd,
        max_remote_calls=sent.max_remote_calls or DEFAULT_REMOTE_CALLS,
        data_class=_CLASS_FROM_WIRE[sent.data_class],
        residency=sent.residency,
        commercial=sent.commercial,
    )


def _read_report(sent: pb.DeviceReport) -> DeviceReport:
    confidence = sent.confidence if sent.HasField("confidence") else None
    raw_score = sent.raw_score if sent.HasField("raw_score") else None
    for name, share in (("confidence", confidence), ("raw_score", raw_score)):
        if share is not None and not 0 <= share <= 1:
            raise InvalidInput(f"device.{name}", f"{share} is not in 0 … 1")
    for name, digest in (
        ("base_digest", sent.base_digest),
        ("adapter_digest", sent.adapter_digest),
        ("tokenizer_digest", sent.tokenizer_digest),
        ("ladder_digest", sent.ladder_digest),
        ("answer_sha256", sent.answer_sha256),
    ):
        if digest and not _DIGEST.fullmatch(digest):
            raise InvalidInput(f"device.{name}", "is not a lower-case hex sha256")
    return DeviceReport(
        confidence=confidence,
        raw_score=raw_score,
        base_digest=sent.base_digest,
        adapter_digest=sent.adapter_digest,
        tokenizer_digest=sent.tokenizer_digest,
        ladder_digest=sent.ladder_digest,
        answer_sha256=sent.answer_sha256,
        kept=min(sent.kept, MAX_KEPT),
        signals=_read_signals(sent.signals),
    )


def _read_signals(sent: pb.Signals) -> Signals:
    if not (sent.logprobs or sent.entropies or sent.margins):
        return EMPTY_SIGNALS
    signals = Signals(_floats(sent.logprobs), _floats(sent.entropies), _floats(sent.margins))
    lengths = {len(signals.logprobs), len(signals.entropies), len(signals.margins)}
    if len(lengths) > 1:
        raise InvalidInput("device.signals", "has lists of different lengths")
    # Written so that NaN fails each of them.
    if not (signals.logprobs <= 0).all():
        raise InvalidInput("device.signals.logprobs", "holds a value above 0")
    if not (signals.entropies >= 0).all():
        raise InvalidInput("device.signals.entropies", "holds a value below 0")
    if not ((signals.margins >= 0) & (signals.margins <= 1)).all():
        raise InvalidInput("device.signals.margins", "holds a value outside of 0 … 1")
    return signals


def _floats(values: object) -> Float32s:
    return np.asarray(values, dtype=np.float32)


def event_messages(request: OpenRequest, events: EventsAtOnce) -> list[pb.AnswerEvent]:
    """Events that are known at once, as they are sent to the device: in one message, if it reads
    such. Each message is an encrypted record, and system calls and wake-ups on both sides, which
    together cost a gateway more than what is in it."""
    request_id = request.request_id
    if not request.reads_following:
        return [_event_message(request_id, event) for event in events]
    first = _event_message(request_id, events[0])
    for event in events[1:]:
        first.following.append(_event_message("", event))
    return [first]


def _event_message(request_id: str, event: RemoteEvent) -> pb.AnswerEvent:
    match event:
        case Accepted():
            accepted = pb.Accepted(tier=event.tier, model=event.model)
            return pb.AnswerEvent(request_id=request_id, accepted=accepted)
        case Chunk():
            tokens = pb.TokenChunk(text=event.text, count=event.count)
            return pb.AnswerEvent(request_id=request_id, tokens=tokens)
        case Verified():
            kept = pb.DraftVerification(kept_tokens=event.kept)
            return pb.AnswerEvent(request_id=request_id, verification=kept)
        case Finished():
            stopped = event.reason == "stop"
            finish = pb.Finish(
                reason=pb.FINISH_REASON_STOP if stopped else pb.FINISH_REASON_LENGTH,
                usage=pb.Usage(
                    prompt_tokens=event.prompt_tokens, completion_tokens=event.completion_tokens
                ),
                cost_usd=event.cost_usd,
                tier=event.tier,
                model=event.model,
                confidence=event.confidence,
                reasons=event.reasons,
                server_s=event.server_s,
                raw_score=event.raw_score,
                speed=None if event.speed is None else _speed_message(event.speed),
            )
            return pb.AnswerEvent(request_id=request_id, finish=finish)


def _speed_message(speed: Speed) -> pb.Speed:
    return pb.Speed(
        read_tokens=speed.read_tokens,
        read_s=speed.read_s,
        written_tokens=speed.written_tokens,
        written_s=speed.written_s,
    )


def read_events(message: pb.AnswerEvent, *, request_id: str) -> list[RemoteEvent]:
    """Check the events of one message, without kinds that this version does not know or use.

    Raises:
        InvalidInput: the server broke the contract; ``field`` names where.
    """
    if message.request_id != request_id:
        raise InvalidInput("request_id", "belongs to another request")
    found = [_read_event(message), *map(_read_event, message.following)]
    return [event for event in found if event is not None]


def _read_event(message: pb.AnswerEvent) -> RemoteEvent | None:
    match message.WhichOneof("kind"):
        case "accepted":
            return Accepted(message.accepted.tier, message.accepted.model)
        case "tokens":
            return Chunk(message.tokens.text, message.tokens.count)
        case "verification":
            return Verified(message.verification.kept_tokens)
        case "finish":
            return _read_finish(message.finish)
        case _:
            return None


def _read_finish(sent: pb.Finish) -> Finished:
    if sent.reason not in _REASON_FROM_WIRE:
        raise InvalidInput("finish.reason", f"{sent.reason} is not a known reason")
    confidence = sent.confidence if sent.HasField("confidence") else None
    if confidence is not None and not 0 <= confidence <= 1:
        raise InvalidInput("finish.confidence", f"{confidence} is not in 0 … 1")
    raw_score = sent.raw_score if sent.HasField("raw_score") else None
    if raw_score is not None and not 0 <= raw_score <= 1:
        raise InvalidInput("finish.raw_score", f"{raw_score} is not in 0 … 1")
    if not 0 <= sent.cost_usd < math.inf:
        raise InvalidInput("finish.cost_usd", f"{sent.cost_usd} is not an amount of at least 0")
    return Finished(
        reason=_REASON_FROM_WIRE[sent.reason],
        prompt_tokens=sent.usage.prompt_tokens,
        completion_tokens=sent.usage.completion_tokens,
        cost_usd=sent.cost_usd,
        tier=sent.tier,
        model=sent.model,
        confidence=confidence,
        reasons=tuple(sent.reasons),
        server_s=sent.server_s,
        raw_score=raw_score,
        speed=_read_speed(sent.speed) if sent.HasField("speed") else None,
    )


def _read_speed(sent: pb.Speed) -> Speed:
    for name, seconds in (("read_s", sent.read_s), ("written_s", sent.written_s)):
        if not 0 <= seconds < math.inf:
            raise InvalidInput(f"finish.speed.{name}", f"{seconds} is not a time of at least 0 s")
    return Speed(sent.read_tokens, sent.read_s, sent.written_tokens, sent.written_s)
