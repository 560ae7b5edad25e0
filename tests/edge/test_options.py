"""Scores over a trie of answers are those of enumerating every answer by itself."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cascade.errors import InvalidInput
from edge.options import build_trie, normalise, score

VOCABULARY = 5
ANSWERS = st.lists(
    st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=4).map(tuple),
    min_size=1,
    max_size=12,
    unique=True,
)


def logits_after(path: tuple[int, ...]) -> np.ndarray:
    """A fixed random distribution for every path."""
    return np.random.default_rng([7, *path]).normal(size=VOCABULARY).astype(np.float32)


def log_probability(path: tuple[int, ...], token: int) -> float:
    row = logits_after(path).astype(np.float64)
    return float(row[token] - np.log(np.exp(row).sum()))


def enumerated(answers: list[tuple[int, ...]], which: int) -> float:
    answer = answers[which]
    total = sum(log_probability(answer[:i], token) for i, token in enumerate(answer))
    longer = {
        other[len(answer)]
        for other in answers
        if len(other) > len(answer) and other[: len(answer)] == answer
    }
    if longer:
        total += math.log(1 - sum(math.exp(log_probability(answer, token)) for token in longer))
    return total


@given(ANSWERS)
def test_every_answer_has_its_enumerated_probability(answers):
    result = score(build_trie(answers), len(answers), logits_after)
    expected = [enumerated(answers, which) for which in range(len(answers))]
    np.testing.assert_allclose(result.logprobs, expected, atol=1e-5)


@given(ANSWERS)
def test_answers_are_disjoint_events(answers):
    result = score(build_trie(answers), len(answers), logits_after)
    assert np.exp(result.logprobs).sum() <= 1 + 1e-6


def test_a_complete_set_of_answers_has_all_the_probability():
    answers = [(0, i) for i in range(VOCABULARY)] + [(i,) for i in range(VOCABULARY)]
    result = score(build_trie(answers), len(answers), logits_after)
    assert np.exp(result.logprobs).sum() == pytest.approx(1, abs=1e-6)


@given(ANSWERS)
def test_the_trie_reads_each_inner_node_once_and_depth_first(answers):
    reads: list[tuple[int, ...]] = []

    def read(path: tuple[int, ...]) -> np.ndarray:
        reads.append(path)
        return logits_after(path)

    score(build_trie(answers), len(answers), read)
    inner = {answer[:i] for answer in answers for i in range(len(answer))}
    assert len(reads) == len(set(reads))
    assert set(reads) == inner
    for before, after in itertools.pairwise(reads):
        assert before[: len(after) - 1] == after[:-1]


def test_a_row_may_be_overwritten_by_the_next_read():
    buffer = np.zeros(VOCABULARY, np.float32)

    def read(path: tuple[int, ...]) -> np.ndarray:
        buffer[:] = logits_after(path)
        return buffer

    answers = [(0, 1, 2), (0, 2), (3,), (3, 1)]
    root = build_trie(answers)
    np.testing.assert_array_equal(
        score(root, 4, read).logprobs, score(root, 4, logits_after).logprobs
    )


def test_steps_are_those_of_each_answer():
    answers = [(0, 1), (2,)]
    result = score(build_trie(answers), 2, logits_after)
    assert [len(steps) for steps in result.steps] == [2, 1]
    assert sum(step.logprob for step in result.steps[0]) == pytest.approx(result.logprobs[0])


@pytest.mark.parametrize(
    ("answers", "message"),
    [([(1,), (1,)], "answers 1 and 2 are the same"), ([(1,), ()], "answer 2 has no tokens")],
)
def test_answers_that_cannot_be_told_apart_are_refused(answers, message):
    with pytest.raises(InvalidInput, match=message):
        build_trie(answers)


@given(
    st.lists(st.floats(-500, 0), min_size=2, max_size=20),
    st.floats(-100, 100),
)
def test_normalising_gives_a_distribution_that_ignores_a_common_offset(logprobs, offset):
    values = np.array(logprobs)
    plain = normalise(values, np.zeros(len(values)))
    assert plain.sum() == pytest.approx(1)
    np.testing.assert_allclose(normalise(values, np.full(len(values), offset)), plain, atol=1e-9)


def test_the_prior_is_subtracted():
    result = normalise(np.log([0.8, 0.2]), np.log([0.8, 0.2]))
    np.testing.assert_allclose(result, [0.5, 0.5])
