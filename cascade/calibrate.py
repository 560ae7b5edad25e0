"""Fits the map from raw score to confidence on labelled rows of the *develop* part.

Needs the ``tune`` extra for the isotonic fit. Evaluating the fitted map is ``cascade.confidence``.

Platt's map is the default. It is strictly monotone, so it keeps every distinction that the scores
make; the isotonic fit pools neighbours into flat stretches, and the thresholds that
``cascade.certify`` tests cannot tell tied rows apart. Isotonic is for scores whose reliability
diagram is plainly not a sigmoid, with many hundreds of rows.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from cascade.confidence import ConfidenceModel, Feature, Isotonic, Platt
from cascade.errors import CascadeError, InvalidInput
from cascade.logistic import logit, sigmoid
from cascade.rows import Bools, Floats, labelled

MIN_ROWS = 20
"""Fewer rows than this are refused: two parameters fitted to them say nothing."""

_NEWTON_STEPS = 100
_GRADIENT_TOLERANCE = 1e-10


def fit_platt(
    scores: ArrayLike, correct: ArrayLike, *, feature: Feature = "raw_score"
) -> ConfidenceModel:
    """Platt scaling: a logistic regression of ``correct`` on the logit of the score.

    Targets are smoothed as in Platt (1999): (N₊ + 1) / (N₊ + 2) for right answers and
    1 / (N₋ + 2) for wrong ones, which keeps the fit finite on separable rows. Solved by Newton's
    method with step halving (Lin, Lin and Weng 2007).

    Arguments:
        scores: raw scores in [0, 1], shape ``[rows]``.
        correct: whether each answer was right, bool or 0/1, shape ``[rows]``.
        feature: ``"search_bound"`` when the answers were scored in search mode.

    Raises:
        InvalidInput: bad shapes, NaN, out of range, fewer than ``MIN_ROWS`` rows, answers that are
            all right or all wrong, or scores that are all equal.
    """
    values, right = _fit_rows(scores, correct)
    logits = logit(values)
    if np.ptp(logits) == 0:
        raise InvalidInput("scores", "are all equal; there is nothing to calibrate on")
    hits = int(right.sum())
    target = np.where(right, (hits + 1) / (hits + 2), 1 / (len(right) - hits + 2))
    center, scale = float(logits.mean()), float(logits.std())
    slope, offset = _logistic((logits - center) / scale, target)
    return ConfidenceModel(Platt(a=slope / scale, b=offset - slope * center / scale), feature)


def fit_isotonic(
    scores: ArrayLike, correct: ArrayLike, *, feature: Feature = "raw_score"
) -> ConfidenceModel:
    """Isotonic regression of ``correct`` on the score (pool adjacent violators, scikit-learn).

    Arguments and refusals are those of ``fit_platt``, except that equal scores are allowed.

    Raises:
        CascadeError: scikit-learn is not installed.
    """
    values, right = _fit_rows(scores, correct)
    try:
        # Lazy: the device imports this package without the tune extra.
        from sklearn.isotonic import IsotonicRegression
    except ImportError:
        raise CascadeError(
            "an isotonic fit needs scikit-learn: pip install 'edge-cloud-cascade[tune]'"
        ) from None
    fitted = IsotonicRegression(y_min=0, y_max=1).fit(values, right.astype(np.float64))
    x, y = fitted.X_thresholds_.astype(np.float64), fitted.y_thresholds_.astype(np.float64)
    return ConfidenceModel(Isotonic(tuple(x.tolist()), tuple(y.tolist())), feature)


def _fit_rows(scores: ArrayLike, correct: ArrayLike) -> tuple[Floats, Bools]:
    values, right = labelled(scores, correct, field="scores")
    if len(values) < MIN_ROWS:
        raise InvalidInput("scores", f"has {len(values)} rows; at least {MIN_ROWS} are needed")
    if right.all() or not right.any():
        which = "right" if right.all() else "wrong"
        raise InvalidInput("correct", f"all answers are {which}; both kinds are needed")
    return values, right


def _logistic(feature: Floats, target: Floats) -> tuple[float, float]:
    """Slope and offset that minimise the cross-entropy of sigmoid(slope · x + offset)."""
    design = np.stack([feature, np.ones_like(feature)], axis=1)
    weights = np.zeros(2)
    loss = _cross_entropy(design @ weights, target)
    for _ in range(_NEWTON_STEPS):
        fitted = sigmoid(design @ weights)
        gradient = design.T @ (fitted - target)
        if np.abs(gradient).max() < _GRADIENT_TOLERANCE * len(target):
            break
        curvature = design.T @ (design * (fitted * (1 - fitted))[:, None])
        step = np.linalg.solve(curvature + 1e-12 * np.eye(2), gradient)
        scale = 1.0
        while (moved := _cross_entropy(design @ (weights - scale * step), target)) > loss:
            scale /= 2
            if scale < 1e-10:  # no smaller loss can be told apart in float64: converged
                return float(weights[0]), float(weights[1])
        weights, loss = weights - scale * step, moved
    return float(weights[0]), float(weights[1])


def _cross_entropy(logits: Floats, target: Floats) -> float:
    return float(np.sum(np.logaddexp(0, logits) - target * logits))
