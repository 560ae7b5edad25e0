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
