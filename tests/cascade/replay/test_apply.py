"""Replaying a policy: where it fits, and what becomes of its promises."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from cascade.confidence import ConfidenceModel, Platt
from cascade.errors import InvalidInput, PolicyMismatch
from cascade.pair import Pair, pair
from cascade.policy import Policy
from cascade.records import Header, RecordSet
from cascade.replay import UNITS, check_fits, replay
from cascade.task import generic
from cascade.tune import Aim, tune
from tests.cascade.drawn_records import BASE, OPTIONS, drawn, header

TASK = dataclasses.replace(generic(OPTIONS), task_id="mood")


def tuned(*aims: Aim) -> Policy:
    rows = pair(drawn(4000, seed=8))
    develop, fresh = rows.take(np.arange(1000)), rows.take(np.arange(1000, 4000))
    policy = tune(develop, fresh, aims, delta=0.1, task=TASK).policy
    assert policy.certificate is not None
    return policy


def test_everything_is_found_with_intervals_around_it() -> None:
    policy, rows = tuned(Aim("selective_risk", 0.2)), pair(drawn(1500, seed=9, per_document=3))
    found = replay(policy, rows, replicates=200)
    kept = policy.confidence.batch(rows.score) >= policy.threshold
    assert (found.n, found.documents, found.accepted) == (1500, 500, kept.sum())
    risk = found.figures["selective_risk"]
    assert risk.value == pytest.approx(1 - rows.correct[kept].mean())
    assert risk.low is not None
    assert risk.high is not None
    assert risk.low < risk.value < risk.high
    assert found.figures["handoff_to_match.tier1"].value > 0
    (checked,) = found.promises
    assert (checked.violated, checked.refuted) == (False, False)
    own_s, cloud_s = (rows.records.column(tier, "latency_s") for tier in ("device", "tier1"))
    for name, seconds in {
        "p95_s": np.where(kept, own_s, own_s + cloud_s),
        "cloud_only_p95_s": cloud_s,
        "escalated_p95_s": (own_s + cloud_s)[~kept],
        "escalated_cloud_only_p95_s": cloud_s[~kept],
    }.items():
        late = found.figures[name]
        assert late.value == pytest.approx(np.percentile(seconds, 95))
        assert late.low is not None
        assert late.high is not None
        assert late.low < late.value < late.high
    assert sum(bar.count for bar in found.diagram) == 1500
    again = replay(policy, rows, replicates=200)
    assert again.figures == found.figures


def test_the_same_seed_gives_the_same_with_many_documents() -> None:
    policy, rows = tuned(Aim("selective_risk", 0.2)), pair(drawn(9000, seed=9))
    one, two = (replay(policy, rows, replicates=50).figures for _ in range(2))
    assert one == two
    assert one["auroc"].low is not None


def other(rows: RecordSet) -> Pair:
    """The same answers, mostly wrong."""
    usable = pair(rows)
    wrong = np.random.default_rng(1).random(len(usable)) < 0.4
    return dataclasses.replace(usable, correct=usable.correct & ~wrong)


def test_inputs_of_another_kind_refute_a_promise() -> None:
    found = replay(tuned(Aim("selective_risk", 0.2)), other(drawn(2000, seed=4)), replicates=0)
    (checked,) = found.promises
    assert (checked.violated, checked.refuted) == (True, True)
    # Nothing was resampled; quantiles of time need no resamples.
    for name, each in found.figures.items():
        assert (each.low is None) == (UNITS.get(name) != "s")


def test_promises_on_deadlines_need_the_deadline() -> None:
    policy = tuned(Aim("deadline_misses", 0.3, deadline_s=0.7), Aim("excess_error", 0.4))
    rows = pair(drawn(1000, seed=4))
    late, excess = replay(policy, rows, replicates=0).promises
    assert (late.observed, late.violated) == (None, None)
    assert excess.violated is False
    late, _ = replay(policy, rows, replicates=0, deadline_s=0.7).promises
    assert late.observed is not None
    assert late.violated is False


def test_a_policy_that_keeps_nothing_is_always_cloud() -> None:
    policy = Policy(TASK, BASE, "", ConfidenceModel(Platt(1, 0)), None, None)
    found = replay(policy, pair(drawn(300)), replicates=0)
    figures = found.figures
    assert figures["coverage"].value == 0
    assert np.isnan(figures["selective_risk"].value)
    assert figures["accuracy"].value == figures["cloud_accuracy"].value
    assert found.promises == ()


@pytest.mark.parametrize(
    ("head", "problem"),
    [
        (header("device", "tier1", base="0c" * 32), "is for the base_digest 0b0b0b0b0b0b"),
        (header("device", "tier1", adapter="0d" * 32), r"the adapter_digest \(none\), and device"),
        (
            dataclasses.replace(
                header("device", "tier1"),
                wording=dataclasses.replace(generic(OPTIONS), device_prompt="{input}!"),
            ),
            "is for another wording or other options",
        ),
    ],
)
def test_a_policy_for_something_else_is_refused(head: Header, problem: str) -> None:
    policy = tuned(Aim("selective_risk", 0.2))
    rows = drawn(50)
    check_fits(policy, rows.header, pair(rows))
    kind = InvalidInput if "wording" in problem else PolicyMismatch
    with pytest.raises(kind, match=f"policy: .*{problem}"):
        check_fits(policy, head, pair(drawn(50, head=head)))


def test_scores_of_another_mode_are_refused() -> None:
    model = ConfidenceModel(Platt(1, 0), "search_bound")
    policy = dataclasses.replace(tuned(Aim("selective_risk", 0.2)), confidence=model)
    rows = drawn(50)
    with pytest.raises(InvalidInput, match="is for search scores, and those of the records are e"):
        check_fits(policy, rows.header, pair(rows))
