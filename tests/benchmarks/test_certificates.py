"""The draws are what they stand for, and the groups write rows as agreed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.decision import draws
from benchmarks.decision.naive_table import ALPHAS, SIZES, table
from benchmarks.decision.pools import Pool, flat, pools
from benchmarks.rows import read_rows
from cascade.certify import FixedSequence, certify, naive_threshold, threshold_grid
from cascade.certify.families import furthest
from cascade.certify.p_values import clopper_pearson
from cascade.errors import InfeasibleTarget, InvalidInput

ROOT = Path(__file__).parents[2]


def test_a_pool_knows_its_risk_at_every_threshold() -> None:
    pool = Pool("four", np.array([0.9, 0.5, 0.5, 0.1]), np.array([True, False, True, False]))
    coverage, risk = pool.coverage_and_risk(np.array([1.0, 0.9, 0.6, 0.5, 0.0]))
    assert coverage.tolist() == [0, 0.25, 0.25, 0.75, 1]
    assert risk.tolist() == [0, 0, 0, pytest.approx(1 / 3), 0.5]
    assert pool.best_coverage(0.4) == 0.75
    assert pool.best_coverage(0.3) == 0.25
    assert Pool("bad", np.array([0.5]), np.array([False])).best_coverage(0.3) == 0


def test_a_pool_refuses_confidences_that_are_none() -> None:
    with pytest.raises(InvalidInput, match="confidence: contains NaN"):
        Pool("broken", np.array([np.nan]), np.array([True]))


def test_the_flat_pool_is_bad_everywhere_and_good_nowhere_that_matters() -> None:
    pool = flat(0.1)
    assert pool.coverage_and_risk(np.array([0.0]))[1][0] == pytest.approx(0.102, abs=1e-4)


@pytest.mark.parametrize("pool", pools(), ids=lambda pool: pool.name)
def test_counts_drawn_at_once_are_those_of_rows_drawn_one_by_one(pool: Pool) -> None:
    rng = np.random.default_rng(1)
    thresholds = threshold_grid(pool.confidence[:400])
    accepted, errors = draws.draw_counts(pool, thresholds, 500, 4000, rng)
    coverage, risk = pool.coverage_and_risk(thresholds)
    for counts, share in ((accepted, coverage), (errors, coverage * risk)):
        error = np.sqrt(500 * share * (1 - share) / 4000)
        assert (np.abs(counts.mean(axis=0) - 500 * share) <= 5 * error + 1e-9).all()
        spread = counts.var(axis=0)
        assert spread == pytest.approx(500 * share * (1 - share), rel=0.15, abs=0.02)


def test_arrays_of_parts_are_certified_as_the_product_certifies_one() -> None:
    rng = np.random.default_rng(2)
    found = 0
    for pool in pools():
        grid = threshold_grid(pool.confidence[:400])[8:]
        rows = rng.integers(0, len(pool.confidence), 600)
        part = Pool("part", pool.confidence[rows], pool.correct[rows])
        coverage, risk = part.coverage_and_risk(grid)
        p_values = clopper_pearson(np.round(coverage * risk * 600), np.round(coverage * 600), 0.1)
        last = int(furthest(FixedSequence().certified(p_values, draws.DELTA)))
        try:
            certificate = certify(
                part.confidence, part.correct, alpha=0.1, delta=draws.DELTA, grid=grid
            )
        except InfeasibleTarget:
            assert last == -1
            continue
        found += 1
        assert certificate.threshold == grid[last]
    assert found >= 3


def test_the_naive_rule_of_many_parts_is_that_of_one() -> None:
    rng = np.random.default_rng(3)
    confidence = rng.integers(0, 10, (200, 40)) / 10
    correct = rng.random((200, 40)) < 0.3 + 0.6 * confidence
    found = draws.naive_thresholds(confidence, correct, 0.2)
    for i in range(200):
        alone = naive_threshold(confidence[i], correct[i], alpha=0.2)
        assert found[i] == (alone.threshold if alone else np.inf)


def test_the_table_sets_the_naive_rule_beside_the_certified_one() -> None:
    (pool,) = (pool for pool in pools() if pool.name == "shallow")
    about, empty, head, rule, *lines = table(pool, blocks=2)
    assert about.startswith("shallow: 20,000 rows, ")
    assert "40 certify parts a row" in about
    assert not empty
    assert len(lines) == len(SIZES) * len(ALPHAS)
    assert {line.count("|") for line in (head, rule, *lines)} == {8}
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
    naive, certified = (
        np.mean([float(row[place].rstrip("%")) for row in cells]) for place in (2, 4)
    )
    assert certified <= 20
    assert naive >= 30


def test_a_quick_run_writes_rows(tmp_path: Path) -> None:
    file = tmp_path / "rows.json"
    done = subprocess.run(
        [
            *(sys.executable, "-m", "benchmarks.decision", "--quick", "--json", str(file)),
            *("--only", "violations", "--only", "coverage"),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    rows = {row.figure: row for row in read_rows(file)}
    assert all(row.quick and row.how and row.value is not None for row in rows.values())
    ours = rows["violations, planned sequence, α = 0.1, n = 1000"]
    naive = rows["violations, naive rule, α = 0.1, n = 1000"]
    assert ours.reached
    assert naive.value > 2 * naive.reach
    real = rows["violations, planned sequence, sentiment records, α = 0.1"]
    assert real.reached
    assert rows["violations, naive rule, sentiment records, α = 0.1"].value > 2 * real.reach
    assert any(name.startswith("coverage kept of") for name in rows)
    assert any(row.peer in draws.OTHERS for row in rows.values())
