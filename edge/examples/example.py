"""One example to learn from: what was asked, the answer to learn, and who says that it is right."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import unicodedata
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Self, cast, get_args

from cascade.errors import InvalidInput
from cascade.request import DataClass, Message, Role
from cascade.strict import Fields

HELD_OUT_SHARE: Final = 0.2
"""Share of the prompts that are never learned from, but tell whether learning helped."""


class Source(StrEnum):
    """Who says that an example's answer is right."""

    DEVICE = "device"
    """Nobody but the device itself: it waits for a user's word, and is no lesson until then; a head
    may rehearse it (``edge.examples.curate``)."""
    CLOUD = "cloud"
    """A tier of the cluster gave it."""
    CONFIRMATION = "confirmation"
    """A user said that it is right."""
    CORRECTION = "correction"
    """A user gave it."""

    @property
    def rank(self) -> int:
        """What it is worth against the others, ≥ 0, higher is better."""
        return _RANKS[self]


_RANKS: Final = {
    Source.DEVICE: 0,
    Source.CLOUD: 1,
    Source.CONFIRMATION: 2,
    Source.CORRECTION: 3,
}


@dataclass(frozen=True, slots=True)
class Example:
    """One example.

    Arguments:
        request_id: of the request that it comes from; unique in a store.
        messages: the conversation as the application gave it, oldest first; for a closed set, the
            last one is the bare input.
        options: the allowed answers; empty for free text.
        answer: the text to learn; among ``options`` where there are any.
        given: the answer that was given, where ``answer`` is a user's in its place.
        at_s: when it was answered, seconds since 1970.
        rejected: a user said that ``answer`` is wrong, and not what would be right.
        tier, model: who gave the answer first.
        confidence: calibrated P(the device's own answer is right) when it was asked, or ``None``.
        weight: P(``answer`` is right) as far as its source can tell, in (0, 1].
        device_answer: what the device answered itself; empty where it did not try.
        probabilities: of each option by the device at that time, in [0, 1]; empty where it did not
            score them. They were made before anything was learned from this example.
        never_train: nothing of it may be kept, whatever its class. Always false in a store.
    """

    request_id: str
    messages: tuple[Message, ...]
    answer: str
    source: Source
    at_s: float
    options: tuple[str, ...] = ()
    task_id: str = ""
    data_class: DataClass = DataClass.PERSONAL
    rejected: bool = False
    tier: str = ""
    model: str = ""
    confidence: float | None = None
    weight: float = 1.0
    device_answer: str = ""
    probabilities: tuple[float, ...] = ()
    never_train: bool = False
    given: str = ""

    def __post_init__(self) -> None:
        if self.options and self.answer not in self.options:
            raise InvalidInput("example.answer", "is none of the options")

    @property
    def prompt(self) -> str:
        """All that was asked, for comparing: in one case and spacing, see ``normalised``."""
        return "\n".join(f"{m.role}: {normalised(m.content)}" for m in self.messages)

    @property
    def question(self) -> str:
        """The same without what the application says to every request (system messages)."""
        return "\n".join(normalised(m.content) for m in self.messages if m.role != "system")

    @property
    def held_out(self) -> bool:
        """Whether it is kept aside: decided by a digest of task and prompt, so that it stays where
        it is, and every copy of one prompt is on the same side."""
        digest = hashlib.sha256(f"{self.task_id}\0{self.prompt}".encode()).digest()
        return int.from_bytes(digest[:8]) < HELD_OUT_SHARE * 2**64

    def mentions(self, text: str) -> bool:
        """Whether ``text`` occurs in any of its texts, case aside."""
        wanted = text.casefold()
        return any(wanted in each.casefold() for each in self._texts())

    def judged(self, *, correct: bool, correction: str | None) -> Self:
        """What a user's word on the answer that was given makes of it: see ``ExampleStore.judge``
        for arguments and errors."""
        mended = self.source is Source.CORRECTION
        if correction is None:
            # A correction says already that the given answer was wrong; that it was right cannot be
            # noted where it is not there, in examples of before it was kept.
            if mended and not (correct and self.given):
                return self
            if not correct:
                return dataclasses.replace(self, rejected=True)
            return dataclasses.replace(
                self,
                answer=self.given if mended else self.answer,
                given="",
                source=Source.CONFIRMATION,
                rejected=False,
                weight=1.0,
            )
        if correct:
            raise InvalidInput("correction", "is for a wrong answer; leave it out of a right one")
        if not correction.strip():
            raise InvalidInput("correction", "is empty; write what would have been right")
        if self.options and correction not in self.options:
            raise InvalidInput(
                "correction", f"{correction!r} is none of the options {', '.join(self.options)}"
            )
        return dataclasses.replace(
            self,
            answer=correction,
            given=self.given if mended else self.answer,
            source=Source.CORRECTION,
            rejected=False,
            weight=1.0,
        )

    def to_json(self) -> dict[str, object]:
        """Plain values, all of them; ``held_out`` is told along."""
        return {
            "request_id": self.request_id,
            "task": self.task_id,
            "messages": [{"role": m.role, "content": m.content} for m in self.messages],
            "options": list(self.options),
            "answer": self.answer,
            "given": self.given,
            "source": self.source.value,
            "rejected": self.rejected,
            "weight": self.weight,
            "held_out": self.held_out,
            "at_s": self.at_s,
            "data_class": self.data_class.value,
            "tier": self.tier,
            "model": self.model,
            "confidence": self.confidence,
            "device_answer": self.device_answer,
            "probabilities": list(self.probabilities),
        }

    def texts_to_bytes(self) -> bytes:
        """What can tell of a person's words, as JSON: this is what a ``Cipher`` seals."""
        value = {
            "messages": [[m.role, m.content] for m in self.messages],
            "options": self.options,
            "answer": self.answer,
            "given": self.given,
            "device_answer": self.device_answer,
            "probabilities": self.probabilities,
        }
        return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()

    def with_texts(self, data: bytes) -> Self:
        """The example with the texts that ``texts_to_bytes`` wrote.

        Raises:
            InvalidInput: ``data`` is something else.
        """
        fields = Fields.from_bytes(data, "example")
        whole = dataclasses.replace(
            self,
            messages=_messages(fields.take("messages")),
            options=fields.texts("options"),
            answer=fields.text("answer"),
            given=fields.text("given") if fields.given("given") else "",  # which came later
            device_answer=fields.text("device_answer"),
            probabilities=fields.numbers("probabilities", 0.0, 1.0),
        )
        fields.end()
        return whole

    def _texts(self) -> tuple[str, ...]:
        return (*(m.content for m in self.messages), self.answer, self.given, self.device_answer)


def normalised(text: str) -> str:
    """``text`` in one case and with single spaces (Unicode NFKC, then case folding)."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def _messages(value: object) -> tuple[Message, ...]:
    if not isinstance(value, list) or not value or not all(_is_message(turn) for turn in value):
        raise InvalidInput("example.messages", "must be pairs of role and content")
    return tuple(Message(cast(Role, role), content) for role, content in value)


def _is_message(turn: object) -> bool:
    if not isinstance(turn, list) or len(turn) != 2:
        return False
    return turn[0] in get_args(Role) and isinstance(turn[1], str)
