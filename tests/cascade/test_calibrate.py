"""Fitting a calibrator: it finds the truth, agrees with scikit-learn, and refuses useless rows."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import ArrayLike, NDArray
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression

from cascade.calibrate import MIN_ROWS, fit_isotonic, fit_platt
from cascade.confidence import ConfidenceModel, Isotonic, Platt
from cascade.errors import InvalidInput
from cascade.logistic import logit, sigmoid
from cascade.metrics import ece

Rows = tuple[NDArray[np.float64], NDArray[np.bool_]]
Fit = Callable[[ArrayLike, ArrayLike], ConfidenceModel]


def overconfident(n: int, seed: int = 0, a: float = 0.4, b: float = -0.2) -> Rows:
    """Scores whose true P(right) is sigmoid(a · logit + b)."""
    rng = np.random.default_rng(seed)
    scores = rng.uniform(0.5, 0.999, n)
    return scores, rng.random(n) < sigmoid(a * logit(scores) + b)


def test_platt_recovers_the_map_that_made_the_rows() -> None:
    fitted = fit_platt(*overconfident(50_000)).calibrator
    assert isinstance(fitted, Platt)
    assert (fitted.a, fitted.b) == pytest.approx((0.4, -0.2), abs=0.05)


def test_platt_agrees_with_scikit_learn_on_smoothed_targets() -> None:
    scores, correct = overconfident(300, seed=1)
    hits, misses = correct.sum(), (~correct).sum()
    target = np.where(correct, (hits + 1) / (hits + 2), 1 / (misses + 2))
    feature = np.tile(logit(scores)[:, None], (2, 1))
    reference = LogisticRegression(C=1e12, tol=1e-10, max_iter=1000).fit(
        feature, np.repeat([1, 0], len(scores)), np.concatenate([target, 1 - target])
    )
    fitted = fit_platt(scores, correct).calibrator
    assert isinstance(fitted, Platt)
    assert fitted.a == pytest.approx(reference.coef_[0, 0], abs=1e-4)
    assert fitted.b == pytest.approx(reference.intercept_[0], abs=1e-4)


def test_platt_stays_finite_where_the_score_separates_right_from_wrong() -> None:
    scores = np.linspace(0.01, 0.99, 100)
    model = fit_platt(scores, scores > 0.5)
    assert 0 < model(0.01) < 0.1
    assert 0.9 < model(0.99) < 1


def test_platt_copes_with_saturated_scores() -> None:
    scores = np.array([1.0] * 30 + [0.0] * 30)
    model = fit_platt(scores, np.array([1] * 25 + [0] * 5 + [1] * 10 + [0] * 20))
    assert model(1.0) == pytest.approx(25 / 30, abs=0.03)
    assert model(0.0) == pytest.approx(10 / 30, abs=0.03)


def test_isotonic_predicts_as_scikit_learn_does() -> None:
    scores, correct = overconfident(500, seed=2)
    model = fit_isotonic(scores, correct)
    assert isinstance(model.calibrator, Isotonic)
    reference = IsotonicRegression(out_of_bounds="clip").fit(scores, correct)
    probe = np.linspace(0, 1, 101)
    assert model.batch(probe) == pytest.approx(reference.predict(probe), abs=1e-12)


@pytest.mark.parametrize("fit", [fit_platt, fit_isotonic])
def test_calibration_lowers_the_error_on_fresh_rows(fit: Fit) -> None:
    model = fit(*overconfident(2000, seed=3))
    fresh, correct = overconfident(5000, seed=4)
    assert ece(fresh, correct) > 0.1
    assert ece(model.batch(fresh), correct) < 0.06


@pytest.mark.parametrize("fit", [fit_platt, fit_isotonic])
@pytest.mark.parametrize(
    ("scores", "correct", "message"),
    [
        ([[0.5] * 40], [True] * 40, "scores: must be one-dimensional"),
        ([0.5] * 40, [[True] * 40], "correct: must be one-dimensional"),
        ([], [], "scores: is empty"),
        (["a"] * 40, [1] * 40, "scores: must be a one-dimensional array of numbers"),
        ([0.5] * 40, [1] * 39, "correct: has 39 rows but scores has 40"),
        ([np.nan] + [0.5] * 39, [1] * 40, "scores: contains NaN"),
        ([1.5] + [0.5] * 39, [1] * 40, "scores: must lie between 0 and 1"),
        ([0.5] * 40, [2] * 40, "correct: must hold only false/true or 0/1"),
        ([0.5] * (MIN_ROWS - 1), [1] * (MIN_ROWS - 1), "scores: has 19 rows; at least 20"),
        ([0.5] * 40, [1] * 40, "correct: all answers are right"),
        ([0.5] * 40, [0] * 40, "correct: all answers are wrong"),
    ],
)
def test_rows_that_say_nothing_are_refused(
    fit: Fit, scores: ArrayLike, correct: ArrayLike, message: str
) -> None:
    with pytest.raises(InvalidInput, match=message):
        fit(scores, correct)


def test_platt_refuses_scores_that_are_all_equal() -> None:
    with pytest.raises(InvalidInput, match="all equal"):
        fit_platt([0.7] * 40, [0, 1] * 20)
