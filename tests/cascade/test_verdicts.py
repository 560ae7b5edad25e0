"""Verdicts over records are those that the device gives, row by row; nothing is dropped."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from cascade.errors import InvalidInput
from cascade.features import of_records
from cascade.metrics import auroc
from cascade.pair import Pair, pair
from cascade.policy import Policy, first_reason
from cascade.records import RecordSet
from cascade.task import free, generic
from cascade.tune import Aim, Modelling, estimator_named, examine, fit, tune
from cascade.verdicts import confidences, gains, judge, ranked, saved, unmeasured
from tests.cascade.report.simulated import moods
from tests.cascade.talk_records import BASE, talk

TASK = free("talk")
TWO = ("mean_logprob", "min_logprob")


def tuned(modelling: Modelling, *, stop: RecordSet | None = None, empty: int = 0) -> Policy:
    rows = pair(talk(2500, empty=empty))
    develop, fresh = rows.take(np.arange(900)), rows.take(np.arange(900, 2500))
    aims = [Aim("selective_risk", 0.2)]
    found = tune(develop, fresh, aims, delta=0.1, task=TASK, modelling=modelling, stop=stop)
    assert found.refusal is None
    return found.policy


@pytest.fixture(scope="module")
def fresh() -> RecordSet:
    return talk(1500, seed=3, empty=50)


def test_rows_without_a_feature_have_no_confidence_and_are_not_accepted(fresh: RecordSet) -> None:
    policy = tuned(Modelling("features", TWO), empty=60)
    assert policy.base_digest == BASE
    seen = judge(policy, fresh, "device")
    empty = fresh.column("device", "completion_tokens") == 0
    assert empty.sum() == 30
    assert np.array_equal(seen.unmeasured, empty)
    assert not seen.accepted[empty].any()
    assert seen.escalated[empty].all()
    assert unmeasured(TWO, fresh, "device") == {"mean_logprob": 30, "min_logprob": 30}
    assert (ranked(seen.confidence)[empty] == 0).all()
    # The others have what the model itself says of each row alone.
    for row in np.flatnonzero(~empty)[:40]:
        features = of_records(fresh.take([row]), "device", TWO)
        confidence = float(policy.confidence.of_features(features)[0])
        assert seen.confidence[row] == confidence
        reason = first_reason(confidence, policy.threshold, policy=True)
        assert seen.accepted[row] == (reason[0] == "confident")
    tested = examine(pair(fresh), [Aim("selective_risk", 0.2)], policy)
    assert (tested.n, tested.unmeasured) == (1500, 30)


def test_an_answer_that_says_out_of_scope_is_never_accepted() -> None:
    said = np.where(np.arange(600) % 3 == 0, "good", "bad")
    records = moods(tier__device__answer=said.tolist())
    given = tune(
        pair(records),
        pair(moods(seed=2)),
        [Aim("selective_risk", 0.4)],
        delta=0.1,
        task=generic(("good", "bad")),
    ).policy
    before = judge(given, records, "device")
    policy = dataclasses.replace(given, task=dataclasses.replace(given.task, outside="good"))
    seen = judge(policy, records, "device")
    outside = said == "good"
    assert before.accepted[outside].any()
    assert np.isnan(seen.confidence[outside]).all()
    assert not seen.accepted[outside].any()
    assert np.array_equal(seen.accepted[~outside], before.accepted[~outside])
    with pytest.raises(InvalidInput, match="answer"):
        judge(policy, moods(), "device")


def test_a_certificate_counts_rows_without_a_confidence_as_not_kept() -> None:
    rows = pair(talk(2500, empty=10))
    develop, fresh = rows.take(np.arange(900)), rows.take(np.arange(900, 2500))
    # An aim that everything meets: all that has a confidence is kept, and nothing else.
    found = tune(
        develop,
        fresh,
        [Aim("selective_risk", 0.9)],
        delta=0.1,
        task=TASK,
        modelling=Modelling("features", TWO),
    )
    certificate = found.policy.certificate
    assert certificate is not None
    assert certificate.threshold > 0
    assert certificate.n == len(fresh)
    assert certificate.n_accepted == 1440
    assert judge(found.policy, fresh.records, "device").accepted.sum() == 1440


def test_little_gain_keeps_requests_on_the_device_unverified(fresh: RecordSet) -> None:
    plain = tuned(Modelling("features", TWO, gain=True))
    policy = dataclasses.replace(plain, min_gain=0.2)
    before, seen = judge(plain, fresh, "device"), judge(policy, fresh, "device")
    assert plain.gain is not None
    gain = gains(plain.gain, fresh, "device")
    assert np.array_equal(seen.gain, gain, equal_nan=True)
    assert np.array_equal(seen.accepted, before.accepted)
    assert not before.unverified.any()
    assert np.array_equal(seen.unverified, ~seen.accepted & (gain < 0.2))
    assert 20 < seen.unverified.sum() < 600
    assert np.array_equal(seen.escalated, ~seen.accepted & ~seen.unverified)
    # A gain that cannot be told keeps nothing back.
    assert seen.escalated[np.isnan(gain)].all()

    rows = pair(fresh)
    tested = examine(rows, [Aim("excess_error", 0.5), Aim("escalation_share", 0.9)], policy)
    assert rows.cloud_correct is not None
    mine = np.where(seen.escalated, rows.cloud_correct, rows.correct)
    assert tested.accuracy == mine.mean()
    assert tested.unverified == seen.unverified.sum()
    excess, share = (promise.observed for promise in tested.promises)
    assert excess == np.mean(rows.cloud_correct & ~mine)
    assert share == seen.escalated.mean()


def test_a_stopped_answer_has_no_confidence_and_goes_up(fresh: RecordSet) -> None:
    policy = tuned(Modelling(gain=True), stop=talk(1500, seed=2))
    assert policy.early_stop is not None
    seen = judge(policy, fresh, "device")
    assert seen.stopped.sum() > 100
    assert seen.escalated[seen.stopped].all()
    assert np.isnan(seen.confidence[seen.stopped]).all()
    assert not seen.unmeasured.any()
    whole = confidences(policy.confidence, fresh, "device")
    found = saved(policy, fresh, "device", seen)
    assert found is not None
    assert policy.threshold is not None
    assert found.wrongly == np.sum(seen.stopped & (whole >= policy.threshold))
    assert found.saved_tokens > 0
    headless = RecordSet(dataclasses.replace(fresh.header, max_tokens=None), fresh.source)
    with pytest.raises(InvalidInput, match="max_tokens"):
        judge(policy, headless, "device")


def test_what_is_planned_by_was_not_seen_by_the_fit() -> None:
    rows = pair(talk(600))
    noise = np.random.default_rng(5).random(600) < 0.5
    # Labels of pure noise: nothing can be known of them, whatever a fit says of its own rows.
    rows = Pair(rows.records, "device", None, rows.score, noise, None, {})
    forest = estimator_named("RandomForestClassifier", {"n_estimators": 20})
    fitted = fit(rows, Modelling("features", estimator=forest))
    # The calibrator may have turned the order round: it, too, found nothing to go by.
    assert abs(auroc(fitted.own, noise) - 0.5) > 0.45
    assert abs(auroc(fitted.confidence, noise) - 0.5) < 0.08
