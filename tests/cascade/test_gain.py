"""The expected gain: calibrated, exported, and better than confidence where confidence misleads."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from sklearn.ensemble import GradientBoostingClassifier

from cascade.calibrate import fit_platt
from cascade.errors import InvalidInput
from cascade.estimators import logistic_regression
from cascade.features import Features, of_answer
from cascade.gain import GainModel, deferral_order, fit_gain
from cascade.local import LocalAnswer
from cascade.metrics import auroc, deferral_curve
from cascade.policy import Policy, Reason, decide
from cascade.rows import Bools
from cascade.signals import OptionScores
from tests.cascade.scripted import SIGNALS, policy

NAMES = ("raw_score", "first_entropy")


def mixed(n: int, seed: int = 0) -> tuple[Features, Bools, Bools]:
    """Three kinds of question: both tiers do well, neither does, and the next tier alone does.

    The score is lowest for the second kind, where nothing is to be gained; entropy tells the third.
    """
    rng = np.random.default_rng(seed)
    kind = rng.integers(0, 3, n)
    score = np.clip(np.array([0.9, 0.35, 0.6])[kind] + rng.normal(0, 0.06, n), 0.01, 0.99)
    entropy = np.abs(np.array([0.2, 0.5, 2.0])[kind] + rng.normal(0, 0.2, n))
    local = rng.random(n) < np.array([0.95, 0.02, 0.3])[kind]
    remote = rng.random(n) < np.array([0.96, 0.04, 0.95])[kind]
    return Features(NAMES, np.stack([score, entropy], axis=1)), local, remote


def test_where_confidence_has_a_high_auroc_and_defers_badly_gain_defers_well() -> None:
    features, local, remote = mixed(1200)
    fresh, fresh_local, fresh_remote = mixed(20_000, seed=1)
    confidence = fit_platt(features.values[:, 0], local).batch(fresh.values[:, 0])
    gain = fit_gain(features, local, remote, estimator=GradientBoostingClassifier(n_estimators=30))
    by_confidence = deferral_curve(confidence, fresh_local, fresh_remote).normalised_auc
    order = deferral_order(gain.of_features(fresh))
    by_gain = deferral_curve(order, fresh_local, fresh_remote).normalised_auc
    assert auroc(confidence, fresh_local) > 0.9
    assert by_confidence is not None
    assert by_gain is not None
    assert by_confidence < 0.45
    assert by_gain > by_confidence + 0.3


@pytest.mark.parametrize("estimator", [None, GradientBoostingClassifier(n_estimators=30)])
def test_gains_are_calibrated_in_every_fifth_of_their_range(estimator: object) -> None:
    features, local, remote = mixed(3000, seed=2)
    fresh, fresh_local, fresh_remote = mixed(40_000, seed=3)
    gains = fit_gain(features, local, remote, estimator=estimator).of_features(fresh)
    happened = fresh_remote.astype(float) - fresh_local
    for part in np.array_split(np.argsort(gains), 5):
        assert happened[part].mean() == pytest.approx(gains[part].mean(), abs=0.08)
    assert happened.mean() == pytest.approx(gains.mean(), abs=0.02)


def test_of_raw_scores_both_tiers_are_platt_maps() -> None:
    rng = np.random.default_rng(4)
    score = rng.uniform(0.5, 1, 5000)
    local, remote = rng.random(5000) < score, rng.random(5000) < 0.9
    model = fit_gain(score, local, remote)
    assert model.batch([0.6, 0.95]) == pytest.approx([0.3, -0.05], abs=0.04)


def test_a_tier_that_is_always_right_has_a_constant() -> None:
    features, local, _ = mixed(400)
    always = np.ones(400)
    by_score = fit_gain(features.values[:, 0], local, always)
    own = fit_platt(features.values[:, 0], local).batch([0.6])
    assert by_score.batch([0.6]) == pytest.approx(401 / 402 - own)
    by_features = fit_gain(features, local, always).of_features(features)
    assert by_features.mean() == pytest.approx(1 - local.mean(), abs=0.02)
    assert by_features.std() > 0.2


def test_features_that_say_nothing_leave_the_mean_gain() -> None:
    rng = np.random.default_rng(6)
    features = Features(NAMES, rng.random((2000, 2)))
    local, remote = rng.random(2000) < 0.5, rng.random(2000) < 0.8
    gains = fit_gain(features, local, remote).of_features(features)
    assert gains == pytest.approx(0.3, abs=0.08)


def test_a_gain_model_survives_json_and_gives_one_answer_what_it_gives_many() -> None:
    p = np.array([0.8, 0.2])
    scores = OptionScores(("good", "bad"), np.log(p), np.zeros(2), p)
    answer = LocalAnswer("good", SIGNALS, scores, 5, 1, 0.0, 0.0, "stop")
    features, local, remote = mixed(300)
    for measured in (features, features.values[:, 0]):
        model = fit_gain(measured, local, remote)
        again = GainModel.from_json(json.loads(json.dumps(model.to_json())))
        assert again == model
        assert model.of(answer) == float(model.of_features(of_answer(answer))[0])
    with pytest.raises(InvalidInput, match=r"gain\.slope"):
        GainModel.from_json(model.to_json() | {"slope": "1"})
    with pytest.raises(InvalidInput, match=r"gain\.local\.calibrator"):
        GainModel.from_json(model.to_json() | {"local": {"feature": "raw_score"}})


def test_unusable_rows_are_refused() -> None:
    features, local, remote = mixed(100)
    with pytest.raises(InvalidInput, match="remote_correct"):
        fit_gain(features, local, remote[1:])
    with pytest.raises(InvalidInput, match="at least 20"):
        fit_gain([0.5] * 10, local[:10], remote[:10])
    with pytest.raises(InvalidInput, match="estimator"):
        fit_gain(features.values[:, 0], local, remote, estimator=logistic_regression())
    with pytest.raises(InvalidInput, match="of_features"):
        fit_gain(features, local, remote).batch([0.5])


@pytest.fixture
def judged() -> Policy:
    score = np.linspace(0.5, 0.99, 200)
    rng = np.random.default_rng(0)
    model = fit_gain(score, rng.random(200) < score, rng.random(200) < 0.8)
    return replace(policy(0.9), gain=model)


def unsure(probability: float = 0.75) -> LocalAnswer:
    p = np.array([probability, 1 - probability])
    scores = OptionScores(("good", "bad"), np.log(p), np.zeros(2), p)
    return LocalAnswer("good", SIGNALS, scores, 5, 1, 0.0, 0.0, "stop")


def test_a_policy_reports_the_gain_beside_the_confidence(judged: Policy) -> None:
    decision = decide(judged, unsure())
    assert judged.gain is not None
    assert decision.gain == judged.gain.of(unsure())
    assert decision.escalate
    assert Policy.from_bytes(judged.to_bytes()) == judged


def test_an_unsure_answer_stays_unverified_where_little_is_to_be_gained(judged: Policy) -> None:
    gain = decide(judged, unsure()).gain
    assert gain is not None
    picky = replace(judged, min_gain=gain + 0.01)
    stays = decide(picky, unsure())
    assert (stays.accept, stays.escalate) == (False, False)
    assert stays.reasons == (Reason.UNSURE, Reason.LITTLE_GAIN)
    assert decide(replace(judged, min_gain=gain), unsure()).escalate
    # No certificate rests on it: what is accepted is accepted either way.
    assert decide(picky, unsure(0.95)).accept
    assert Policy.from_bytes(picky.to_bytes()) == picky
