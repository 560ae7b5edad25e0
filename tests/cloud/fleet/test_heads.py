"""Fleets that learn a head, what is out of scope, a teacher, and policies that grow old."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cascade.confidence import ConfidenceModel, Platt
from cascade.errors import InvalidInput
from cascade.task import Task
from cascade.testing import TinyBundle
from cloud.federation.config import PlanConfig
from cloud.fleet import (
    Attackers,
    BundleAt,
    FleetPlan,
    FleetResult,
    FleetRow,
    FleetSimulation,
    parts,
)
from cloud.fleet.served import ServedPolicy, raw_scores

OPTIONS = ("red", "green", "blue", "none of these")
WORDS = ("house", "river", "light")
TASK = Task("colours", OPTIONS, "{input}:", " ", "{input}", outside="none of these")
PLAN = FleetPlan(
    devices=3,
    rounds=2,
    per_round=40,
    minimum=1,
    learner="head",
    starting=8,
    alpha=0.2,
    most_worse=1.0,
    training=PlanConfig(clip_norm=20.0),
)


def rows(count: int = 400, outside: int = 80, teacher: bool = False) -> list[FleetRow]:
    """The last word says which colour; a question is no colour. The teacher never says blue."""
    made = []
    for number in range(count):
        place = number % len(WORDS)
        told = OPTIONS[place if place < 2 else 0] if teacher else ""
        text = f"{number} is {WORDS[place]}"
        made.append(FleetRow(str(number), text, OPTIONS[place], teacher=told))
    for number in range(outside):
        made.append(FleetRow(f"q{number}", f"who is it who {number} ?", ""))
    return made


def simulated(
    plan: FleetPlan, tiny: TinyBundle, folder: Path, given: list[FleetRow] | None = None
) -> FleetResult:
    simulation = FleetSimulation(
        folder,
        plan,
        TASK,
        tiny.bundle,
        BundleAt(tiny.path, tiny.path.parent / "trust"),
        rows=parts(given or rows(), seed=plan.seed, most=40, starting=plan.starting, outside=True),
        trunk=folder.parent / "trunk",
    )
    try:
        for _ in simulation.run():
            pass
        return simulation.result()
    finally:
        simulation.close()


def test_a_fleet_learns_a_head(tiny: TinyBundle, tmp_path: Path) -> None:
    result = simulated(PLAN, tiny, tmp_path / "fleet")
    start, one, last = result.rounds
    assert result.parts["starting"] == 8
    assert last.accuracy > start.accuracy + 0.1
    assert one.outcomes["sent"] >= 2
    assert 0 < one.bytes_up / one.updates < 4_000
    assert last.out_of_scope is not None
    assert last.out_of_scope >= 0.9


def test_a_fleet_of_heads_is_the_same_again(tiny: TinyBundle, tmp_path: Path) -> None:
    one, two = (simulated(replace(PLAN, rounds=1), tiny, tmp_path / name) for name in "ab")
    assert [each.adapter for each in one.rounds] == [each.adapter for each in two.rounds]


def test_excess_counts_what_the_teacher_alone_has_right(tiny: TinyBundle, tmp_path: Path) -> None:
    given = [row for row in rows(teacher=True) if row.answer]
    plan = replace(PLAN, target="excess", alpha=0.3)
    last = simulated(plan, tiny, tmp_path / "fleet", given).rounds[-1]
    assert last.teacher is not None
    assert last.teacher == pytest.approx(2 / 3, abs=0.1)
    assert last.risk is not None
    assert last.teacher is not None
    lost = last.teacher - last.end_to_end
    assert last.risk[0] >= lost - 1e-9
    with_users = simulated(PLAN, tiny, tmp_path / "users").rounds[-1]
    assert with_users.teacher is None


def test_without_a_new_certificate_the_first_policy_stays(tiny: TinyBundle, tmp_path: Path) -> None:
    result = simulated(replace(PLAN, recertify=False), tiny, tmp_path / "fleet")
    thresholds = [each.threshold for each in result.rounds if each.threshold is not None]
    assert len(thresholds) >= 2
    assert len(set(thresholds)) == 1
    anew = simulated(PLAN, tiny, tmp_path / "anew")
    assert len({each.threshold for each in anew.rounds}) > 1


def test_an_answer_that_says_out_of_scope_is_never_kept() -> None:
    found = [np.array(each, np.float32) for each in ([0.1, 0.1, 0, 0.8], [0.9, 0.1, 0, 0])]
    scores = raw_scores(TASK, found)
    assert scores.tolist() == [0.0, pytest.approx(0.9)]
    policy = ServedPolicy(ConfidenceModel(Platt(a=1.0, b=0.0)), 0.0)
    assert policy.keeps(scores).tolist() == [False, True]


def test_a_head_needs_labels_to_start_from() -> None:
    with pytest.raises(InvalidInput, match="starting"):
        replace(PLAN, starting=0)


def test_every_part_has_some_of_each_answer() -> None:
    made = parts(rows(outside=200), seed=3, starting=8, outside=True)
    for name in ("develop", "certify", "fleet"):
        assert {row.answer for row in getattr(made, name)} == {"red", "green", "blue", ""}
    assert {row.answer for row in made.test} == {"red", "green", "blue"}
    assert all(row.out_of_scope for row in made.out_of_scope)
    assert [sum(row.answer == each for row in made.starting) for each in ("red", "")] == [2, 2]
    ids = [row.id for name in ("fleet", "starting", "out_of_scope") for row in getattr(made, name)]
    assert len(ids) == len(set(ids))


@pytest.mark.parametrize(
    ("kind", "refused"),
    [("sign-flip", {}), ("nan", {"not_finite": 1}), ("rank-bomb", {"wrong_shape": 1})],
)
def test_a_liar_lies_of_heads_too(
    kind: str, refused: dict[str, int], tiny: TinyBundle, tmp_path: Path
) -> None:
    plan = replace(PLAN, rounds=1, attackers=Attackers.of(f"0.34:{kind}"))
    last = simulated(plan, tiny, tmp_path / "fleet").rounds[1]
    assert last.refused == refused
    assert last.updates == last.outcomes["sent"]
