"""The calibrated confidence of a local answer, as a device evaluates it: numpy and nothing else.

A model here maps a score of an answer to P(answer is right): the raw score
(``LocalAnswer.raw_score``: the maximum probability over the options), or what a ``cascade.scorer``
makes of many features. Fitting one is ``cascade.calibrate`` and ``cascade.estimators``; choosing
the threshold above which an answer is kept is ``cascade.certify``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike

from cascade.errors import InvalidInput
from cascade.features import FEATURES_VERSION, Features, of_answer, of_records
from cascade.local import LocalAnswer
from cascade.logistic import logit, sigmoid
from cascade.rows import Floats, unit_floats
from cascade.scorer import Linear, Trees, read_scorer
from cascade.signals import ScoreMode
from cascade.strict import Fields

if TYPE_CHECKING:  # the device reads no records
    from cascade.records import RecordSet

Feature = Literal["raw_score", "search_bound"]

_SCORE_ROUNDING = 1e-6  # a softmax may sum to a hair above 1


@dataclass(frozen=True, slots=True)
class ConfidenceModel:
    """P(answer is right | what was measured).

    Arguments:
        calibrator: the fitted map from a score.
        feature: how answers were scored: ``"raw_score"``, every answer of the set scored, or
            ``"search_bound"``, the lower bound of a search of ``SEARCH_TOLERANCE``.
        scorer: makes the score of an answer's features; ``None`` takes the raw score itself.

    Example:
        >>> model = ConfidenceModel(Platt(a=1.0, b=0.0))
        >>> round(model(0.75), 6)
        0.75
    """

    calibrator: Platt | Isotonic
    feature: Feature = "raw_score"
    scorer: Linear | Trees | None = None

    @property
    def mode(self) -> ScoreMode:
        """How the answers must have been scored for this to hold."""
        return "search" if self.feature == "search_bound" else "exact"

    @property
    def features(self) -> tuple[str, ...]:
        """Names of the features that are needed."""
        return ("raw_score",) if self.scorer is None else self.scorer.features

    def __call__(self, score: float) -> float:
        """The confidence, in [0, 1], for one score in [0, 1]: the raw score, or the scorer's.

        Raises:
            InvalidInput: the score is NaN or out of range.
        """
        if not -_SCORE_ROUNDING <= score <= 1 + _SCORE_ROUNDING:
            raise InvalidInput("score", f"{score} is not between 0 and 1")
        return float(self.calibrator.map(np.array([min(max(score, 0.0), 1.0)]))[0])

    def batch(self, scores: ArrayLike) -> Floats:
        """Confidences for scores, both float64 of shape ``[rows]`` and in [0, 1].

        Raises:
            InvalidInput: the scores are empty, not one-dimensional, NaN or out of range.
        """
        return self.calibrator.map(unit_floats("scores", scores))

    def of(self, answer: LocalAnswer) -> float | None:
        """The confidence of one answer, or ``None`` where a feature that it needs was not measured:
        an answer without a token has no log probabilities."""
        if self.scorer is None:
            return self(answer.raw_score)
        features = of_answer(answer, self.scorer.features)
        if not np.isfinite(features.values).all():
            return None
        return float(self.of_features(features)[0])

    def of_features(self, features: Features) -> Floats:
        """Confidences of answers, shape ``[rows]``; equal to those that the device computes.

        Raises:
            InvalidInput: there are no rows, or a feature was not measured on some; it is named.
            NotFound: a feature is not there; it is named.
        """
        needed = features.select(self.features)
        check_measured(needed)
        if self.scorer is None:
            return self.batch(needed.values[:, 0])
        return self.calibrator.map(self.scorer.map(needed.values))

    def lowest_score(self, threshold: float) -> float | None:
        """A raw score below which no confidence reaches ``threshold``; ``None`` where there is none
        to tell, because the confidence is made of features or falls as the score rises.

        At most 2⁻⁴⁰ below the lowest such score; 1 where none reaches it.
        """
        if self.scorer is not None or (
            isinstance(self.calibrator, Platt) and self.calibrator.a < 0
        ):
            return None
        if self(0.0) >= threshold:
            return 0.0
        low, high = 0.0, 1.0
        while high - low > 2**-40:
            middle = (low + high) / 2
            low, high = (middle, high) if self(middle) < threshold else (low, middle)
        return 1.0 if self(1.0) < threshold else low

    def of_records(self, records: RecordSet, tier: str) -> Floats:
        """The confidence that a device would have in each recorded answer of a tier, shape
        ``[records]``.

        Raises:
            InvalidInput: see ``of_features``.
            NotFound: there is no such tier.
        """
        return self.of_features(of_records(records, tier, self.features))

    def to_json(self) -> dict[str, object]:
        """A plain dict for ``json.dumps``; ``from_json`` gives back an equal model."""
        value: dict[str, object] = {
            "feature": self.feature,
            "calibrator": self.calibrator.to_json(),
        }
        if self.scorer is not None:
            value["features_version"] = FEATURES_VERSION
            value["scorer"] = self.scorer.to_json()
        return value

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
        scorer = None
        if fields.given("scorer"):
            scorer = read_scorer(fields.take("scorer"), fields.path("scorer"))
            if fields.number("features_version") != FEATURES_VERSION:
                raise InvalidInput(
                    fields.path("features_version"), f"is not {FEATURES_VERSION}; tune it again"
                )
        fields.end()
        return cls(calibrator, "search_bound" if feature == "search_bound" else "raw_score", scorer)


def check_measured(features: Features) -> None:
    """Raise ``InvalidInput`` unless there are rows and every feature was measured on each."""
    if not len(features):
        raise InvalidInput("features", "is empty; give at least one row")
    finite = np.isfinite(features.values)
    if not finite.all():
        place = int(np.argmin(finite.all(axis=0)))
        raise InvalidInput(
            f"features.{features.names[place]}",
            f"was not measured on {int((~finite[:, place]).sum())} of {len(features)} rows; "
            "leave these rows out, or the feature",
        )


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


def _calibrator(data: object, where: str) -> Platt | Isotonic:
    fields = Fields(data, where)
    calibrator: Platt | Isotonic
    if fields.choice("kind", ("platt", "isotonic")) == "platt":
        calibrator = Platt(fields.number("a"), fields.number("b"))
    else:
        calibrator = Isotonic(fields.numbers("x", 0, 1), fields.numbers("y", 0, 1))
    fields.end()
    return calibrator
