"""What an example is, and on which side of the split it lies."""

from __future__ import annotations

import dataclasses
import json

import pytest

from cascade.errors import InvalidInput
from cascade.request import Message
from edge.examples import HELD_OUT_SHARE


def test_its_texts_come_back_as_they_were(make):
    example = dataclasses.replace(
        make("Grüße, 世界\n", probabilities=(0.25, 0.75), device_answer="bad"),
        messages=(Message("system", "Be brief."), Message("user", "Grüße, 世界\n")),
    )
    bare = dataclasses.replace(
        example, messages=(), answer="", options=(), device_answer="", probabilities=()
    )
    assert bare.with_texts(example.texts_to_bytes()) == example


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"{}",
        b'{"messages":[["robot","x"]],"options":[],"answer":"","device_answer":"","probabilities":[]}',
        b'{"messages":[],"options":[],"answer":"","device_answer":"","probabilities":[2]}',
    ],
)
def test_texts_of_something_else_are_refused(make, data):
    with pytest.raises(InvalidInput):
        make("x").with_texts(data)


def test_a_fifth_is_kept_aside_and_stays_there(make):
    aside = [make(f"text {number}").held_out for number in range(2000)]
    assert abs(sum(aside) / 2000 - HELD_OUT_SHARE) < 0.03
    again = [make(f"text {number}", "bad").held_out for number in range(2000)]
    assert again == aside  # whatever was answered, and when


def test_copies_of_a_prompt_are_on_one_side(make):
    for number in range(50):
        sides = {make(text).held_out for text in (f"Text {number}", f" text   {number} ")}
        assert len(sides) == 1


def test_another_task_splits_otherwise(make):
    sides = [
        (make(f"text {n}").held_out, make(f"text {n}", task_id="other").held_out)
        for n in range(200)
    ]
    assert any(one != other for one, other in sides)


def test_all_that_is_exported_is_plain_json(make):
    value = json.loads(json.dumps(make("A text.").to_json()))
    assert value["messages"] == [{"role": "user", "content": "A text."}]
    assert (value["answer"], value["task"], value["source"]) == ("good", "mood", "cloud")


def test_an_answer_outside_of_the_options_is_refused(make):
    with pytest.raises(InvalidInput, match=r"example\.answer: is none of the options"):
        make("A text.", "ugly")
