"""Each target counts the loss that it names, and refuses what it cannot take."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cascade.certify import (
    Target,
    cost_usd,
    deadline_misses,
    escalation_share,
    excess_error,
    net_error,
    selective_risk,
)
from cascade.errors import InvalidInput

CONFIDENCE = np.array([0.1, 0.4, 0.4, 0.8, 0.9])
RIGHT, CLOUD = np.array([0, 1, 0, 0, 1]), np.array([1, 0, 0, 1, 1])


@pytest.mark.parametrize(
    ("target", "means"),
    [
        (selective_risk(RIGHT, alpha=0.5), [3 / 5, 2 / 4, 1 / 2]),
        (excess_error(RIGHT, CLOUD, alpha=0.5), [2 / 5, 1 / 5, 1 / 5]),
        (net_error(RIGHT, CLOUD, alpha=0.0), [1 / 5, 0, 1 / 5]),
        (escalation_share(5, alpha=0.5), [0, 1 / 5, 3 / 5]),
        (cost_usd([1.0, 2, 3, 4, 5], alpha=2.0, most=8.0), [0, 1 / 5, 6 / 5]),
        (
            cost_usd([1.0, 2, 3, 4, 5], local=[0.5] * 5, alpha=2.0, most=8.0),
            [2.5 / 5, 3 / 5, 7 / 5],
        ),
        (deadline_misses([0, 0, 0, 1, 1], [1, 1, 0, 0, 0], alpha=0.5), [2 / 5, 3 / 5, 4 / 5]),
    ],
    ids=lambda value: value.kind if isinstance(value, Target) else "",
)
def test_means_are_counted_by_hand(target: Target, means: list[float]) -> None:
    total, rows = target.totals(CONFIDENCE, np.array([0.0, 0.4, 0.8]))
    observed = [target.from_unit(value) for value in total / rows]
    assert observed == pytest.approx(means)
    for threshold, mean in zip((0.0, 0.4, 0.8), means, strict=True):
        counted = target.counted(CONFIDENCE, threshold)
        assert target.from_unit(float(counted.mean())) == pytest.approx(mean)


def test_grades_count_in_part_where_the_method_allows_it() -> None:
    risk = selective_risk([0.75] * 5, alpha=0.5, method="hoeffding_bentkus")
    total, rows = risk.totals(CONFIDENCE, np.array([0.4]))
    assert total[0] / rows[0] == pytest.approx(0.25)
    excess = excess_error([0.5] * 5, [0.75, 0.25, 0.5, 1, 1], alpha=0.5, method="betting")
    assert excess.local.tolist() == [0.25, 0, 0, 0.5, 0.5]


rows_of_both = st.lists(
    st.tuples(st.floats(0, 1), st.booleans(), st.booleans()), min_size=1, max_size=40
)


@settings(max_examples=60)
@given(rows_of_both)
def test_promises_rise_and_fall_as_they_are_said_to(
    rows: list[tuple[float, bool, bool]],
) -> None:
    confidence, right, cloud = (np.array(column) for column in zip(*rows, strict=True))
    thresholds = np.linspace(0, 1, 9)
    excess = excess_error(right, cloud, alpha=0.5).totals(confidence, thresholds)[0]
    share = escalation_share(len(rows), alpha=0.5).totals(confidence, thresholds)[0]
    money = cost_usd(np.ones(len(rows)), alpha=0.5, most=2.0).totals(confidence, thresholds)[0]
    assert (np.diff(excess) <= 0).all()
    assert (np.diff(share) >= 0).all()
    assert (np.diff(money) >= 0).all()
    net = net_error(right, cloud, alpha=0.0)
    observed = np.array(
        [net.from_unit(v) for v in net.totals(confidence, thresholds)[0] / len(rows)]
    )
    assert (observed <= excess / len(rows) + 1e-12).all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: selective_risk([1, 0.5], alpha=0.1), "correct: must hold only.*hoeffding_bentkus"),
        (lambda: selective_risk([1, 2], alpha=0.1), "correct: must hold only"),
        (lambda: selective_risk([1, np.nan], alpha=0.1), "correct: must hold only"),
        (lambda: selective_risk([1, 1.5], alpha=0.1, method="betting"), "correct: must lie"),
        (lambda: selective_risk([1, 0], alpha=1.0), "alpha: 1.0 is not between 0 and 1"),
        (lambda: excess_error([1], [0.5], alpha=0.1), "cloud_correct: must hold only"),
        (lambda: excess_error([1], [1, 0], alpha=0.1), "cloud_correct: has 2 rows"),
        (lambda: net_error([1], [1], alpha=0.1, method="clopper_pearson"), "method: .*signed"),
        (lambda: net_error([1], [1], alpha=-1.0), "alpha: -1.0 is not between -1 and 1"),
        (lambda: escalation_share(0, alpha=0.1), "rows: 0 is below 1"),
        (lambda: cost_usd([0.5], alpha=0.1, most=0.4), "escalated: must lie between 0 and most"),
        (lambda: cost_usd([np.nan], alpha=0.1, most=1), "escalated: contains NaN"),
        (lambda: cost_usd([0.1], alpha=0.1, most=np.inf), "most: inf is not a finite number"),
        (lambda: cost_usd([0.1], alpha=1.0, most=1.0), "alpha: 1.0 is not between 0 and 1"),
        (lambda: cost_usd([0.1], local=[0, 0], alpha=0.5, most=1), "local: has 2 rows"),
        (
            lambda: cost_usd([0.1], alpha=0.5, most=1, method="clopper_pearson"),
            "escalated: must hold only",
        ),
        (lambda: deadline_misses([0.5], [1], alpha=0.1), "local_missed: must hold only"),
        (lambda: deadline_misses([1], [1, 1], alpha=0.1), "escalated_missed: has 2 rows"),
    ],
)
def test_unusable_columns_are_refused_by_field(make, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        make()
