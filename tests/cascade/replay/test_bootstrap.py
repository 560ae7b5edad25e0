"""Intervals hold their level, whole or in little bags, and know what belongs together."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from numpy.typing import NDArray

from cascade.errors import InvalidInput
from cascade.pair import pair
from cascade.replay import Figures, bootstrap, intervals
from cascade.replay.bootstrap import WHOLE
from cascade.replay.figures import weighted_mean
from cascade.replay.times import quantile_interval
from cascade.rows import Floats
from tests.cascade.drawn_records import drawn


@dataclass(frozen=True)
class Columns:
    values: Floats

    def of(self, weights: NDArray[np.int64]) -> dict[str, Floats]:
        return {
            "mean": weighted_mean(weights.astype(np.float64), self.values),
            "never": np.full(len(weights), np.nan),
        }


def widths(values: Floats, documents: NDArray[np.int64], **how: int) -> dict[str, float]:
    found = intervals(lambda rows: Columns(values[rows]), documents, replicates=1000, **how)
    return {name: each.high - each.low for name, each in found.items() if each.low is not None}


def test_little_bags_are_as_wide_as_theory_says() -> None:
    rng = np.random.default_rng(1)
    n = 200_000
    values = rng.exponential(size=n)
    documents = np.arange(n)
    assert n > WHOLE
    found = widths(values, documents)
    assert found["mean"] == pytest.approx(2 * 1.96 / np.sqrt(n), rel=0.1)


def test_documents_are_drawn_whole() -> None:
    rng = np.random.default_rng(2)
    for many in (500, WHOLE + 2000):
        of_document = rng.normal(size=many)
        documents = np.repeat(np.arange(many), 10)
        found = widths(of_document[documents], documents)
        # Ten equal rows a document say no more than one.
        assert found["mean"] == pytest.approx(2 * 1.96 / np.sqrt(many), rel=0.12)


def test_intervals_cover_the_truth_as_often_as_they_say() -> None:
    rng = np.random.default_rng(3)
    hits = 0
    for i in range(300):
        values = rng.exponential(size=200)
        found = intervals(
            lambda rows, values=values: Columns(values[rows]),
            np.arange(200),
            replicates=300,
            seed=i,
        )["mean"]
        assert found.low is not None
        assert found.high is not None
        hits += found.low <= 1 <= found.high
    assert 0.90 <= hits / 300 <= 0.98


def test_without_resamples_or_documents_there_is_no_interval() -> None:
    values, documents = np.array([1.0, 2.0]), np.array([0, 1])

    def of_rows(rows: NDArray[np.int64]) -> Columns:
        return Columns(values[rows])

    none = intervals(of_rows, documents, replicates=0)
    assert (none["mean"].value, none["mean"].low) == (1.5, None)
    assert intervals(of_rows, np.array([0, 0]), replicates=10)["mean"].high is None
    assert intervals(of_rows, documents, replicates=10)["never"].low is None
    with pytest.raises(InvalidInput, match="bootstrap: -1 is not in 0"):
        intervals(of_rows, documents, replicates=-1)


def test_a_seed_is_a_result() -> None:
    values = np.random.default_rng(4).normal(size=300)
    one, same, other = (widths(values, np.arange(300), seed=seed) for seed in (1, 1, 2))
    assert one == same
    assert one["mean"] != other["mean"]


def test_quantiles_have_the_width_of_theory() -> None:
    rng = np.random.default_rng(6)
    n = 100_000
    values = rng.exponential(size=n)
    found = quantile_interval(values, np.arange(n), 0.95)
    assert found.value == pytest.approx(np.quantile(values, 0.95))
    assert found.low is not None
    assert found.high is not None
    # Standard error of a quantile: √(p (1 - p) / n) / density, which is 1 - p here.
    expected = 2 * 1.96 * np.sqrt(0.95 * 0.05 / n) / 0.05
    assert found.high - found.low == pytest.approx(expected, rel=0.12)
    again = quantile_interval(np.repeat(values, 5), np.repeat(np.arange(n), 5), 0.95)
    assert (again.low, again.high) == pytest.approx((found.low, found.high), rel=1e-3)


def test_intervals_of_quantiles_cover_the_truth_as_often_as_they_say() -> None:
    rng = np.random.default_rng(7)
    truth, hits = -np.log(0.05), 0
    for _ in range(400):
        found = quantile_interval(rng.exponential(size=400), np.arange(400), 0.95)
        assert found.low is not None
        assert found.high is not None
        hits += found.low <= truth <= found.high
    assert 0.90 <= hits / 400 <= 0.98
    assert np.isnan(quantile_interval(np.zeros(0), np.zeros(0, np.int64), 0.5).value)
    assert quantile_interval(np.ones(3), np.zeros(3, np.int64), 0.5).low is None


def test_little_bags_say_what_resampling_all_documents_says(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rows = pair(drawn(6000, seed=21))
    accepted = rows.score > 0.7

    def of_rows(places: NDArray[np.int64]) -> Figures:
        return Figures(rows.take(places), rows.score[places], accepted[places])

    bags = intervals(of_rows, rows.documents(), replicates=1000)
    monkeypatch.setattr(bootstrap, "WHOLE", len(rows))
    whole = intervals(of_rows, rows.documents(), replicates=300)
    for name in ("coverage", "accuracy", "auroc", "aurc", "brier", "deferral_auc", "apgr", "aiq"):
        one, two = bags[name], whole[name]
        assert one.value == two.value
        assert one.low is not None
        assert one.high is not None
        assert two.low is not None
        assert two.high is not None
        width = two.high - two.low
        assert one.high - one.low == pytest.approx(width, rel=0.3), name
        assert one.low + one.high == pytest.approx(two.low + two.high, abs=0.4 * width), name
