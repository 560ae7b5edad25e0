"""Grids keep the shares asked for, and start where a certificate can be had."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from cascade.certify import (
    cost_usd,
    escalation_share,
    plan_grid,
    plan_targets,
    selective_risk,
    threshold_grid,
)
from cascade.errors import InvalidInput
from tests.cascade.certify.populations import Population

ALPHA, DELTA = 0.25, 0.1


def test_the_grid_keeps_the_shares_asked_for_and_ends_by_accepting_everything() -> None:
    confidence = np.random.default_rng(1).random(1000)
    grid = threshold_grid(confidence, (0.05, 0.1, 0.5, 1.0))
    assert [float(np.mean(confidence >= t)) for t in grid] == [0.05, 0.1, 0.5, 1.0]
    assert grid[-1] == 0


def test_ties_merge_thresholds() -> None:
    assert threshold_grid([0.6] * 50 + [0.9] * 50).tolist() == [0.9, 0.6, 0.0]


def test_the_planned_grid_is_the_tail_of_the_whole_one_and_skips_what_cannot_pass() -> None:
    develop = Population(0.55, 0.35).draw(400, np.random.default_rng(2))
    whole = threshold_grid(develop[0])
    planned = plan_grid(*develop, rows=200, alpha=ALPHA, delta=DELTA)
    assert len(planned) < len(whole)
    assert planned.tolist() == whole[-len(planned) :].tolist()


@pytest.mark.parametrize("coverages", [(0.0, 0.5), (0.5, 0.5), (0.5, 0.4), (0.5, 1.1)])
def test_coverages_must_be_rising_shares(coverages: tuple[float, ...]) -> None:
    with pytest.raises(InvalidInput, match="coverages"):
        threshold_grid([0.5, 0.6], coverages)


def test_the_start_is_the_first_threshold_whose_chance_is_about_the_best() -> None:
    """Against the beta-binomial of scipy, threshold by threshold."""
    confidence, right = Population(0.6, 0.35).draw(300, np.random.default_rng(3))
    chances = []
    whole = threshold_grid(confidence)
    for threshold in whole:
        kept = confidence >= threshold
        seen, wrong = int(kept.sum()), int((~right[kept]).sum())
        rows = round(seen / 300 * 500)
        most = int(stats.binom.ppf(DELTA, rows, ALPHA))
        most -= stats.binom.cdf(most, rows, ALPHA) > DELTA
        chances.append(
            stats.betabinom.cdf(most, rows, wrong + 16 * ALPHA, seen - wrong + 16 * (1 - ALPHA))
        )
    start = int(np.argmax(np.array(chances) >= max(chances) - 0.03))
    planned = plan_grid(confidence, right, rows=500, alpha=ALPHA, delta=DELTA)
    assert planned.tolist() == whole[start:].tolist()


def test_a_budget_is_planned_from_no_escalation_up() -> None:
    confidence = np.random.default_rng(4).random(400)
    target = cost_usd(np.full(400, 0.01), alpha=0.004, most=0.02)
    grid = plan_targets(confidence, [target], rows=1000, delta=DELTA, rising=True)
    assert grid[0] == 0
    assert (np.diff(grid) > 0).all()


def test_targets_that_pull_both_ways_start_between() -> None:
    confidence, right = Population(0.4, 0.6).draw(800, np.random.default_rng(5))
    risk, share = selective_risk(right, alpha=0.2), escalation_share(800, alpha=0.7)
    alone = plan_targets(confidence, [risk], rows=300, delta=DELTA)
    both = plan_targets(confidence, [risk, share], rows=300, delta=DELTA)
    assert both[0] < alone[0]
    assert 0.33 < both[0] < 0.7


def test_a_plan_needs_rows_to_come() -> None:
    with pytest.raises(InvalidInput, match="rows: 0 is below 1"):
        plan_targets([0.5], [escalation_share(1, alpha=0.5)], rows=0, delta=DELTA)
