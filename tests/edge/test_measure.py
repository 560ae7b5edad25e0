"""Fused float32 signals agree with the formulas in float64."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.measure import row_stats

ROWS = st.lists(st.floats(-80, 80, width=32, allow_subnormal=False), min_size=2, max_size=300)


@given(ROWS)
def test_signals_agree_with_the_definitions(values):
    row = np.array(values, np.float32)
    stats = row_stats(row)
    exact = row.astype(np.float64)
    log_z = exact.max() + np.log(np.exp(exact - exact.max()).sum())
    p = np.exp(exact - log_z)
    second, first = np.sort(p)[-2:]
    assert stats.argmax == int(np.argmax(row))
    assert stats.log_z == pytest.approx(log_z, abs=1e-4)
    entropy = -np.sum(p[p > 0] * np.log(p[p > 0]))
    assert stats.entropy == pytest.approx(entropy, abs=1e-3)
    assert stats.margin == pytest.approx(first - second, abs=1e-5)


def test_the_row_is_left_as_it_was():
    row = np.array([1.0, 3.0, 2.0], np.float32)
    row_stats(row)
    np.testing.assert_array_equal(row, np.array([1.0, 3.0, 2.0], np.float32))


def test_masked_tokens_do_not_disturb_the_entropy():
    stats = row_stats(np.array([0.0, 0.0, -np.inf], np.float32))
    assert stats.entropy == pytest.approx(np.log(2), abs=1e-6)
    assert stats.margin == pytest.approx(0)


@pytest.mark.parametrize("best", [0, 31_000, 59_999])
def test_long_rows_are_measured_as_precisely(best):
    row = np.random.default_rng(3).normal(5, 4, 60_000).astype(np.float32)
    row[best] = row.max() + 1
    stats = row_stats(row)
    p = np.exp(row.astype(np.float64) - row.max())
    z, second = p.sum(), np.sort(p)[-2]
    assert stats.argmax == best
    assert stats.log_z == pytest.approx(float(row.max()) + np.log(z), abs=1e-4)
    assert stats.entropy == pytest.approx(float(-np.sum(p / z * np.log(p / z))), abs=1e-3)
    assert stats.margin == pytest.approx((1 - second) / z, abs=1e-6)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_no_number_is_told_by_log_z(value):
    row = np.zeros(30_000, np.float32)
    row[20] = value
    assert not np.isfinite(row_stats(row).log_z)
