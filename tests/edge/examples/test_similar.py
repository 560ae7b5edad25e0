"""Which texts say nearly the same, found exactly."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cascade.errors import InvalidInput
from edge.examples.similar import jaccard, near

TEXTS = st.lists(st.text("ab c", max_size=12), max_size=12)


@given(TEXTS, st.sampled_from([0.2, 0.5, 0.8, 1.0]))
def test_every_pair_is_found_and_no_other(texts, threshold):
    found = near(texts, threshold)
    assert found == [
        [other for other in range(place) if jaccard(texts[place], texts[other]) >= threshold]
        for place in range(len(texts))
    ]


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
