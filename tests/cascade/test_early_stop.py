"""Early stop: what is certified on records is what a device does, and it keeps its promise."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom

from benchmarks.decision.decoded import MAX_TOKENS, SHAPES, Decoded, draw
from benchmarks.decision.early_stop import broken
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
    most_stopped,
    plan_threshold,
    savings,
    tolerated_cutoff,
)
from cascade.errors import InfeasibleTarget, InvalidInput
from tests.cascade.records.drawn import header
from tests.cascade.scripted import policy

PLAIN = SHAPES[0]
ALPHA, LOST, DELTA = 0.2, 0.05, 0.1


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


def certified(rule: StopRule, fresh: Decoded, model: ConfidenceModel) -> EarlyStop:
    return certify_early_stop(rule, fresh.signals, model.batch(fresh.score), lost=LOST, delta=DELTA)


@pytest.fixture(scope="module")
def stop(rule: StopRule, model: ConfidenceModel) -> EarlyStop:
    return certified(rule, draw(PLAIN, 1000, seed=2), model)


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


def test_the_cutoff_stops_just_the_kept_rows_that_the_certificate_counted(
    rule: StopRule, stop: EarlyStop, model: ConfidenceModel
) -> None:
    fresh = draw(PLAIN, 1000, seed=2)
    kept = model.batch(fresh.score) >= rule.threshold
    by_checkpoints = replace(stop, lowest_score=None).stops_at(fresh.signals, MAX_TOKENS) > 0
    assert (by_checkpoints == (rule.lowest(fresh.signals) <= stop.cutoff)).all()
    certificate = stop.certificate
    assert certificate is not None
    assert (certificate.n, certificate.kept) == (1000, kept.sum())
    assert (by_checkpoints & kept).sum() == certificate.stopped
    # As many as can be tolerated, and the bound stops no kept answer beyond these.
    assert certificate.stopped == most_stopped(int(kept.sum()), lost=LOST, delta=DELTA)
    assert (stop.stops_at(fresh.signals, MAX_TOKENS)[kept] > 0).sum() == certificate.stopped


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


def test_kept_answers_are_lost_as_rarely_as_promised_and_a_greedy_cutoff_is_caught(
    rule: StopRule, model: ConfidenceModel
) -> None:
    pool = draw(PLAIN, 20_000, seed=4)
    kept = model.batch(pool.score) >= rule.threshold
    draws = 1000
    for size in (120, 1000):
        exact, greedy = broken(rule.lowest(pool.signals), kept, draws=draws, size=size)
        level = draws * DELTA + 2 * np.sqrt(draws * DELTA * (1 - DELTA))
        assert exact <= level
        assert exact > 0  # it dares as much as it may
        assert greedy > level


def test_a_rule_that_stops_what_it_likes_gets_no_further_than_its_promise(
    rule: StopRule, model: ConfidenceModel
) -> None:
    blind = tuple(replace(point, weights=(0.0,) * 12, offset=-50.0) for point in rule.checkpoints)
    fresh = draw(PLAIN, 1000, seed=2)
    stop = certified(replace(rule, checkpoints=blind), fresh, model)
    assert stop.certificate is not None
    assert stop.certificate.stopped == 0
    assert not (replace(stop, lowest_score=None).stops_at(fresh.signals, MAX_TOKENS) > 0).any()


def test_as_many_may_be_stopped_as_the_binomial_distribution_allows() -> None:
    for kept in (45, 100, 777):
        most = most_stopped(kept, lost=LOST, delta=DELTA)
        assert most is not None
        assert binom.cdf(most, kept, LOST) <= DELTA < binom.cdf(most + 1, kept, LOST)
    assert most_stopped(44, lost=LOST, delta=DELTA) is None
    assert most_stopped(0, lost=LOST, delta=DELTA) is None
    with pytest.raises(InvalidInput, match="lost"):
        most_stopped(100, lost=0.0, delta=DELTA)


def test_a_cutoff_stays_below_ties_and_finite() -> None:
    assert tolerated_cutoff(np.full(100, 2.5), lost=LOST, delta=DELTA) < 2.5
    lowest = np.array([-3.0, -2.0, *[1.0] * 98])  # one of 100 may be stopped
    cutoff = tolerated_cutoff(lowest, lost=LOST, delta=DELTA)
    assert (lowest <= cutoff).sum() == 1
    # Kept answers that end before the first checkpoint are never lost.
    short = tolerated_cutoff(np.full(100, np.inf), lost=LOST, delta=DELTA)
    assert 1e300 < short < np.inf


def test_too_few_kept_answers_are_refused_with_how_many_would_do(
    rule: StopRule, model: ConfidenceModel
) -> None:
    few = draw(PLAIN, 50, seed=2)
    with pytest.raises(InfeasibleTarget, match=r"of 50 are; about 5\d answers") as problem:
        certified(rule, few, model)
    assert problem.value.labels_needed is not None
    assert 50 < problem.value.labels_needed < 60
    with pytest.raises(InfeasibleTarget, match="none is kept"):
        certify_early_stop(rule, few.signals, np.zeros(50))


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
    assert saved.saved > 0.5
    assert saved.wrongly <= LOST * (confidence >= masked.threshold).sum()
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


def test_an_unusable_certificate_is_named(stop: EarlyStop) -> None:
    value = json.loads(json.dumps(stop.to_json()))
    kept = value["certificate"]["kept"]
    for change, field in (
        ({"lost": 0}, "lost"),
        ({"delta": 1}, "delta"),
        ({"n": kept - 1}, "kept"),
        ({"stopped": kept}, "stopped"),
        ({"data_digest": "x"}, "data_digest"),
        ({"more": 1}, "more"),
    ):
        wrong = value | {"certificate": value["certificate"] | change}
        with pytest.raises(InvalidInput, match=rf"early_stop\.certificate\.{field}"):
            EarlyStop.from_json(wrong)


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
        certified(replace(rule, checkpoints=()), develop, model)
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
