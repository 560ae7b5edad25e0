"""Which adapters are sent, and how often a useless one is."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from cascade.errors import InvalidInput
from edge.training.worth_sending import sign_flip_p, worth_sending

PARENT = np.linspace(0.5, 1.5, 20)


def test_a_better_one_is_sent_and_a_worse_one_is_not():
    better = worth_sending(PARENT, PARENT - 0.1)
    assert (better.send, better.word, better.n) == (True, "better", 20)
    assert better.gain == pytest.approx(0.1)
    worse = worth_sending(PARENT, PARENT + 0.1)
    assert (worse.send, worse.word) == (False, "worse")
    same = worth_sending(PARENT, PARENT)
    assert (same.send, same.word, same.p) == (False, "not_shown_better", 1.0)


def test_one_lucky_example_shows_nothing():
    adapter = PARENT + 0.01
    adapter[0] -= 5.0
    verdict = worth_sending(PARENT, adapter)
    assert verdict.gain > 0
    assert (verdict.send, verdict.word) == (False, "not_shown_better")


@pytest.mark.parametrize("n", [0, 1, 7])
def test_too_few_examples_show_nothing(n):
    assert worth_sending(PARENT[:n], PARENT[:n] - 1, least=8).word == "too_few"


def test_by_default_only_what_is_worse_stays():
    assert worth_sending([1.0, 2.0], [0.9, 2.05]).send
    assert worth_sending([1.0], [0.9]).send
    assert worth_sending([1.0, 2.0], [1.1, 1.95]).word == "worse"
    assert worth_sending([], []).word == "too_few"


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_losses_that_are_no_numbers_are_not_sent(bad):
    adapter = PARENT - 1
    adapter[3] = bad
    verdict = worth_sending(PARENT, adapter)
    assert (verdict.send, verdict.word) == (False, "not_finite")


def test_few_differences_are_looked_at_exactly():
    difference = np.array([-0.5, -0.2, 0.1, -0.9])
    means = [
        np.mean(np.multiply(signs, difference)) for signs in itertools.product((1, -1), repeat=4)
    ]
    expected = np.mean([mean <= difference.mean() + 1e-12 for mean in means])
    assert sign_flip_p(difference) == pytest.approx(expected)


def test_many_differences_are_drawn_the_same_every_time():
    rng = np.random.default_rng(1)
    difference = rng.normal(-0.05, 1, 60)
    assert sign_flip_p(difference) == sign_flip_p(difference)
    exact_like = sign_flip_p(difference, seed=1)
    assert abs(sign_flip_p(difference) - exact_like) < 0.05


@pytest.mark.parametrize("n", [9, 30])
@pytest.mark.parametrize("level", [0.05, 0.2])
def test_of_useless_adapters_at_most_the_level_is_sent(n, level):
    rng = np.random.default_rng(n)
    trials = 400
    sent = sum(
        worth_sending(loss, loss + rng.laplace(0, 0.3, n), level=level).send
        for loss in rng.gamma(2, 0.5, (trials, n))
    )
    assert sent / trials <= level + 3 * (level * (1 - level) / trials) ** 0.5


@pytest.mark.parametrize("arguments", [{"level": 0}, {"level": 0.6}, {"least": 0}])
def test_impossible_arguments_are_refused(arguments):
    with pytest.raises(InvalidInput, match=next(iter(arguments))):
        worth_sending(PARENT, PARENT, **arguments)


def test_lengths_have_to_agree():
    with pytest.raises(InvalidInput, match="adapter_losses"):
        worth_sending(PARENT, PARENT[:-1])
