"""Intervals hold their level, whole or in little bags, and know what belongs together."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from numpy.typing import NDArray

from cascade.errors import InvalidInput
from cascade.replay import intervals
from cascade.replay.bootstrap import WHOLE
from cascade.replay.figures import weighted_mean, weighted_quantiles
from cascade.rows import Floats


@dataclass(frozen=True)
class Columns:
    values: Floats

    def of(self, weights: NDArray[np.int64]) -> dict[str, Floats]:
        order = np.argsort(self.values)
        return {
            "mean": weighted_mean(weights.astype(np.float64), self.values),
            "p95": weighted_quantiles(self.values[order], weights[:, order], [0.95])[0],
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
    # Standard error of a quantile: √(p (1 - p) / n) / density, which is 1 - p here.
    assert found["p95"] == pytest.approx(2 * 1.96 * np.sqrt(0.95 * 0.05 / n) / 0.05, rel=0.15)


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
