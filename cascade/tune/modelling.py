"""How a confidence, and the gain beside it, are fitted to the develop part.

What is fitted to rows says too much of these very rows. So beside a model of features come the
confidences of its rows from fits that had not seen them: thresholds are planned by those.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Final, Literal, NoReturn

import numpy as np

from cascade.calibrate import fit_isotonic, fit_platt
from cascade.confidence import ConfidenceModel, Feature
from cascade.errors import CascadeError, InvalidInput
from cascade.estimators import (
    EXPORTABLE,
    Calibrator,
    Estimator,
    check_exportable,
    fit_and_unseen,
)
from cascade.features import Features, of_records
from cascade.gain import GainModel, fit_gain
from cascade.pair import Pair
from cascade.rows import Bools, Floats
from cascade.selection import select_confidence
from cascade.verdicts import measured

_WIDELY: Final = 0.9
"""A feature that is not asked for by name is left out where fewer rows have it: every row without
it would be escalated."""

_MODULES: Final = {
    "LogisticRegression": "linear_model",
    "LogisticRegressionCV": "linear_model",
    "DecisionTreeClassifier": "tree",
    "ExtraTreeClassifier": "tree",
}


@dataclass(frozen=True, slots=True)
class Modelling:
    """What is fitted.

    Arguments:
        of: ``"score"``, a calibrator of the raw score; ``"features"``, an estimator; or ``"best"``,
            the latter where develop shows that it is better (``cascade.selection``).
        features: names of those that the estimator is given; by default all that nearly every row
            has.
        estimator: not fitted; by default a logistic regression.
        calibrator: of the raw score, or of what the estimator says.
        gain: whether the expected gain of escalating is fitted, too, in the same way.
        min_gain: the policy's, in [−1, 1].

    Raises:
        InvalidInput: features or an estimator for the raw score, one that cannot be exported, or
            ``min_gain`` without ``gain`` or out of range.
    """

    of: Literal["score", "features", "best"] = "score"
    features: tuple[str, ...] = ()
    estimator: Estimator | None = None
    calibrator: Calibrator = "platt"
    gain: bool = False
    min_gain: float | None = None

    def __post_init__(self) -> None:
        if self.of == "score" and (self.features or self.estimator is not None):
            raise InvalidInput("confidence", "is of the raw score, which takes no other features")
        if self.estimator is not None:
            check_exportable(self.estimator)
        if self.min_gain is not None:
            if not self.gain:
                raise InvalidInput("min-gain", "needs the gain to be fitted")
            if not -1 <= self.min_gain <= 1:
                raise InvalidInput("min-gain", f"{self.min_gain} is not between -1 and 1")


@dataclass(frozen=True, slots=True, eq=False)
class Fitted:
    """What came of the develop part.

    Arguments:
        model: of the confidence.
        confidence: of the develop rows, as fits say that had not seen them; NaN where a feature was
            not measured. A calibrator of the raw score alone, two numbers, has seen them.
        own: of the same rows by ``model`` itself, which has seen them.
        gain: ``None`` where it was not wanted.
    """

    model: ConfidenceModel
    confidence: Floats
    own: Floats
    gain: GainModel | None


def fit(develop: Pair, how: Modelling) -> Fitted:
    """Fit to the develop part.

    Raises:
        InvalidInput: the rows cannot be used for this, or the estimator's parameters.
        CascadeError: scikit-learn is missing.
    """
    feature: Feature = "search_bound" if develop.mode() == "search" else "raw_score"
    if how.gain and develop.cloud_correct is None:
        raise InvalidInput(
            "gain", f"needs a second tier, and the records have {develop.local} alone"
        )
    try:
        wanted = _better(develop, how, feature) if how.of == "best" else how
        return (_of_score if wanted.of == "score" else _of_features)(develop, wanted, feature)
    except InvalidInput as problem:
        raise InvalidInput(f"develop.{problem.field}", problem.problem) from None
    except (ValueError, TypeError) as problem:  # scikit-learn looks at parameters when it fits
        raise InvalidInput("params", str(problem).splitlines()[0]) from None


def estimator_named(name: str, parameters: Mapping[str, object] | None = None) -> Estimator:
    """A scikit-learn estimator by its name, e.g. ``sklearn.ensemble.RandomForestClassifier`` or the
    last word of that. One that draws at random does so from the seed 0 unless told otherwise, and a
    logistic regression stands behind a ``StandardScaler``.

    Raises:
        InvalidInput: it cannot be exported, or has no such parameter.
        CascadeError: scikit-learn is not installed.
    """
    package, _, short = name.rpartition(".")
    if short not in EXPORTABLE:
        raise InvalidInput(
            "confidence",
            f"{name!r} is neither score, features nor an estimator that can be exported exactly: "
            f"{', '.join(EXPORTABLE)}",
        )
    home = f"sklearn.{_MODULES.get(short, 'ensemble')}"
    if package and package != home:
        raise InvalidInput("confidence", f"there is no {name}; it is called {home}.{short}")
    try:
        kind = getattr(import_module(home), short)
    except ImportError:
        raise CascadeError(
            "an estimator needs scikit-learn: pip install 'edge-cloud-cascade[tune]'"
        ) from None
    known = list(inspect.signature(kind).parameters)
    given = dict(parameters or {})
    for parameter in given:
        if parameter not in known:
            raise InvalidInput("params", f"{short} has no {parameter!r}; it has {', '.join(known)}")
    if "random_state" in known:
        given.setdefault("random_state", 0)
    estimator: Estimator = kind(**given)
    if short.startswith("Logistic"):
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        estimator = make_pipeline(StandardScaler(), estimator)
    return estimator


def features_of(rows: Pair, names: Sequence[str] = ()) -> Features:
    """The features that are asked for, or all that nearly every row has.

    Raises:
        InvalidInput: a name is unknown or repeated, or no row has what it takes.
    """
    found = of_records(rows.records, rows.local, names or None)
    if not names:
        share = np.isfinite(found.values).mean(axis=0)
        found = found.select([n for n, s in zip(found.names, share, strict=True) if s >= _WIDELY])
    if not measured(found).any():
        _nothing_measured(found)
    return found


def _better(develop: Pair, how: Modelling, feature: Feature) -> Modelling:
    """Of features where these are better, else of the score."""
    features = features_of(develop, how.features)
    rows = measured(features)
    chosen = select_confidence(
        features.take(rows),
        develop.correct[rows],
        how.estimator,
        feature=feature,
        documents=_documents(develop, rows),
    )
    if chosen.model.scorer is not None:
        return dataclasses.replace(how, of="features")
    return dataclasses.replace(how, of="score", features=(), estimator=None)


def _of_score(develop: Pair, how: Modelling, feature: Feature) -> Fitted:
    calibrate = fit_platt if how.calibrator == "platt" else fit_isotonic
    model = calibrate(develop.score, develop.correct, feature=feature)
    gain = None
    if how.gain and develop.cloud_correct is not None:
        gain = fit_gain(develop.score, develop.correct, develop.cloud_correct, feature=feature)
    confidence = model.batch(develop.score)
    return Fitted(model, confidence, confidence, gain)


def _of_features(develop: Pair, how: Modelling, feature: Feature) -> Fitted:
    features = features_of(develop, how.features)
    rows = measured(features)
    known, right = features.take(rows), develop.correct[rows]
    documents = _documents(develop, rows)
    model, unseen = fit_and_unseen(
        known,
        right,
        how.estimator,
        calibrator=how.calibrator,
        feature=feature,
        documents=documents,
    )
    confidence, own = np.full((2, len(develop)), np.nan)
    confidence[rows], own[rows] = unseen, model.of_features(known)
    gain = None
    if how.gain and develop.cloud_correct is not None:
        gain = fit_gain(
            known,
            right,
            develop.cloud_correct[rows],
            estimator=how.estimator,
            feature=feature,
            documents=documents,
        )
    return Fitted(model, confidence, own, gain)


def _documents(develop: Pair, rows: Bools) -> list[str] | None:
    """The document of each of these rows; ``None`` where each has its own, which is faster."""
    numbers = develop.documents()[rows]
    return None if len(np.unique(numbers)) == len(numbers) else [str(number) for number in numbers]


def _nothing_measured(features: Features) -> NoReturn:
    none = [
        name
        for name, column in zip(features.names, features.values.T, strict=True)
        if not np.isfinite(column).any()
    ]
    what = f"of {', '.join(none)}" if none else "together"
    raise InvalidInput("features", f"no row has a value {what}; leave out what was not recorded")
