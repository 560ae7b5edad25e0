"""The figures of a report are those of cascade.metrics on the same rows."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from cascade import metrics
from cascade.binomial import upper_bound
from cascade.certify import certify_targets, escalation_share, excess_error, net_error
from cascade.errors import InvalidInput, NotFound, PolicyMismatch
from cascade.records import from_columns
from cascade.report import evaluate, report
from cascade.report.figures import MOST_GROUPS
from cascade.report.front import efficient, kept_counts
from cascade.report.notices import certified_on_these
from cascade.report.pricing import pricing
from cascade.report.reading import threshold
from tests.cascade.report.simulated import columns, header, moods, policy_of


@pytest.fixture(scope="module")
def policy():
    return policy_of(moods(3000, 7))


@pytest.fixture(scope="module")
def made(policy):
    return report(moods(), policy)


def keys(made):
    return {notice.key for notice in made.notices}


def estimate(made, key):
    (found,) = (each for each in made.figures.estimates if each.key == key)
    return found


def test_every_figure_is_the_one_of_the_metrics(made, policy):
    records = moods()
    score = policy.confidence.batch(records.column("device", "raw_score"))
    right, strong = records.correct("device"), records.correct("tier1")
    keep = score >= policy.threshold
    cascade = np.where(keep, right, strong)
    curve = metrics.deferral_curve(score, right, strong)
    expected = {
        "accuracy_device": right.mean(),
        "accuracy_strong": strong.mean(),
        "accuracy_cascade": cascade.mean(),
        "gain_device": cascade.mean() - right.mean(),
        "gain_strong": cascade.mean() - strong.mean(),
        "kept": keep.mean(),
        "risk": 1 - right[keep].mean(),
        "auroc": metrics.auroc(score, right),
        "aurc": metrics.aurc(score, right),
        "ece": metrics.ece(score, right),
        "brier": metrics.brier(score, right),
        "deferral_auc": curve.auc,
        "deferral_auc_normalised": curve.normalised_auc,
    }
    shown = {each.key: each.value for each in made.figures.estimates}
    assert shown == pytest.approx(expected)
    for each in made.figures.estimates:
        assert each.interval[0] < each.value < each.interval[1], each.key


def test_the_point_of_the_policy_has_its_costs_and_waits(made, policy):
    records, point = moods(), made.figures.point
    score = policy.confidence.batch(records.column("device", "raw_score"))
    keep = score >= policy.threshold
    wrong = int(np.sum(keep & (records.correct("device") == 0)))
    cost = np.where(keep, 0, records.column("tier1", "cost_usd"))
    wait = records.column("device", "latency_s") + np.where(
        keep, 0, records.column("tier1", "latency_s")
    )
    assert point.cost_usd == pytest.approx(cost.mean())
    assert point.p95_latency_s == pytest.approx(np.percentile(wait, 95))
    assert point.risk_bound == upper_bound(wrong, int(keep.sum()), policy.certificate.delta)
    assert (point.risk.count, point.risk.n) == (wrong, int(keep.sum()))


def test_groups_and_who_was_right_add_up(made):
    confusion, groups = made.figures.confusion, made.figures.groups
    assert [group.value for group in groups] == ["film", "shop", "tweet"]
    assert sum(group.n for group in groups) == made.figures.n == 600
    for name in ("both", "only_device", "only_strong", "neither"):
        assert sum(getattr(group.confusion, name) for group in groups) == getattr(confusion, name)
    assert sum(group.point.kept.count for group in groups) == made.figures.point.kept.count
    right = moods().correct("device")
    assert confusion.both + confusion.only_device == right.sum()
    # The group on which the simulated device is worse than its score.
    assert groups[2].device.value < groups[0].device.value


def test_an_interval_of_a_resampled_figure_is_as_wide_as_the_figure_scatters():
    """The spread of the AUROC over fresh record sets, beside the intervals of five of them."""

    def drawn(seed):
        records = moods(400, 100 + seed)
        return records.column("device", "raw_score"), records.correct("device")

    spread = np.std([metrics.auroc(*drawn(seed)) for seed in range(200)])
    widths = []
    for seed in range(5):
        low, high = estimate(report(moods(400, 100 + seed)), "auroc").interval
        widths.append((high - low) / (2 * 1.96))
    assert np.mean(widths) == pytest.approx(spread, rel=0.2)


def test_the_front_dominates_and_is_complete(made):
    front = made.figures.front
    assert {point.tier for point in front} == {"", "device", "tier1"}
    losses = np.array([[-p.accuracy, p.cost_usd, p.p95_latency_s] for p in front]).round(9)
    for point, mine in zip(front, losses, strict=True):
        beaten = any(np.all(other <= mine) and np.any(other < mine) for other in losses)
        assert point.efficient != beaten
    assert 3 < sum(point.efficient for point in front) < len(front)
    nothing, everything = front[0], [point for point in front if not point.tier][-1]
    assert nothing.kept == 0
    assert everything.kept == 1
    assert everything.accuracy == pytest.approx(moods().correct("device").mean())


def test_dominated_points_are_found():
    losses = np.array([[1, 2], [2, 1], [2, 2], [1, 2], [3, 0]], float)
    assert efficient(losses).tolist() == [True, True, False, True, True]


def test_rows_of_equal_score_are_kept_together():
    score = np.array([0.9, 0.9, 0.9, 0.5, 0.4, 0.4])
    assert kept_counts(score, steps=6).tolist() == [0, 3, 4, 6]
    assert kept_counts(np.full(5, 0.7)).tolist() == [0, 5]


# What is not promised


def test_the_rows_of_the_certificate_are_recognised(policy):
    records = moods(3000, 7)
    certify_rows = records.take(np.arange(1000, 3000))
    assert "same_rows" in keys(report(certify_rows, policy))
    shuffled = certify_rows.take(np.random.default_rng(3).permutation(2000))
    assert "same_rows" in keys(report(shuffled, policy))
    assert "same_rows" not in keys(report(records.take(np.arange(0, 2000)), policy))
    assert "same_rows" not in keys(report(moods(2000, 9), policy))


def test_the_rows_of_several_promises_are_recognised(policy):
    records = moods(3000, 7)
    rows = records.take(np.arange(1000, 3000))
    right, strong = rows.correct("device"), rows.correct("tier1")
    confidence = policy.confidence.batch(rows.column("device", "raw_score"))
    certificate = certify_targets(
        confidence,
        [
            excess_error(right, strong, alpha=0.2),
            net_error(right, strong, alpha=0.3),
            escalation_share(2000, alpha=0.9),
        ],
        delta=0.1,
        grid=[0.8, 0.75, 0.7],
    )
    several = replace(policy, threshold=certificate.threshold, certificate=certificate)
    made = report(rows, several)
    assert "same_rows" in keys(made)
    assert made.figures.alpha is None
    assert "would have been right" in made.html()
    assert "same_rows" not in keys(report(moods(2000, 9), several))


def test_a_threshold_close_to_one_is_not_rounded_to_it():
    assert threshold(0.99999) == "1 − 1e-05"
    assert threshold(0.74239) == "0.7424"
    assert threshold(1.0) == "1.0000"


def test_where_the_records_cannot_tell_the_report_does_not_guess(policy):
    """A promise about deadlines digests more than records hold."""
    certificate = policy.certificate
    promise = replace(certificate.promises[0], kind="deadline_misses", rows=certificate.n)
    late = replace(certificate, promises=(*certificate.promises, promise))
    rows = evaluate(moods(2000, 9), policy)
    assert certified_on_these(rows, late) is None
    assert "rows_unknown" in keys(report(moods(2000, 9), replace(policy, certificate=late)))


def test_without_a_policy_nothing_is_called_a_confidence():
    made = report(moods())
    assert "no_policy" in keys(made)
    assert made.figures.point is None
    assert made.rows.score_name == "raw score"
    assert {"ece", "brier", "kept", "risk"}.isdisjoint(each.key for each in made.figures.estimates)


def test_an_infeasible_policy_keeps_nothing():
    policy = policy_of(moods(300, 7), alpha=0.01)
    assert policy.threshold is None
    made = report(moods(), policy)
    assert "infeasible" in keys(made)
    assert made.figures.point.kept.count == 0
    assert made.figures.point.risk is None
    assert made.figures.point.accuracy.value == pytest.approx(moods().correct("tier1").mean())


def test_small_dependent_judged_and_gappy_sets_are_called_so(policy):
    right = columns(150)["tier.device.correct"]
    gappy = moods(150, tier__device__correct=np.where(np.arange(150) < 10, np.nan, right))
    judged = from_columns(
        replace(gappy.header, grader="judge:tier1"),
        columns(150) | {"tier.device.correct": gappy.correct("device")},
    )
    assert keys(report(judged, policy)) >= {"few_rows", "documents", "judge", "left_out"}
    assert report(judged, policy).rows.left_out == {"the answer of device was not graded": 10}


def test_a_group_of_many_values_is_no_breakdown():
    made = report(moods(600, group__user=[f"u{i % (MOST_GROUPS + 1)}" for i in range(600)]))
    assert made.figures.groups_left_out == ("user",)
    assert {group.group for group in made.figures.groups} == {"domain"}


# Costs


def test_a_price_is_assumed_only_where_no_cost_was_recorded():
    assert pricing(evaluate(moods())).basis == "recorded"
    free = moods(tier__tier1__cost_usd=np.zeros(600))
    by_token = pricing(evaluate(free))
    assert by_token.basis == "tokens"
    tokens = columns(600)["tier.tier1.prompt_tokens"] + columns(600)["tier.tier1.completion_tokens"]
    tier1 = evaluate(free).strong
    assert by_token.cost_usd(tier1) == pytest.approx(tokens / 1e6)
    bare = moods(tier__tier1__cost_usd=None, tier__tier1__prompt_tokens=None)
    assert pricing(evaluate(bare)).basis == "requests"


def test_one_tier_alone_has_a_report_without_a_cascade():
    alone = {name: value for name, value in columns(300).items() if "tier1" not in name}
    made = report(from_columns(header("device"), alone))
    assert made.figures.front == ()
    assert made.figures.confusion is None
    assert {each.key for each in made.figures.estimates} == {"accuracy_device", "auroc", "aurc"}


def test_answers_that_are_all_right_have_no_ranking(policy):
    made = report(moods(tier__device__correct=np.ones(600)), policy)
    assert estimate(made, "auroc").value is None
    json.dumps(made.to_json(), allow_nan=False)


# Mistakes


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"tier": "tier9"}, NotFound, "no tier 'tier9'; there are device, tier1"),
        ({"strong": "device"}, InvalidInput, "strong: device is the tier whose answers"),
        ({"tier": "tier1"}, InvalidInput, "600 × the answer of tier1 has no score"),
    ],
)
def test_a_wrong_tier_is_named(arguments, error, message):
    with pytest.raises(error, match=message):
        report(moods(), **arguments)


def test_grades_in_between_are_refused():
    with pytest.raises(InvalidInput, match=r"tier tier1: 600 of its grades lie between"):
        report(moods(tier__tier1__correct=np.full(600, 0.5)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"base_digest": "00" * 32}, "is for the base model 000000000000…, but device ran abab"),
        ({"adapter_digest": ""}, r"is for the adapter \(none\), but device ran cdcd"),
    ],
)
def test_a_policy_for_another_model_is_refused(policy, change, message):
    with pytest.raises(PolicyMismatch, match=message):
        report(moods(), replace(policy, **change))


def test_a_policy_for_another_wording_is_refused(policy):
    task = replace(policy.task, device_prompt="{input}\nFeeling:")
    with pytest.raises(InvalidInput, match="another wording"):
        report(moods(), replace(policy, task=task))


def test_a_policy_for_another_way_of_scoring_is_refused(policy):
    searched = replace(policy, confidence=replace(policy.confidence, feature="search_bound"))
    records = moods(
        tier__device__option_mode=["exact"] * 600,
        tier__device__option_unexplored=np.zeros(600),
        tier__device__option_logprobs=[[-0.1, -2.0]] * 600,
        tier__device__option_priors=[[0.0, 0.0]] * 600,
        tier__device__option_probabilities=[[0.9, 0.1]] * 600,
    )
    with pytest.raises(InvalidInput, match="scores of search mode, but 600 records"):
        report(records, searched)
    assert report(records, policy).figures.n == 600
