"""Early stop: what is certified on records is what a device does, and it keeps its promise."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.decision.decoded import MAX_TOKENS, SHAPES, Decoded, draw
from cascade.calibrate import fit_platt
from cascade.certify import certify, threshold_grid
from cascade.confidence import ConfidenceModel, Platt
from cascade.early_stop import (
    Checkpoint,
    EarlyStop,
    StopRule,
    TokenLists,
    bound_alone,
    certify_early_stop,
    fit_early_stop,
    mask,
    plan_cutoffs,
    plan_epsilon,
    plan_threshold,
    savings,
)
from cascade.errors import InfeasibleTarget, InvalidInput
from tests.cascade.records.drawn import header
from tests.cascade.test_controller import policy

PLAIN = SHAPES[0]
ALPHA, EPSILON, DELTA = 0.2, 0.05, 0.1


@dataclass(frozen=True)
class Step:
    """A token as an engine reports it."""

    logprob: float
    entropy: float
    margin: float


@pytest.fixture(scope="module")
def develop() -> Decoded:
    return draw(PLAIN, 600, seed=1)


@pytest.fixture(scope="module")
def model(develop: Decoded) -> ConfidenceModel:
    return fit_platt(develop.score, develop.correct)


@pytest.fixture(scope="module")
def rule(develop: Decoded, model: ConfidenceModel) -> StopRule:
    confidence = model.batch(develop.score)
    threshold = plan_threshold(confidence, develop.correct, rows=1500, alpha=ALPHA, delta=DELTA)
    assert threshold is not None
    return fit_early_stop(develop.signals, confidence, model, threshold=threshold)


def certified(
    rule: StopRule, develop: Decoded, fresh: Decoded, model: ConfidenceModel
) -> EarlyStop:
    return certify_early_stop(
        rule,
        (develop.signals, model.batch(develop.score)),
        (fresh.signals, model.batch(fresh.score)),
        epsilon=EPSILON,
        delta=DELTA,
    )


@pytest.fixture(scope="module")
def stop(rule: StopRule, develop: Decoded, model: ConfidenceModel) -> EarlyStop:
    return certified(rule, develop, draw(PLAIN, 1000, seed=2), model)


def watched(stop: EarlyStop, signals: TokenLists, row: int, max_tokens: int = MAX_TOKENS) -> int:
    """After how many tokens a watch stops the answer; 0 where it does not."""
    watch = stop.watch(max_tokens)
    for place in range(signals.offsets[row], signals.offsets[row + 1]):
        token = Step(signals.logprobs[place], signals.entropies[place], signals.margins[place])
        if watch(token):
            return int(place - signals.offsets[row] + 1)
    return 0


def test_a_device_stops_where_the_records_say_token_for_token(stop: EarlyStop) -> None:
    fresh = draw(PLAIN, 400, seed=3)
    expected = stop.stops_at(fresh.signals, MAX_TOKENS)
    assert [watched(stop, fresh.signals, row) for row in range(400)] == expected.tolist()
    assert len(set(expected)) > 3


def test_the_cutoff_stops_just_the_rows_that_the_certificate_counted(
    rule: StopRule, stop: EarlyStop
) -> None:
    fresh = draw(PLAIN, 1000, seed=2)
    assert stop.certificate is not None
    by_checkpoints = replace(stop, lowest_score=None).stops_at(fresh.signals, MAX_TOKENS) > 0
    assert by_checkpoints.sum() == stop.certificate.n_accepted
    assert (by_checkpoints == (rule.unkept(fresh.signals) >= stop.certificate.threshold)).all()


@given(st.lists(st.floats(-12, 0), min_size=1, max_size=20), st.floats(0.01, 0.99), st.data())
def test_the_bound_never_stops_an_answer_that_could_be_kept(
    logprobs: list[float], lowest: float, data: st.DataObject
) -> None:
    most = data.draw(st.integers(len(logprobs), 30))
    count = len(logprobs)
    signals = TokenLists(
        np.array(logprobs), np.zeros(count), np.zeros(count), np.array([0, count], np.int64)
    )
    at = int(EarlyStop(0.5, lowest).stops_at(signals, most)[0])
    if at:
        # The best that can still come: certain tokens, up to the last.
        assert np.exp(sum(logprobs[:at]) / most) < lowest
    else:
        assert np.exp(sum(logprobs) / most) >= lowest * (1 - 1e-3)
    assert watched(EarlyStop(0.5, lowest), signals, 0, most) == at


def test_the_bound_is_the_score_below_which_no_answer_is_kept() -> None:
    for calibrator in (Platt(0.8, -0.3), Platt(2.0, 1.0)):
        model = ConfidenceModel(calibrator)
        lowest = model.lowest_score(0.7)
        assert lowest is not None
        assert model(lowest) == pytest.approx(0.7, abs=1e-6)
        assert model(max(0.0, lowest - 1e-6)) < 0.7
    assert ConfidenceModel(Platt(-1.0, 0.0)).lowest_score(0.7) is None
    assert ConfidenceModel(Platt(0.0, 3.0)).lowest_score(0.7) == 0
    assert ConfidenceModel(Platt(0.0, -3.0)).lowest_score(0.7) == 1


def test_a_mistaken_stop_is_as_rare_as_promised_over_many_draws(
    rule: StopRule, develop: Decoded, model: ConfidenceModel
) -> None:
    pool = draw(PLAIN, 50_000, seed=4)
    kept = model.batch(pool.score) >= rule.threshold
    unkept = rule.unkept(pool.signals)
    grid = plan_cutoffs(
        rule,
        develop.signals,
        model.batch(develop.score),
        rows=1000,
        epsilon=EPSILON,
        delta=DELTA,
    )
    rng, broken, draws, found = np.random.default_rng(5), 0, 300, 0
    for _ in range(draws):
        rows = rng.integers(0, len(kept), 1000)
        try:
            chosen = certify(unkept[rows], ~kept[rows], alpha=EPSILON, delta=DELTA, grid=grid)
        except InfeasibleTarget:
            continue
        found += 1
        broken += kept[unkept >= chosen.threshold].mean() > EPSILON
    assert found > 0.8 * draws
    assert broken <= draws * DELTA + 2 * np.sqrt(draws * DELTA * (1 - DELTA))


def test_a_rule_that_stops_what_it_likes_is_caught(
    rule: StopRule, develop: Decoded, model: ConfidenceModel
) -> None:
    blind = tuple(replace(point, weights=(0.0,) * 12, offset=-50.0) for point in rule.checkpoints)
    with pytest.raises(InfeasibleTarget, match="no cutoff is certain to stop"):
        certified(replace(rule, checkpoints=blind), develop, draw(PLAIN, 1000, seed=2), model)


def test_stopping_saves_many_tokens_and_the_certificate_stays(
    stop: EarlyStop, develop: Decoded, model: ConfidenceModel
) -> None:
    rows = draw(PLAIN, 1500, seed=6)
    confidence = model.batch(rows.score)
    grid = threshold_grid(model.batch(develop.score))[10:]
    stops = stop.stops_at(rows.signals, MAX_TOKENS)
    plain = certify(confidence, rows.correct, alpha=ALPHA, delta=DELTA, grid=grid)
    masked = certify(
        mask(confidence, stops > 0),
        rows.correct,
        alpha=ALPHA,
        delta=DELTA,
        grid=grid[grid >= stop.threshold],
    )
    assert masked.coverage > 0.95 * plain.coverage
    saved = savings(stops, rows.signals.tokens, confidence >= masked.threshold)
    assert saved.saved > 0.3
    assert saved.wrongly <= EPSILON * saved.stopped
    assert saved.saved_tokens < saved.wasted_tokens


def test_savings_count_the_tokens_of_escalated_answers_alone() -> None:
    stops, tokens = np.array([2, 0, 4, 0]), np.array([10, 20, 9, 7])
    found = savings(stops, tokens, np.array([False, False, True, True]))
    assert (found.escalated, found.stopped, found.wrongly) == (3, 2, 1)
    assert (found.wasted_tokens, found.saved_tokens) == (30, 8)
    assert found.saved == pytest.approx(8 / 30)


def test_a_rule_survives_its_file(stop: EarlyStop, rule: StopRule) -> None:
    for each in (stop, bound_alone(rule)):
        assert EarlyStop.from_json(json.loads(json.dumps(each.to_json()))) == each


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"threshold": 0}, "threshold"),
        ({"threshold": 1.5}, "threshold"),
        ({"running": ["mean_logprob"]}, "running"),
        ({"cutoff": None}, "cutoff"),
        ({"certificate": None}, "certificate"),
        ({"checkpoints": []}, "cutoff"),
        ({"checkpoints": {}}, "checkpoints"),
        ({"more": 1}, "more"),
    ],
)
def test_an_unusable_field_is_named(stop: EarlyStop, change: dict[str, object], field: str) -> None:
    value = json.loads(json.dumps(stop.to_json())) | change
    with pytest.raises(InvalidInput, match=rf"early_stop\.{field}"):
        EarlyStop.from_json(value)


def test_unusable_checkpoints_are_named(stop: EarlyStop) -> None:
    value = json.loads(json.dumps(stop.to_json()))
    first = value["checkpoints"][0]
    for points, field in (
        ([first, first], "checkpoints"),
        ([first | {"weights": [1]}], r"checkpoints\[0\].weights"),
        ([first | {"tokens": 0}], r"checkpoints\[0\].tokens"),
    ):
        with pytest.raises(InvalidInput, match=field):
            EarlyStop.from_json(value | {"checkpoints": points})


def test_a_policy_carries_the_rule_for_free_text_and_a_threshold_that_is_high_enough(
    stop: EarlyStop,
) -> None:
    from cascade.policy import Policy
    from cascade.task import free

    fits = replace(policy(0.99), task=free("mood"), early_stop=stop)
    assert Policy.from_bytes(fits.to_bytes()) == fits
    with pytest.raises(InvalidInput, match=r"early_stop\.threshold"):
        replace(fits, threshold=stop.threshold / 2).to_bytes()
    with pytest.raises(InvalidInput, match="free answers"):
        replace(fits, task=policy(0.99).task).to_bytes()


def test_parts_that_cannot_be_fitted_are_refused(
    rule: StopRule, develop: Decoded, model: ConfidenceModel
) -> None:
    confidence = model.batch(develop.score)
    with pytest.raises(InvalidInput, match="threshold"):
        fit_early_stop(develop.signals, confidence, model, threshold=0.0)
    with pytest.raises(InvalidInput, match="at"):
        fit_early_stop(develop.signals, confidence, model, threshold=0.5, at=(4, 2))
    with pytest.raises(InvalidInput, match="599 rows for 600"):
        fit_early_stop(develop.signals, confidence[1:], model, threshold=0.5)
    with pytest.raises(InvalidInput, match="no checkpoint"):
        certified(replace(rule, checkpoints=()), develop, develop, model)
    with pytest.raises(InvalidInput, match="stopped"):
        mask([0.5, 0.5], [True])


def test_records_give_the_signals_of_their_tokens() -> None:
    from cascade.records import Outcome, Record, RecordSet
    from cascade.signals import Signals

    def record(name: str, *logprobs: float) -> Record:
        values = np.array(logprobs, np.float32)
        signals = Signals(values, -values, np.full(len(values), 0.5, np.float32))
        outcome = Outcome(signals=signals if len(values) else None)
        return Record(id=name, document=name, input_sha256="0" * 64, outcomes={"device": outcome})

    records = RecordSet.of(header("device"), [record("a", -1, -3), record("b"), record("c", -2)])
    signals = TokenLists.of(records, "device")
    assert signals.tokens.tolist() == [2, 0, 1]
    rows, running = signals.running(2)
    assert rows.tolist() == [0]
    assert running.tolist() == [[-2, -3, 2, 3, 0.5, 0.5, -1, 1, 0.5, -3, 3, 0.5]]
    with pytest.raises(InvalidInput, match="no signals"):
        TokenLists.of(RecordSet.of(header("device"), [record("b")]), "device")


def test_epsilon_is_planned_for_the_coverage_that_it_may_cost() -> None:
    assert plan_epsilon(0.2) == pytest.approx(0.0125)
    assert plan_epsilon(0.9) == 0.05
    assert plan_epsilon(0.5, lost=0.02) == pytest.approx(0.02)
    with pytest.raises(InvalidInput, match="coverage"):
        plan_epsilon(1.0)


def test_a_planned_threshold_is_one_that_certificates_may_reach() -> None:
    develop = draw(PLAIN, 600, seed=1)
    plan = {
        rows: plan_threshold(develop.score, develop.correct, rows=rows, alpha=0.2, delta=0.1)
        for rows in (200, 2000, 20_000)
    }
    assert None not in plan.values()
    assert plan[200] > plan[2000] >= plan[20_000]
    # Nothing passes where all is wrong; nothing is to be stopped where all is kept.
    assert plan_threshold([0.5] * 40, [0] * 40, rows=100, alpha=0.2, delta=0.1) is None


def test_a_watch_says_what_it_saved() -> None:
    point = Checkpoint(2, (1.0, *[0.0] * 11), 0.0, 12.5)
    watch = EarlyStop(0.5, None, (point,), cutoff=-1.0).watch(64)
    assert not watch(Step(-3.0, 1.0, 0.5))
    assert watch.saved is None
    assert watch(Step(-1.0, 1.0, 0.5))
    assert (watch.fired, watch.saved) == (True, 12.5)
