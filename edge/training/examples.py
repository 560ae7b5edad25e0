"""Examples to learn from: rows of a JSONL file, and the lesson that each of them is.

Three shapes are read. ``{"messages": [{"role", "content"}, …]}`` ends with the assistant's answer;
``{"prompt", "answer"}`` may name ``"options"``, a closed set; ``{"instruction", "input",
"output"}`` is Alpaca's, with ``context`` and ``response`` in Dolly's words. Any may have a
``"weight"``. A closed set is worded as ``Device.choose`` words it, so that what is learned is what
will be asked.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from cascade.errors import InvalidInput, NotFound
from cascade.request import Message, check_options
from cascade.strict import Fields
from cascade.task import Task, generic
from edge.bundle import Bundle
from edge.text import TextCodec
from edge.training.lesson import Lesson, choice_lesson, text_lesson
from edge.trie import Trie, build_trie

MAX_WEIGHT = 1e6
"""Of an example: sums of weights stay far from what a float can hold."""

_ROLES = ("system", "user", "assistant")
_CATEGORY = "category"  # Dolly's, of no use here


@dataclass(frozen=True, slots=True)
class TrainingExample:
    """A question with the right answer.

    Arguments:
        messages: the conversation up to the answer; of a closed set one message, the input itself.
        options: the closed set of which ``answer`` is one; empty for free text.
        weight: among other examples, in [0, ``MAX_WEIGHT``].
    """

    messages: tuple[Message, ...]
    answer: str
    options: tuple[str, ...] = ()
    weight: float = 1.0


def read_examples(path: Path, task: Task | None = None) -> list[TrainingExample]:
    """The examples of a JSONL file.

    Arguments:
        task: gives options to rows of prompt and answer that name none.

    Raises:
        NotFound: there is no such file.
        InvalidInput: a row is of no known shape; its line and field are named.
    """
    try:
        content = path.read_bytes()
    except (FileNotFoundError, IsADirectoryError):
        raise NotFound(f"there is no file {path}") from None
    examples = []
    for number, line in enumerate(content.split(b"\n"), start=1):
        if not line.strip():
            continue
        where = f"{path.name} line {number}"
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as problem:
            raise InvalidInput(where, f"is not JSON ({problem})") from None
        examples.append(example_of(value, where, task))
    if not examples:
        raise InvalidInput(path.name, "holds no example")
    return examples


def example_of(value: object, where: str = "example", task: Task | None = None) -> TrainingExample:
    """One example from plain JSON values; see ``read_examples``."""
    fields = Fields(value, where)
    given = value if isinstance(value, dict) else {}
    if "messages" in given:
        messages, answer = _conversation(fields.take("messages"), fields.path("messages"))
        options: tuple[str, ...] = ()
    elif "instruction" in given:
        messages, answer = _instruction(fields, given)
        options = ()
    elif "prompt" in given:
        messages = (Message("user", _words(fields, "prompt")),)
        answer = _words(fields, "answer")
        options = fields.texts("options") if fields.given("options") else ()
        options = options or (task.options if task is not None else ())
    else:
        raise InvalidInput(
            where, "has none of messages, prompt and instruction; give one of these shapes"
        )
    if options:
        try:
            check_options(options)
        except InvalidInput as problem:
            raise InvalidInput(fields.path("options"), problem.problem) from None
        if answer not in options:
            raise InvalidInput(fields.path("answer"), f"{answer!r} is none of the options")
    weight = fields.number("weight", 0.0, MAX_WEIGHT) if fields.given("weight") else 1.0
    fields.end()
    return TrainingExample(messages, answer, options, weight)


class LessonMaker:
    """Turns examples into the lessons of one bundle.

    Arguments:
        task: how closed sets with its options are worded; others as ``cascade.task.generic``.
    """

    def __init__(self, bundle: Bundle, task: Task | None = None) -> None:
        self._codec = TextCodec(bundle)
        self._stops = bundle.manifest.stop_token_ids
        self._context = bundle.manifest.context_tokens
        self._task = task
        self._tries: dict[tuple[str, tuple[str, ...]], Trie] = {}

    def lesson(self, example: TrainingExample) -> Lesson:
        """What is learned from an example.

        Raises:
            InvalidInput: it does not fit into the model's context, or cannot be encoded.
        """
        lesson = self._choice(example) if example.options else self._text(example)
        longest = max(map(len, lesson.segments))
        if longest > self._context:
            raise InvalidInput(
                "example", f"has {longest} tokens; the model reads at most {self._context}"
            )
        return lesson

    def task_of(self, options: tuple[str, ...]) -> Task:
        """How a closed set is worded."""
        if self._task is not None and self._task.options == options:
            return self._task
        return generic(options)

    def _choice(self, example: TrainingExample) -> Lesson:
        task = self.task_of(example.options)
        prior = task.prior_prompt()
        return choice_lesson(
            self._codec.encode(task.for_device(example.messages[-1].content)),
            self._trie(task.option_prefix, example.options),
            example.options.index(example.answer),
            prior=None if prior is None else self._codec.encode(prior),
            weight=example.weight,
        )

    def _trie(self, prefix: str, options: tuple[str, ...]) -> Trie:
        key = (prefix, options)
        if key not in self._tries:
            encoded = [self._codec.encode_plain(prefix + option) for option in options]
            self._tries[key] = build_trie(encoded)
        return self._tries[key]

    def _text(self, example: TrainingExample) -> Lesson:
        prompt = self._codec.encode(example.messages)
        answer = self._codec.encode_plain(example.answer)
        # How the template ends an answer shows where it goes on behind one.
        behind = self._codec.encode((*example.messages, Message("assistant", example.answer)))
        ends = (token for token in behind[len(prompt) :] if token in self._stops)
        return text_lesson(prompt, [*answer, next(ends, self._stops[0])], weight=example.weight)


def _conversation(value: object, where: str) -> tuple[tuple[Message, ...], str]:
    if not isinstance(value, list) or len(value) < 2:
        raise InvalidInput(where, "must be a list of two or more messages")
    messages = []
    for index, item in enumerate(value):
        fields = Fields(item, f"{where}[{index}]")
        role = fields.choice("role", _ROLES)
        messages.append(Message(role, _words(fields, "content")))  # type: ignore[arg-type]
        fields.end()
    if messages[-1].role != "assistant":
        raise InvalidInput(f"{where}[{len(value) - 1}].role", "must be assistant: the answer")
    return tuple(messages[:-1]), messages[-1].content


def _instruction(fields: Fields, given: dict[str, object]) -> tuple[tuple[Message, ...], str]:
    instruction = _words(fields, "instruction")
    for name in ("input", "context"):
        if fields.given(name) and (more := fields.text(name).strip()):
            instruction = f"{instruction}\n\n{more}"
    answer = _words(fields, "output" if "output" in given else "response")
    if fields.given(_CATEGORY):
        fields.text(_CATEGORY)
    return (Message("user", instruction),), answer


def _words(fields: Fields, name: str) -> str:
    text = fields.text(name)
    if not text.strip():
        raise InvalidInput(fields.path(name), "is empty")
    return text
