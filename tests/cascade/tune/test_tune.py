"""Tuning on records of known truth: the demo's route, certificates that hold, honest refusals."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from cascade.calibrate import fit_platt
from cascade.certificate import Promise
from cascade.certify import (
    Target,
    certify,
    certify_targets,
    cost_usd,
    deadline_misses,
    escalation_share,
    excess_error,
    net_error,
    plan_grid,
    plan_targets,
    selective_risk,
)
from cascade.errors import InvalidInput, NotFound
from cascade.features import of_records
from cascade.pair import Pair, pair
from cascade.policy import Policy
from cascade.records import RecordSet, from_columns, input_sha256
from cascade.replay import replay
from cascade.report.evaluated import evaluate
from cascade.score_reference import ScoreReference
from cascade.task import generic
from cascade.tune import Aim, Modelling, examine, goes_up, observe, tune, tune_groups
from tests.cascade.drawn_records import OPTIONS, drawn, header

TASK = dataclasses.replace(generic(OPTIONS), task_id="mood")
RISK = (Aim("selective_risk", 0.2),)


def parts(rows: Pair, develop: int, fresh: int) -> tuple[Pair, Pair]:
    return rows.take(np.arange(develop)), rows.take(np.arange(develop, develop + fresh))


def test_it_is_the_demos_route() -> None:
    rows = pair(drawn(1600))
    develop, fresh = parts(rows, 400, 1000)
    tuned = tune(develop, fresh, RISK, delta=0.1, task=TASK)

    model = fit_platt(develop.score, develop.correct)
    grid = plan_grid(model.batch(develop.score), develop.correct, rows=1000, alpha=0.2, delta=0.1)
    expected = certify(model.batch(fresh.score), fresh.correct, alpha=0.2, delta=0.1, grid=grid)
    assert tuned.policy.certificate == expected
    assert tuned.policy.confidence == model
    assert tuned.policy.threshold == expected.threshold
    assert tuned.refusal is None
    assert Policy.from_bytes(tuned.policy.to_bytes()) == tuned.policy


def test_certificates_are_wrong_no_more_often_than_they_say() -> None:
    # P(right) is the raw score, uniform on [.5, 1]: above s the risk is 1 - (s + 1) / 2.
    rows, fine = pair(drawn(300 * 500, seed=7)), np.linspace(0.5, 1, 5001)
    wrong = kept = 0
    for i in range(300):
        mine = rows.take(np.arange(i * 500, (i + 1) * 500))
        policy = tune(*parts(mine, 150, 350), RISK, delta=0.1, task=TASK).policy
        if policy.threshold is None:
            continue
        lowest = fine[np.argmax(policy.confidence.batch(fine) >= policy.threshold)]
        kept += 1
        wrong += 1 - (lowest + 1) / 2 > 0.2
    assert kept > 250
    assert wrong / 300 <= 0.1 + 2 * np.sqrt(0.1 * 0.9 / 300)


def test_a_target_that_cannot_be_had_escalates_everything_and_says_why() -> None:
    rows = pair(drawn(900))
    tuned = tune(*parts(rows, 300, 100), [Aim("selective_risk", 0.04)], delta=0.1, task=TASK)
    assert (tuned.policy.threshold, tuned.policy.certificate) == (None, None)
    assert tuned.refusal is not None
    assert "cannot certify an error of at most 0.04" in tuned.refusal.reason
    assert tuned.refusal.labels_needed is None or tuned.refusal.labels_needed > 100
    test = examine(rows.take(np.arange(400, 900)), [Aim("selective_risk", 0.04)], tuned.policy)
    assert (test.accepted, test.accuracy) == (0, test.cloud_accuracy)
    assert test.promises[0].observed is None


@pytest.mark.parametrize("calibrator", ["platt", "isotonic"])
def test_several_targets_hold_together(calibrator: str) -> None:
    rows = pair(drawn(4000, seed=3))
    aims = [Aim("excess_error", 0.15), Aim("escalation_share", 0.7)]
    tuned = tune(
        *parts(rows, 1000, 3000),
        aims,
        delta=0.1,
        task=TASK,
        modelling=Modelling(calibrator=calibrator),
    )
    assert tuned.policy.certificate is not None
    promises = tuned.policy.certificate.promises
    assert [promise.kind for promise in promises] == ["excess_error", "escalation_share"]
    assert all(promise.upper <= promise.alpha for promise in promises)


def as_by_hand(rows: Pair) -> dict[str, tuple[Aim, Target]]:
    device_s, cloud_s = (rows.records.column(t, "latency_s") for t in ("device", "tier1"))
    device_usd, cloud_usd = (rows.records.column(t, "cost_usd") for t in ("device", "tier1"))
    right, cloud = rows.correct, rows.cloud_correct
    assert cloud is not None
    return {
        "risk": (Aim("selective_risk", 0.3), selective_risk(right, alpha=0.3)),
        "excess": (Aim("excess_error", 0.2), excess_error(right, cloud, alpha=0.2)),
        "net": (Aim("net_error", 0.2), net_error(right, cloud, alpha=0.2)),
        "escalation": (Aim("escalation_share", 0.6), escalation_share(len(rows), alpha=0.6)),
        "cost": (
            Aim("cost_usd", 0.0008, most_usd=0.06),
            cost_usd(device_usd + cloud_usd, alpha=0.0008, most=0.06, local=device_usd),
        ),
        "deadline": (
            Aim("deadline_misses", 0.2, deadline_s=0.7),
            deadline_misses(device_s > 0.7, device_s + cloud_s > 0.7, alpha=0.2),
        ),
    }


@pytest.mark.parametrize("name", ["risk", "excess", "net", "escalation", "cost", "deadline"])
def test_a_target_by_name_is_that_of_certify(name: str) -> None:
    rows = pair(drawn(1200))
    aim, target = as_by_hand(rows)[name]
    assert aim.name == name
    develop, fresh = parts(rows, 400, 800)
    rising = goes_up([aim])
    assert rising == (name in ("escalation", "cost", "deadline"))
    model = fit_platt(develop.score, develop.correct)
    grid = plan_targets(
        model.batch(develop.score),
        [target.take(np.arange(400))],
        rows=800,
        delta=0.1,
        rising=rising,
    )
    fresh_target = target.take(np.arange(400, 1200))
    expected = certify_targets(model.batch(fresh.score), [fresh_target], delta=0.1, grid=grid)
    assert tune(develop, fresh, [aim], delta=0.1, task=TASK).policy.certificate == expected


def test_groups_have_policies_of_their_own_and_share_delta() -> None:
    rows = pair(drawn(6000))
    develop, fresh = parts(rows, 1500, 4500)
    found = tune_groups(develop, fresh, RISK, "domain", delta=0.1, task=TASK)
    assert [tuned.group for tuned in found] == ["film", "news", "shop"]
    assert [tuned.policy.task.task_id for tuned in found] == ["mood.film", "mood.news", "mood.shop"]
    for tuned in found:
        assert tuned.policy.certificate is not None
        assert tuned.policy.certificate.delta == pytest.approx(0.1 / 3)
        assert tuned.policy.certificate.n == 1500
        own = np.asarray(fresh.records.group("domain")) == tuned.group
        assert tuned.policy.scores == ScoreReference.of(fresh.score[own])
    with pytest.raises(NotFound, match="no group 'language'; there are domain"):
        tune_groups(*parts(rows, 1500, 4500), RISK, "language", delta=0.1, task=TASK)


def test_what_the_test_part_shows_is_the_mean_loss_of_the_policys_choice() -> None:
    losses = selective_risk([1, 0, 1, 1], alpha=0.3)
    seen = observe(losses, np.array([True, True, True, False]))
    assert (seen.rows, seen.observed) == (3, pytest.approx(1 / 3))
    assert seen.interval == pytest.approx((0.0084, 0.9057), abs=1e-4)  # Clopper and Pearson, 1 of 3
    signed = observe(net_error([1, 0, 1], [0, 1, 1], alpha=0.1), np.array([True, True, False]))
    assert (signed.rows, signed.observed) == (3, 0)


def made(**columns: list[float]) -> RecordSet:
    rows = len(next(iter(columns.values())))
    ids = [str(i) for i in range(rows)]
    named = {f"tier.{name.replace('__', '.')}": np.array(each) for name, each in columns.items()}
    shas = [input_sha256(each) for each in ids]
    return from_columns(header("device", "tier1"), {"id": ids, "input_sha256": shas, **named})


def test_rows_that_cannot_be_used_are_counted() -> None:
    nan = float("nan")
    rows = pair(
        made(
            device__raw_score=[0.9, nan, 0.7, 0.6, 0.5],
            device__correct=[1, 1, nan, 0, 1],
            tier1__correct=[1, 1, 1, nan, 0],
        )
    )
    assert rows.score.tolist() == [0.9, 0.5]
    assert rows.left_out == {
        "device has no raw score": 1,
        "device is not graded": 1,
        "tier1 is not graded": 1,
    }
    with pytest.raises(InvalidInput, match="1 grades of device lie between 0 and 1"):
        pair(made(device__raw_score=[0.5, 0.5], device__correct=[0.5, 1], tier1__correct=[1, 1]))
    with pytest.raises(InvalidInput, match=r"no row can be used: device has no raw score \(2\)"):
        pair(made(device__raw_score=[nan, nan], device__correct=[0, 1], tier1__correct=[1, 1]))
    with pytest.raises(InvalidInput, match="cloud: is device, the local tier itself"):
        pair(drawn(10), cloud="device")


def test_what_the_records_lack_is_named() -> None:
    alone = pair(drawn(100, tiers=("device",)))
    with pytest.raises(InvalidInput, match="excess needs a second tier, and the records have dev"):
        Aim("excess_error", 0.1).target(alone)
    bare = pair(made(device__raw_score=[0.5, 0.6], device__correct=[0, 1], tier1__correct=[1, 1]))
    with pytest.raises(InvalidInput, match="needs latency_s of device, which the records do not"):
        Aim("deadline_misses", 0.1, deadline_s=1).target(bare)
    with pytest.raises(InvalidInput, match="most-usd: is missing"):
        Aim("cost_usd", 0.1).target(bare)
    with pytest.raises(InvalidInput, match="deadline-s: is missing"):
        Aim("deadline_misses", 0.1).target(bare)
    few = pair(drawn(10))
    with pytest.raises(InvalidInput, match=r"develop\.scores: has 10 rows; at least 20"):
        tune(few, few, RISK, delta=0.1, task=TASK)


def test_a_promise_of_a_policy_is_read_back() -> None:
    tuned = tune(*parts(pair(drawn(1600)), 400, 1000), RISK, delta=0.1, task=TASK)
    assert tuned.policy.certificate is not None
    (promise,) = tuned.policy.certificate.promises
    assert Promise.from_json(promise.to_json()) == promise


def by_length(rows: int) -> Pair:
    """Records whose rightness the raw score does not tell, and the length of the answer does."""
    plain, rng = drawn(rows, per_document=2), np.random.default_rng(8)
    long = rng.random(rows) < 0.5
    records = [
        dataclasses.replace(
            record,
            outcomes={
                **record.outcomes,
                "device": dataclasses.replace(
                    record.outcomes["device"],
                    correct=float(rng.random() < (0.4 if long[place] else 0.95)),
                    prompt_tokens=30,
                    completion_tokens=30 if long[place] else 5,
                ),
            },
        )
        for place, record in enumerate(plain)
    ]
    return pair(RecordSet.of(plain.header, records))


def test_the_best_confidence_is_of_features_where_they_tell_more_and_replays_the_same() -> None:
    rows = by_length(1200)
    develop, fresh = parts(rows, 400, 800)
    plain = tune(develop, fresh, RISK, delta=0.1, task=TASK)
    best = tune(develop, fresh, RISK, delta=0.1, task=TASK, modelling=Modelling(of="best"))
    assert plain.refusal is not None
    assert best.policy.confidence.scorer is not None
    read = Policy.from_bytes(best.policy.to_bytes())
    kept = examine(fresh, RISK, read)
    assert 0.45 < kept.coverage < 0.7
    assert best.policy.certificate is not None
    assert kept.accepted == best.policy.certificate.n_accepted
    assert replay(read, fresh, replicates=0).accepted == kept.accepted
    assert evaluate(fresh.records, read).score == pytest.approx(
        read.confidence.of_features(of_records(fresh.records, "device"))
    )


def test_the_best_confidence_is_the_default_where_the_score_tells_all() -> None:
    develop, fresh = parts(pair(drawn(1500)), 500, 1000)
    best = tune(develop, fresh, RISK, delta=0.1, task=TASK, modelling=Modelling(of="best"))
    assert best.policy == tune(develop, fresh, RISK, delta=0.1, task=TASK).policy
