"""Requests and events survive the wire; what a stranger gets wrong is named."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cascade.errors import InvalidInput
from cascade.remote import Accepted, Chunk, DeviceReport, Finished, RemoteEvent, Speed
from cascade.request import Constraints, DataClass, Message, Request
from cascade.sampling import GREEDY, Sampling
from cascade.signals import Signals
from cascade.tensor import DTYPES, Tensor
from cascade.v1 import inference_pb2 as pb
from cascade.wire.convert import OpenRequest, event_messages, open_message, read_events, read_open

text = st.text(st.characters(exclude_categories=("Cs",)), max_size=40)
written = text.filter(lambda value: bool(value.strip()))
share = st.floats(0, 1)
digest = st.sampled_from(["", "0123456789abcdef" * 4])
money = st.floats(0, 1e6)

# As wide as on the wire; its 0 means "not set" where 0 is no value.
samplings = st.builds(
    Sampling,
    temperature=st.floats(0, 2, width=32),
    top_p=st.floats(0, 1, width=32, exclude_min=True),
    top_k=st.integers(0, 2**31 - 1),
    min_p=st.floats(0, 1, width=32),
    repetition_penalty=st.floats(0, 2, width=32, exclude_min=True),
    seed=st.none() | st.integers(0, 2**32 - 2),
)
forms = st.fixed_dictionaries({}) | st.sampled_from(
    [{"regex": "[a-z]+é"}, {"json_schema": '{"type": "object"}'}]
)

free_requests = st.builds(
    lambda form, stop, **fields: Request(**fields, **form, stop=() if form else stop),
    forms,
    st.lists(text.filter(bool), max_size=8).map(tuple),
    messages=st.just((Message("user", "hello"),)),
    sampling=samplings,
)
chosen_requests = st.builds(
    Request,
    messages=st.builds(
        lambda earlier, last: (*earlier, Message("user", last)),
        st.lists(st.builds(Message, st.sampled_from(["system", "assistant"]), text), max_size=3),
        written,
    ),
    options=st.just(()) | st.lists(written, min_size=2, max_size=5, unique=True).map(tuple),
    task_id=text,
    max_tokens=st.integers(1, 100_000),
    stop=st.lists(text.filter(bool), max_size=8).map(tuple),
    score=st.booleans(),
    adapter=st.sampled_from(["", "legal", "v2.1"]),
    constraints=st.builds(
        Constraints,
        allowed_tiers=st.none() | st.frozensets(written, min_size=1, max_size=3),
        max_cost_usd=st.none() | money,
        max_remote_calls=st.integers(1, 16),
        data_class=st.sampled_from(DataClass),
        residency=text,
        commercial=st.booleans(),
    ),
)


@st.composite
def _signals(draw: st.DrawFn) -> Signals:
    size = draw(st.integers(0, 5))

    def column(low: float, high: float) -> np.ndarray:
        values = st.lists(st.floats(low, high, width=32), min_size=size, max_size=size)
        return np.array(draw(values), np.float32)

    return Signals(column(-100, 0), column(0, 12), column(0, 1))


reports = st.builds(
    DeviceReport,
    confidence=st.none() | share,
    raw_score=st.none() | share,
    base_digest=digest,
    adapter_digest=digest,
    tokenizer_digest=digest,
    ladder_digest=digest,
    answer_sha256=digest,
    kept=st.integers(0, 1_000_000),
    signals=_signals(),
)

events = st.one_of(
    st.builds(Accepted, tier=text, model=text),
    st.builds(Chunk, text=text, count=st.integers(0, 2**32 - 1)),
    st.builds(
        Finished,
        reason=st.sampled_from(["stop", "length"]),
        prompt_tokens=st.integers(0, 2**32 - 1),
        completion_tokens=st.integers(0, 2**32 - 1),
        cost_usd=money,
        tier=text,
        model=text,
        confidence=st.none() | share,
        reasons=st.lists(text, max_size=3).map(tuple),
        server_s=st.floats(0, 1e5),
        raw_score=st.none() | share,
        speed=st.none()
        | st.builds(
            Speed,
            st.integers(0, 2**32 - 1),
            st.floats(0, 1e5),
            st.integers(0, 2**32 - 1),
            st.floats(0, 1e5),
        ),
    ),
)


requests = free_requests | chosen_requests


@given(requests, reports, st.integers(1, 16))
def test_a_request_arrives_as_it_was_sent(
    request: Request, report: DeviceReport, calls: int
) -> None:
    sent = open_message(request, report, max_remote_calls=calls).SerializeToString()
    read = read_open(pb.AnswerRequest.FromString(sent), deadline_s=7.0)
    assert read.request_id == request.request_id
    assert read.messages == request.messages
    assert read.options == request.options
    assert read.task_id == request.task_id
    assert (read.json_schema, read.regex) == (request.json_schema, request.regex)
    assert read.max_tokens == request.max_tokens
    assert read.stop == request.stop
    assert read.sampling == request.sampling
    assert read.constraints == Constraints(
        deadline_s=7.0,
        allowed_tiers=request.constraints.allowed_tiers,
        max_cost_usd=request.constraints.max_cost_usd,
        max_remote_calls=calls,
        data_class=request.constraints.data_class,
        residency=request.constraints.residency,
        commercial=request.constraints.commercial,
    )
    assert (read.score, read.adapter) == (request.score, request.adapter)
    numbers, digests = ("confidence", "raw_score"), ("base", "adapter", "tokenizer", "ladder")
    for name in (*numbers, *(f"{kind}_digest" for kind in digests), "answer_sha256"):
        assert getattr(read.report, name) == getattr(report, name)
    for name in ("logprobs", "entropies", "margins"):
        left, right = getattr(read.report.signals, name), getattr(report.signals, name)
        assert left.dtype == np.float32
        np.testing.assert_array_equal(left, right)


@given(st.lists(events, min_size=1, max_size=4), st.booleans())
def test_events_arrive_as_they_were_sent(together: list[RemoteEvent], at_once: bool) -> None:
    request = OpenRequest("r-1", (), reads_following=at_once)
    sent = [each.SerializeToString() for each in event_messages(request, tuple(together))]
    assert len(sent) == (1 if at_once else len(together))
    read = [read_events(pb.AnswerEvent.FromString(each), request_id="r-1") for each in sent]
    assert [event for part in read for event in part] == together


def test_a_device_says_that_it_reads_several_events_in_one_message() -> None:
    assert read_open(_good(), deadline_s=1.0).reads_following
    assert not read_open(_another(), deadline_s=1.0).reads_following


def _another() -> pb.AnswerRequest:
    """What a client says that knows of no such thing."""
    message = _good()
    message.open.ClearField("reads_following")
    return message


def _good() -> pb.AnswerRequest:
    request = Request((Message("user", "Is water wet?"),), request_id="r-1")
    return open_message(request, DeviceReport(), max_remote_calls=2)


def _set_options(*options: str) -> Callable[[pb.Open], None]:
    def change(sent: pb.Open) -> None:
        sent.options.options.extend(options)

    return change


def _change(**fields: object) -> Callable[[pb.Open], None]:
    """Set fields by path, e.g. ``sampling__top_p``."""

    def change(sent: pb.Open) -> None:
        for path, value in fields.items():
            *way, last = path.split("__")
            target: object = sent
            for step in way:
                target = getattr(target, step)
            setattr(target, last, value)

    return change


def _drop_messages(sent: pb.Open) -> None:
    del sent.messages.messages[:]


def _drop_input(sent: pb.Open) -> None:
    sent.ClearField("input")


def _last_role(role: pb.Role) -> Callable[[pb.Open], None]:
    def change(sent: pb.Open) -> None:
        sent.messages.messages[0].role = role

    return change


def _blank_prompt(sent: pb.Open) -> None:
    sent.messages.messages[0].content = " \n"


def _signals_of(logprobs: list[float], margins: list[float]) -> Callable[[pb.Open], None]:
    def change(sent: pb.Open) -> None:
        sent.device.signals.logprobs.extend(logprobs)
        sent.device.signals.entropies.extend([0.5] * len(logprobs))
        sent.device.signals.margins.extend(margins)

    return change


def _stops(count: int, value: str) -> Callable[[pb.Open], None]:
    def change(sent: pb.Open) -> None:
        sent.sampling.stop.extend([value] * count)

    return change


def _structure_with_a_stop(sent: pb.Open) -> None:
    sent.regex = "a+"
    sent.sampling.stop.append("b")


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (_change(request_id=""), "request_id"),
        (_change(request_id="a b"), "request_id"),
        (_change(request_id="a" * 65), "request_id"),
        (_change(task_id="t" * 257), "task_id"),
        (_drop_input, "input"),
        (_drop_messages, "messages"),
        (_last_role(pb.ROLE_ASSISTANT), "messages"),
        (_last_role(pb.ROLE_UNSPECIFIED), "messages[0].role"),
        (_blank_prompt, "prompt"),
        (_set_options("yes"), "options"),
        (_set_options("yes", "yes"), "options"),
        (_set_options("yes", " "), "options"),
        (_set_options(*map(str, range(1001))), "options"),
        (_change(sampling__temperature=2.5), "sampling.temperature"),
        (_change(sampling__temperature=float("nan")), "sampling.temperature"),
        (_change(sampling__top_p=-0.5), "sampling.top_p"),
        (_change(sampling__top_p=1.5), "sampling.top_p"),
        (_change(sampling__top_k=2**31), "sampling.top_k"),
        (_change(sampling__min_p=1.5), "sampling.min_p"),
        (_change(sampling__repetition_penalty=-1.0), "sampling.repetition_penalty"),
        (_change(json_schema="[]"), "json_schema"),
        (_change(json_schema="{"), "json_schema"),
        (_change(regex="["), "regex"),
        (_change(regex=""), "regex"),
        (_structure_with_a_stop, "stop"),
        (_stops(9, "x"), "sampling.stop"),
        (_stops(1, ""), "sampling.stop"),
        (_change(constraints__max_remote_calls=17), "constraints.max_remote_calls"),
        (_change(constraints__max_cost_usd=-1.0), "constraints.max_cost_usd"),
        (_change(constraints__max_cost_usd=float("nan")), "constraints.max_cost_usd"),
        (_change(constraints__data_class=9), "constraints.data_class"),
        (_change(constraints__residency="e" * 257), "constraints.residency"),
        (_change(device__confidence=1.5), "device.confidence"),
        (_change(device__raw_score=-0.1), "device.raw_score"),
        (_change(device__base_digest="ABC"), "device.base_digest"),
        (_change(device__ladder_digest="ABC"), "device.ladder_digest"),
        (_change(device__answer_sha256="good"), "device.answer_sha256"),
        (_signals_of([-1.0, -2.0], [0.5]), "device.signals"),
        (_signals_of([0.5], [0.5]), "device.signals.logprobs"),
        (_signals_of([float("nan")], [0.5]), "device.signals.logprobs"),
        (_signals_of([-1.0], [1.5]), "device.signals.margins"),
    ],
)
def test_a_bad_request_is_refused_by_the_name_of_its_field(
    change: Callable[[pb.Open], None], field: str
) -> None:
    message = _good()
    change(message.open)
    with pytest.raises(InvalidInput) as refused:
        read_open(message, deadline_s=1.0)
    assert refused.value.field == field
    assert "\n" not in str(refused.value)


def test_the_first_message_must_be_open() -> None:
    draft = pb.AnswerRequest(draft=pb.DraftChunk(text="too early"))
    for message in (pb.AnswerRequest(), draft):
        with pytest.raises(InvalidInput, match="open: is missing"):
            read_open(message, deadline_s=1.0)


arrays = st.builds(
    lambda name, dtype, shape, seed: Tensor.of(
        name, np.random.default_rng(seed).integers(0, 2, shape).astype(dtype)
    ),
    st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=20),
    st.sampled_from(DTYPES),
    st.lists(st.integers(1, 4), max_size=3).map(tuple),
    st.integers(0, 9),
)


@given(st.lists(arrays, min_size=1, max_size=4, unique_by=lambda tensor: tensor.name).map(tuple))
def test_tensors_survive_the_wire(tensors: tuple[Tensor, ...]) -> None:
    request = Request((), options=("a", "b"), tensors=tensors)
    request.check()
    message = open_message(request, DeviceReport(), max_remote_calls=1)
    sent = pb.AnswerRequest.FromString(message.SerializeToString())
    read = read_open(sent, deadline_s=1.0)
    assert (read.tensors, read.messages, read.options) == (tensors, (), ("a", "b"))
    for before, after in zip(tensors, read.tensors, strict=True):
        np.testing.assert_array_equal(before.array(), after.array())
        assert after.array().dtype == np.dtype(after.dtype)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": ""}, "tensors: have a name that is not of 1 to 256"),
        ({"name": "x" * 257}, "tensors: have a name"),
        ({"name": "y"}, "tensors: names 'y' twice"),
        ({"dtype": "object"}, r"tensors\.x: has the type 'object'; use one of float32"),
        ({"dtype": "float64"}, r"tensors\.x: has 8 bytes; float64 of shape \[2\] takes 16"),
        ({"shape": [3]}, r"tensors\.x: has 8 bytes; float32 of shape \[3\] takes 12"),
        ({"shape": [-1, -2]}, r"tensors\.x: is empty"),
        ({"shape": [2, 0]}, r"tensors\.x: is empty"),
        ({"shape": [1 << 62, 1 << 62]}, r"tensors\.x: has 8 bytes"),
        ({"shape": [1] * 9}, r"tensors\.x: has 9 axes; at most 8"),
    ],
)
def test_a_strangers_tensors_are_checked(change: dict[str, object], message: str) -> None:
    sent = pb.AnswerRequest()
    sent.open.request_id = "r-1"
    sent.open.options.options.extend(["a", "b"])
    fields: dict[str, object] = {"name": "x", "dtype": "float32", "shape": [2], "data": bytes(8)}
    sent.open.tensors.tensors.add(**fields | {"name": "y"})
    sent.open.tensors.tensors.add(**fields | change)
    with pytest.raises(InvalidInput, match=message):
        read_open(sent, deadline_s=1.0)


def test_tensors_come_with_labels_and_are_not_without_number() -> None:
    sent = pb.AnswerRequest()
    sent.open.request_id = "r-1"
    sent.open.tensors.SetInParent()
    sent.open.options.options.extend(["a", "b"])
    with pytest.raises(InvalidInput, match="tensors: is empty"):
        read_open(sent, deadline_s=1.0)
    for index in range(17):
        sent.open.tensors.tensors.add(name=f"x{index}", dtype="uint8", shape=[1], data=b"a")
    with pytest.raises(InvalidInput, match="tensors: has more than 16 arrays"):
        read_open(sent, deadline_s=1.0)
    del sent.open.tensors.tensors[1:]
    sent.open.ClearField("options")
    with pytest.raises(InvalidInput, match="options: are missing"):
        read_open(sent, deadline_s=1.0)


def test_a_tensor_does_not_show_its_content() -> None:
    assert "secret" not in repr(Tensor.of("x", np.frombuffer(b"secret", np.uint8)))


def test_unset_fields_mean_their_documented_defaults() -> None:
    message = pb.AnswerRequest()
    message.open.request_id = "r-1"
    message.open.messages.messages.add(role=pb.ROLE_USER, content="hello")
    read = read_open(message, deadline_s=1.0)
    assert read.options == ()
    assert (read.json_schema, read.regex) == (None, None)
    assert (read.max_tokens, read.stop, read.sampling) == (None, (), GREEDY)
    assert read.constraints.data_class is DataClass.PERSONAL
    assert read.constraints.max_remote_calls == 2
    assert read.constraints.allowed_tiers is None
    assert read.constraints.max_cost_usd is None


def test_events_of_another_request_are_refused() -> None:
    (message,) = event_messages(OpenRequest("r-1", ()), (Chunk("x", 1),))
    with pytest.raises(InvalidInput, match="another request"):
        read_events(message, request_id="r-2")


def test_events_of_an_unknown_kind_are_passed_over() -> None:
    message = pb.AnswerEvent(request_id="r-1")
    assert read_events(message, request_id="r-1") == []
    message.following.append(pb.AnswerEvent(tokens=pb.TokenChunk(text="x", count=1)))
    assert read_events(message, request_id="r-1") == [Chunk("x", 1)]


@pytest.mark.parametrize("seconds", [-1.0, float("nan"), float("inf")])
def test_a_speed_that_is_no_time_is_refused(seconds: float) -> None:
    for field in ("read_s", "written_s"):
        message = pb.AnswerEvent(request_id="r-1")
        message.finish.reason = pb.FINISH_REASON_STOP
        setattr(message.finish.speed, field, seconds)
        with pytest.raises(InvalidInput, match=f"finish.speed.{field}"):
            read_events(message, request_id="r-1")
