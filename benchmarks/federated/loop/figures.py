"""Runs every arm of the loop and makes rows of it. What a run found is kept by what it was run on
(plan, data, bundle), so that one that was ended goes on where it was."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final, get_args

import numpy as np

from benchmarks.edge.subject import Subject
from benchmarks.federated.loop import arms, local, tasks
from benchmarks.federated.loop.arms import Ground
from benchmarks.federated.loop.tasks import Arm, Attacked, LoopTask
from benchmarks.peers.environment import cache_dir
from benchmarks.rows import Row
from benchmarks.run import Run
from benchmarks.timing import Estimate
from cascade.files import write_whole
from cloud.fleet import BundleAt
from cloud.fleet.figures import RoundFigures
from cloud.fleet.referee import Standing

_SEEDS: Final = (0, 1, 2)
"""Fixed before any of them was run; all are reported."""


@dataclass(frozen=True, slots=True)
class _Point:
    """A fleet at one time. Shares are in [0, 1]."""

    escalated: float
    accuracy: float
    risk: tuple[float, float, float] | None
    end_to_end: float
    teacher: float | None
    out_of_scope: float | None


def rows(subject: Subject, run: Run) -> Iterator[Row]:
    """All arms but LoRA of all tasks, seed by seed."""
    ground = _ground(subject)
    given = [tasks.commands(), tasks.sentiment("tier1"), tasks.sentiment("tier2")]
    banking = tasks.banking77()
    for task in given[:1] if run.quick else [*given, *([banking] if banking else [])]:
        yield from _heads(run, task, ground)
    if banking is None:
        why = "CASCADE_EVAL_DATA names no folder with banking77/train.csv"
        yield run.row("loop: banking77", None, "%", why)


def lora_rows(subject: Subject, run: Run) -> Iterator[Row]:
    """LoRA, which takes longer than all others together, from the quickest task on."""
    ground = _ground(subject)
    for task in (tasks.sentiment("tier1"), tasks.sentiment("tier2"), tasks.commands()):
        yield from _lora(run, task, ground)


def _ground(subject: Subject) -> Ground:
    return Ground.of(BundleAt(subject.bundle, subject.trust), cache_dir() / "loop")


def _heads(run: Run, of: LoopTask, ground: Ground) -> Iterator[Row]:
    for seed in _SEEDS[:1] if run.quick else _SEEDS:
        first: dict[str, float] = {}
        for what, points in _asked(run, of, seed, ground):
            first[what] = points[0].escalated
            yield from _rows(run, of, what, seed, points)
        points = _fleet(run, of, "head", seed, ground)
        first["head"] = points[0].escalated
        yield from _rows(run, of, "head", seed, points)
        yield _fall(run, (of, "head", seed), points, first)
        arm: Arm = "head, not certified anew"
        yield from _rows(run, of, arm, seed, _fleet(run, of, arm, seed, ground))
        alone = _kept(
            run,
            (of, "head, alone", seed, ground),
            lambda s=seed: _alone(of, s, ground),  # type: ignore[misc]
        )
        yield from _rows(run, of, "head, alone", seed, alone)
        for attacked in get_args(Attacked) if of.attacked else ():
            yield _attack(run, of, attacked, seed, _fleet(run, of, attacked, seed, ground))


def _lora(run: Run, of: LoopTask, ground: Ground) -> Iterator[Row]:
    for seed in _SEEDS[:1] if run.quick else _SEEDS:
        first = {what: points[0].escalated for what, points in _asked(run, of, seed, ground)}
        first["head"] = _fleet(run, of, "head", seed, ground)[0].escalated
        points = _fleet(run, of, "lora", seed, ground)
        first["lora"] = points[0].escalated
        yield from _rows(run, of, "lora", seed, points)
        yield _fall(run, (of, "lora", seed), points, first)


def _asked(run: Run, of: LoopTask, seed: int, ground: Ground) -> Iterator[tuple[str, list[_Point]]]:
    for name, wording in of.wordings.items() if seed in of.asked_at else ():
        what = f"asked, {name}"
        yield (
            what,
            _kept(
                run,
                (of, what, seed, ground),
                lambda w=wording: [_point(arms.asked(of, w, seed, ground))],  # type: ignore[misc]
            ),
        )


def _fleet(run: Run, of: LoopTask, arm: Arm, seed: int, ground: Ground) -> list[_Point]:
    return _kept(run, (of, arm, seed, ground), lambda: _simulated(of, arm, seed, ground, run))


def _rows(run: Run, of: LoopTask, arm: str, seed: int, points: Sequence[_Point]) -> Iterator[Row]:
    last = points[-1]
    name = f"loop: {of.name}, {arm}, seed {seed}"
    by_round = " → ".join(f"{100 * each.escalated:.1f}" for each in points)
    right = " → ".join(f"{100 * each.accuracy:.1f}" for each in points)
    rounds = len(points) - 1
    yield run.row(
        f"{name}: escalated",
        Estimate(100 * last.escalated, len(points)),
        "%",
        f"test part, after each of {rounds} rounds: {by_round}; right on the device: {right}",
    )
    if last.risk is not None:
        worst = max((p.risk[1] for p in points if p.risk is not None), default=0.0)
        certified = "not certified for what runs; " if arm.endswith("anew") else ""
        yield run.row(
            f"{name}: {of.target} on the test part",
            Estimate(100 * last.risk[0], 1, (100 * last.risk[1], 100 * last.risk[2])),
            "%",
            f"{certified}target {100 * of.alpha:g} % at δ = .1; the highest lower end of the "
            f"interval in any round is {100 * worst:.1f}",
        )
    if last.out_of_scope is not None:
        yield run.row(
            f"{name}: out of scope, escalated",
            Estimate(100 * last.out_of_scope, 1),
            "%",
            " → ".join(
                "–" if p.out_of_scope is None else f"{100 * p.out_of_scope:.1f}" for p in points
            ),
            reach=100 * (points[0].out_of_scope or 0.0) - 3 if rounds else None,
            sense=">=",
        )
    if last.teacher is not None:
        yield run.row(
            f"{name}: right end to end",
            Estimate(100 * last.end_to_end, 1),
            "%",
            f"always the teacher: {100 * last.teacher:.1f} %",
            sense=">=",
        )


def _fall(
    run: Run,
    fleet: tuple[LoopTask, Arm, int],
    points: Sequence[_Point],
    first: dict[str, float],
) -> Row:
    of, arm, seed = fleet
    best = min(first, key=lambda name: first[name])
    return run.row(
        f"loop: {of.name}, {arm}, seed {seed}: escalated after over before",
        Estimate(points[-1].escalated / first[best] if first[best] else 1.0, 1),
        "×",
        f"before: {best}, the least of the set-ups without learning, {100 * first[best]:.1f} %",
        reach=None if of.evaluation else 0.5,
    )


def _attack(run: Run, of: LoopTask, arm: Attacked, seed: int, points: Sequence[_Point]) -> Row:
    served = [100 * each.accuracy for each in points]
    return run.row(
        f"loop: {of.name}, {arm}, seed {seed}: served accuracy under the version before, at worst",
        Estimate(max(0.0, *(before - after for before, after in pairwise(served))), len(served)),
        "points",
        f"{100 * arms.ATTACKERS:g} % attackers, {of.attacked}; right on the test part: "
        + " → ".join(f"{each:.1f}" for each in served)
        + f"; escalated {100 * points[0].escalated:.1f} → {100 * points[-1].escalated:.1f} %",
        reach=2.0,
    )


def _simulated(of: LoopTask, arm: Arm, seed: int, ground: Ground, run: Run) -> list[_Point]:
    return [_point(each) for each in arms.simulated(of, arm, seed, ground, run.say)]


def _alone(of: LoopTask, seed: int, ground: Ground) -> list[_Point]:
    """Means over the devices; the interval is that of one test part."""
    return [_mean([_point(each) for each in one]) for one in local.alone(of, seed, ground)]


def _point(each: RoundFigures | Standing) -> _Point:
    return _Point(
        each.escalation,
        each.accuracy,
        each.risk,
        each.end_to_end,
        each.teacher,
        each.out_of_scope,
    )


def _mean(points: Sequence[_Point]) -> _Point:
    def mean(values: list[float]) -> float:
        return float(np.mean(values))

    risks = [each.risk for each in points if each.risk is not None]
    outside = [each.out_of_scope for each in points if each.out_of_scope is not None]
    return _Point(
        mean([each.escalated for each in points]),
        mean([each.accuracy for each in points]),
        None if not risks else tuple(np.mean(risks, axis=0).tolist()),
        mean([each.end_to_end for each in points]),
        points[0].teacher,
        mean(outside) if outside else None,
    )


def _kept(
    run: Run,
    of: tuple[LoopTask, str, int, Ground],
    work: Callable[[], list[_Point]],
) -> list[_Point]:
    task, arm, seed, ground = of
    plan = arms.plan_of(task, arm, seed).to_json()
    known = json.dumps(
        [
            arm,
            {name: each for name, each in plan.items() if each is not None},  # what is off
            task.task.to_json(),
            {name: each.to_json() for name, each in task.wordings.items()},
            [repr(row) for row in task.rows],
            ground.bundle.manifest.base_digest,
        ],
        sort_keys=True,
    )
    path = ground.found / f"{hashlib.sha256(known.encode()).hexdigest()}.json"
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        run.say(f"{task.name}, {arm}, seed {seed}")
        points = work()
        value = [
            {name: getattr(each, name) for name in _Point.__dataclass_fields__} for each in points
        ]
        write_whole(path, json.dumps(value).encode())
        return points
    return [
        _Point(**{**each, "risk": None if each["risk"] is None else tuple(each["risk"])})
        for each in found
    ]
