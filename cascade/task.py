"""A task: a closed set of answers and the exact prompts that ask for one of them.

A confidence is calibrated for one wording on one model; so the wording is part of the policy
(``cascade.policy``) and is signed with it.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Self

from cascade.errors import InvalidInput
from cascade.local import Prompt
from cascade.request import Message, check_options
from cascade.strict import Fields

_INPUT = "{input}"
OUT_OF_SCOPE = "out_of_scope"
"""The veto on an answer that says that the input is none of the task's."""


@dataclass(frozen=True, slots=True)
class Example:
    """An input with its right answer, one of the task's options."""

    text: str
    answer: str


@dataclass(frozen=True, slots=True)
class Task:
    """How a closed question is put to the device and to the cluster.

    Arguments:
        task_id: short name, e.g. ``"sentiment"``.
        options: the allowed answers, in a fixed order; empty for free text, see ``free``.
        device_prompt: completion prompt for the device; ``{input}`` stands for the input.
        option_prefix: what precedes an answer in that completion, e.g. ``" "``.
        cloud_prompt: user message for larger models; ``{input}`` stands for the input.
        prior_correction: whether each answer's log probability under the prompt with an empty
            input is subtracted.
        examples: inputs with their answers, shown before the input: as completed prompts to the
            device, as earlier turns to the cluster.
        outside: the option, if there is one, that says that the input is none of the task's. A
            device never keeps that answer: the request is for the cluster.
    """

    task_id: str
    options: tuple[str, ...]
    device_prompt: str
    option_prefix: str
    cloud_prompt: str
    prior_correction: bool = True
    examples: tuple[Example, ...] = ()
    outside: str = ""

    def for_device(self, text: str) -> Prompt:
        """The device's prompt for an input."""
        shown = "".join(
            f"{self._device(example.text)}{self.option_prefix}{example.answer}\n\n"
            for example in self.examples
        )
        return shown + self._device(text)

    def prior_prompt(self) -> Prompt | None:
        """The device's prompt with an empty input, or ``None`` without prior correction."""
        return self.for_device("") if self.prior_correction else None

    def for_cloud(self, text: str) -> tuple[Message, ...]:
        """The cluster's messages for an input."""
        turns: list[Message] = []
        for example in self.examples:
            turns.append(Message("user", self._cloud(example.text)))
            turns.append(Message("assistant", example.answer))
        return (*turns, Message("user", self._cloud(text)))

    def asked_like(self, other: Task) -> bool:
        """Whether both ask the same in the same words, under whatever id."""
        return dataclasses.replace(self, task_id=other.task_id) == other

    def is_outside(self, answer: str) -> bool:
        """Whether an answer says that the input is none of the task's."""
        return bool(self.outside) and answer == self.outside

    def to_json(self) -> dict[str, object]:
        """Plain values for a policy file."""
        value: dict[str, object] = {
            "task_id": self.task_id,
            "options": list(self.options),
            "device_prompt": self.device_prompt,
            "option_prefix": self.option_prefix,
            "cloud_prompt": self.cloud_prompt,
            "prior_correction": self.prior_correction,
            "examples": [{"text": e.text, "answer": e.answer} for e in self.examples],
        }
        if self.outside:
            value["outside"] = self.outside
        return value

    @classmethod
    def from_json(cls, value: object, *, where: str = "task") -> Self:
        """Read what ``to_json`` wrote.

        Raises:
            InvalidInput: a field is missing, unknown or unusable; it is named.
        """
        fields = Fields(value, where)
        task = cls(
            task_id=fields.text("task_id"),
            options=fields.texts("options"),
            device_prompt=fields.text("device_prompt"),
            option_prefix=fields.text("option_prefix"),
            cloud_prompt=fields.text("cloud_prompt"),
            prior_correction=fields.boolean("prior_correction"),
            examples=_examples(fields.take("examples"), fields.path("examples")),
            outside=fields.text("outside") if fields.given("outside") else "",
        )
        fields.end()
        if task.options:
            check_options(task.options)
        elif task != free(task.task_id):
            raise InvalidInput(f"{where}.options", "are missing; free text has no wording either")
        for name in ("device_prompt", "cloud_prompt"):
            if _INPUT not in getattr(task, name):
                raise InvalidInput(f"{where}.{name}", f"does not contain {_INPUT}")
        if task.outside and task.outside not in task.options:
            raise InvalidInput(f"{where}.outside", f"{task.outside!r} is no option")
        for example in task.examples:
            if example.answer not in task.options:
                raise InvalidInput(f"{where}.examples", f"{example.answer!r} is no option")
        return task

    def _device(self, text: str) -> str:
        return self.device_prompt.replace(_INPUT, text)

    def _cloud(self, text: str) -> str:
        return self.cloud_prompt.replace(_INPUT, text)


def _examples(value: object, where: str) -> tuple[Example, ...]:
    if not isinstance(value, list):
        raise InvalidInput(where, "must be a list")
    examples = []
    for index, item in enumerate(value):
        fields = Fields(item, f"{where}[{index}]")
        examples.append(Example(fields.text("text"), fields.text("answer")))
        fields.end()
    return tuple(examples)


def of_labels(task_id: str, labels: tuple[str, ...]) -> Task:
    """The task of a classifier: its labels are the options, and there is nothing to be worded."""
    return Task(
        task_id=task_id,
        options=labels,
        device_prompt=_INPUT,
        option_prefix="",
        cloud_prompt=_INPUT,
        prior_correction=False,
    )


def free(task_id: str) -> Task:
    """The task of free text under one task id: asked as the request says, so not worded."""
    return Task(
        task_id=task_id,
        options=(),
        device_prompt=_INPUT,
        option_prefix="",
        cloud_prompt=_INPUT,
        prior_correction=False,
    )


def generic(options: tuple[str, ...]) -> Task:
    """The wording for a closed question where no task says how to ask it. Judged by no policy."""
    return Task(
        task_id="",
        options=options,
        # A completion: small models answer it better than the same question in a chat.
        device_prompt="Text: {input}\nLabel:",
        option_prefix=" ",
        cloud_prompt="{input}\n\nAnswer with one of: " + ", ".join(options) + ".",
    )
