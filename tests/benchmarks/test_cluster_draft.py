"""The figures of drafts: where answers part, how near the model was to the other one, all rows."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from benchmarks.cluster.draft import CLOSE, Answered, Measured, Written, figures
from benchmarks.cluster.parting import gaps, where_they_part
from benchmarks.run import Run
from cascade.draft import Drafting, DraftTape
from cascade.remote import Speed
from tests.edge.build.folders import END, save_model, save_text

CONTEXT = 256
PROMPT = "Is it?"
RUN = Run(quick=True, hardware="a machine")


@given(st.lists(st.integers(5, 9), max_size=8), st.lists(st.integers(5, 9), max_size=8))
def test_answers_part_behind_what_both_begin_with(one: list[int], other: list[int]) -> None:
    if one == other:
        return
    beginnings = list(where_they_part(one, other, (2, 3)))
    same = len(beginnings[0]) - 1
    assert {len(each) for each in beginnings} == {same + 1}
    assert {each[:same] for each in beginnings} == {tuple(one[:same])} == {tuple(other[:same])}
    following = {each[same] for each in beginnings}
    expected = set()
    for tokens in (one, other):
        expected |= {2, 3} if same == len(tokens) else {tokens[same]}
    assert following == expected
    assert len(following) > 1


def with_rivals(folder: Path, best: int, rival: int, first: int, by: float) -> None:
    """Save a model that answers the prompt with ``first`` and goes on with ``best``, whose logit is
    then ``by`` above that of ``rival``, and both far above all others."""
    model = save_model(folder, "llama", max_position_embeddings=CONTEXT, tie_word_embeddings=False)
    ids = tokens(folder, f"<|im_start|>{PROMPT}<|im_end|>")
    with torch.inference_mode():
        states = model.model(torch.tensor([[*ids, first]])).last_hidden_state[0, -2:]
        # A logit is linear in its row of the head: at either place it is whatever one likes, and 0
        # at the other one.
        dual = torch.linalg.pinv(states).T * 40.0
        model.lm_head.weight[first] = dual[0]
        model.lm_head.weight[best] = dual[1]
        model.lm_head.weight[rival] = dual[1] * (1.0 - by / 40.0)
    model.save_pretrained(folder)


def tokens(folder: Path, text: str) -> list[int]:
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    return list(tokenizer.encode(text, add_special_tokens=False).ids)


@pytest.mark.parametrize(("by", "close"), [(0.0, True), (2e-4, True), (0.5, False)])
@pytest.mark.parametrize("ended", [False, True])
async def test_the_gap_is_that_of_the_two_best_tokens_where_answers_part(
    tmp_path: Path, by: float, close: bool, ended: bool
) -> None:
    """One answer goes on as the model does, or ends with it; the other one as its rival says."""
    save_text(tmp_path)
    first, best, rival = (tokens(tmp_path, letter)[0] for letter in "zxy")
    with_rivals(tmp_path, END if ended else best, rival, first, by)
    pair = ("z" if ended else "zx and so", "zy on")
    found = await gaps(tmp_path, [(PROMPT, pair), (PROMPT, pair[::-1])], context_tokens=CONTEXT)
    assert found == pytest.approx([by, by], abs=1e-4)
    assert [gap < CLOSE for gap in found] == [close, close]


def written() -> Written:
    return Written((1, 2, 3, 4), ("a", "b", "c", "d"), True, 0.2, 1.0, "d" * 64)


def measured(**changed: object) -> Measured:
    """Six prompts with known times."""
    speed = Speed(4, 0.08, 3, 0.9)
    plain = [Answered("text", 8, 2.0 + place, None, None, 2.0) for place in range(6)]
    drafted = [Answered("text", 8, 1.0 + place, 3, speed, 1.0) for place in range(6)]
    live = [replace(each, seconds=each.seconds + 0.5) for each in drafted]
    default = [Answered("other", 8, 0.5, None) for _ in range(6)]
    made = Measured([written()] * 6, plain, drafted, live, default, (), 16)
    return replace(made, **changed)


def test_all_rows_follow_from_what_was_measured() -> None:
    rows = {row.figure: row for row in figures(measured(gaps=(1e-5, 0.2, 0.0)), RUN)}
    found = {name: row.value for name, row in rows.items()}
    assert found == {
        "answers that a draft changed, logits not close": 1,
        "answers that a draft changed, logits close": 2,
        "tokens of the drafts kept": 75.0,
        "token that the tier writes": pytest.approx(0.3),
        "token of a draft that the tier reads": pytest.approx(0.02),
        "token of the device": 0.2,
        "answer without a draft, wall time": 4.5,
        "answer with a draft that is there, wall time": 3.5,
        "answer with a draft that is there over one without": pytest.approx((3 / 4 + 4 / 5) / 2),
        "answer without a draft, the tier's CPU time": 2.0,
        "answer with a draft over one without, the tier's CPU time": 0.5,
        "answer with a draft, the device's time included": 4.5,
        "answer with a draft that is written meanwhile, wall time": 4.0,
        "answer with a draft that is written meanwhile over one without": pytest.approx(
            (3.5 / 4 + 4.5 / 5) / 2
        ),
        "answer of the default engine, wall time": 0.5,
    }
    changed = rows["answers that a draft changed, logits not close"]
    assert (changed.reach, changed.sense, changed.n) == (0.0, "<=", 12)
    assert all(row.quick and row.how and row.n for row in rows.values())


def test_a_tier_that_tells_no_speed_leaves_its_rows_without_a_value() -> None:
    silent = [replace(each, speed=None) for each in measured().drafted]
    found = {row.figure: row.value for row in figures(measured(drafted=silent, live=silent), RUN)}
    assert found["token that the tier writes"] is None
    assert found["token of a draft that the tier reads"] is None
    assert found["answers that a draft changed, logits not close"] == 0


@pytest.mark.parametrize("live", [False, True])
async def test_a_draft_goes_onto_a_tape_as_it_was_written(live: bool) -> None:
    tape = DraftTape(Drafting(acceptance=0.999, write_s=1.0, read_s=1e-6))
    quick = replace(written(), token_s=0.01, seconds=0.05)
    began = time.monotonic()
    await quick.onto(tape, live=live)
    assert (tape.tokens, tape.text, tape.ended, tape.complete) == (4, "abcd", True, True)
    assert not live or time.monotonic() - began >= 0.04
