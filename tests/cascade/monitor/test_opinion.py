"""What a second opinion says of an answer: by equality in a closed set, by a grader elsewhere."""

from __future__ import annotations

import pytest

from cascade.errors import InvalidInput, RemoteError
from cascade.graders import Answered
from cascade.monitor.opinion import Opinions, Unlabelled
from cascade.request import Message, Request

CLOSED = Request((Message("user", "what a day"),), options=("good", "bad"))
FREE = Request((Message("user", "7 × 6?"),))


def says(text: str):
    async def ask() -> str:
        return text

    return ask


async def fails() -> str:
    raise RemoteError("UNAVAILABLE", "gone, and this names the input")


async def never() -> str:
    raise AssertionError("nobody is to be asked")


def half(answered: Answered) -> float:
    return 0.5


def as_long(answered: Answered) -> float:
    assert answered.prompt == "7 × 6?"
    return float(len(answered.answer) == len(answered.reference or ""))


def raising(answered: Answered) -> float:
    raise OSError("a private text")


@pytest.mark.parametrize("grader", ["", "exact"])
async def test_a_closed_set_takes_the_very_same_option(grader):
    opinions = Opinions(grader)
    assert opinions.source(CLOSED, can_ask=True) == "tier"
    assert opinions.source(CLOSED, can_ask=False) is None
    assert not await opinions.wrong(CLOSED, "good", says("good"))
    assert await opinions.wrong(CLOSED, "good", says("bad"))
    with pytest.raises(Unlabelled, match="none of the options"):
        await opinions.wrong(CLOSED, "good", says("Good"))


@pytest.mark.parametrize(
    ("grader", "answer", "other", "wrong"),
    [
        ("exact", "42", "42 ", False),
        ("exact", "42", "It is 42.", True),
        ("normalised", "Forty-two!", "forty two", False),
        ("normalised", "forty", "forty two", True),
        ("numeric", "so it is 42", "42.0 in all", False),
        ("numeric:1", "41", "42", False),
        ("numeric", "41", "42", True),
        ("python:tests.cascade.monitor.test_opinion:as_long", "ab", "cd", False),
        ("python:tests.cascade.monitor.test_opinion:as_long", "ab", "c", True),
    ],
)
async def test_free_text_takes_a_grader_for_which_the_tier_is_the_reference(
    grader, answer, other, wrong
):
    opinions = Opinions(grader)
    assert opinions.source(FREE, can_ask=True) == "tier"
    assert opinions.source(FREE, can_ask=False) is None
    assert await opinions.wrong(FREE, answer, says(other)) is wrong


async def test_an_expression_grades_by_itself_and_asks_nobody():
    opinions = Opinions(r"regex:^\d+$")
    for can_ask in (True, False):
        assert opinions.source(FREE, can_ask=can_ask) == "grader"
    assert not await opinions.wrong(FREE, "42", never)
    assert await opinions.wrong(FREE, "forty", None)


async def test_without_a_grader_nobody_labels_free_text():
    assert Opinions().source(FREE, can_ask=True) is None
    with pytest.raises(Unlabelled, match="no grader"):
        await Opinions().wrong(FREE, "42", never)


@pytest.mark.parametrize(
    ("grader", "ask", "why"),
    [
        ("exact", fails, "^UNAVAILABLE$"),
        ("exact", None, "nobody to ask"),
        ("numeric", says("many"), "^the grader numeric cannot grade it$"),
        ("python:tests.cascade.monitor.test_opinion:raising", says("x"), "cannot grade it$"),
        ("python:tests.cascade.monitor.test_opinion:half", says("x"), "neither right nor wrong"),
    ],
)
async def test_what_cannot_be_compared_gives_no_label_and_tells_no_text(grader, ask, why):
    with pytest.raises(Unlabelled, match=why):
        await Opinions(grader).wrong(FREE, "42", ask)


@pytest.mark.parametrize("grader", ["choice", "regex", "judge:tier1", "fuzzy", "python:os:nothing"])
def test_a_grader_that_cannot_compare_two_texts_is_refused(grader):
    with pytest.raises(InvalidInput, match="grader"):
        Opinions(grader)
