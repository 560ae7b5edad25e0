"""Comparing confidences on develop: scikit-learn by hand, and leaks that it must not have."""

from __future__ import annotations

import numpy as np
import pytest

from cascade.compare import Candidate, candidates, compare, fold_of, unseen
from cascade.errors import InvalidInput
from cascade.features import of_records
from cascade.metrics import auroc, deferral_curve
from cascade.pair import Pair, pair
from cascade.tune import Modelling, estimator_named
from tests.cascade.talk_records import talk

TWO = ("mean_logprob", "log_tokens")
FOREST = Modelling(
    "features", estimator=estimator_named("RandomForestClassifier", {"n_estimators": 15})
)


def test_rows_are_judged_as_scikit_learn_would_by_hand() -> None:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    rows = pair(talk(500))
    dealt = fold_of(rows.documents(), 5, 0)
    order = unseen(rows, Candidate("two", Modelling("features", TWO)), dealt)
    values = of_records(rows.records, "device", TWO).values
    for fold in range(5):
        held = dealt == fold
        own = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
        own.fit(values[~held], rows.correct[~held])
        by_hand = own.predict_proba(values[held])[:, 1]
        # Platt's map behind it is strictly monotone: the same order.
        assert np.array_equal(np.argsort(by_hand), np.argsort(order[held]))
    found = compare(
        rows, [Candidate("score", Modelling()), Candidate("two", Modelling("features", TWO))]
    )
    default, two = found
    assert two.auroc is not None
    assert two.auroc_lead is not None
    assert default.auroc is not None
    assert two.auroc.value == pytest.approx(auroc(order, rows.correct))
    assert two.auroc_lead.value == pytest.approx(two.auroc.value - default.auroc.value)
    assert rows.cloud_correct is not None
    assert two.deferral is not None
    curve = deferral_curve(order, rows.correct, rows.cloud_correct)
    assert two.deferral.value == pytest.approx(curve.normalised_auc)
    assert default.auroc_lead is None


def test_a_leaky_judgement_is_told_from_this_one() -> None:
    # Each question is there four times, with labels of pure noise that copies share.
    base = pair(talk(150))
    copies = base.take(np.repeat(np.arange(150), 4))
    noise = np.repeat(np.random.default_rng(4).random(150) < 0.5, 4)
    rows = Pair(copies.records, "device", None, copies.score, noise, None, {})
    assert len(np.unique(rows.documents())) == 150
    honest = unseen(rows, Candidate("forest", FOREST), fold_of(rows.documents(), 5, 0))
    by_row = np.random.default_rng(0).permutation(600) % 5  # copies on both sides: a leak
    leaky = unseen(rows, Candidate("forest", FOREST), by_row)

    # Calibrated by document, each fit has found nothing and may have turned the order round.
    def skill(order: np.ndarray, dealt: np.ndarray) -> float:
        folds = [dealt == fold for fold in range(5)]
        return float(np.mean([abs(auroc(order[each], noise[each]) - 0.5) for each in folds]))

    assert skill(leaky, by_row) > 0.35
    assert skill(honest, fold_of(rows.documents(), 5, 0)) < 0.25


def test_documents_are_dealt_whole() -> None:
    documents = np.random.default_rng(2).integers(0, 40, 300)
    documents[:40] = np.arange(40)
    dealt = fold_of(documents, 5, 1)
    assert all(len(set(dealt[documents == each])) == 1 for each in range(40))
    assert np.bincount(dealt, minlength=5).min() > 0
    with pytest.raises(InvalidInput, match="the number of documents"):
        fold_of(np.array([0, 1, 1]), 5, 1)


def test_candidates_are_those_that_can_be_had() -> None:
    rows = pair(talk(300, empty=40))
    names = [each.name for each in candidates(rows)]
    assert names[0] == "score (the default)"
    assert "--feature min_logprob" in names
    assert "--feature top2_margin" not in names  # of closed sets
    assert names[-1] == "gain of the features"
    chosen = Modelling("features", TWO)
    assert candidates(rows, chosen)[1].modelling is chosen
    told: list[tuple[int, str]] = []
    found = compare(
        rows,
        [
            Candidate("score", Modelling()),
            Candidate("bad", Modelling("features", ("top2_margin",))),
        ],
        on_progress=lambda done, name: told.append((done, name)),
    )
    assert told == [(0, "score"), (1, "bad"), (2, "score"), (3, "bad")]
    assert found[1].problem is not None
    assert "no row has a value of top2_margin" in found[1].problem
