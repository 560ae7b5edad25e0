"""Many hulls at once are those of ``cascade.metrics.aiq``, one by one."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cascade import metrics
from cascade.replay.hull import heights_under_hulls

STEPS = st.sampled_from([0.0, 0.0, 0.25, 1.0])
QUALITY = st.floats(0, 1) | st.sampled_from([0.0, 0.5, 1.0])


@given(st.data(), st.integers(1, 4), st.integers(1, 9))
def test_each_curve_has_the_aiq_of_its_points(
    data: st.DataObject, curves: int, points: int
) -> None:
    shape = st.lists(st.lists(STEPS, min_size=points, max_size=points), min_size=curves)
    costs = np.cumsum(data.draw(shape), axis=1)
    rows = st.lists(QUALITY, min_size=points, max_size=points)
    quality = np.array([data.draw(rows) for _ in costs])
    expected = [metrics.aiq(x, y) for x, y in zip(costs, quality, strict=True)]
    found = heights_under_hulls(costs, quality)
    for height, aiq in zip(found, expected, strict=True):
        assert height == pytest.approx(np.nan if aiq is None else aiq, nan_ok=True, abs=1e-12)


def test_a_cost_that_is_not_known_leaves_no_number_and_ends() -> None:
    costs = np.array([[0.0, np.nan, np.nan], [0.0, 1.0, 2.0]])
    quality = np.array([[0.5, 0.6, 0.7], [0.5, 0.6, 0.6]])
    assert heights_under_hulls(costs, quality) == pytest.approx([np.nan, 0.575], nan_ok=True)
