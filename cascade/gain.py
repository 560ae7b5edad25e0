"""What escalating is expected to gain: P(next tier right) − P(local answer right), per task.

Confidence alone may defer badly: where it tells a task that both tiers can do from one that
neither can, its AUROC is high and escalating by it is no better than by chance. The gain says where
the next tier *helps*. It is reported beside the confidence and may serve as a second threshold; it
accepts nothing, so no certificate rests on it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import ArrayLike

from cascade.calibrate import MIN_ROWS, fit_platt
from cascade.confidence import ConfidenceModel, Feature, Platt, check_measured
from cascade.errors import InvalidInput
from cascade.estimators import Estimator, fit_and_unseen
from cascade.features import Features
from cascade.local import LocalAnswer
from cascade.logistic import logit
from cascade.rows import Bools, Floats, outcomes, same_length, unit_floats
from cascade.scorer import Linear
from cascade.strict import Fields


@dataclass(frozen=True, slots=True)
class GainModel:
    """slope · (P(next right) − P(local right)) + offset, within [−1, 1].

    Arguments:
        local, remote: P(right) of the device's answer and of the next tier's, both from what the
            device measured.
        slope, offset: the calibration of their difference.
    """

    local: ConfidenceModel
    remote: ConfidenceModel
    slope: float = 1.0
    offset: float = 0.0

    def of(self, answer: LocalAnswer) -> float | None:
        """The gain expected for one answer, in [−1, 1]; ``None`` where something that it needs was
        not measured."""
        local, remote = self.local.of(answer), self.remote.of(answer)
        return None if local is None or remote is None else self._of(local, remote)

    @property
    def features(self) -> tuple[str, ...]:
        """Names of the features that are needed."""
        return tuple(dict.fromkeys((*self.local.features, *self.remote.features)))

    @property
    def features_needed(self) -> bool:
        """Whether more than the raw score is looked at."""
        return self.local.scorer is not None or self.remote.scorer is not None

    def __call__(self, score: float) -> float:
        """The gain for one raw score in [0, 1], of a model fitted to these alone.

        Raises:
            InvalidInput: the score is NaN or out of range, or the model needs features.
        """
        self._check_scores_do()
        return self._of(self.local(score), self.remote(score))

    def batch(self, scores: ArrayLike) -> Floats:
        """Gains of raw scores, shape ``[rows]``, of a model fitted to these alone.

        Raises:
            InvalidInput: the scores are not in [0, 1], or the model needs features.
        """
        self._check_scores_do()
        return self._calibrated(self.remote.batch(scores) - self.local.batch(scores))

    def of_features(self, features: Features) -> Floats:
        """Gains, shape ``[rows]``; equal to those that the device computes.

        Raises:
            InvalidInput, NotFound: see ``ConfidenceModel.of_features``.
        """
        difference = self.remote.of_features(features) - self.local.of_features(features)
        return self._calibrated(difference)

    def to_json(self) -> dict[str, object]:
        """A plain dict for ``json.dumps``; ``from_json`` gives back an equal model."""
        return {
            "local": self.local.to_json(),
            "remote": self.remote.to_json(),
            "slope": self.slope,
            "offset": self.offset,
        }

    @classmethod
    def from_json(cls, data: object, where: str = "gain") -> Self:
        """The model that ``to_json`` wrote.

        Raises:
            InvalidInput: a field is missing, unknown, of a wrong type or out of range; it is named.
        """
        fields = Fields(data, where)
        model = cls(
            ConfidenceModel.from_json(fields.take("local"), fields.path("local")),
            ConfidenceModel.from_json(fields.take("remote"), fields.path("remote")),
            fields.number("slope"),
            fields.number("offset"),
        )
        fields.end()
        return model

    def _check_scores_do(self) -> None:
        if self.features_needed:
            raise InvalidInput("scores", "are not enough for this model; call of_features")

    def _of(self, local: float, remote: float) -> float:
        return min(1.0, max(-1.0, self.slope * (remote - local) + self.offset))

    def _calibrated(self, difference: Floats) -> Floats:
        return np.clip(self.slope * difference + self.offset, -1.0, 1.0)


def fit_gain(
    measured: ArrayLike | Features,
    local_correct: ArrayLike,
    remote_correct: ArrayLike,
    *,
    estimator: Estimator | None = None,
    feature: Feature = "raw_score",
    documents: Sequence[str] | None = None,
    folds: int = 5,
    seed: int = 0,
) -> GainModel:
    """Fit the expected gain on the develop part of one task.

    Of raw scores, both tiers' P(right) are Platt maps of the score. Of features, both are
    ``fit_estimator``'s, and their difference is calibrated by the least-squares line on rows that
    neither had seen (where that line falls, only the mean gain is known). A tier that was always
    right, or always wrong, has a constant.

    Arguments:
        measured: raw scores in [0, 1], shape ``[rows]``, or features of the device's answers.
        local_correct, remote_correct: whether each was right, bool or 0/1, shape ``[rows]``.
        estimator: for features; see ``fit_estimator``, as for the rest.

    Raises:
        InvalidInput: bad shapes, NaN, fewer than ``MIN_ROWS`` rows, or an estimator for raw scores.
        CascadeError: scikit-learn is not installed and features are given.
    """
    local = outcomes("local_correct", local_correct)
    remote = outcomes("remote_correct", remote_correct)
    same_length("local_correct", local, "remote_correct", remote)
    if len(local) < MIN_ROWS:
        raise InvalidInput(
            "local_correct", f"has {len(local)} rows; at least {MIN_ROWS} are needed"
        )
    if not isinstance(measured, Features):
        if estimator is not None:
            raise InvalidInput("estimator", "needs features, not raw scores; see cascade.features")
        scores = unit_floats("scores", measured)
        same_length("scores", scores, "local_correct", local)
        return GainModel(_of_score(scores, local, feature), _of_score(scores, remote, feature))
    models: list[ConfidenceModel] = []
    unseen: list[Floats] = []
    for right in (local, remote):
        model, confidences = (
            _always(measured, right, feature)
            if right.all() or not right.any()
            else fit_and_unseen(
                measured,
                right,
                estimator,
                feature=feature,
                documents=documents,
                folds=folds,
                seed=seed,
            )
        )
        models.append(model)
        unseen.append(confidences)
    happened = remote.astype(np.float64) - local
    return GainModel(models[0], models[1], *_line(unseen[1] - unseen[0], happened))


def deferral_order(gain: ArrayLike) -> Floats:
    """(1 − gain) / 2: what to give ``cascade.metrics.deferral_curve`` in place of a confidence, so
    that the largest gains are escalated first. Within [0, 1], shape ``[rows]``."""
    return unit_floats("gain", (1 - np.asarray(gain, np.float64)) / 2)


def _of_score(scores: Floats, right: Bools, feature: Feature) -> ConfidenceModel:
    if right.all() or not right.any() or np.ptp(logit(scores)) == 0:
        return ConfidenceModel(_constant(right), feature)
    return fit_platt(scores, right, feature=feature)


def _always(features: Features, right: Bools, feature: Feature) -> tuple[ConfidenceModel, Floats]:
    """The same P(right) whatever the features."""
    check_measured(features)
    same_length("features", features.values[:, 0], "correct", right)
    blind = Linear(features.names[:1], (0.0,), (1.0,), (0.0,), 0.0)
    model = ConfidenceModel(_constant(right), feature, blind)
    return model, model.of_features(features)


def _line(difference: Floats, happened: Floats) -> tuple[float, float]:
    """Slope, at least 0, and offset of the least-squares line."""
    spread = float(difference.var())
    covariance = float(np.mean((difference - difference.mean()) * (happened - happened.mean())))
    slope = max(0.0, covariance / spread) if spread > 0 else 0.0
    return slope, float(happened.mean() - slope * difference.mean())


def _constant(right: Bools) -> Platt:
    """The same P(right) for every score, by Laplace's rule."""
    share = (right.sum() + 1) / (len(right) + 2)
    return Platt(0.0, float(logit(np.array([share]))[0]))
