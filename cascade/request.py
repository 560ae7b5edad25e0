"""What is asked: messages or tensors, a closed set of options if any, and the limits that an answer
must keep.

These are plain values, checked once by ``Request.check``; how they are answered is decided in
``cascade.controller``.
"""

from __future__ import annotations

import re
import uuid
from dataclasses import dataclass, field
from enum import StrEnum
from numbers import Integral
from typing import Literal, get_args

from cascade.draft import Drafting
from cascade.errors import InvalidInput
from cascade.sampling import GREEDY, Sampling
from cascade.signals import ScoreMode
from cascade.structured import check_json_schema, check_regex
from cascade.tensor import Tensor, check_tensors

MAX_OPTIONS = 1000
Role = Literal["system", "user", "assistant"]
_MAX_TOKENS = 2**32 - 1
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
ADAPTER_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
"""How adapters of a cluster are called."""


class DataClass(StrEnum):
    """How sensitive an input is; decides which tiers it may reach."""

    PUBLIC = "public"
    PERSONAL = "personal"
    NEVER_LEAVE = "never_leave"


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation."""

    role: Role
    content: str


@dataclass(frozen=True, slots=True)
class Constraints:
    """Limits of one request.

    Arguments:
        deadline_s: seconds from the call to the last event, > 0.
        allowed_tiers: names of tiers that may answer; ``None`` allows all. The device is always
            allowed; an empty set therefore forbids escalation.
        max_cost_usd: upper bound on the price, ≥ 0; ``None`` means no bound.
        max_remote_calls: calls over the network, retries and climbs included, 0–16.
        data_class: ``NEVER_LEAVE`` forbids escalation.
        residency: region that data may not leave, e.g. ``"eu"``; empty means anywhere.
        commercial: only models whose licence allows commercial use may answer.
        metered_ok: whether a metered connection may be used.
        min_battery: share of the battery, in [0, 1], below which nothing is escalated unless the
            device is being charged.
        never_train: nothing of this request is kept to learn from, whatever its data class.
    """

    deadline_s: float = 60.0
    allowed_tiers: frozenset[str] | None = None
    max_cost_usd: float | None = None
    max_remote_calls: int = 2
    data_class: DataClass = DataClass.PERSONAL
    residency: str = ""
    commercial: bool = False
    metered_ok: bool = True
    min_battery: float = 0.0
    never_train: bool = False

    def check(self) -> None:
        """Raise ``InvalidInput`` naming the first field that is out of range."""
        if not 0 < self.deadline_s < float("inf"):
            raise InvalidInput(
                "deadline_s", f"{self.deadline_s} is not a positive number of seconds"
            )
        if self.max_cost_usd is not None and not 0 <= self.max_cost_usd < float("inf"):
            raise InvalidInput(
                "max_cost_usd", f"{self.max_cost_usd} is not an amount of at least 0"
            )
        if not 0 <= self.max_remote_calls <= 16:
            raise InvalidInput("max_remote_calls", f"{self.max_remote_calls} is not in 0 … 16")
        if not 0 <= self.min_battery <= 1:
            raise InvalidInput("min_battery", f"{self.min_battery} is not a share in 0 … 1")


@dataclass(frozen=True, slots=True)
class Request:
    """One request.

    Arguments:
        messages: the conversation, oldest first; the last is the user's. For a closed set, the
            user's message is the bare input: the task's prompts are wrapped around it later.
        options: the allowed answers, or empty for free text. Exact strings; one may be a prefix of
            another.
        task_id: names the policy that judges the answer; empty for none.
        max_tokens: upper bound on the tokens of the answer, ≥ 1.
        stop: strings that end a free answer before they appear in it.
        sampling: how the tokens of a free answer are chosen; greedy by default.
        json_schema: a JSON Schema (draft 2020-12) as JSON text that the answer has to satisfy.
        regex: a regular expression that the whole answer has to match; see ``cascade.structured``.
            At most one of ``options``, ``json_schema`` and ``regex`` is given.
        prefer: ``"device"`` tries locally first; ``"cloud"`` asks the cluster at once, with no
            local attempt to fall back on.
        mode: how the device scores the options; ``None`` takes the mode that the task's policy was
            fitted for, or the model's choice without one. Another mode than the policy's leaves the
            answer uncertified.
        tensors: a classifier's inputs, instead of messages; ``options`` are then its labels.
        score: whether the cluster tells how sure its model is of its answer, which takes it a
            little longer.
        checks: names of checks that the device's answer has to pass, beside those of its task; see
            ``cascade.checks``.
        drafting: whether the device proposes its own answer to the cluster; ``None`` leaves that to
            the task's policy, and without one it does not.
        traceparent: the W3C trace context that this is a part of; empty begins a trace.
        adapter: name of the cluster's adapter with which a tier's model shall answer, where the
            cluster is asked; empty for the model alone. 1 to 64 characters of A-Z a-z 0-9 . _ -
    """

    messages: tuple[Message, ...]
    options: tuple[str, ...] = ()
    task_id: str = ""
    max_tokens: int = 256
    stop: tuple[str, ...] = ()
    sampling: Sampling = GREEDY
    json_schema: str | None = None
    regex: str | None = None
    prefer: Literal["device", "cloud"] = "device"
    mode: ScoreMode | None = None
    constraints: Constraints = field(default_factory=Constraints)
    request_id: str = field(default_factory=lambda: uuid.uuid4().hex)
    traceparent: str = field(default="", compare=False, kw_only=True)
    tensors: tuple[Tensor, ...] = ()
    checks: tuple[str, ...] = ()
    score: bool = False
    drafting: Drafting | None = None
    adapter: str = ""

    @property
    def text(self) -> str:
        """Content of the last message. There is none where tensors are asked about."""
        return self.messages[-1].content

    def check(self) -> None:
        """Raise ``InvalidInput`` naming the first field that cannot be used."""
        if self.tensors:
            self._check_tensors()
        else:
            self._check_messages()
        check_max_tokens(self.max_tokens)
        if not _REQUEST_ID.fullmatch(self.request_id):
            raise InvalidInput("request_id", "must be 1 to 64 characters of A-Z a-z 0-9 . _ -")
        if any(not stop for stop in self.stop):
            raise InvalidInput("stop", "contains an empty string")
        self.sampling.check()
        check_adapter(self.adapter)
        check_output(self.options, self.json_schema, self.regex, self.stop)
        if self.mode not in (None, *get_args(ScoreMode)):
            raise InvalidInput("mode", f"{self.mode!r} is not known; known are exact and search")
        self.constraints.check()
        if self.drafting is not None:
            self.drafting.check()

    def _check_tensors(self) -> None:
        if self.messages:
            raise InvalidInput("messages", "must be empty where tensors are given; ask one of both")
        if not self.options:
            raise InvalidInput("options", "are missing; name the labels among which to classify")
        check_tensors(self.tensors)

    def _check_messages(self) -> None:
        if not self.messages:
            raise InvalidInput("messages", "is empty; give at least one user message")
        for message in self.messages:
            # A chat template writes the role next to its control tokens, unquoted.
            if message.role not in get_args(Role):
                raise InvalidInput(
                    "messages", f"role {message.role!r} is none of {', '.join(get_args(Role))}"
                )
        if self.messages[-1].role != "user":
            raise InvalidInput("messages", "must end with a message of the role user")
        if not self.text.strip():
            raise InvalidInput("prompt", "is empty; write what you want to ask")
        if not all(is_unicode(message.content) for message in self.messages):
            raise InvalidInput("prompt", "is not valid Unicode (lone surrogate)")


def check_adapter(name: str) -> None:
    """Raise ``InvalidInput`` unless ``name`` is empty or can name an adapter."""
    if name and not ADAPTER_NAME.fullmatch(name):
        raise InvalidInput("adapter", "must be 1 to 64 characters of A-Z a-z 0-9 . _ -")


def check_output(
    options: tuple[str, ...],
    json_schema: str | None,
    regex: str | None,
    stop: tuple[str, ...],
) -> None:
    """Raise ``InvalidInput`` unless at most one usable form of answer is asked for."""
    forms = {"options": bool(options), "json_schema": json_schema is not None}
    given = [name for name, there in (forms | {"regex": regex is not None}).items() if there]
    if len(given) > 1:
        raise InvalidInput(given[1], f"cannot be combined with {given[0]}; give one of them")
    if options:
        check_options(options)
    if json_schema is not None:
        check_json_schema(json_schema)
    if regex is not None:
        check_regex(regex)
    if stop and given and not options:
        raise InvalidInput("stop", f"cannot be combined with {given[0]}; leave it out")


def check_options(options: tuple[str, ...]) -> None:
    """Raise ``InvalidInput`` unless ``options`` is a usable closed set of answers."""
    if len(options) < 2:
        raise InvalidInput(
            "options", "needs at least two different answers, e.g. positive,negative"
        )
    if len(options) > MAX_OPTIONS:
        raise InvalidInput(
            "options", f"has {len(options)} answers; at most {MAX_OPTIONS} are allowed"
        )
    seen: set[str] = set()
    for index, option in enumerate(options, start=1):
        if not option.strip():
            raise InvalidInput("options", "contains an empty answer")
        if not is_unicode(option):
            raise InvalidInput("options", f"answer {index} is not valid Unicode (lone surrogate)")
        if option in seen:
            raise InvalidInput("options", f"names {option!r} twice; each answer must differ")
        seen.add(option)


def check_max_tokens(max_tokens: int) -> None:
    """Raise ``InvalidInput`` unless ``max_tokens`` is a whole number that the wire can carry: no
    count of tokens ever equals 2.5 or NaN, so that such an answer would fill the context."""
    if not isinstance(max_tokens, Integral):
        raise InvalidInput("max_tokens", f"{max_tokens!r} is not a whole number")
    if not 1 <= max_tokens <= _MAX_TOKENS:
        raise InvalidInput("max_tokens", f"{max_tokens} is not in 1 … {_MAX_TOKENS}")


def is_unicode(text: str) -> bool:
    """Whether ``text`` can be written as UTF-8: it has no lone surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
