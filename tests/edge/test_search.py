"""A search finds the answer of exact mode, and what it claims of the rest is true."""

from __future__ import annotations

import numpy as np
from hypothesis import example, given
from hypothesis import strategies as st

from edge.reading import TrieReading
from edge.search import BATCH_NODES, Found, search
from edge.trie import build_trie
from tests.edge.tiny_language import ANSWERS, PROMPT, VOCABULARY, TinyLanguage

PEAKS = st.sampled_from([0.0, 1.0, 3.0, 10.0])
TOLERANCES = st.sampled_from([0.0, 0.05, 0.3, 1.0])
# Rows are float32, and an answer that is a prefix gets what its continuations leave of 1.
ROUNDING = 1e-4


def searched(
    language: TinyLanguage,
    answers: list[tuple[int, ...]],
    prior: np.ndarray,
    tolerance: float,
) -> Found:
    reading = TrieReading(language, PROMPT, build_trie(answers))
    return search(reading.scores, reading.expand, prior, tolerance)


@given(ANSWERS, st.integers(0, 99), PEAKS, TOLERANCES, st.booleans())
@example([(4,), *((4, i) for i in range(VOCABULARY))], 0, 3.0, 0.0, True)  # an end of no mass
def test_the_answer_is_exact_modes_and_the_bounds_contain_its_probability(
    answers, seed, peak, tolerance, corrected
):
    language = TinyLanguage(seed, peak)
    prior = (
        TinyLanguage(seed + 1, peak).enumerated(answers) if corrected else np.zeros(len(answers))
    )
    found = searched(language, answers, prior, tolerance)

    exact = language.enumerated(answers) - prior
    best = int(np.argmax(found.weights))
    assert exact[best] >= exact.max() - ROUNDING
    weights = np.exp(exact - exact[best])
    known = found.weights > 0
    np.testing.assert_allclose(found.weights[known], weights[known], rtol=1e-3, atol=ROUNDING)
    assert weights[~known].sum() <= found.unknown * (1 + 1e-4) + ROUNDING
    lower = 1 / (found.weights.sum() + found.unknown)
    upper = 1 / found.weights.sum()
    assert lower - ROUNDING <= 1 / weights.sum() <= upper + ROUNDING
    assert upper - lower <= tolerance + ROUNDING


@given(ANSWERS, st.integers(0, 99))
def test_without_tolerance_everything_that_weighs_is_known(answers, seed):
    language = TinyLanguage(seed)
    found = searched(language, answers, np.zeros(len(answers)), 0.0)
    assert found.unknown == 0
    exact = np.exp(language.enumerated(answers))
    np.testing.assert_allclose(found.weights, exact / exact.max(), rtol=1e-4)


def many(seed: int) -> list[tuple[int, ...]]:
    rng = np.random.default_rng(seed)
    return sorted({tuple(rng.integers(0, VOCABULARY, 6).tolist()) for _ in range(400)})


def test_a_confident_model_is_read_in_a_fraction_of_the_nodes_and_in_few_passes():
    answers = many(0)
    inner = {answer[:i] for answer in answers for i in range(1, 6)}
    language = TinyLanguage(peak=4)
    searched(language, answers, np.zeros(len(answers)), 0.1)
    assert sum(language.passes) < len(inner) / 3
    assert max(language.passes) <= BATCH_NODES


def test_a_looser_tolerance_reads_no_more():
    answers, prior = many(1), TinyLanguage(8, 1.0).enumerated(many(1))
    read = []
    for tolerance in (0.0, 0.05, 0.3, 1.0):
        language = TinyLanguage(peak=2)
        searched(language, answers, prior, tolerance)
        read.append(sum(language.passes))
    assert read == sorted(read, reverse=True)
    assert read[-1] < read[0]


def test_among_equals_the_first_option_wins_wherever_it_is():
    answers = [(1, 1), (0,), (1, 0)]
    language = TinyLanguage(peak=0)
    prior = language.enumerated(answers)  # so that all corrected scores are 0
    found = searched(language, answers, prior, 1.0)
    assert int(np.argmax(found.weights)) == 0
