"""The group writes rows as agreed, on answers that are drawn as they say."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.decision import early_stop
from benchmarks.decision.decoded import MAX_TOKENS, SHAPES, Shape, draw
from benchmarks.decision.questions import questions
from cascade.calibrate import fit_platt
from cascade.records import load


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)
def test_drawn_answers_have_the_score_of_their_tokens(shape: Shape) -> None:
    drawn = draw(shape, 500, seed=1)
    signals = drawn.signals
    assert signals.tokens.min() >= 1
    assert signals.tokens.max() <= MAX_TOKENS
    first = signals.logprobs[: signals.tokens[0]]
    assert drawn.score[0] == pytest.approx(np.exp(first.mean()))
    assert 0.2 < drawn.correct.mean() < 0.9
    assert drawn.score[drawn.correct].mean() > drawn.score[~drawn.correct].mean()
    assert (draw(shape, 500, seed=1).score == drawn.score).all()
    assert (draw(shape, 500, seed=2).score != drawn.score).any()


def test_one_draw_gives_shares_and_saves_where_difficulty_shows_early() -> None:
    parts = [draw(SHAPES[0], size, seed) for seed, size in enumerate((600, 1000, 1500, 2000))]
    model = fit_platt(parts[0].score, parts[0].correct)
    confidence = [model.batch(part.score) for part in parts]
    outcome = early_stop.stopped(parts, confidence, model, alpha=0.2, max_tokens=MAX_TOKENS)
    assert outcome is not None
    assert 0.4 < outcome.saved < outcome.oracle < 1
    assert 0 < outcome.bound < outcome.saved
    assert outcome.bound < outcome.hindsight < outcome.oracle
    assert 0 < outcome.coverage <= outcome.before + 0.1
    assert 0 < outcome.lost < 0.1


def test_questions_are_all_different_and_answered_by_their_pattern() -> None:
    import re

    rows = list(questions(400))
    assert len({row["prompt"] for row in rows}) == 400
    assert {row["kind"] for row in rows} == {"reading", "capitals", "sums", "order"}
    reading = next(row for row in rows if row["kind"] == "reading")
    assert re.search(reading["reference"], reading["prompt"])  # the sentence says it
    assert not re.search(reading["reference"], "somewhere else")


def test_the_recorded_answers_hold_signals_and_no_text() -> None:
    records = load(early_stop.RECORDS)
    assert early_stop.RECORDS.stat().st_size < 4 * 2**20
    assert len(records) > 300
    assert (records.column("device", "completion_tokens") <= 48).all()
    assert set(records.texts("device", "answer")) == {""}
    assert len(records.lists("device", "token_logprobs").values) > 3000
