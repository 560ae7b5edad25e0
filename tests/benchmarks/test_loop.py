"""What the loop makes of its fleets, and which sentences it takes."""

from __future__ import annotations

import dataclasses
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks.federated.loop import figures, tasks
from benchmarks.federated.loop.arms import plan_of
from benchmarks.federated.loop.runs import Found, Job, Point, kept
from benchmarks.federated.loop.tasks import LoopTask
from benchmarks.run import Run
from cascade.task import Task
from cloud.fleet import FleetRow

RUN = Run(quick=False, hardware="a machine")
TASK = LoopTask(
    name="colours",
    task=Task("colours", ("red", "blue"), "{input}:", " ", "{input}"),
    rows=(FleetRow("1", "a", "red"),),
    starting=4,
    per_round=5,
    most=None,
    target="risk",
    alpha=0.05,
    partition="iid",
    wordings={},
)
BEFORE = Point(0.8, 0.5, (0.03, 0.01, 0.07), 0.9, None, 1.0)
AFTER = replace(BEFORE, escalated=0.3, accuracy=0.8, out_of_scope=0.96)


def test_a_fleet_is_told_round_by_round() -> None:
    rows = list(figures._rows(RUN, TASK, "head", 1, [BEFORE, AFTER]))
    by = {row.figure.rpartition(": ")[2]: row for row in rows}
    assert by["escalated"].value == pytest.approx(30)
    assert "80.0 → 30.0" in by["escalated"].how
    assert by["risk on the test part"].ci == (pytest.approx(1), pytest.approx(7))
    # Three points below where it started are allowed.
    assert by["out of scope, escalated"].reach == pytest.approx(97)
    assert by["out of scope, escalated"].reached is False
    assert len({row.figure for row in rows}) == len(rows)


def test_the_fall_is_measured_from_the_best_that_did_not_learn() -> None:
    start = {"head": 0.8, "asked, plain": 0.5}
    row = figures._fall(RUN, (TASK, "head", 0), [BEFORE, AFTER], start)
    assert row.value == pytest.approx(0.6)
    assert row.reached is False
    assert "asked, plain" in row.how
    only_seen = replace(TASK, evaluation=True)
    assert figures._fall(RUN, (only_seen, "head", 0), [BEFORE, AFTER], start).reach is None


def test_what_was_found_is_kept_for_the_same_run_alone(tmp_path: Path) -> None:
    def ground_of(sha256: str) -> Any:
        files = {"trunk.onnx": SimpleNamespace(sha256=sha256)}
        manifest = SimpleNamespace(base_digest="b" * 64, files=files)
        return SimpleNamespace(bundle=SimpleNamespace(manifest=manifest), found=tmp_path)

    ground = ground_of("1" * 64)
    calls = []

    def work() -> list[Point]:
        calls.append(1)
        return [BEFORE, replace(AFTER, risk=None)]

    def found(task: LoopTask, seed: int) -> Found:
        return kept(Job(task, "head", seed), ground, work)

    assert found(TASK, 0) == found(TASK, 0)
    assert found(TASK, 0).points == (BEFORE, replace(AFTER, risk=None))
    assert len(calls) == 1
    found(TASK, 1)
    found(replace(TASK, alpha=0.1), 0)
    found(replace(TASK, rows=(FleetRow("1", "b", "red"),)), 0)
    assert len(calls) == 4
    ground = ground_of("2" * 64)  # of the same base digest, rounded otherwise
    found(TASK, 0)
    assert len(calls) == 5
    for path in tmp_path.glob("*.json"):  # as another version kept it
        path.write_text("[]")
    found(TASK, 0)
    assert len(calls) == 6


def test_templates_take_turns_and_none_gives_many() -> None:
    templates = {f"t{n}": {str(k): f"{n} {k}" for k in range(9)} for n in range(200)}
    rows = list(tasks._in_turn("red", templates))
    assert len(rows) == 320
    assert [row.document for row in rows[:3]] == ["t0", "t1", "t10"]
    few = list(tasks._in_turn("red", {"t": {str(k): str(k) for k in range(9)}}))
    assert [row.id for row in few] == ["t/0", "t/1", "t/2", "t/3"]


def test_an_intent_is_named_in_words() -> None:
    assert tasks._named("HassLawnMowerDock") == "lawn mower dock"


def test_each_arm_has_its_plan() -> None:
    head = plan_of(TASK, "head", 0)
    assert head.recertify
    assert head.aggregation.rate == 2
    assert not head.hostile
    assert not plan_of(TASK, "head, not certified anew", 0).recertify
    alone, product = plan_of(TASK, "lora", 0), plan_of(TASK, "lora, product", 0)
    assert (alone.learner, alone.rank, alone.training.trained) == ("lora", 8, "b")
    assert (product.learner, product.rank, product.training.trained) == ("lora", 4, "both")
    smaller = plan_of(TASK, "lora, product of rank 3", 0)
    assert smaller == replace(product, rank=3)
    assert plan_of(TASK, "head, alone", 0) == head
    attacked = plan_of(replace(TASK, attacked="median"), "head, sign-flip", 0)
    assert (attacked.attackers.kind, attacked.hostile) == ("sign-flip", 3)
    assert (attacked.aggregation.rule, attacked.aggregation.rate) == ("median", 2)
    assert (attacked.most_worse, attacked.gate_delta) == (0.02, 0.01)
    assert (head.most_worse, head.gate_delta) == (0.01, None)


def test_an_attack_is_told_by_the_worst_version() -> None:
    points = [replace(BEFORE, accuracy=share) for share in (0.8, 0.79, 0.9, 0.875)]
    task = replace(TASK, attacked="median")
    row = figures._attack(RUN, task, "head, scale", 2, points)
    assert row.value == pytest.approx(2.5)
    assert row.reached is False
    assert "30 % attackers, median" in row.how
    better = figures._attack(RUN, task, "head, scale", 2, points[1:3])
    assert (better.value, better.reached) == (0, True)


def test_strategies_are_compared_seed_by_seed() -> None:
    ends = {
        ("lora", 0): 0.1,
        ("lora, product", 0): 0.06,
        ("lora", 1): 0.2,
        ("lora, product", 1): 0.3,
    }

    def came(job: Job) -> Found:
        return Found((BEFORE, replace(BEFORE, escalated=ends.get((job.arm, job.seed), 0.5))), 1.0)

    row = figures._over(RUN, TASK, "lora, product", came)
    assert "the product mean of rank 4 over" in row.figure
    assert row.value == pytest.approx((-4 + 10 + 0) / 3)
    assert "6.0 and 10.0 %, 30.0 and 20.0 %, 50.0 and 50.0 %" in row.how


def test_a_task_says_how_many_steps_of_lora_a_device_takes() -> None:
    task = dataclasses.replace(TASK, lora_steps=7)
    assert plan_of(task, "lora", 0).training.max_steps == 7
    assert plan_of(task, "head", 0).training == plan_of(TASK, "head", 0).training


def test_banking_is_left_out_where_its_data_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CASCADE_EVAL_DATA", raising=False)
    assert tasks.banking77() is None
