"""Reading a trie gives each answer the probability that enumerating it by itself gives."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cascade.errors import BundleError
from edge.reading import PASS_NODES, TrieReading, TrieScores, read_all
from edge.trie import build_trie
from tests.edge.tiny_language import ANSWERS, PROMPT, VOCABULARY, TinyLanguage


@given(ANSWERS, st.integers(0, 99))
def test_every_answer_has_its_enumerated_probability(answers, seed):
    language = TinyLanguage(seed)
    scores = read_all(language, PROMPT, build_trie(answers))
    np.testing.assert_allclose(scores.answers, language.enumerated(answers), atol=1e-5)


@given(ANSWERS, st.sampled_from([0.0, 1.0, 10.0]))
def test_answers_are_disjoint_events(answers, peak):
    scores = read_all(TinyLanguage(peak=peak), PROMPT, build_trie(answers))
    assert np.exp(scores.answers).sum() <= 1 + 1e-6


def test_a_complete_set_of_answers_has_all_the_probability():
    answers = [(0, i) for i in range(VOCABULARY)] + [(i,) for i in range(VOCABULARY)]
    scores = read_all(TinyLanguage(), PROMPT, build_trie(answers))
    assert np.exp(scores.answers).sum() == pytest.approx(1, abs=1e-6)


@given(ANSWERS)
def test_each_inner_node_is_read_once_and_no_leaf_ever(answers):
    language = TinyLanguage()
    read_all(language, PROMPT, build_trie(answers))
    inner = {answer[:i] for answer in answers for i in range(1, len(answer))}
    assert len(language.paths) == len(inner)
    assert set(language.paths) == inner


def test_hundreds_of_answers_take_few_passes():
    rng = np.random.default_rng(0)
    answers = list({tuple(rng.integers(0, VOCABULARY, 6).tolist()) for _ in range(400)})
    language = TinyLanguage()
    scores = read_all(language, PROMPT, build_trie(answers))
    inner = {answer[:i] for answer in answers for i in range(1, 6)}
    assert max(language.passes) <= PASS_NODES
    assert sum(language.passes) < 1.05 * len(inner)  # parents are read again between trees
    np.testing.assert_allclose(scores.answers, language.enumerated(answers), atol=1e-4)


@given(ANSWERS, st.integers(3, 6))
def test_a_nearly_full_context_changes_nothing_but_the_passes(answers, free_tokens):
    language = TinyLanguage(free_tokens=free_tokens)
    scores = read_all(language, PROMPT, build_trie(answers))
    np.testing.assert_allclose(scores.answers, language.enumerated(answers), atol=1e-5)


def test_an_answer_longer_than_a_pass_is_read_in_several():
    answers = [(0,) * (3 * PASS_NODES), (0,) * (3 * PASS_NODES - 1) + (1,)]
    language = TinyLanguage()
    scores = read_all(language, PROMPT, build_trie(answers))
    assert max(language.passes) == PASS_NODES
    np.testing.assert_allclose(scores.answers, language.enumerated(answers), rtol=1e-5)


@given(ANSWERS, st.data())
def test_an_answer_not_read_to_its_end_has_an_upper_bound(answers, data):
    trie = build_trie(answers)
    reading = TrieReading(TinyLanguage(), PROMPT, trie)
    count = data.draw(st.integers(0, len(trie.inner) - 1))
    reading.expand(trie.inner[1 : 1 + count])
    exact = TinyLanguage().enumerated(answers)
    bounds = reading.scores.upper_bounds()
    assert (bounds >= exact - 1e-5).all()
    known = ~np.isnan(reading.scores.answers)
    np.testing.assert_allclose(bounds[known], exact[known], atol=1e-5)


def test_the_signals_are_those_of_the_answers_tokens():
    answers = [(0, 1), (2,), (0,)]
    scores = read_all(TinyLanguage(), PROMPT, build_trie(answers))
    log = scores.signals(0)
    assert sum(log.logprobs) == pytest.approx(scores.answers[0])
    assert len(log.entropies) == len(log.margins) == 2
    assert len(scores.signals(2).logprobs) == 1  # its end is implied and is no token


def test_an_impossible_answer_stays_comparable():
    scores = TrieScores(build_trie([(0,), (1,), (2,)]))
    scores.add(0, np.array([0, -np.inf, 1, 0, 0], np.float32))
    assert np.isfinite(scores.answers).all()
    assert scores.answers.argmin() == 1


def test_logits_that_are_no_numbers_are_the_bundles_fault():
    scores = TrieScores(build_trie([(0,), (1,)]))
    with pytest.raises(BundleError, match="not finite numbers"):
        scores.add(0, np.array([0, np.nan, 1, 0, 0], np.float32))
