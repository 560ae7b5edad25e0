"""Multinomial logistic regression in numpy: a convex problem, so that its result has no seed.

Newton steps, each solved by conjugate gradients on products with the Hessian, which is never formed
(Nocedal and Wright, *Numerical Optimization*, §7.1). What is minimised over V and b is

    Σ_i w_i · −log softmax(offset_i + V x_i + b)[y_i]  +  l2/2 ‖V‖²  +  bias_l2/2 ‖b‖²,   Σ w_i = 1.

V lies in the span of the examples. Along its principal axes (``rotated``) there are no more
dimensions than examples, and the Hessian is nearly diagonal, so that its diagonal is all that the
conjugate gradients need for help.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Doubles = NDArray[np.float64]

_NEWTON_STEPS, _CG_STEPS = 50, 250
_FLAT = 1e-6  # largest entry of a gradient that counts as none


def rotated(features: Doubles) -> tuple[Doubles, Doubles]:
    """Features ``[examples, features]`` along their principal axes, ``[examples, axes]``, and the
    axes, ``[axes, features]``: rows of an orthonormal matrix."""
    left, lengths, axes = np.linalg.svd(features, full_matrices=False)
    return left * lengths, axes


def fit_softmax(
    features: Doubles,
    labels: NDArray[np.intp],
    weights: Doubles,
    *,
    offset: Doubles,
    l2: float,
    bias_l2: float = 0.0,
    start: Doubles | None = None,
) -> Doubles:
    """V and, as its last column, b: shape ``[classes, features + 1]``.

    Arguments:
        features: shape ``[examples, features]``.
        labels: class of each example.
        weights: ≥ 0, with a sum above 0.
        offset: scores to start from, shape ``[examples, classes]``.
        l2: > 0.
        bias_l2: ≥ 0; above 0, a class without an example keeps a finite score.
        start: where to start from, as it is returned.
    """
    share = weights / weights.sum()
    with_one = np.hstack([features, np.ones((len(features), 1))])
    ridge = np.full(with_one.shape[1], l2)
    ridge[-1] = bias_l2
    right = np.zeros_like(offset)
    right[np.arange(len(labels)), labels] = 1.0

    def value(v: Doubles) -> float:
        scores = log_softmax(offset + with_one @ v.T)
        return float(-share @ scores[right > 0] + 0.5 * (ridge * v * v).sum())

    v = np.zeros((offset.shape[1], with_one.shape[1])) if start is None else start
    squares = with_one * with_one
    for _ in range(_NEWTON_STEPS):
        chances = np.exp(log_softmax(offset + with_one @ v.T))
        gradient = (share[:, None] * (chances - right)).T @ with_one + ridge * v
        if np.abs(gradient).max() < _FLAT:
            break

        def curved(d: Doubles, p: Doubles = chances) -> Doubles:
            along = p * (with_one @ d.T)
            along -= p * along.sum(axis=1, keepdims=True)
            product: Doubles = (share[:, None] * along).T @ with_one + ridge * d
            return product

        spread = share[:, None] * chances * (1 - chances)
        step = _conjugate(curved, -gradient, spread.T @ squares + ridge + 1e-12)
        slope, before, length = float((gradient * step).sum()), value(v), 1.0
        while value(v + length * step) > before + 1e-4 * length * slope and length > 1e-6:
            length /= 2
        v = v + length * step
    return v


def log_softmax(scores: Doubles) -> Doubles:
    """Log probabilities along the last axis."""
    shifted = scores - scores.max(axis=-1, keepdims=True)
    result: Doubles = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return result


def _conjugate(product: Callable[[Doubles], Doubles], right: Doubles, diagonal: Doubles) -> Doubles:
    """x with ``product``(x) = ``right``, as far as a Newton step needs it (ibid., eq. 7.3).

    Arguments:
        diagonal: of what ``product`` multiplies by; preconditions.
    """
    x = np.zeros_like(right)
    residual = right.copy()
    direction = residual / diagonal
    square = float((residual * direction).sum())
    enough = square * min(0.25, np.sqrt(square))
    for _ in range(_CG_STEPS):
        along = product(direction)
        curvature = float((direction * along).sum())
        if curvature <= 0:
            break
        length = square / curvature
        x += length * direction
        residual -= length * along
        eased = residual / diagonal
        before, square = square, float((residual * eased).sum())
        if square <= enough:
            break
        direction = eased + square / before * direction
    return x
