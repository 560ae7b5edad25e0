"""Shapes of rows, and the tokens that are learned from them."""

from __future__ import annotations

import json

import pytest

from cascade.errors import InvalidInput
from cascade.request import Message
from edge.text import TextCodec
from edge.training import LessonMaker, TrainingExample, example_of, read_examples

USER = (Message("user", "red?"),)


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"prompt": "red?", "answer": "yes"}, TrainingExample(USER, "yes")),
        (
            {"prompt": "red?", "answer": "yes", "options": ["yes", "no"], "weight": 2},
            TrainingExample(USER, "yes", ("yes", "no"), 2.0),
        ),
        (
            {
                "messages": [
                    {"role": "system", "content": "Be good."},
                    {"role": "user", "content": "red?"},
                    {"role": "assistant", "content": "yes"},
                ]
            },
            TrainingExample((Message("system", "Be good."), *USER), "yes"),
        ),
        ({"instruction": "red?", "input": "", "output": "yes"}, TrainingExample(USER, "yes")),
        (
            {"instruction": "red?", "context": "a", "response": "yes", "category": "qa"},
            TrainingExample((Message("user", "red?\n\na"),), "yes"),
        ),
    ],
)
def test_rows_of_every_shape_are_read(row, expected) -> None:
    assert example_of(row) == expected


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("{", "line 2: is not JSON"),
        ("[" * 200_000, "line 2: is not JSON"),
        ("[]", "line 2: must be a JSON object"),
        ({"question": "red?"}, "line 2: has none of messages, prompt and instruction"),
        ({"prompt": "red?"}, "line 2.answer: is missing"),
        ({"prompt": "", "answer": "a"}, "line 2.prompt: is empty"),
        ({"prompt": "red?", "answer": 5}, "line 2.answer: must be a string"),
        ({"prompt": "r", "answer": "a", "options": ["b", "c"]}, "line 2.answer: 'a' is none of"),
        ({"prompt": "r", "answer": "a", "options": ["a", "a"]}, "line 2.options"),
        ({"prompt": "r", "answer": "a", "weight": -1}, "line 2.weight"),
        ({"prompt": "r", "answer": "a", "weight": 1e7}, "line 2.weight: .* is not in 0 … 1e"),
        ({"prompt": "r", "answer": "a", "weight": 10**400}, "line 2.weight: must be a finite"),
        ({"prompt": "r", "answer": "a", "colour": "b"}, "line 2.colour: is not a known field"),
        ({"messages": [{"role": "user", "content": "r"}]}, "line 2.messages"),
        (
            {"messages": [{"role": "user", "content": "r"}, {"role": "user", "content": "r"}]},
            r"messages\[1\].role: must be assistant",
        ),
        (
            {"messages": [{"role": "cat", "content": "r"}, {"role": "user", "content": "r"}]},
            r"messages\[0\].role",
        ),
    ],
)
def test_an_unusable_row_is_named_by_line_and_field(tmp_path, row, said) -> None:
    path = tmp_path / "data.jsonl"
    line = row if isinstance(row, str) else json.dumps(row)
    path.write_text('{"prompt": "a", "answer": "b"}\n' + line + "\n")
    with pytest.raises(InvalidInput, match=said):
        read_examples(path)


def test_an_answer_is_learned_with_its_end(tiny) -> None:
    codec, end = TextCodec(tiny.bundle), 2  # <|im_end|>, which the template writes
    assert end in tiny.bundle.manifest.stop_token_ids[1:]
    lesson = LessonMaker(tiny.bundle).lesson(TrainingExample(USER, "good water"))
    prompt, answer = codec.encode(USER), codec.encode_plain("good water")
    assert [target.token for target in lesson.targets] == [*answer, end]
    assert lesson.targets[0].at == len(prompt) - 1
    assert lesson.segments[0].ids == (*prompt, *answer)


def test_an_example_longer_than_the_context_is_refused(tiny) -> None:
    with pytest.raises(InvalidInput, match="reads at most 512"):
        LessonMaker(tiny.bundle).lesson(TrainingExample(USER, "water " * 600))
