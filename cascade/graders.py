"""Graders: is an answer right? Functions of an answer and its reference, named by a short spec.

| spec | an answer is right where |
|---|---|
| ``exact`` | it is the reference, outer white space aside |
| ``normalised`` | it has the reference's letters and digits, case and all else aside |
| ``choice`` | it names the reference and no other option, case and punctuation aside |
| ``numeric``, ``numeric:0.01`` | its last number is the reference's, at most so far away |
| ``regex``, ``regex:EXPRESSION`` | the reference, or the expression, is found in it |
| ``python:MODULE:FUNCTION`` | a function of yours says so |
| ``judge:TIER`` | a tier of the cluster says so when asked by ``JUDGE_PROMPT`` |

A grade is 1, 0, a score between, or ``None`` where it cannot be told.
"""

from __future__ import annotations

import importlib
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from cascade.errors import InvalidInput
from cascade.records import text_key

JUDGE_PROMPT: Final = (
    "Question:\n{prompt}\n\n"
    "Reference answer:\n{reference}\n\n"
    "Given answer:\n{answer}\n\n"
    "Does the given answer say the same as the reference answer? Reply with yes or no."
)
"""What a judging tier is asked, with ``JUDGE_OPTIONS`` as the closed set of replies. Fixed, so that
two files judged by one model can be compared."""

JUDGE_OPTIONS: Final = ("yes", "no")

SPECS: Final = (
    "exact, normalised, choice, numeric[:TOLERANCE], regex[:EXPRESSION], python:MODULE:FUNCTION, "
    "judge:TIER"
)
"""Every spec, for messages and help."""

# A sign belongs to a number only where nothing is in front of it: 3-4 holds 3 and 4. Groups of
# three digits may be parted by commas.
_NUMBER = re.compile(
    r"(?<![\w.])[-+−]?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)?(?:(?<=\d)\.\d+|(?<!\d)\.\d+)?(?:[eE][-+]?\d+)?"
)


@dataclass(frozen=True, slots=True)
class Answered:
    """An answer to be graded.

    Arguments:
        prompt: what was asked.
        answer: what came back.
        reference: the right answer; ``None`` where the data has none.
        options: the closed set that was asked for; empty for free text.
    """

    prompt: str
    answer: str
    reference: str | None = None
    options: tuple[str, ...] = ()


Grade = Callable[[Answered], float | None]


@dataclass(frozen=True, slots=True)
class Grader:
    """A grader by its spec; make one with ``grader``.

    Arguments:
        spec: as ``grader`` took it.
        grade: the function; ``None`` where a tier judges.
        judge: name of the tier that judges, or empty.
        needs_reference: whether it grades nothing without a reference.
        pure: whether grading is cheap and has no effects, as that of the user's own code may.
    """

    spec: str
    grade: Grade | None
    judge: str = ""
    needs_reference: bool = True
    pure: bool = True

    def __call__(self, answered: Answered) -> float | None:
        """The grade of one answer, in [0, 1].

        Raises:
            InvalidInput: there is no reference and it takes one; the reference is unusable; a
                function of the user's raised, or returned no grade; or a tier would have to judge.
        """
        if self.grade is None:
            raise InvalidInput("grader", f"{self.spec} asks a tier; it cannot grade by itself")
        self.check(answered)
        return self.grade(answered)

    def check(self, answered: Answered) -> None:
        """Raise ``InvalidInput`` where there is no reference and it takes one."""
        if self.needs_reference and answered.reference is None:
            raise InvalidInput("reference", f"is missing; the grader {self.spec} compares with it")


def grader(spec: str) -> Grader:
    """The grader that a spec names; see the table above.

    Raises:
        InvalidInput: the spec cannot be used; what is wrong is named.
    """
    name, colon, rest = spec.partition(":")
    if colon and not rest:
        raise InvalidInput("grader", f"{spec!r} has nothing behind the colon; known are {SPECS}")
    match name:
        case "exact" if not rest:
            return Grader(spec, exact)
        case "normalised" if not rest:
            return Grader(spec, normalised)
        case "choice" if not rest:
            return Grader(spec, choice)
        case "numeric":
            tolerance = _tolerance(rest)
            return Grader(spec, lambda answered: numeric(answered, tolerance))
        case "regex":
            pattern = _pattern(rest, "grader") if rest else None
            found = _found(pattern)
            return Grader(spec, found, needs_reference=pattern is None)
        case "python" if rest:
            return Grader(spec, _from_python(rest), needs_reference=False, pure=False)
        case "judge" if rest:
            return Grader(spec, None, judge=rest, pure=False)
    raise InvalidInput("grader", f"{spec!r} is not known; known are {SPECS}")


def exact(answered: Answered) -> float:
    """1 where the answer is the reference, outer white space aside."""
    return float(answered.answer.strip() == _reference(answered).strip())


def normalised(answered: Answered) -> float:
    """1 where answer and reference are the same by ``cascade.records.text_key``: letters and digits
    by words, case folded."""
    return float(text_key(answered.answer.strip()) == text_key(_reference(answered).strip()))


def choice(answered: Answered) -> float:
    """1 where the answer is the reference, or names it and no other option, as a word.

    Case and what is neither letter nor digit are looked over; where one option is part of another
    ("yes", "yes please"), the longer one counts.

    Raises:
        InvalidInput: there are no options, the reference is none of them, or two are alike.
    """
    if not answered.options:
        raise InvalidInput("options", "are missing; the grader choice is for a closed set")
    keys = [text_key(option.strip()) for option in answered.options]
    if len(set(keys)) < len(keys):
        # "+" and "-", or "a" and "A": nothing may be looked over.
        return float(answered.answer == _reference_option(answered))
    wanted = keys[answered.options.index(_reference_option(answered))]
    answer = text_key(answered.answer.strip())
    if answer in keys:
        return float(answer == wanted)
    longest_first = sorted(keys, key=len, reverse=True)
    expression = "|".join(rf"(?<!\S){re.escape(key)}(?!\S)" for key in longest_first)
    return float(set(re.findall(expression, answer)) == {wanted})


def numeric(answered: Answered, tolerance: float = 0.0) -> float:
    """1 where the last number of the answer is the last of the reference, at most ``tolerance``
    away (and 1e-9 of its size, for rounding). 0 where the answer has none.

    Thousands may be parted by commas; what is around a number (units, currency) is looked over.

    Raises:
        InvalidInput: the reference holds no number.
    """
    wanted = last_number(_reference(answered))
    if wanted is None:
        raise InvalidInput("reference", f"{answered.reference!r} holds no number")
    given = last_number(answered.answer)
    if given is None:
        return 0.0
    return float(math.isclose(given, wanted, rel_tol=1e-9, abs_tol=tolerance))


def last_number(text: str) -> float | None:
    """The last finite number in a text, or ``None``."""
    numbers = (match[0] for match in _NUMBER.finditer(text) if re.search(r"\d", match[0]))
    values = [float(number.replace(",", "").replace("−", "-")) for number in numbers]
    finite = [value for value in values if math.isfinite(value)]
    return finite[-1] if finite else None


def judge_prompt(answered: Answered) -> str:
    """What a judging tier is asked about an answer; its reply is one of ``JUDGE_OPTIONS``."""
    parts = {
        "prompt": answered.prompt,
        "reference": _reference(answered),
        "answer": answered.answer,
    }
    # One pass: braces in a text are not filled in.
    return re.sub(r"\{(prompt|reference|answer)\}", lambda name: parts[name[1]], JUDGE_PROMPT)


def judged(reply: str) -> float:
    """The grade that a judging tier's reply means."""
    return float(reply.strip().casefold() == JUDGE_OPTIONS[0])


def _found(pattern: re.Pattern[str] | None) -> Grade:
    def found(answered: Answered) -> float:
        expression = pattern or _pattern(_reference(answered), "reference")
        return float(expression.search(answered.answer) is not None)

    return found


def _from_python(spec: str) -> Grade:
    module_name, colon, name = spec.partition(":")
    if not (colon and module_name and name):
        raise InvalidInput("grader", f"python:{spec} is not python:MODULE:FUNCTION")
    try:
        function = getattr(importlib.import_module(module_name), name)
    except ImportError as problem:
        raise InvalidInput(
            "grader", f"cannot import {module_name} ({problem}); is it on PYTHONPATH?"
        ) from None
    except AttributeError:
        raise InvalidInput("grader", f"{module_name} has no {name}") from None
    if not callable(function):
        raise InvalidInput("grader", f"{spec} is no function")

    def grade(answered: Answered) -> float | None:
        try:
            value = function(answered)
        except Exception as problem:
            raise InvalidInput(
                "grader", f"{spec} raised {type(problem).__name__}: {problem}"
            ) from problem
        if value is None:
            return None
        try:
            number = float(value)
        except (TypeError, ValueError):
            number = math.nan
        if not 0 <= number <= 1:
            raise InvalidInput("grader", f"{spec} returned {value!r}, not None or 0 … 1")
        return number

    return grade


def _tolerance(text: str) -> float:
    try:
        value = float(text or "0")
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise InvalidInput("grader", f"numeric:{text} has no tolerance of at least 0")
    return value


def _pattern(text: str, field: str) -> re.Pattern[str]:
    try:
        return re.compile(text)
    except (re.error, OverflowError, RecursionError) as problem:
        raise InvalidInput(field, f"{text!r} is no regular expression ({problem})") from None


def _reference(answered: Answered) -> str:
    if answered.reference is None:
        raise InvalidInput("reference", "is missing")
    return answered.reference


def _reference_option(answered: Answered) -> str:
    reference = _reference(answered)
    if reference not in answered.options:
        raise InvalidInput(
            "reference", f"{reference!r} is none of the options {', '.join(answered.options)}"
        )
    return reference
