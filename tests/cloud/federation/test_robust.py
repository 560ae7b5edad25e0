"""Robust rules against their papers' definitions, taken literally, and against attackers."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from cascade.errors import InvalidInput
from cloud.federation import Median, MultiKrum, TrimmedMean, WeightedMean, bound_norms
from cloud.federation.robust import krum_scores, squared_distances

rows = arrays.arrays(
    np.float64,
    st.tuples(st.integers(1, 11), st.integers(1, 6)),
    elements=st.floats(-100, 100),
)


def even(found):
    return np.full(len(found), 1 / len(found))


def literal_trimmed_mean(found, cut):
    result = []
    for column in found.T:
        left = list(column)
        for _ in range(cut):
            left.remove(max(left))
            left.remove(min(left))
        result.append(sum(left) / len(left))
    return result


def literal_krum(found, f):
    """s(i) = Σ_{i→j} ‖x_i − x_j‖² over the n − f − 2 closest; the lowest wins."""
    scores = []
    for i, mine in enumerate(found):
        distances = sorted(
            float(np.sum((mine - other) ** 2)) for j, other in enumerate(found) if j != i
        )
        scores.append(sum(distances[: len(found) - f - 2]))
    return scores


@given(rows, st.data())
def test_trimmed_mean_leaves_out_both_ends(found, data):
    cut = data.draw(st.integers(0, (len(found) - 1) // 2))
    combined = TrimmedMean(cut / len(found)).combine(found, even(found))
    np.testing.assert_allclose(combined, literal_trimmed_mean(found, cut), atol=1e-9)


@given(rows)
def test_median_is_the_middle(found):
    combined = Median().combine(found, even(found))
    ordered = np.sort(found, axis=0)
    middle = (ordered[(len(found) - 1) // 2] + ordered[len(found) // 2]) / 2
    np.testing.assert_allclose(combined, middle, atol=1e-9)


@given(rows.filter(lambda found: len(found) >= 3), st.data())
@settings(deadline=None)
def test_krum_is_as_defined(found, data):
    f = data.draw(st.integers(0, (len(found) - 3) // 2))
    keep = data.draw(st.integers(1, len(found) - f))
    scores = krum_scores(squared_distances(found), f)
    np.testing.assert_allclose(scores, literal_krum(found, f), atol=1e-6)
    rule = MultiKrum(f, keep)
    kept = rule.select(squared_distances(found))
    assert len(kept) == keep
    assert max(scores[kept]) <= min(np.delete(scores, kept), default=np.inf)
    weights = np.arange(1.0, len(found) + 1)
    combined = rule.combine(found, weights / weights.sum())
    expected = np.average(found[kept], axis=0, weights=weights[kept])
    np.testing.assert_allclose(combined, expected, atol=1e-9)


@given(rows, st.floats(0.1, 100))
def test_norms_are_bounded_and_directions_kept(found, bound):
    bounded = bound_norms(found, bound)
    lengths = np.linalg.norm(found, axis=1)
    np.testing.assert_allclose(
        np.linalg.norm(bounded, axis=1), np.minimum(lengths, bound), rtol=1e-9
    )
    np.testing.assert_allclose(
        bounded * lengths[:, None], found * np.linalg.norm(bounded, axis=1)[:, None], atol=1e-6
    )


@given(rows, st.randoms(use_true_random=False))
def test_no_rule_depends_on_the_order(found, random):
    order = list(range(len(found)))
    random.shuffle(order)
    for rule in (WeightedMean(), TrimmedMean(0.2), Median()):
        if isinstance(rule, TrimmedMean) and len(found) < 3:
            continue
        np.testing.assert_allclose(
            rule.combine(found, even(found)), rule.combine(found[order], even(found)), atol=1e-9
        )


ATTACKS = {
    "sign flip x10": lambda honest, rng: -10 * honest.mean(axis=0),
    "scaling": lambda honest, rng: 1e6 * rng.standard_normal(honest.shape[1]),
    "one huge coordinate": lambda honest, rng: np.eye(1, honest.shape[1])[0] * 1e12,
}


@pytest.mark.parametrize(
    ("rule", "attack"),
    list(itertools.product([TrimmedMean(0.3), Median(), MultiKrum(6, 10)], ATTACKS)),
    ids=str,
)
def test_three_attackers_in_ten_do_not_carry_the_mean_away(rule, attack):
    rng = np.random.default_rng(7)
    honest = 1.0 + 0.5 * rng.standard_normal((14, 30))
    bad = np.stack([ATTACKS[attack](honest, rng) for _ in range(6)])
    found = np.concatenate([honest, bad])
    off = np.linalg.norm(rule.combine(found, even(found)) - honest.mean(axis=0))
    # The honest themselves are 0.5 √30 = 2.7 from their mean; the plain mean ends far from it.
    assert off < 2.7
    plain = WeightedMean().combine(found, even(found))
    assert np.linalg.norm(plain - honest.mean(axis=0)) > 10


@pytest.mark.parametrize(
    ("rule", "needed"), [(TrimmedMean(0.3), 3), (MultiKrum(2, 1), 7), (MultiKrum(1, 7), 8)]
)
def test_too_few_updates_are_refused_with_the_number_needed(rule, needed):
    found = np.zeros((2, 3))
    with pytest.raises(InvalidInput, match=str(needed)):
        rule.combine(found, even(found))


@pytest.mark.parametrize(
    "make",
    [
        lambda: TrimmedMean(0.5),
        lambda: TrimmedMean(-0.1),
        lambda: MultiKrum(-1),
        lambda: MultiKrum(1, 0),
        lambda: bound_norms(np.ones((1, 1)), 0.0),
        lambda: bound_norms(np.ones((1, 1)), float("nan")),
    ],
)
def test_settings_that_mean_nothing_are_refused(make):
    with pytest.raises(InvalidInput):
        make()
