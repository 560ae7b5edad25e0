"""A task words a closed question the same way every time, and its file is read strictly."""

from __future__ import annotations

from dataclasses import replace

import pytest

from cascade.errors import InvalidInput
from cascade.request import Message
from cascade.task import Example, Task, free, generic

MOOD = Task(
    task_id="mood",
    options=("good", "bad"),
    device_prompt="Review: {input}\nMood:",
    option_prefix=" ",
    cloud_prompt="Good or bad? {input}",
    examples=(Example("Nice!", "good"), Example("No.", "bad")),
)


def test_examples_are_completed_prompts_for_the_device():
    assert MOOD.for_device("Hm {input}") == (
        "Review: Nice!\nMood: good\n\nReview: No.\nMood: bad\n\nReview: Hm {input}\nMood:"
    )


def test_examples_are_earlier_turns_for_the_cluster():
    assert MOOD.for_cloud("Hm") == (
        Message("user", "Good or bad? Nice!"),
        Message("assistant", "good"),
        Message("user", "Good or bad? No."),
        Message("assistant", "bad"),
        Message("user", "Good or bad? Hm"),
    )


def test_the_prior_prompt_has_an_empty_input_and_the_same_examples():
    assert MOOD.prior_prompt() == MOOD.for_device("")


def test_a_task_survives_its_file():
    assert Task.from_json(MOOD.to_json()) == MOOD
    neither = replace(MOOD, options=("good", "bad", "neither"), outside="neither")
    assert Task.from_json(neither.to_json()) == neither
    assert neither.is_outside("neither")
    assert not neither.is_outside("good")
    assert "outside" not in MOOD.to_json(), "files of before read alike"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"options": ["good"]}, "at least two"),
        ({"device_prompt": "Mood:"}, r"task\.device_prompt: does not contain"),
        ({"cloud_prompt": "Mood?"}, r"task\.cloud_prompt: does not contain"),
        ({"examples": [{"text": "x", "answer": "ugly"}]}, "'ugly' is no option"),
        ({"examples": [{"text": "x"}]}, r"examples\[0\]\.answer"),
        ({"examples": "none"}, r"task\.examples"),
        ({"outside": "neither"}, r"task\.outside: 'neither' is no option"),
        ({"colour": 1}, "colour"),
    ],
)
def test_an_unusable_field_is_named(change, message):
    with pytest.raises(InvalidInput, match=message):
        Task.from_json(MOOD.to_json() | change)


def test_without_a_task_the_options_are_in_the_clusters_prompt():
    (message,) = generic(("yes", "no")).for_cloud("Is it?")
    assert message == Message("user", "Is it?\n\nAnswer with one of: yes, no.")


def test_free_text_is_a_task_without_options_or_wording() -> None:
    assert Task.from_json(free("talk").to_json()) == free("talk")
    worded = free("talk").to_json() | {"device_prompt": "Say: {input}"}
    with pytest.raises(InvalidInput, match=r"task\.options"):
        Task.from_json(worded)
