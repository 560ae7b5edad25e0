"""Confident learning by hand, and on labels whose noise is known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cascade.errors import InvalidInput
from cascade.records import load
from edge.examples.label_noise import doubts, label_right

SENTIMENT = Path(__file__).parents[3] / "benchmarks/decision/data/sentiment.parquet"
OPTIONS = ("positive", "negative")


def test_the_rule_by_hand():
    p = [[0.9, 0.1], [0.7, 0.3], [0.2, 0.8], [0.4, 0.6], [0.1, 0.9], [0.8, 0.2]]
    labels = [0, 0, 0, 1, 1, 1]
    # Thresholds: mean of .9 .7 .2 = .6 for label 0, of .6 .9 .2 = .5667 for label 1.
    found = doubts(p, labels)
    assert found.suspect.tolist() == [False, False, True, False, False, True]
    assert found.other.tolist() == [0, 0, 1, 1, 1, 0]
    assert found.joint.tolist() == [[2, 1], [1, 2]]
    assert found.noise == pytest.approx(1 / 3)


def test_a_label_that_nobody_carries_is_never_suspected():
    found = doubts([[0.1, 0.0, 0.9], [0.2, 0.0, 0.8]], [0, 0])
    assert not found.suspect.any()


def test_no_rows_are_no_doubts():
    found = doubts(np.zeros((0, 3)), np.zeros(0, dtype=int))
    assert (found.suspect.shape, found.noise) == ((0,), 0.0)


def drawn(seed: int, *, device: float, teacher: float, rows: int = 4000, labels: int = 3):
    """Truth, the teacher's labels, the device's probabilities; both are right with a chance."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, labels, rows)
    wrong = (truth + rng.integers(1, labels, rows)) % labels
    given = np.where(rng.random(rows) < teacher, truth, wrong)
    # The device is right as often as it says, and sometimes says more.
    top = rng.beta(8, 8 * (1 - device) / device, rows)
    top = np.maximum(top, 1 / labels)
    other = (truth + rng.integers(1, labels, rows)) % labels
    best = np.where(rng.random(rows) < top, truth, other)
    p = np.repeat(((1 - top) / (labels - 1))[:, None], labels, axis=1)
    p[np.arange(rows), best] = top
    return truth, given, p


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_wrong_labels_are_found_by_a_good_device(seed):
    truth, given, p = drawn(seed, device=0.9, teacher=0.85)
    found = doubts(p, given)
    wrong = given != truth
    assert found.suspect[wrong].mean() > 0.6
    assert found.suspect[~wrong].mean() < 0.15
    assert found.noise > 0.1


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_weak_device_suspects_rather_its_teacher_but_wrong_labels_still_weigh_less(seed):
    truth, given, p = drawn(seed, device=0.7, teacher=0.95)
    found = doubts(p, given)
    wrong = given != truth
    assert wrong[found.suspect].mean() < 0.5  # most suspicions are the device's own errors
    weight = np.where(found.suspect, label_right(p, given, np.full(len(p), 0.95)), 1.0)
    assert weight[wrong].mean() < weight[~wrong].mean() - 0.05


def test_both_witnesses_count():
    p = [[0.1, 0.9], [0.5, 0.5], [0.9, 0.1]]
    right = label_right(p, [0, 0, 0], [0.9, 0.9, 0.9])
    assert right == pytest.approx([0.5, 0.9, 0.81 / 0.82])
    assert label_right([[0.0, 1.0]], [0], [1.0]) == pytest.approx([0.0])


def test_the_chance_that_a_label_is_right_is_calibrated_where_errors_are_independent():
    truth, given, p = drawn(3, device=0.8, teacher=0.8, rows=60_000)
    right = label_right(p, given, np.full(len(p), 0.8))
    for low in (0.2, 0.4, 0.6, 0.8):
        inside = (right >= low) & (right < low + 0.2)
        if inside.sum() > 500:
            assert abs((given == truth)[inside].mean() - right[inside].mean()) < 0.06


@pytest.mark.parametrize(
    ("p", "labels"),
    [([0.5], [0]), ([[0.5, 1.5]], [0]), ([[0.5, 0.5]], [2]), ([[0.5, 0.5]], [0, 1])],
)
def test_what_does_not_fit_is_refused(p, labels):
    with pytest.raises(InvalidInput):
        doubts(p, labels)


def test_on_real_answers_a_suspected_label_is_wrong_far_more_often_than_another():
    """SmolLM2-135M on the device, Qwen2.5-Coder-0.5B as the source; people's ratings as truth."""
    rows = [row for row in load(SENTIMENT) if row.outcomes["tier1"].answer in OPTIONS]
    p = np.clip([row.outcomes["device"].scores.probabilities for row in rows], 0, 1)
    given = np.array([OPTIONS.index(row.outcomes["tier1"].answer) for row in rows])
    right = np.array([row.outcomes["tier1"].correct == 1 for row in rows])
    suspect = doubts(p, given).suspect
    assert suspect.sum() >= 20
    assert (~right)[suspect].mean() > 3 * (~right)[~suspect].mean()
    weight = np.where(suspect, np.maximum(0.25, label_right(p, given, np.full(len(p), 0.9))), 1)
    assert (weight * right).sum() / weight.sum() > right.mean()
