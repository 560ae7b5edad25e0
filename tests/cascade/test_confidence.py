"""The confidence that a device evaluates: what it computes, and what it refuses to read."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cascade.confidence import ConfidenceModel, Isotonic, Platt
from cascade.errors import InvalidInput
from cascade.logistic import logit, sigmoid

PLATT = ConfidenceModel(Platt(a=0.8, b=-0.3))
SEARCHED = ConfidenceModel(Platt(a=0.8, b=-0.3), "search_bound")
ISOTONIC = ConfidenceModel(Isotonic(x=(0.5, 0.7, 0.9), y=(0.4, 0.6, 1.0)))

scores = st.floats(0, 1)


def test_platt_is_the_sigmoid_of_the_scaled_logit() -> None:
    by_hand = 1 / (1 + math.exp(-(0.8 * math.log(0.9 / 0.1) - 0.3)))
    assert PLATT(0.9) == pytest.approx(by_hand, abs=1e-12)


@pytest.mark.parametrize(
    ("score", "expected"), [(0.0, 0.4), (0.5, 0.4), (0.6, 0.5), (0.8, 0.8), (0.9, 1.0), (1.0, 1.0)]
)
def test_isotonic_is_linear_between_knots_and_flat_beyond(score: float, expected: float) -> None:
    assert ISOTONIC(score) == pytest.approx(expected)


@given(scores, scores)
def test_more_score_is_never_less_confidence(one: float, other: float) -> None:
    low, high = sorted((one, other))
    for model in (PLATT, ISOTONIC):
        assert 0 <= model(low) <= model(high) <= 1


@given(scores)
def test_the_identity_calibrator_gives_the_score_back(score: float) -> None:
    assert ConfidenceModel(Platt(1.0, 0.0))(score) == pytest.approx(score, abs=1e-8)


@given(st.lists(scores, min_size=1, max_size=20))
def test_a_batch_is_the_same_as_one_by_one(values: list[float]) -> None:
    for model in (PLATT, ISOTONIC):
        assert model.batch(values).tolist() == [model(value) for value in values]


def test_extreme_logits_neither_overflow_nor_leave_the_unit_interval() -> None:
    assert sigmoid(np.array([-1e6, 0.0, 1e6])).tolist() == [0.0, 0.5, 1.0]
    assert np.isfinite(logit(np.array([0.0, 1.0]))).all()
    assert 0 <= ConfidenceModel(Platt(1e3, 0.0))(1.0) <= 1


def test_a_softmax_that_sums_to_a_hair_above_one_is_taken_as_one() -> None:
    assert PLATT(1 + 2e-16) == PLATT(1.0)


@pytest.mark.parametrize("score", [math.nan, math.inf, -0.1, 1.1])
def test_a_score_that_is_no_probability_is_refused(score: float) -> None:
    with pytest.raises(InvalidInput, match="score"):
        PLATT(score)
    with pytest.raises(InvalidInput, match="scores"):
        PLATT.batch([score])


@pytest.mark.parametrize("model", [PLATT, ISOTONIC, SEARCHED])
def test_json_gives_back_an_equal_model(model: ConfidenceModel) -> None:
    assert ConfidenceModel.from_json(json.loads(json.dumps(model.to_json()))) == model


def test_a_model_holds_for_the_mode_whose_scores_it_was_fitted_to() -> None:
    assert (PLATT.mode, SEARCHED.mode) == ("exact", "search")


PLATT_JSON = {"kind": "platt", "a": 1, "b": 0}


@pytest.mark.parametrize(
    ("data", "field"),
    [
        ([], "confidence"),
        ({"feature": "raw_score"}, "confidence.calibrator"),
        ({"feature": "entropy", "calibrator": PLATT_JSON}, "confidence.feature"),
        ({"feature": "raw_score", "calibrator": PLATT_JSON, "extra": 1}, "confidence.extra"),
        ({"feature": "raw_score", "calibrator": {"kind": "spline"}}, "confidence.calibrator.kind"),
        ({"feature": "raw_score", "calibrator": {"kind": "platt", "a": 1}}, "calibrator.b"),
        ({"feature": "raw_score", "calibrator": PLATT_JSON | {"c": 1}}, "calibrator.c"),
        ({"feature": "raw_score", "calibrator": PLATT_JSON | {"a": "1"}}, "calibrator.a"),
        ({"feature": "raw_score", "calibrator": PLATT_JSON | {"a": True}}, "calibrator.a"),
        ({"feature": "raw_score", "calibrator": PLATT_JSON | {"a": math.nan}}, "calibrator.a"),
    ],
)
def test_json_that_is_not_exactly_a_model_is_refused_by_field(data: object, field: str) -> None:
    with pytest.raises(InvalidInput, match=field):
        ConfidenceModel.from_json(data)


@pytest.mark.parametrize(
    ("x", "y", "field"),
    [
        ([], [], "y"),
        ([0.1, 0.2], [0.3], "y"),
        ([0.2, 0.2], [0.3, 0.4], "x"),
        ([0.1, 0.2], [0.4, 0.3], "y"),
        ([0.1, 1.2], [0.3, 0.4], "x"),
    ],
)
def test_isotonic_knots_must_be_a_rising_map(x: list[float], y: list[float], field: str) -> None:
    data = {"feature": "raw_score", "calibrator": {"kind": "isotonic", "x": x, "y": y}}
    with pytest.raises(InvalidInput, match=rf"calibrator\.{field}"):
        ConfidenceModel.from_json(data)
