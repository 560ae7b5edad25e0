"""Intervals hold what they promise, and sides take turns."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.timing import Sample, alternate, measure, median, ratio


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=60))
def test_the_interval_encloses_the_median(values):
    estimate = median(values)
    assert estimate.n == len(values)
    if estimate.ci is None:
        assert len(values) < 6
    else:
        assert min(values) <= estimate.ci[0] <= estimate.value <= estimate.ci[1] <= max(values)


@pytest.mark.parametrize("n", [6, 9, 21, 60])
def test_the_interval_covers_the_true_median_in_95_percent_of_runs(n):
    draws = np.random.default_rng(0).lognormal(size=(2000, n))  # its median is 1
    intervals = [median(list(row)).ci for row in draws]
    covered = np.mean([low <= 1 <= high for low, high in intervals])
    assert covered >= 0.94


def test_ratios_are_taken_round_by_round():
    slow_rounds = [1.0, 10.0, 1.0]  # the machine was busy in the second
    estimate = ratio([2 * value for value in slow_rounds], slow_rounds)
    assert estimate.value == 2.0


def test_sides_take_turns_and_warm_up_is_not_counted():
    order = []

    def side(name):
        def take():
            order.append(name)
            return Sample(1.0, 1.0)

        return take

    samples = alternate({"a": side("a"), "b": side("b")}, 2)
    assert {name: len(taken) for name, taken in samples.items()} == {"a": 2, "b": 2}
    assert order == ["b", "a", "a", "b", "b", "a"]


def test_a_sleep_takes_wall_time_and_no_cpu_time():
    import time

    sample = measure(lambda: time.sleep(0.05))
    assert sample.wall_s >= 0.05
    assert sample.cpu_s < sample.wall_s
