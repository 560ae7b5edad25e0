"""Families keep their level together, whatever the p-values have to do with each other."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from cascade.certify import Bonferroni, Family, FixedSequence, Holm
from cascade.certify.families import furthest
from cascade.errors import InvalidInput
from tests.cascade.certify.populations import within_level

DELTA, DRAWS = 0.1, 20_000
FAMILIES: list[Family] = [FixedSequence(), FixedSequence((0, 4, 9)), Bonferroni(), Holm()]


def p_values(correlation: float, true: NDArray[np.bool_], seed: int) -> NDArray[np.float64]:
    """Uniform where the null is true, small where it is false; equally correlated normals."""
    rng = np.random.default_rng(seed)
    common = rng.standard_normal((DRAWS, 1)) * np.sqrt(correlation)
    z = common + rng.standard_normal((DRAWS, len(true))) * np.sqrt(1 - correlation)
    return stats.norm.cdf(z - np.where(true, 0, 2.5))


@pytest.mark.parametrize("family", FAMILIES, ids=str)
@pytest.mark.parametrize("correlation", [0.0, 0.5, 0.98])
@pytest.mark.parametrize("first_true", [0, 3, 7])
def test_some_true_null_is_certified_at_most_as_often_as_delta(
    family: Family, correlation: float, first_true: int
) -> None:
    """All nulls true; true from some place on; and every second one true from there on."""
    place = np.arange(12)
    for true in (place >= first_true, (place >= first_true) & (place % 2 == 1)):
        passed = family.certified(p_values(correlation, true, 1), DELTA)
        wrong = int((passed & true).any(axis=1).sum())
        assert within_level(wrong, DRAWS, DELTA)


def test_testing_every_threshold_at_delta_would_be_caught() -> None:
    true = np.ones(12, bool)
    wrong = int((p_values(0.5, true, 2) <= DELTA).any(axis=1).sum())
    assert not within_level(wrong, DRAWS, DELTA)


def test_a_sequence_ends_at_its_first_failure() -> None:
    p = np.array([0.01, 0.1, 0.11, 0.001])
    assert FixedSequence().certified(p, 0.1).tolist() == [True, True, False, False]


def test_levels_add_up_along_the_way_and_are_lost_in_a_failure() -> None:
    """.05 at place 0, carried to place 2 where .05 more arrive; lost at 1, only .05 at 2."""
    both = FixedSequence((0, 2))
    assert both.certified(np.array([0.05, 0.05, 0.09]), 0.1).tolist() == [True, True, True]
    assert both.certified(np.array([0.05, 0.06, 0.09]), 0.1).tolist() == [True, False, False]
    assert both.certified(np.array([0.05, 0.06, 0.04]), 0.1).tolist() == [True, False, True]
    assert FixedSequence((1,)).certified(np.array([0.0, 0.1]), 0.1).tolist() == [False, True]


def test_holm_passes_more_than_bonferroni() -> None:
    p = np.array([0.03, 0.09, 0.01])
    assert Holm().certified(p, 0.1).tolist() == [True, True, True]
    assert Bonferroni().certified(p, 0.1).tolist() == [True, False, True]


levels = st.lists(st.floats(0, 1), min_size=10, max_size=15).map(np.array)


@given(levels)
def test_holm_never_passes_less_than_bonferroni(p: NDArray[np.float64]) -> None:
    assert not (Bonferroni().certified(p, DELTA) & ~Holm().certified(p, DELTA)).any()


@given(levels, st.randoms(use_true_random=False))
def test_families_without_an_order_do_not_care_for_it(p: NDArray[np.float64], random) -> None:
    order = np.array(random.sample(range(len(p)), len(p)))
    for family in (Holm(), Bonferroni()):
        assert (
            family.certified(p[order], DELTA).tolist() == family.certified(p, DELTA)[order].tolist()
        )


@given(levels, st.data())
def test_a_smaller_p_value_never_passes_less(p: NDArray[np.float64], data: st.DataObject) -> None:
    smaller = p.copy()
    smaller[data.draw(st.integers(0, len(p) - 1))] *= 0.3
    for family in FAMILIES:
        assert not (family.certified(p, DELTA) & ~family.certified(smaller, DELTA)).any()


def test_the_furthest_is_the_last_that_passed() -> None:
    passed = np.array([[True, False, True, False], [False] * 4])
    assert furthest(passed).tolist() == [2, -1]


@pytest.mark.parametrize("starts", [(), (-1,), (3, 3), (4, 2)])
def test_starts_must_rise_from_zero(starts: tuple[int, ...]) -> None:
    with pytest.raises(InvalidInput, match="starts"):
        FixedSequence(starts)
