"""Checks that a device's answer has to pass: plain facts about its text, which veto it whatever its
confidence.

A check that breaks counts as failed. Answers of the cluster are not checked here: there is nobody
to escalate them to.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from cascade.errors import CascadeError, InvalidInput
from cascade.structured import check_json_schema, check_regex

_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
VETO: Final = "veto:"

Check = Callable[[str], bool]
"""Whether an answer's text is right in one respect. Runs in a worker thread."""


@dataclass(frozen=True, slots=True)
class Checks:
    """The checks of a device.

    Arguments:
        named: what can be asked for, by name: ``[A-Za-z0-9._-]``, up to 64 characters.
        tasks: names of the checks that every answer of a task has to pass, by task id.

    Raises:
        InvalidInput: a name is unusable, or a task names a check that does not exist.
    """

    named: Mapping[str, Check] = field(default_factory=dict)
    tasks: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in self.named:
            if not _NAME.fullmatch(name):
                raise InvalidInput("checks", f"{name!r} is not 1 to 64 characters of A-Za-z0-9._-")
        for task, names in self.tasks.items():
            self.require(names, f"checks.tasks.{task}")

    def vetoes(self, text: str, task_id: str, asked_for: tuple[str, ...] = ()) -> tuple[str, ...]:
        """``veto:NAME`` of each check that ``text`` fails: those of its task first, then those that
        the request asks for, each once.

        Raises:
            InvalidInput: the request asks for a check that does not exist.
        """
        self.require(asked_for)
        names = dict.fromkeys((*self.tasks.get(task_id, ()), *asked_for))
        return tuple(f"{VETO}{name}" for name in names if not _passes(self.named[name], text))

    def apply(self, task_id: str, asked_for: tuple[str, ...]) -> bool:
        """Whether there is anything to check."""
        return bool(asked_for or self.tasks.get(task_id))

    def require(self, names: tuple[str, ...], where: str = "checks") -> None:
        """Raise ``InvalidInput`` where one of ``names`` is not a check."""
        for name in names:
            if name not in self.named:
                there = ", ".join(self.named) or "none"
                raise InvalidInput(where, f"no check is called {name!r}; there are: {there}")


def matches(pattern: str) -> Check:
    """The whole answer matches a regular expression, as ``cascade.structured`` reads it.

    Raises:
        InvalidInput: it cannot be read.
    """
    check_regex(pattern)
    compiled = re.compile(pattern, re.ASCII)
    return lambda text: compiled.fullmatch(text) is not None


def satisfies(json_schema: str) -> Check:
    """The answer is a JSON document that satisfies a JSON Schema (draft 2020-12), as the package
    ``jsonschema`` decides it (extra ``checks``).

    Raises:
        InvalidInput: the schema cannot be used.
        CascadeError: jsonschema is not installed.
    """
    check_json_schema(json_schema)
    try:
        from jsonschema import Draft202012Validator
        from jsonschema.exceptions import SchemaError
    except ImportError:
        raise CascadeError(
            "checks of JSON need jsonschema: pip install 'edge-cloud-cascade[checks]'"
        ) from None
    schema = json.loads(json_schema)
    try:
        Draft202012Validator.check_schema(schema)
    except SchemaError as problem:
        raise InvalidInput("json_schema", f"is no JSON Schema: {problem.message}") from None
    validator = Draft202012Validator(schema)
    return lambda text: bool(validator.is_valid(json.loads(text)))


def forbids(words: Iterable[str]) -> Check:
    """None of these words and phrases is in the answer, as whole words; case, punctuation and white
    space are looked over.

    Raises:
        InvalidInput: there are none, or one has no letter or digit.
    """
    from cascade.records import text_key  # late: few devices have such a check

    keys = []
    for word in words:
        if word.strip():
            if not any(letter.isalnum() for letter in word):
                raise InvalidInput("forbids", f"{word!r} has no letter or digit")
            keys.append(f" {text_key(word)} ")
    if not keys:
        raise InvalidInput("forbids", "has no words")

    def check(text: str) -> bool:
        said = f" {text_key(text)} "
        return not any(key in said for key in keys)

    return check


def _passes(check: Check, text: str) -> bool:
    try:
        return bool(check(text))
    except Exception:  # whatever an app's check raises, the answer has not passed it
        return False
