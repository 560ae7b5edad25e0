"""Measured latencies: close to the truth, forgotten in time, and never in the way when unknown."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cascade.errors import InvalidInput
from cascade.latency import LatencyBook, LatencyHistogram, fits


def histogram(durations, now_s=0.0) -> LatencyHistogram:
    made = LatencyHistogram.empty()
    for seconds in durations:
        made = made.with_duration(float(seconds), now_s)
    return made


@given(
    st.lists(st.floats(0.002, 600), min_size=5, max_size=60),
    st.sampled_from([0.25, 0.5, 0.9, 0.95, 1.0]),
)
def test_a_quantile_is_at_most_15_percent_above_the_weighted_one(durations, share):
    order = np.argsort(durations)
    weights = 0.99 ** np.arange(len(durations))[::-1]
    place = np.searchsorted(np.cumsum(weights[order]), share * weights.sum() * (1 - 1e-9))
    truth = np.array(durations)[order][min(place, len(durations) - 1)]
    estimate = histogram(durations).quantile(share, 0.0)
    assert truth * (1 - 1e-9) <= estimate <= truth * 1.15 * (1 + 1e-9)


def test_few_or_old_measurements_say_nothing():
    assert LatencyHistogram.empty().quantile(0.95, 0.0) is None
    assert histogram([1.0] * 4).quantile(0.95, 0.0) is None
    five = histogram([1.0] * 5)
    assert five.quantile(0.95, 0.0) == pytest.approx(1.0, rel=0.15)
    assert five.quantile(0.95, 600.0) is None
    assert histogram([1.0] * 100).quantile(0.95, 1800.0) is not None
    assert histogram([1.0] * 100).quantile(0.95, 24 * 3600.0) is None


def test_a_clock_set_back_makes_nothing_older_or_newer():
    assert histogram([1.0] * 6, now_s=1e6).quantile(0.95, 0.0) is not None


def test_new_measurements_outweigh_old_ones():
    changed = histogram([0.1] * 500 + [3.0] * 100)
    assert changed.quantile(0.5, 0.0) == pytest.approx(3.0, rel=0.15)


def test_what_is_out_of_range_stays_in_the_outer_bins():
    assert histogram([0.0] * 9).quantile(0.95, 0.0) == pytest.approx(0.001)
    assert 1000 < histogram([1e6] * 9).quantile(0.95, 0.0) < 1200


def test_a_book_outlives_its_process_and_shares_its_file(tmp_path):
    path = tmp_path / "latency.json"
    book, other = LatencyBook(path), LatencyBook(path)
    for _ in range(6):
        book.record("c free tier1", 0.5)
    book.record("c free tier2", 0.5)
    assert other.p95("c free ") == {"tier1": pytest.approx(0.5, rel=0.15)}
    assert LatencyBook(path).p95("c closed ") == {}
    for _ in range(6):
        other.record("c free tier2", 2.0)
    assert book.p95("c free ")["tier2"] == pytest.approx(2.0, rel=0.15)


def test_a_book_without_a_file_remembers_too():
    book = LatencyBook()
    for _ in range(6):
        book.record("tier1", 0.5)
    assert book.p95("") == {"tier1": pytest.approx(0.5, rel=0.15)}


@pytest.mark.parametrize(
    "content",
    [
        "", "[]", "{}", '{"format": 2, "histograms": {}}', '{"format": 1, "histograms": []}',
        json.dumps({"format": 1, "histograms": {"a": {"at_s": 0, "weights": [1, 2]}}}),
        json.dumps({"format": 1, "histograms": {"a": {"at_s": 0, "weights": ["x"] * 101}}}),
    ],
)  # fmt: skip
def test_a_file_that_cannot_be_read_counts_as_empty_and_is_replaced(tmp_path, content):
    path = tmp_path / "latency.json"
    path.write_text(content)
    book = LatencyBook(path)
    assert book.p95("") == {}
    for _ in range(6):
        book.record("tier1", 0.5)
    assert "tier1" in LatencyBook(path).p95("")


def test_what_is_no_duration_is_refused():
    for seconds in (-1.0, float("nan"), float("inf")):
        with pytest.raises(InvalidInput, match="seconds"):
            LatencyBook().record("tier1", seconds)


@pytest.mark.parametrize(
    ("remaining_s", "p95_s", "allowed", "expected"),
    [
        (1.0, {}, None, True),
        (0.0, {}, None, False),
        (1.0, {"a": 2.0}, None, False),
        (1.0, {"a": 2.0, "b": 0.5}, None, True),
        (1.0, {"a": 2.0, "b": 0.5}, frozenset({"a"}), False),
        (1.0, {"a": 2.0}, frozenset({"a", "unknown"}), True),
        (1.0, {"a": 2.0}, frozenset({"unknown"}), True),
    ],
)
def test_some_tier_that_may_answer_has_to_fit_and_the_unknown_does(
    remaining_s, p95_s, allowed, expected
):
    assert fits(remaining_s, p95_s, allowed) is expected


def test_a_cluster_that_is_gone_leaves_the_file(tmp_path):
    path, now_s = tmp_path / "latency.json", [1e9]
    book = LatencyBook(path, now=lambda: now_s[0])
    book.record("gone tier1", 0.5)
    now_s[0] += 25 * 3600.0
    book.record("here tier1", 0.5)
    assert list(json.loads(path.read_text())["histograms"]) == ["here tier1"]
