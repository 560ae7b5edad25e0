"""The algebra of thin factors against numpy on the full matrix."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloud.federation.low_rank import LowRank


@st.composite
def terms(draw, most=8):
    inputs, outputs = draw(st.integers(1, 12)), draw(st.integers(1, 12))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    return [
        (
            draw(st.floats(-2, 2)),
            rng.standard_normal((inputs, rank)),
            rng.standard_normal((rank, outputs)),
        )
        for rank in draw(st.lists(st.integers(1, 6), min_size=1, max_size=most))
    ]


def full(found):
    return sum(weight * a @ b for weight, a, b in found)


@given(terms())
@settings(deadline=None)
def test_the_sum_is_the_sum(found):
    matrix = LowRank.sum(found)
    np.testing.assert_allclose(matrix.left @ matrix.right, full(found), atol=1e-11)
    assert matrix.norm() == pytest.approx(np.linalg.norm(full(found)), abs=1e-11)


@given(terms(most=40))
@settings(deadline=None, max_examples=40)
def test_factors_do_not_grow_with_the_number_of_devices(found):
    matrix = LowRank.sum(found)
    inputs, outputs = full(found).shape
    assert matrix.left.shape[1] <= 2 * min(inputs, outputs) + 6
    np.testing.assert_allclose(matrix.left @ matrix.right, full(found), atol=1e-10)


@given(terms(), st.integers(1, 12))
@settings(deadline=None)
def test_truncation_is_the_best_of_its_rank(found, rank):
    short = LowRank.sum(found).truncated(rank)
    u, singular, vt = np.linalg.svd(full(found), full_matrices=False)
    best = u[:, :rank] * singular[:rank] @ vt[:rank]
    error = np.linalg.norm(full(found) - short.left @ short.right)
    assert error == pytest.approx(np.linalg.norm(full(found) - best), abs=1e-10)
    kept = short.left.shape[1]
    assert kept <= rank
    np.testing.assert_allclose(short.left.T @ short.left, np.eye(kept), atol=1e-10)
    np.testing.assert_allclose(np.linalg.norm(short.right, axis=1), singular[:kept], atol=1e-10)


@given(terms(), st.integers(0, 2**32 - 1))
@settings(deadline=None)
def test_inner_products(found, seed):
    rng = np.random.default_rng(seed)
    inputs, outputs = full(found).shape
    other = LowRank(rng.standard_normal((inputs, 3)), rng.standard_normal((3, outputs)))
    expected = np.sum(full(found) * (other.left @ other.right))
    assert LowRank.sum(found).inner(other) == pytest.approx(expected, abs=1e-10)


def test_a_difference_of_equals_is_near_zero_relative_to_them():
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((64, 4)), rng.standard_normal((4, 48))
    turn = np.linalg.qr(rng.standard_normal((4, 4)))[0]
    nothing = LowRank.sum([(1.0, a, b), (-1.0, a @ turn, turn.T @ b)])
    assert nothing.norm() < 1e-13 * np.linalg.norm(a @ b)


def test_it_works_where_the_full_matrix_would_not_fit():
    """200,000 × 200,000 float64 is 320 GB."""
    rng = np.random.default_rng(0)
    found = [
        (0.5, rng.standard_normal((200_000, 2)), rng.standard_normal((2, 200_000)))
        for _ in range(3)
    ]
    short = LowRank.sum(found).truncated(6)
    rows = [3, 199_999]
    np.testing.assert_allclose(
        short.left[rows] @ short.right[:, rows],
        sum(w * a[rows] @ b[:, rows] for w, a, b in found),
        atol=1e-10,
    )
