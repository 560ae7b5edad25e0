"""The calibrated confidence of a local answer, as a device evaluates it: numpy and nothing else.

A model here maps the raw score of an answer (``LocalAnswer.raw_score``: the maximum probability
over the options) to P(answer is right). Fitting one is ``cascade.calibrate``; choosing the
threshold above which an answer is kept is ``cascade.certify``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import ArrayLike

from cascade.errors import InvalidInput
from cascade.rows import Floats, unit_floats
from cascade.signals import ScoreMode
from cascade.strict import Fields

Feature = Literal["raw_score", "search_bound"]

LOGIT_CLIP = 1e-9
"""Scores are moved this far from 0 and 1 before the logit, so that it stays finite (±20.7)."""

_SCORE_ROUNDING = 1e-6  # a softmax may sum to a hair above 1


@dataclass(frozen=True, slots=True)
class ConfidenceModel:
    """P(answer is right | raw score).

    Arguments:
        calibrator: the fitted map.
        feature: what the score is: ``"raw_score"``, every answer of the set scored, or
            ``"search_bound"``, the lower bound of a search of ``SEARCH_TOLERANCE``.

    Example:
        >>> model = ConfidenceModel(Platt(a=1.0, b=0.0))
        >>> round(model(0.75), 6)
        0.75
    """

    calibrator: Platt | Isotonic
    feature: Feature = "raw_score"

    @property
    def mode(self) -> ScoreMode:
        """How the answers must have been scored for this to hold."""
        return "search" if self.feature == "search_bound" else "exact"

    def __call__(self, score: float) -> float:
        """The confidence, in [0, 1], for one raw score in [0, 1].

        Raises:
            InvalidInput: the score is NaN or out of range.
        """
        if not -_SCORE_ROUNDING <= score <= 1 + _SCORE_ROUNDING:
            raise InvalidInput("score", f"{score} is not between 0 and 1")
        return float(self.calibrator.map(np.array([min(max(score, 0.0), 1.0)]))[0])

    def batch(self, scores: ArrayLike) -> Floats:
        """Confidences for raw scores, both float64 of shape ``[rows]`` and in [0, 1].

        Raises:
            InvalidInput: the scores are empty, not one-dimensional, NaN or out of range.
        """
        return self.calibrator.map(unit_floats("scores", scores))

    def to_json(self) -> dict[str, object]:
        """A plain dict for ``json.dumps``; ``from_json`` gives back an equal model."""
        return {"feature": self.feature, "calibrator": self.calibrator.to_json()}

    @classmethod
    def from_json(cls, data: object, where: str = "confidence") -> ConfidenceModel:
        """The model that ``to_json`` wrote.

        Arguments:
            data: the parsed JSON value.
            where: how the object is called in messages.

        Raises:
            InvalidInput: a field is missing, unknown, of a wrong type or out of range; names it.
        """
        fields = Fields(data, where)
        feature = fields.choice("feature", get_args(Feature))
        calibrator = _calibrator(fields.take("calibrator"), fields.path("calibrator"))
        fields.end()
        return cls(calibrator, "search_bound" if feature == "search_bound" else "raw_score")


@dataclass(frozen=True, slots=True)
class Platt:
    """sigmoid(a · logit(score) + b): Platt scaling on the logit of the score (Platt 1999).

    Strictly monotone, so two different scores never become a tie. A negative ``a`` says that the
    score misleads on this task.
    """

    a: float
    b: float

    def map(self, scores: Floats) -> Floats:
        """Confidences for checked scores, shape ``[rows]``."""
        return sigmoid(self.a * logit(scores) + self.b)

    def to_json(self) -> dict[str, object]:
        """A plain dict."""
        return {"kind": "platt", "a": self.a, "b": self.b}


@dataclass(frozen=True, slots=True)
class Isotonic:
    """Monotone piecewise *linear* map through knots, flat beyond the first and last.

    Linear between knots, not stepped, as scikit-learn predicts: fewer ties, and the confidence does
    not jump between two neighbouring scores. Flat stretches do remain ties.

    Arguments:
        x: knots' scores, strictly increasing, in [0, 1]; at least one.
        y: knots' confidences, non-decreasing, in [0, 1]; as many.
    """

    x: tuple[float, ...]
    y: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.x or len(self.x) != len(self.y):
            raise InvalidInput("calibrator.y", "must have one number for each of x, at least one")
        x, y = unit_floats("calibrator.x", self.x), unit_floats("calibrator.y", self.y)
        if (np.diff(x) <= 0).any():
            raise InvalidInput("calibrator.x", "must increase strictly")
        if (np.diff(y) < 0).any():
            raise InvalidInput("calibrator.y", "must not decrease")

    def map(self, scores: Floats) -> Floats:
        """Confidences for checked scores, shape ``[rows]``."""
        return np.interp(scores, self.x, self.y)

    def to_json(self) -> dict[str, object]:
        """A plain dict."""
        return {"kind": "isotonic", "x": list(self.x), "y": list(self.y)}


def logit(scores: Floats) -> Floats:
    """ln(p / (1 - p)) with p clipped to [LOGIT_CLIP, 1 - LOGIT_CLIP], elementwise."""
    # np.clip takes nearly twice as long on one score, and a device asks for one.
    clipped = np.minimum(np.maximum(scores, LOGIT_CLIP), 1 - LOGIT_CLIP)
    logits: Floats = np.log(clipped) - np.log1p(-clipped)
    return logits


def sigmoid(logits: Floats) -> Floats:
    """1 / (1 + exp(-x)), elementwise, without overflow."""
    decay = np.exp(-np.abs(logits))
    probabilities: Floats = np.where(logits >= 0, 1.0, decay) / (1.0 + decay)
    return probabilities


def _calibrator(data: object, where: str) -> Platt | Isotonic:
    fields = Fields(data, where)
    calibrator: Platt | Isotonic
    if fields.choice("kind", ("platt", "isotonic")) == "platt":
        calibrator = Platt(fields.number("a"), fields.number("b"))
    else:
        calibrator = Isotonic(fields.numbers("x", 0, 1), fields.numbers("y", 0, 1))
    fields.end()
    return calibrator
