"""Counting without a library, read back by Prometheus' own Python client."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from cascade.errors import InvalidInput
from cascade.instruments import Bounded, Instruments, Metric

COUNT = Metric("cascade_things_total", "counter", "Things.", ("kind",))
LEVEL = Metric("cascade_level_ratio", "gauge", "How full.")
TIME = Metric("cascade_wait_seconds", "histogram", "Waiting.", (), (0.1, 1.0))


def read(text: str) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


@given(st.text(max_size=20), st.floats(min_value=0, max_value=1e300))
def test_any_label_and_value_comes_back(label: str, value: float) -> None:
    counts = Instruments([COUNT])
    counts.add(COUNT, value, label)
    # The parser reads line by line, as splitlines does; labels may hold what that splits at.
    if len(label.splitlines()) > 1 or label.endswith("\r"):
        return
    assert read(counts.text()) == {("cascade_things_total", (("kind", label),)): value}


def test_what_has_no_labels_starts_at_nothing() -> None:
    samples = read(Instruments([COUNT, LEVEL, TIME]).text())
    assert samples[("cascade_level_ratio", ())] == 0
    assert samples[("cascade_wait_seconds_count", ())] == 0
    assert not [name for name, _ in samples if name == "cascade_things_total"]


def test_buckets_are_cumulative_and_include_their_bound() -> None:
    counts = Instruments([TIME])
    for value in (0.05, 0.1, 0.5, 7.0):
        counts.observe(TIME, value)
    samples = read(counts.text())
    assert [samples[("cascade_wait_seconds_bucket", (("le", le),))] for le in ("0.1", "1", "+Inf")]
    assert samples[("cascade_wait_seconds_bucket", (("le", "0.1"),))] == 2
    assert samples[("cascade_wait_seconds_bucket", (("le", "1"),))] == 3
    assert samples[("cascade_wait_seconds_bucket", (("le", "+Inf"),))] == 4
    assert samples[("cascade_wait_seconds_sum", ())] == pytest.approx(7.65)
    assert counts.value(TIME) == 4


def test_sums_by_a_label_and_forgetting() -> None:
    counts = Instruments([COUNT, LEVEL])
    counts.add(COUNT, 2, "a")
    counts.add(COUNT, 1, "b")
    counts.set(LEVEL, 0.5)
    assert counts.by_label(COUNT, "kind") == {"a": 2, "b": 1}
    assert counts.value(LEVEL) == 0.5
    counts.forget(COUNT)
    assert counts.value(COUNT, "a") == 0


@pytest.mark.parametrize(
    ("metric", "field"),
    [
        (("things_total", "counter", "Things."), "name"),
        (("cascade_things", "counter", "Things."), "name"),
        (("cascade_things_total", "gauge", "Things."), "name"),
        (("cascade_wait_seconds", "histogram", "Waiting."), "buckets"),
        (("cascade_wait_seconds", "histogram", "Waiting.", (), (1.0, 0.5)), "buckets"),
        (("cascade_wait_seconds", "histogram", "Waiting.", (), (1.0, math.inf)), "buckets"),
        (("cascade_level", "gauge", "Two\nlines."), "labels"),
        (("cascade_level", "gauge", "Level.", ("le-vel",)), "labels"),
    ],
)
def test_a_definition_that_breaks_a_rule_is_refused(metric: tuple[object, ...], field: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        Metric(*metric)  # type: ignore[arg-type]
    assert refused.value.field == field


def test_a_label_takes_so_many_values_and_no_more() -> None:
    label = Bounded(most=2)
    assert [label(name) for name in ("a", "", "b", "c", "a")] == ["a", "none", "b", "other", "a"]
    named = Bounded(["a"])
    assert [named(name) for name in ("b", "a", "")] == ["other", "a", "none"]
