"""Which texts say nearly the same, found exactly."""

from __future__ import annotations

import random
from string import ascii_lowercase
from unittest.mock import patch

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cascade.errors import InvalidInput
from edge.examples import similar
from edge.examples.similar import jaccard, near, shingles

TEXTS = st.lists(st.text("ab c", max_size=12), max_size=12)


@given(TEXTS, st.sampled_from([0.2, 0.5, 0.8, 1.0]), st.sampled_from([2, 5, 400]))
def test_every_pair_is_found_and_no_other(texts, threshold, most):
    with patch.object(similar, "_MOST", most):
        assert near(texts, threshold) == [
            [other for other in range(place) if jaccard(texts[place], texts[other]) >= threshold]
            for place in range(len(texts))
        ]


def test_of_long_texts_the_similarity_is_estimated():
    rng = random.Random(0)
    words = ["".join(rng.choices(ascii_lowercase, k=6)) for _ in range(600)]
    text = " ".join(words)
    for others in (0, 15, 60, 200):
        other = " ".join([*words[others:], *words[: others // 2]][: 600 - others // 2])
        with patch.object(similar, "_MOST", 10**6):
            exact = jaccard(text, other)
        assert jaccard(text, other) == pytest.approx(exact, abs=0.06)
    assert len(shingles(text)) == 400


def test_long_texts_take_no_more_than_a_part_of_them():
    text = "".join(random.Random(0).choices(ascii_lowercase, k=20_000))
    assert len(shingles(text)) == len(shingles(text[:5_000])) == 400
    assert near([text, text[:5_000], text], 0.9) == [[], [], [0]]


def test_a_changed_word_is_near_and_another_sentence_is_not():
    one = "the battery of this phone lasts for two whole days of use"
    assert jaccard(one, one) == 1
    assert jaccard(one, one.replace("two", "2")) > 0.8
    assert jaccard(one, "the screen is scratched and nobody answers my letters") < 0.2


def test_short_texts_can_be_compared():
    assert near(["", "a", "a", "ok"], 0.9) == [[], [], [1], []]


@pytest.mark.parametrize("threshold", [0, -1, 1.1, float("nan")])
def test_an_impossible_threshold_is_refused(threshold):
    with pytest.raises(InvalidInput, match="near"):
        near(["a"], threshold)
