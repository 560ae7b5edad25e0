"""A fleet's gate turns away what would make its devices worse, or escalate more."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from cascade.confidence import ConfidenceModel, Platt
from cascade.errors import InvalidInput
from cascade.rows import Bools
from cloud.federation.rounds import Round
from cloud.fleet import FleetPlan
from cloud.fleet.referee import FleetGate, Standing
from cloud.fleet.served import ServedPolicy

ROUND = Round(
    number=1,
    state="waiting",
    base_digest="b",
    adapter_digest="before",
    adapter_version=1,
    plan="{}",
    opened_at=0.0,
    closes_at=None,
    closed_at=None,
    claim=None,
    claimed_until=None,
    counted=5,
    candidate_digest="after",
    candidate_version=2,
    aggregation_error=None,
    note="",
)
SURE = ServedPolicy(ConfidenceModel(Platt(1.0, 0.0)), 0.8)


def right(share: float, rows: int = 400) -> Bools:
    """The first so many answers are."""
    return np.arange(rows) < share * rows


BEFORE = Standing(SURE, right(0.8), 0.8, 0.5, 0.5, 50, 2, 50, 0.02, None, 0.9, None)
PLAN = FleetPlan(devices=2, rounds=1, most_worse=0.01, most_less_kept=0.03)


async def verdict(after: Standing, plan: FleetPlan = PLAN) -> str:
    return (await FleetGate(plan, {"before": BEFORE, "after": after}.__getitem__).judge(ROUND))[0]


@pytest.mark.parametrize(
    ("after", "said"),
    [
        (BEFORE, "approved"),
        (replace(BEFORE, develop_right=right(0.795), coverage=0.48), "approved"),
        (replace(BEFORE, develop_right=right(0.78)), "rejected"),
        (replace(BEFORE, coverage=0.46, develop_right=right(0.9)), "rejected"),
        (replace(BEFORE, policy=ServedPolicy(SURE.confidence, None), coverage=0.5), "rejected"),
    ],
    ids=["as before", "a little worse", "less often right", "keeps less", "nothing certified"],
)
async def test_a_candidate_must_not_be_worse(after: Standing, said: str) -> None:
    assert await verdict(after) == said


@pytest.mark.parametrize(
    ("share", "rows", "said"),
    [
        (0.8, 400, "approved"),  # 0 of 400 differ: at most 1.3 points, 2 are allowed
        (0.8, 200, "rejected"),  # 0 of 200: at most 2.6
        (0.795, 400, "rejected"),  # half a point worse; may be more than two
        (0.9, 400, "approved"),
    ],
)
async def test_with_a_level_it_must_be_shown_not_to_be(share: float, rows: int, said: str) -> None:
    before = replace(BEFORE, develop_right=right(0.8, rows))
    after = replace(BEFORE, develop_right=right(share, rows))
    gate = FleetGate(
        replace(PLAN, most_worse=0.02, gate_delta=0.01),
        {"before": before, "after": after}.__getitem__,
    )
    assert (await gate.judge(ROUND))[0] == said


@pytest.mark.parametrize("given", [{"gate_delta": 0.5}, {"gate_delta": 0.1, "most_worse": 0.0}])
def test_a_level_that_shows_nothing_is_refused(given: dict[str, float]) -> None:
    with pytest.raises(InvalidInput, match="gate_delta"):
        replace(PLAN, **given)  # type: ignore[arg-type]


async def test_what_is_not_certified_anew_is_not_compared_by_what_it_keeps() -> None:
    less = replace(BEFORE, coverage=0.2)
    assert await verdict(less, replace(PLAN, recertify=False)) == "approved"


@pytest.mark.parametrize(
    ("before", "after", "most", "said"),
    [
        (1.0, 0.97, 0.03, "approved"),
        (1.0, 0.96, 0.03, "rejected"),
        (0.9, 1.0, 0.0, "approved"),
        (1.0, 0.11, None, "approved"),
        (None, None, 0.03, "approved"),
    ],
    ids=["as much as it may", "more than that", "it escalates more", "not asked", "there is none"],
)
async def test_what_is_out_of_scope_must_go_up_as_before(
    before: float | None, after: float | None, most: float | None, said: str
) -> None:
    judged = {
        "before": replace(BEFORE, out_of_scope=before),
        "after": replace(BEFORE, out_of_scope=after),
    }
    gate = FleetGate(replace(PLAN, most_escape=most), judged.__getitem__)
    verdict, note = await gate.judge(ROUND)
    assert verdict == said
    assert ("out of scope" in note) == (most is not None and before is not None)


def test_a_plan_asks_nothing_about_it_unless_told_to() -> None:
    assert PLAN.to_json()["most_escape"] is None
    with pytest.raises(InvalidInput, match="most_escape"):
        replace(PLAN, most_escape=-0.1)


async def test_a_round_without_a_candidate_is_rejected() -> None:
    gate = FleetGate(PLAN, {}.__getitem__)
    assert (await gate.judge(replace(ROUND, candidate_digest=None)))[0] == "rejected"
