"""The sampler draws from the distribution that the parameters describe, written out in float64."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy.stats import chisquare

from cascade.sampling import Sampling
from edge.sampling import Sampler, keep, penalise, tempered

ROWS = st.lists(st.floats(-30, 30, width=32, allow_subnormal=False), min_size=2, max_size=400).map(
    lambda values: np.array(values, np.float32)
)
SAMPLINGS = st.builds(
    Sampling,
    temperature=st.floats(0.05, 2),
    top_p=st.floats(0.01, 1) | st.just(1.0),
    top_k=st.integers(0, 450),
    min_p=st.floats(0, 1) | st.just(0.0),
)


def reference(logits: np.ndarray, sampling: Sampling) -> tuple[np.ndarray, float]:
    """Probability of each token, and how near the filters came to deciding differently."""
    exact = logits.astype(np.float64) - logits.max()
    ranking = np.lexsort((np.arange(len(exact)), -exact))
    if sampling.top_k:
        ranking = ranking[: sampling.top_k]
    p = np.exp(exact[ranking])
    nearest = np.abs(p - sampling.min_p).min()
    if sampling.top_p < 1:
        mass = p.cumsum() / p.sum()
        nearest = min(nearest, np.abs(mass - sampling.top_p).min())
        ranking = ranking[: int((mass < sampling.top_p).sum()) + 1]
    ranking = ranking[np.exp(exact[ranking]) >= sampling.min_p]
    weights = np.exp(exact[ranking] / sampling.temperature)
    result = np.zeros(len(exact))
    result[ranking] = weights / weights.sum()
    return result, float(nearest)


def probabilities(logits: np.ndarray, sampling: Sampling) -> np.ndarray:
    kept = keep(logits, sampling)
    result = np.zeros(len(logits))
    result[kept.tokens] = kept.weights / kept.weights.sum()
    return result


@given(ROWS, SAMPLINGS)
def test_the_filters_keep_what_their_definitions_say(logits, sampling):
    expected, nearest = reference(logits, sampling)
    assume(sampling.keeps_all or nearest > 1e-5)
    np.testing.assert_allclose(probabilities(logits, sampling), expected, atol=1e-5)


@given(ROWS, st.floats(0.05, 2))
def test_without_filters_the_whole_vocabulary_is_weighed(logits, temperature):
    weights = tempered(logits, temperature).astype(np.float64)
    expected, _ = reference(logits, Sampling(temperature))
    np.testing.assert_allclose(weights / weights.sum(), expected, atol=1e-5)


@given(st.integers(1, 40), st.integers(1, 60), st.floats(0.05, 1))
def test_of_equally_probable_tokens_the_first_are_kept(equal, top_k, top_p):
    logits = np.zeros(equal, np.float32)
    kept = keep(logits, Sampling(1.0, top_p, top_k)).tokens
    np.testing.assert_array_equal(kept, np.arange(len(kept)))
    among = min(equal, top_k)
    assert len(kept) == pytest.approx(np.ceil(among * top_p), abs=1.0)


def test_a_known_normaliser_changes_nothing():
    logits = np.random.default_rng(5).normal(0, 4, 5000).astype(np.float32)
    log_z = float(np.log(np.exp(logits.astype(np.float64)).sum()))
    sampling = Sampling(0.7, 0.9)
    np.testing.assert_array_equal(
        keep(logits, sampling, log_z).tokens, keep(logits, sampling).tokens
    )


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(1.0, seed=1),
        Sampling(0.5, seed=2),
        Sampling(2.0, seed=3),
        Sampling(1.3, top_p=0.9, seed=4),
        Sampling(1.0, top_k=17, seed=5),
        Sampling(0.8, min_p=0.05, seed=6),
        Sampling(1.2, 0.95, 40, 0.01, seed=7),
    ],
)
def test_draws_follow_the_distribution(sampling):
    logits = np.random.default_rng(1).normal(0, 1.5, 600).astype(np.float32)
    expected, _ = reference(logits, sampling)
    sampler = Sampler(sampling, len(logits))
    draws = 4_000
    counts = np.bincount([sampler.draw(logits) for _ in range(draws)], minlength=len(logits))
    assert counts[expected == 0].sum() == 0
    # The test needs some draws in each class: rare tokens make up one class together.
    common = expected * draws >= 5
    observed, wanted = counts[common].tolist(), (expected * draws)[common].tolist()
    if not np.all(common | (expected == 0)):
        observed.append(int(counts[~common].sum()))
        wanted.append(float((expected * draws)[~common].sum()))
    assert chisquare(observed, wanted, sum_check=False).pvalue > 0.001


def test_a_seed_fixes_the_draws_on_every_machine():
    logits = np.arange(300, dtype=np.float32) % 7
    for sampling, expected in SEEDED.items():
        sampler = Sampler(sampling, len(logits))
        assert [sampler.draw(logits) for _ in range(6)] == expected


SEEDED = {
    Sampling(1.0, seed=0): [188, 83, 13, 6, 244, 272],
    Sampling(0.5, top_p=0.8, seed=11): [41, 146, 174, 13, 47, 272],
    Sampling(2.0, top_k=9, seed=2**32 - 2): [27, 34, 20, 27, 55, 62],
}


def test_without_a_seed_answers_differ():
    logits = np.zeros(10_000, np.float32)
    one, two = ([Sampler(Sampling(1.0), 10_000).draw(logits)] for _ in range(2))
    three = [Sampler(Sampling(1.0), 10_000).draw(logits)]
    assert not one == two == three


@given(ROWS, st.floats(0, 2), st.floats(0.01, 1), st.integers(0, 2**32 - 2))
def test_one_candidate_is_the_greedy_one(logits, temperature, top_p, seed):
    sampler = Sampler(Sampling(temperature, top_p, 1, seed=seed), len(logits))
    assert sampler.draw(logits) == int(logits.argmax())


@given(ROWS, st.integers(0, 2**32 - 2))
def test_a_falling_temperature_ends_at_greedy(logits, seed):
    first, second = np.sort(logits)[::-1][:2]
    assume(first - second > 0.01)
    sampler = Sampler(Sampling(1e-4, seed=seed), len(logits))
    assert sampler.draw(logits) == int(logits.argmax())
    assert Sampler(Sampling(1e-300), len(logits)).draw(logits) == int(logits.argmax())


@given(ROWS, SAMPLINGS, st.integers(0, 2**32 - 2), st.data())
def test_only_allowed_tokens_are_drawn(logits, sampling, seed, data):
    allowed = np.zeros(len(logits), np.bool_)
    some = st.lists(st.integers(0, len(logits) - 1), min_size=1, max_size=5)
    allowed[data.draw(some)] = True
    seeded = dataclasses.replace(sampling, seed=seed)
    for chosen in (seeded, dataclasses.replace(seeded, temperature=0.0)):
        before = logits.copy()
        assert allowed[Sampler(chosen, len(logits)).draw(logits, allowed, 3.0)]
        np.testing.assert_array_equal(logits, before)


@given(ROWS, st.floats(0.1, 2), st.data())
def test_the_penalty_is_the_papers(logits, penalty, data):
    tokens = data.draw(st.lists(st.integers(0, len(logits) - 1), max_size=9))
    seen = np.zeros(len(logits), np.bool_)
    seen[tokens] = True
    expected = logits.astype(np.float64)
    for token in set(tokens):
        expected[token] *= penalty if expected[token] < 0 else 1 / penalty
    np.testing.assert_allclose(penalise(logits, seen, penalty), expected, rtol=1e-5)


def test_a_penalty_counts_the_prompt_and_the_answer():
    logits = np.array([2.0, 1.9, 1.8, 0.1], np.float32)
    sampler = Sampler(Sampling(repetition_penalty=2.0), 4, seen=(0, 0))
    assert [sampler.draw(logits) for _ in range(4)] == [1, 2, 0, 0]
