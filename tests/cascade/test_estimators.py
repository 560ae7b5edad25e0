"""Estimators: exported to scikit-learn's own numbers, calibrated on unseen rows, or refused."""

from __future__ import annotations

import json
from collections.abc import Callable

import numpy as np
import pytest
from sklearn.ensemble import (
    ExtraTreesClassifier,
    GradientBoostingClassifier,
    HistGradientBoostingClassifier,
    RandomForestClassifier,
)
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler, StandardScaler
from sklearn.tree import DecisionTreeClassifier

from cascade.calibrate import fit_platt
from cascade.confidence import ConfidenceModel, Isotonic, Platt
from cascade.errors import CascadeError, InvalidInput
from cascade.estimators import (
    ConfidenceClassifier,
    Estimator,
    export,
    fit_estimator,
    logistic_regression,
)
from cascade.features import Features
from cascade.logistic import logit, sigmoid
from cascade.metrics import auroc, ece
from cascade.rows import Bools
from cascade.scorer import Trees, read_scorer

NAMES = ("raw_score", "min_logprob", "mean_entropy")


def rows(n: int, seed: int = 0) -> tuple[Features, Bools]:
    """Answers whose P(right) depends on the score and, at low entropy alone, on the worst token."""
    rng = np.random.default_rng(seed)
    score, worst, entropy = rng.uniform(0.3, 1, n), -rng.exponential(2, n), rng.exponential(1, n)
    chance = sigmoid(0.6 * logit(score) + np.where(entropy < 1, worst, 0.0) + 0.3)
    return Features(NAMES, np.stack([score, worst, entropy], axis=1)), rng.random(n) < chance


MODELS: dict[str, Callable[[], Estimator]] = {
    "logistic": logistic_regression,
    "unscaled": LogisticRegression,
    "scale only": lambda: make_pipeline(StandardScaler(with_mean=False), LogisticRegression()),
    "tree": lambda: DecisionTreeClassifier(max_depth=4, random_state=0),
    "forest": lambda: RandomForestClassifier(20, max_depth=6, random_state=0),
    "unbounded forest": lambda: RandomForestClassifier(5, class_weight="balanced", random_state=0),
    "extra trees": lambda: ExtraTreesClassifier(10, max_leaf_nodes=12, random_state=0),
    "boosting": lambda: GradientBoostingClassifier(n_estimators=20, subsample=0.7, random_state=0),
    "boosting from zero": lambda: GradientBoostingClassifier(n_estimators=5, init="zero"),
    "histogram boosting": lambda: HistGradientBoostingClassifier(max_iter=20, random_state=0),
}


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_an_exported_estimator_gives_the_probabilities_of_scikit_learn(
    make: Callable[[], Estimator],
) -> None:
    features, right = rows(600)
    fresh, _ = rows(2000, seed=1)
    fitted = make()
    fitted.fit(features.values, right.astype(int))
    scorer = read_scorer(json.loads(json.dumps(export(fitted, NAMES).to_json())), "scorer")
    expected = fitted.predict_proba(fresh.values)[:, 1]
    np.testing.assert_allclose(scorer.map(fresh.values), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_a_model_gives_one_answer_what_it_gives_many_and_survives_json(
    make: Callable[[], Estimator],
) -> None:
    features, right = rows(300)
    model = fit_estimator(features, right, make(), folds=3)
    again = ConfidenceModel.from_json(json.loads(json.dumps(model.to_json())))
    assert again == model
    many = model.of_features(features)
    one_by_one = [float(again.of_features(features.take([row]))[0]) for row in range(50)]
    assert one_by_one == many[:50].tolist()


def test_scores_at_a_threshold_go_the_way_that_scikit_learn_sends_them() -> None:
    features, right = rows(400)
    fitted = RandomForestClassifier(5, random_state=0).fit(features.values, right.astype(int))
    scorer = export(fitted, NAMES)
    assert isinstance(scorer, Trees)
    # Right at thresholds, and a float32's rounding beside them.
    inner = scorer.left != np.arange(len(scorer.left))
    worst = scorer.threshold[inner & (scorer.feature == 1)][:50]
    edges = np.concatenate([worst, worst * (1 + 1e-8), worst * (1 - 1e-8)])
    probe = np.tile(features.values[:1], (len(edges), 1))
    probe[:, 1] = edges
    np.testing.assert_allclose(
        scorer.map(probe), fitted.predict_proba(probe)[:, 1], rtol=0, atol=1e-12
    )


def test_an_overfitted_forest_is_calibrated_on_rows_that_it_has_not_seen() -> None:
    features, right = rows(2000)
    fresh, fresh_right = rows(20_000, seed=1)
    forest = RandomForestClassifier(50, random_state=0)
    model = fit_estimator(features, right, forest)
    raw = RandomForestClassifier(50, random_state=0).fit(features.values, right.astype(int))
    assert ece(model.of_features(fresh), fresh_right) < 0.03
    assert ece(raw.predict_proba(fresh.values)[:, 1], fresh_right) > 0.06


def test_many_features_rank_better_than_one_where_there_is_more_to_know() -> None:
    features, right = rows(2000)
    fresh, fresh_right = rows(20_000, seed=1)
    one = fit_platt(features.values[:, 0], right).batch(fresh.values[:, 0])
    many = fit_estimator(
        features, right, HistGradientBoostingClassifier(max_iter=50, random_state=0)
    ).of_features(fresh)
    assert auroc(many, fresh_right) > auroc(one, fresh_right) + 0.05


def test_the_wrapper_fits_and_predicts_as_scikit_learn_does() -> None:
    features, right = rows(300)
    classifier = ConfidenceClassifier(calibrator="isotonic")
    with pytest.raises(CascadeError, match="fit first"):
        classifier.predict_proba(features)
    both = classifier.fit(features, right).predict_proba(features)
    assert both.shape == (300, 2)
    assert both.sum(axis=1) == pytest.approx(1)
    assert isinstance(classifier.model_.calibrator, Isotonic)
    assert (classifier.predict(features) == (both[:, 1] > 0.5)).all()


def test_a_document_stays_in_one_fold() -> None:
    # Every document's rows are alike and its labels are noise: rows of the same document in two
    # folds would teach its noise, and the calibrator would trust it.
    rng = np.random.default_rng(5)
    document = np.repeat(np.arange(100), 4)
    values = rng.random((100, 1))[document]
    right = (rng.random(100) < 0.5)[document]
    features, tree = Features(("raw_score",), values), DecisionTreeClassifier(random_state=0)
    apart = fit_estimator(features, right, tree, documents=[str(each) for each in document])
    leaky = fit_estimator(features, right, tree)
    assert isinstance(apart.calibrator, Platt)
    assert isinstance(leaky.calibrator, Platt)
    assert abs(apart.calibrator.a) < 0.02
    assert leaky.calibrator.a > 0.1


@pytest.mark.parametrize(
    ("estimator", "message"),
    [
        (KNeighborsClassifier(), "KNeighborsClassifier cannot be exported exactly; these can"),
        (make_pipeline(MinMaxScaler(), LogisticRegression()), "MinMaxScaler before"),
        (make_pipeline(StandardScaler(), RandomForestClassifier()), "StandardScaler before Random"),
        (GradientBoostingClassifier(loss="exponential"), "log_loss"),
        (GradientBoostingClassifier(init=LogisticRegression()), "init"),
    ],
)
def test_an_estimator_that_cannot_be_exported_is_refused(
    estimator: Estimator, message: str
) -> None:
    with pytest.raises(InvalidInput, match=message):
        fit_estimator(*rows(100), estimator, folds=2)


def test_rows_that_cannot_be_fitted_are_refused_by_name() -> None:
    features, right = rows(100)
    holes = Features(NAMES, np.where(np.arange(300).reshape(100, 3) == 4, np.nan, features.values))
    with pytest.raises(InvalidInput, match=r"features\.min_logprob: was not measured on 1 of 100"):
        fit_estimator(holes, right)
    with pytest.raises(InvalidInput, match="all answers are right"):
        fit_estimator(features, np.ones(100))
    with pytest.raises(InvalidInput, match="at least 20"):
        fit_estimator(features.take(np.arange(10)), right[:10])
    with pytest.raises(InvalidInput, match="has 99 rows"):
        fit_estimator(features, right[:99])
    with pytest.raises(InvalidInput, match="folds"):
        fit_estimator(features, right, folds=1)
    with pytest.raises(InvalidInput, match="documents"):
        fit_estimator(features, right, documents=["a"])
    with pytest.raises(InvalidInput, match="must be fitted"):
        export(LogisticRegression(), NAMES)


TREE = {
    "kind": "trees",
    "features": ["raw_score"],
    "roots": [0],
    "feature": [0, 0, 0],
    "threshold": [0.5, 0, 0],
    "left": [1, 1, 2],
    "right": [2, 1, 2],
    "value": [0, 0.25, 0.75],
    "scale": 1,
    "offset": 0,
    "link": "identity",
    "single": False,
}
LINEAR = {
    "kind": "linear",
    "features": ["raw_score"],
    "center": [0],
    "scale": [1],
    "weights": [1],
    "offset": 0,
}


def test_a_tree_is_walked_from_its_root_to_a_leaf() -> None:
    scorer = read_scorer(TREE, "scorer")
    assert scorer.map(np.array([[0.4], [0.5], [0.6]])).tolist() == [0.25, 0.25, 0.75]


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"left": [0, 1, 2]}, "left"),  # a loop
        ({"right": [3, 1, 2]}, "right"),  # out of the tree
        ({"feature": [1, 0, 0]}, "feature"),
        ({"roots": [3]}, "roots"),
        ({"roots": []}, "roots"),
        ({"roots": [0.5]}, "roots"),
        ({"threshold": [0.5]}, "threshold"),
        ({"value": []}, "value"),
        ({"features": []}, "features"),
        ({"features": ["weather"]}, "features"),
        ({"link": "probit"}, "link"),
        ({"single": 1}, "single"),
        ({"more": 1}, "more"),
    ],
)
def test_a_file_whose_trees_do_not_add_up_is_refused(change: dict[str, object], field: str) -> None:
    with pytest.raises(InvalidInput, match=field):
        read_scorer(TREE | change, "scorer")


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"scale": [0]}, "scale"),
        ({"weights": [1, 2]}, "weights"),
        ({"kind": "forest"}, "kind"),
    ],
)
def test_a_file_whose_regression_does_not_add_up_is_refused(
    change: dict[str, object], field: str
) -> None:
    with pytest.raises(InvalidInput, match=field):
        read_scorer(LINEAR | change, "scorer")


def test_a_model_of_other_features_is_refused() -> None:
    model = ConfidenceModel(Platt(1.0, 0.0), scorer=read_scorer(LINEAR, "scorer"))
    value = json.loads(json.dumps(model.to_json()))
    with pytest.raises(InvalidInput, match="features_version"):
        ConfidenceModel.from_json(value | {"features_version": 2})
    with pytest.raises(InvalidInput, match="features_version"):
        ConfidenceModel.from_json({k: v for k, v in value.items() if k != "features_version"})
    with pytest.raises(InvalidInput, match="features_version"):
        ConfidenceModel.from_json({k: v for k, v in value.items() if k != "scorer"})


def test_a_device_that_cannot_measure_what_a_model_needs_escalates_without_a_confidence() -> None:
    from dataclasses import replace

    from cascade.features import of_answer
    from cascade.local import LocalAnswer
    from cascade.policy import Policy, Reason, decide
    from cascade.signals import EMPTY_SIGNALS
    from cascade.task import free
    from tests.cascade.scripted import SIGNALS, policy

    model = fit_estimator(*rows(300))
    judge = replace(policy(0.01), task=free("talk"), confidence=model)
    assert Policy.from_bytes(judge.to_bytes()) == judge
    whole = LocalAnswer("a b", SIGNALS, None, 5, 2, 0.0, 0.0, "stop")
    decision = decide(judge, whole)
    assert decision.accept
    assert decision.confidence == float(model.of_features(of_answer(whole))[0])
    silent = replace(whole, text="", signals=EMPTY_SIGNALS, tokens=0)
    unmeasured = decide(judge, silent)
    assert (unmeasured.accept, unmeasured.escalate, unmeasured.confidence) == (False, True, None)
    assert unmeasured.reasons == (Reason.UNMEASURED,)
