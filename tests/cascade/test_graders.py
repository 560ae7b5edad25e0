"""Graders say what is right, and refuse what they cannot tell."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cascade.errors import InvalidInput
from cascade.graders import (
    JUDGE_OPTIONS,
    Answered,
    exact,
    grader,
    judge_prompt,
    judged,
    last_number,
)

YES_NO = ("yes", "no", "yes please")


def grade(spec: str, answer: str, reference: str | None = None, *options: str) -> float | None:
    return grader(spec)(Answered("What?", answer, reference, options))


@pytest.mark.parametrize(
    ("answer", "reference", "right"),
    [("Paris", "Paris", 1), (" Paris\n", "Paris", 1), ("paris", "Paris", 0), ("", "Paris", 0)],
)
def test_exact_compares_the_text(answer: str, reference: str, right: float) -> None:
    assert grade("exact", answer, reference) == right


@pytest.mark.parametrize(
    ("answer", "reference", "right"),
    [
        ("yes", "yes", 1),
        ("Yes.", "yes", 1),
        ("The answer is: no!", "no", 1),
        ("yes or no", "yes", 0),
        ("yes please", "yes", 0),
        ("Yes, please.", "yes please", 1),
        ("Oh yes please do", "yes please", 1),
        ("yes, yes", "yes", 1),
        ("nobody knows", "no", 0),
        ("maybe", "yes", 0),
        ("", "yes", 0),
    ],
)
def test_choice_finds_the_one_option_that_is_named(
    answer: str, reference: str, right: float
) -> None:
    assert grade("choice", answer, reference, *YES_NO) == right


def test_options_that_differ_in_signs_alone_are_compared_as_they_are() -> None:
    assert grade("choice", "+", "+", "+", "-") == 1
    assert grade("choice", "-", "+", "+", "-") == 0
    assert grade("choice", "a", "A", "A", "a") == 0
    assert grade("choice", "A", "A", "A", "a") == 1


@given(st.sampled_from(YES_NO), st.sampled_from(YES_NO))
def test_among_the_options_choice_is_equality(answer: str, reference: str) -> None:
    assert grade("choice", answer, reference, *YES_NO) == (answer == reference)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("The answer is 1,234.50 dollars.", 1234.5),
        ("so 3-4", 4),
        ("-5", -5),
        ("x = −7", -7),
        ("1e3", 1000),
        (".5", 0.5),
        ("It is 3.", 3),
        ("#### 42", 42),
        ("1,000,000", 1_000_000),
        ("5 %", 5),
        ("first 1 then 2", 2),
        ("x2", None),
        ("none", None),
        ("1e999", None),
    ],
)
def test_the_last_number_of_a_text(text: str, number: float | None) -> None:
    assert last_number(text) == number


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_a_number_is_found_as_it_was_written(number: float) -> None:
    assert last_number(f"about {number!r} or so") == number


@pytest.mark.parametrize(
    ("spec", "answer", "reference", "right"),
    [
        ("numeric", "It is 42.", "#### 42", 1),
        ("numeric", "42.001", "42", 0),
        ("numeric:0.01", "42.001", "42", 1),
        ("numeric:0.01", "42.1", "42", 0),
        ("numeric", "0.30000000000000004", "0.3", 1),
        ("numeric", "no idea", "42", 0),
        ("regex:^[0-9]{3}$", "123", None, 1),
        ("regex:^[0-9]{3}$", "1234", None, 0),
        ("regex:a:b", "xa:by", None, 1),
        ("regex", "colour", "colou?r", 1),
        ("regex", "colr", "colou?r", 0),
    ],
)
def test_numbers_and_expressions(
    spec: str, answer: str, reference: str | None, right: float
) -> None:
    assert grade(spec, answer, reference) == right


@pytest.mark.parametrize(
    ("spec", "reference", "options", "message"),
    [
        ("exact", None, (), "reference: is missing; the grader exact compares"),
        ("regex", None, (), "reference: is missing"),
        ("regex", "[", (), "reference: '\\[' is no regular expression"),
        ("numeric", "many", (), "reference: 'many' holds no number"),
        ("choice", "yes", (), "options: are missing"),
        ("choice", "maybe", YES_NO, "reference: 'maybe' is none of the options yes, no, yes pl"),
    ],
)
def test_what_cannot_be_told_is_refused(
    spec: str, reference: str | None, options: tuple[str, ...], message: str
) -> None:
    with pytest.raises(InvalidInput, match=message):
        grade(spec, "x", reference, *options)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("", "is not known; known are exact, normalised, choice"),
        ("exakt", "'exakt' is not known"),
        ("exact:1", "'exact:1' is not known"),
        ("numeric:", "nothing behind the colon"),
        ("numeric:-1", "no tolerance of at least 0"),
        ("numeric:nan", "no tolerance of at least 0"),
        ("numeric:x", "no tolerance of at least 0"),
        ("regex:(", "no regular expression"),
        ("python", "'python' is not known"),
        ("python:module", "is not python:MODULE:FUNCTION"),
        ("python:no_such_module_here:f", "cannot import no_such_module_here"),
        ("python:math:nope", "math has no nope"),
        ("python:math:pi", "is no function"),
        ("judge", "'judge' is not known"),
    ],
)
def test_specs_that_cannot_be_used_are_refused(spec: str, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        grader(spec)


@pytest.fixture
def my_graders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / "my_graders.py").write_text(
        "def half(answered): return 0.5 if answered.answer else None\n"
        "def right(answered): return answered.answer == answered.prompt\n"
        "def breaks(answered): raise KeyError('x')\n"
        "def two(answered): return 2\n"
        "def text(answered): return 'yes'\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    sys.modules.pop("my_graders", None)


def test_a_function_of_ones_own_grades(my_graders: None) -> None:
    assert grade("python:my_graders:half", "x") == 0.5
    assert grade("python:my_graders:half", "") is None
    assert grade("python:my_graders:right", "What?") == 1.0


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("breaks", "my_graders:breaks raised KeyError: 'x'"),
        ("two", "returned 2, not None or 0 … 1"),
        ("text", "returned 'yes', not None or 0 … 1"),
    ],
)
def test_a_function_that_gives_no_grade_is_named(my_graders: None, name: str, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        grade(f"python:my_graders:{name}", "x")


def test_a_judge_is_asked_by_a_fixed_prompt() -> None:
    prompt = judge_prompt(Answered("What is {answer}?", "{prompt}", "four"))
    assert prompt == (
        "Question:\nWhat is {answer}?\n\nReference answer:\nfour\n\nGiven answer:\n{prompt}\n\n"
        "Does the given answer say the same as the reference answer? Reply with yes or no."
    )
    assert [judged(reply) for reply in (*JUDGE_OPTIONS, " Yes\n", "yes, but")] == [1, 0, 1, 0]
    with pytest.raises(InvalidInput, match="asks a tier; it cannot grade by itself"):
        grade("judge:tier2", "x", "y")
    with pytest.raises(InvalidInput, match="reference: is missing"):
        judge_prompt(Answered("a", "b"))


def test_graders_are_plain_functions() -> None:
    assert exact(Answered("p", "a", "a")) == 1.0
