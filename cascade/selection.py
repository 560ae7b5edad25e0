"""Chooses between the default confidence and one of all features, on the develop part alone.

The default, Platt's map of the raw score, has two numbers to fit and is hard to beat where the
score says all there is: closed sets. Of free text the mean log probability may say nothing, while
length and lowest log probability do. Which it is, is a matter of the task, so it is measured.

Needs the ``tune`` extra.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from cascade.calibrate import fit_platt
from cascade.confidence import ConfidenceModel, Feature
from cascade.errors import InvalidInput
from cascade.estimators import Estimator, fit_and_unseen
from cascade.features import Features
from cascade.rows import outcomes


@dataclass(frozen=True, slots=True)
class Selected:
    """The confidence that was chosen, and why.

    Arguments:
        model: of the raw score, or of all features.
        gained: Brier score of the raw score's model minus that of the features', on rows that the
            features' estimator had not seen; above 0 the features are better. 0 where the raw score
            could not be calibrated and had no part in it.
        standard_error: of ``gained``, by documents.
    """

    model: ConfidenceModel
    gained: float
    standard_error: float


def select_confidence(
    features: Features,
    correct: ArrayLike,
    estimator: Estimator | None = None,
    *,
    feature: Feature = "raw_score",
    documents: Sequence[str] | None = None,
    folds: int = 5,
    seed: int = 0,
) -> Selected:
    """Features where they are better than the raw score by more than one standard error of the
    difference (Breiman et al. 1984, §3.4.3: of models that cannot be told apart, the simplest).

    Arguments:
        features: of the develop part, ``raw_score`` among them; every one measured on every row.
        correct, estimator, feature, documents, folds, seed: as for
            ``cascade.estimators.fit_estimator``.

    Raises:
        InvalidInput, CascadeError: as for ``fit_estimator``; or ``raw_score`` is not there.
    """
    if "raw_score" not in features.names:
        raise InvalidInput("features", "lack raw_score, with which the others are compared")
    right = outcomes("correct", correct)
    model, unseen = fit_and_unseen(
        features,
        right,
        estimator,
        feature=feature,
        documents=documents,
        folds=folds,
        seed=seed,
    )
    score = features.select(["raw_score"]).values[:, 0]
    if np.ptp(score) == 0:
        return Selected(model, 0.0, 0.0)
    plain = fit_platt(score, right, feature=feature)
    better = (plain.batch(score) - right) ** 2 - (unseen - right) ** 2
    names = [str(row) for row in range(len(right))] if documents is None else list(documents)
    _, place = np.unique(names, return_inverse=True)
    gained = float(better.mean())
    # Rows of one document err together: the spread is that of their sums.
    sums = np.bincount(place, weights=better - gained)
    standard_error = math.sqrt(float(np.sum(sums**2))) / len(better)
    return Selected(model if gained > standard_error else plain, gained, standard_error)
