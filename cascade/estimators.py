"""Confidences from scikit-learn estimators: fitted on many features, exported exactly, calibrated.

Needs the ``tune`` extra. What comes out is a ``cascade.confidence.ConfidenceModel`` that a device
evaluates with numpy alone: the estimator's numbers as arrays, followed by a one-dimensional
calibrator. An estimator that cannot be exported to the same numbers is refused before it is fitted.

On the tasks that were looked at, nothing beat the maximum probability with Platt's map
(``cascade.calibrate.fit_platt``) by more than noise: try that first.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol, Self, runtime_checkable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cascade.calibrate import MIN_ROWS, fit_isotonic, fit_platt
from cascade.confidence import ConfidenceModel, Feature, Isotonic, Platt, check_measured
from cascade.errors import CascadeError, InvalidInput
from cascade.features import Features, Matrix
from cascade.rows import Bools, Floats, outcomes, same_length
from cascade.scorer import Linear, Link, Trees

Calibrator = Literal["platt", "isotonic"]

_EXACT = 1e-9  # how far exported scores may be from the estimator's own: rounding, no more
_TREES = ("DecisionTreeClassifier", "ExtraTreeClassifier")
_FORESTS = ("RandomForestClassifier", "ExtraTreesClassifier")
_LINEAR = ("LogisticRegression", "LogisticRegressionCV")
_BOOSTED = ("GradientBoostingClassifier", "HistGradientBoostingClassifier")

EXPORTABLE = (*_LINEAR, *_TREES, *_FORESTS, *_BOOSTED)
"""Estimators that can be exported. A logistic regression may stand at the end of a ``Pipeline``
behind a ``StandardScaler``; trees need no scaling."""


@runtime_checkable
class Estimator(Protocol):
    """A scikit-learn classifier of two classes."""

    def fit(self, X: Matrix, y: NDArray[np.int64]) -> object:
        """Fit in place."""
        ...

    def predict_proba(self, X: Matrix) -> Matrix:
        """Probabilities of both classes, shape ``[rows, 2]``."""
        ...


def logistic_regression(c: float = 1.0) -> Estimator:
    """A logistic regression over standardised features: the plainest model of many.

    Arguments:
        c: the inverse of the L2 penalty's strength, > 0.

    Raises:
        CascadeError: scikit-learn is not installed.
    """
    _require()
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    pipeline: Estimator = make_pipeline(StandardScaler(), LogisticRegression(C=c, max_iter=1000))
    return pipeline


def fit_estimator(
    features: Features,
    correct: ArrayLike,
    estimator: Estimator | None = None,
    *,
    calibrator: Calibrator = "platt",
    feature: Feature = "raw_score",
    documents: Sequence[str] | None = None,
    folds: int = 5,
    seed: int = 0,
) -> ConfidenceModel:
    """A calibrated confidence from an estimator over features.

    The calibrator is fitted to scores of rows that the estimator had not seen (cross-fitting, as
    scikit-learn's ``CalibratedClassifierCV(ensemble=False)`` does), then the estimator to all rows.

    Arguments:
        features: of the develop part; every one measured on every row: see ``Features.complete``.
        correct: whether each answer was right, bool or 0/1, shape ``[rows]``.
        estimator: not fitted; stays as it is. ``logistic_regression()`` by default.
        feature: ``"search_bound"`` when the answers were scored in search mode.
        documents: of each row; a document stays in one fold. ``None`` takes every row as its own.
        folds: ≥ 2.
        seed: of the folds.

    Raises:
        InvalidInput: the estimator cannot be exported, a feature was not measured, fewer than
            ``MIN_ROWS`` rows or answers all right or all wrong, or bad shapes.
        CascadeError: scikit-learn is not installed.
    """
    model, _ = fit_and_unseen(
        features,
        correct,
        estimator,
        calibrator=calibrator,
        feature=feature,
        documents=documents,
        folds=folds,
        seed=seed,
    )
    return model


def fit_and_unseen(
    features: Features,
    correct: ArrayLike,
    estimator: Estimator | None,
    *,
    calibrator: Calibrator = "platt",
    feature: Feature = "raw_score",
    documents: Sequence[str] | None = None,
    folds: int = 5,
    seed: int = 0,
) -> tuple[ConfidenceModel, Floats]:
    """``fit_estimator``, and the confidence of each row by the folds that had not seen it."""
    _require()
    from sklearn.base import clone

    wanted = estimator if estimator is not None else logistic_regression()
    check_exportable(wanted)
    right = _check_rows(features, correct)
    labels = right.astype(np.int64)
    scores = unseen_scores(
        wanted, features.values, right, documents=documents, folds=folds, seed=seed
    )
    fit = fit_isotonic if calibrator == "isotonic" else fit_platt
    calibrated: Platt | Isotonic = fit(scores, right).calibrator
    fitted: Estimator = clone(wanted)
    fitted.fit(features.values, labels)
    scorer = export(fitted, features.names)
    own = fitted.predict_proba(features.values)[:, 1]
    apart = float(np.abs(scorer.map(features.values) - own).max())
    if not apart <= _EXACT:
        raise InvalidInput(
            "estimator", f"{_name(fitted)} differs by {apart:.1e} once exported; take another one"
        )
    return ConfidenceModel(calibrated, feature, scorer), calibrated.map(scores)


class ConfidenceClassifier:
    """``fit_estimator`` in the manner of scikit-learn: parameters first, learned state with a
    trailing underscore.

    Arguments:
        estimator, calibrator, feature, folds, seed: see ``fit_estimator``.
    """

    def __init__(
        self,
        estimator: Estimator | None = None,
        *,
        calibrator: Calibrator = "platt",
        feature: Feature = "raw_score",
        folds: int = 5,
        seed: int = 0,
    ) -> None:
        self.estimator = estimator
        self.calibrator = calibrator
        self.feature = feature
        self.folds = folds
        self.seed = seed

    def fit(
        self, features: Features, correct: ArrayLike, *, documents: Sequence[str] | None = None
    ) -> Self:
        """Fit ``model_``; arguments and errors are those of ``fit_estimator``."""
        self.model_ = fit_estimator(
            features,
            correct,
            self.estimator,
            calibrator=self.calibrator,
            feature=self.feature,
            documents=documents,
            folds=self.folds,
            seed=self.seed,
        )
        self.classes_ = np.array([0, 1])
        return self

    def predict_proba(self, features: Features) -> Matrix:
        """P(wrong) and P(right) of each answer, shape ``[rows, 2]``.

        Raises:
            CascadeError: it is not fitted.
        """
        if not hasattr(self, "model_"):
            raise CascadeError("the classifier is not fitted; call fit first")
        right = self.model_.of_features(features)
        return np.stack([1 - right, right], axis=1)

    def predict(self, features: Features) -> NDArray[np.int64]:
        """1 where right is likelier than wrong, shape ``[rows]``."""
        return (self.predict_proba(features)[:, 1] > 0.5).astype(np.int64)


def check_exportable(estimator: Estimator) -> None:
    """Raise ``InvalidInput`` unless ``export`` can take this estimator, once it is fitted."""
    steps = _steps(estimator)
    last, before = _name(steps[-1]), [_name(step) for step in steps[:-1]]
    if last not in EXPORTABLE:
        raise InvalidInput(
            "estimator", f"{last} cannot be exported exactly; these can: {', '.join(EXPORTABLE)}"
        )
    scaled = [name for name in before if name != "str"]  # "passthrough"
    if scaled and (last not in _LINEAR or scaled != ["StandardScaler"]):
        raise InvalidInput(
            "estimator",
            f"{' and '.join(scaled)} before {last} cannot be exported exactly; a StandardScaler "
            "before a LogisticRegression can",
        )


def export(estimator: Estimator, names: tuple[str, ...]) -> Linear | Trees:
    """A fitted estimator as arrays: the scorer gives its ``predict_proba`` of the class 1.

    Arguments:
        names: of the columns that it was fitted to.

    Raises:
        InvalidInput: it cannot be exported, was fitted to other classes than 0 and 1, or to another
            number of features.
    """
    check_exportable(estimator)
    *before, last = _steps(estimator)
    if list(getattr(last, "classes_", ())) != [0, 1]:
        raise InvalidInput("estimator", "must be fitted, to the classes 0 and 1")
    if last.n_features_in_ != len(names):  # type: ignore[attr-defined]
        raise InvalidInput("names", f"has {len(names)} names for another number of features")
    kind = _name(last)
    if kind in _LINEAR:
        return _linear(last, [step for step in before if not isinstance(step, str)], names)
    if kind in _BOOSTED:
        return _boosted(last, names)
    return _averaged([last] if kind in _TREES else list(last.estimators_), names)  # type: ignore[attr-defined]


def unseen_scores(
    estimator: Estimator,
    values: Matrix,
    right: Bools,
    *,
    documents: Sequence[str] | None,
    folds: int,
    seed: int,
) -> Floats:
    """P(right) of each row by a copy of ``estimator`` fitted to the other folds, shape ``[rows]``.

    Raises:
        InvalidInput: there are too few rows or documents of one kind for so many folds.
    """
    from sklearn.base import clone
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    fewest = int(min(right.sum(), (~right).sum()))
    if not 2 <= folds <= fewest:
        raise InvalidInput("folds", f"{folds} is not in 2 … {fewest}, the rows of the rarer kind")
    if documents is not None and len(documents) != len(right):
        raise InvalidInput("documents", f"has {len(documents)} rows for {len(right)}")
    split = StratifiedKFold if documents is None else StratifiedGroupKFold
    labels = right.astype(np.int64)
    scores = np.empty(len(right))
    parts = split(folds, shuffle=True, random_state=seed).split(values, labels, documents)
    for rest, held_out in parts:
        if len(set(labels[rest])) < 2:
            raise InvalidInput(
                "documents", "leave a fold with one kind of answer; take fewer folds"
            )
        fitted: Estimator = clone(estimator)
        fitted.fit(values[rest], labels[rest])
        scores[held_out] = fitted.predict_proba(values[held_out])[:, 1]
    return scores


def _check_rows(features: Features, correct: ArrayLike) -> Bools:
    check_measured(features)
    right = outcomes("correct", correct)
    same_length("features", features.values[:, 0], "correct", right)
    if len(right) < MIN_ROWS:
        raise InvalidInput("features", f"has {len(right)} rows; at least {MIN_ROWS} are needed")
    if right.all() or not right.any():
        which = "right" if right.all() else "wrong"
        raise InvalidInput("correct", f"all answers are {which}; both kinds are needed")
    return right


def _linear(last: object, before: list[object], names: tuple[str, ...]) -> Linear:
    center, scale = np.zeros(len(names)), np.ones(len(names))
    for scaler in before:
        if scaler.with_mean:  # type: ignore[attr-defined]
            center = scaler.mean_  # type: ignore[attr-defined]
        if scaler.with_std:  # type: ignore[attr-defined]
            scale = scaler.scale_  # type: ignore[attr-defined]
    weights, offset = last.coef_[0], last.intercept_  # type: ignore[attr-defined]
    return Linear(
        names,
        tuple(map(float, center)),
        tuple(map(float, scale)),
        tuple(map(float, weights)),
        float(np.ravel(offset)[0]),
    )


_Nodes = dict[str, NDArray[np.float64]]


def _averaged(trees: Sequence[object], names: tuple[str, ...]) -> Trees:
    nodes = [_nodes_of(tree.tree_) for tree in trees]  # type: ignore[attr-defined]
    for tree, each in zip(trees, nodes, strict=True):
        share = tree.tree_.value[:, 0, :]  # type: ignore[attr-defined]
        each["value"] = share[:, 1] / share.sum(axis=1)
    return _joined(nodes, names, scale=1 / len(trees), offset=0.0, link="identity", single=True)


def _boosted(last: object, names: tuple[str, ...]) -> Trees:
    if _name(last) == "GradientBoostingClassifier":
        if last.loss != "log_loss":  # type: ignore[attr-defined]
            raise InvalidInput("estimator", "has another loss than log_loss; take that")
        if last.init not in (None, "zero"):  # type: ignore[attr-defined]
            raise InvalidInput("estimator", "starts from an estimator of yours; leave init out")
        trees = [tree.tree_ for tree in last.estimators_[:, 0]]  # type: ignore[attr-defined]
        nodes = [_nodes_of(tree) for tree in trees]
        for tree, each in zip(trees, nodes, strict=True):
            each["value"] = tree.value[:, 0, 0]
        scale, single = float(last.learning_rate), True  # type: ignore[attr-defined]
    else:
        # Not public, but there is no other way; ``fit_estimator`` compares what comes out.
        nodes = [_nodes_of_histogram(each[0].nodes) for each in last._predictors]  # type: ignore[attr-defined]
        scale, single = 1.0, False
    trees_only = _joined(nodes, names, scale=scale, offset=0.0, link="logistic", single=single)
    # What boosting started from: what its decision at any point has beyond the trees.
    origin = np.zeros((1, len(names)))
    begun = float(np.ravel(last.decision_function(origin))[0])  # type: ignore[attr-defined]
    offset = begun - trees_only.total(origin)[0]
    return _joined(nodes, names, scale=scale, offset=offset, link="logistic", single=single)


def _nodes_of(tree: object) -> _Nodes:
    """Of a ``sklearn.tree`` tree, without its values."""
    leaf = tree.children_left < 0  # type: ignore[attr-defined]
    here = np.arange(len(leaf))
    return {
        "feature": np.where(leaf, 0, tree.feature),  # type: ignore[attr-defined]
        "threshold": np.where(leaf, 0.0, tree.threshold),  # type: ignore[attr-defined]
        "left": np.where(leaf, here, tree.children_left),  # type: ignore[attr-defined]
        "right": np.where(leaf, here, tree.children_right),  # type: ignore[attr-defined]
    }


def _nodes_of_histogram(nodes: NDArray[np.void]) -> _Nodes:
    """Of a tree of ``HistGradientBoostingClassifier``."""
    leaf = nodes["is_leaf"].astype(np.bool_)
    if nodes["is_categorical"].any():
        raise InvalidInput("estimator", "splits on categories, which features here are not")
    here = np.arange(len(leaf))
    return {
        "feature": np.where(leaf, 0, nodes["feature_idx"]),
        "threshold": np.where(leaf, 0.0, nodes["num_threshold"]),
        "left": np.where(leaf, here, nodes["left"]),
        "right": np.where(leaf, here, nodes["right"]),
        "value": nodes["value"],
    }


def _joined(
    nodes: Sequence[_Nodes],
    names: tuple[str, ...],
    *,
    scale: float,
    offset: float,
    link: Link,
    single: bool,
) -> Trees:
    """All trees in one set of arrays."""
    sizes = np.array([len(each["value"]) for each in nodes])
    roots = np.concatenate([[0], np.cumsum(sizes)[:-1]]).astype(np.int64)
    shift = np.repeat(roots, sizes)

    def whole(name: str) -> NDArray[np.float64]:
        return np.concatenate([each[name] for each in nodes])

    return Trees(
        features=names,
        roots=roots,
        feature=whole("feature").astype(np.int64),
        threshold=whole("threshold").astype(np.float64),
        left=whole("left").astype(np.int64) + shift,
        right=whole("right").astype(np.int64) + shift,
        value=whole("value").astype(np.float64),
        scale=scale,
        offset=offset,
        link=link,
        single=single,
    )


def _steps(estimator: object) -> list[object]:
    """The steps of a pipeline, or the estimator alone."""
    steps = getattr(estimator, "steps", None)
    return [step for _, step in steps] if steps is not None else [estimator]


def _name(estimator: object) -> str:
    return type(estimator).__name__


def _require() -> None:
    try:
        import sklearn  # noqa: F401
    except ImportError:
        raise CascadeError(
            "an estimator needs scikit-learn: pip install 'edge-cloud-cascade[tune]'"
        ) from None
