"""Rows of what the arms of the loop come to."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Final, TypeAlias, get_args

import numpy as np

from benchmarks.edge.subject import Subject
from benchmarks.federated.loop import arms, tasks
from benchmarks.federated.loop.runs import ALONE, ASKED, Found, Job, Point, Runs
from benchmarks.federated.loop.tasks import Arm, Attacked, LoopTask, Product
from benchmarks.peers.environment import cache_dir
from benchmarks.rows import Row
from benchmarks.run import Run
from benchmarks.timing import Estimate
from cloud.fleet import BundleAt
from cloud.fleet.plan import Learner

_SEEDS: Final = (0, 1, 2)
"""Fixed before any of them was run; all are reported."""

_Came: TypeAlias = Callable[[Job], Found]
"""What a job came to."""


def rows(subject: Subject, run: Run) -> Iterator[Row]:
    """All arms but LoRA of all tasks, seed by seed."""
    teachers = [tasks.sentiment("tier1"), tasks.sentiment("tier2")]
    banking = tasks.banking77()
    given = [tasks.commands()]
    if not run.quick:
        given += [*teachers, *([banking] if banking else [])]
    jobs = [job for task in given for job in _head_jobs(run, task)]
    read: list[tuple[LoopTask, Learner]] = [
        (task, "head")
        for task in given
        if task is not teachers[1]  # the first one's sentences
    ]
    with _runs(subject, run, jobs, read) as runs:
        for task in given:
            yield from _heads(run, task, runs.of)
        yield _cost(run, "loop: all arms but LoRA", jobs, runs.of)
    if banking is None:
        why = "CASCADE_EVAL_DATA names no folder with banking77/train.csv"
        yield run.row("loop: banking77", None, "%", why)


def lora_rows(subject: Subject, run: Run) -> Iterator[Row]:
    """LoRA, which takes longer than all others together; the longest first."""
    teachers = [tasks.sentiment("tier1"), tasks.sentiment("tier2")]
    given = [tasks.commands(), *teachers]
    own = [Job(task, "lora", seed) for task in given for seed in _seeds(run)]
    compared = [
        job
        for task in given
        for seed in _seeds(run)
        for job in (*_asked(task, seed), Job(task, "head", seed))
    ]
    read: list[tuple[LoopTask, Learner]] = [
        (task, learner)
        for task in given
        if task is not teachers[1]  # the first one's sentences
        for learner in ("head", "lora")
    ]
    with _runs(subject, run, [*own, *compared], read) as runs:
        for task in given:
            for seed in _seeds(run):
                yield from _lora(run, task, seed, runs.of)
        yield _cost(run, "loop: all arms of LoRA", own, runs.of)


def strategy_rows(subject: Subject, run: Run) -> Iterator[Row]:
    """The two strategies of LoRA at equal bytes, on real sentences: which is the default where
    nothing is private."""
    given = [tasks.sentiment("tier1"), tasks.sentiment("tier2")]
    products: tuple[Product, ...] = get_args(Product)
    jobs = [
        Job(task, arm, seed)
        for task in given
        for seed in _seeds(run)
        for arm in ("lora", *products)
    ]
    with _runs(subject, run, jobs, [(given[0], "lora")]) as runs:
        for task in given:
            for arm in products:
                for seed in _seeds(run):
                    yield from _rows(run, task, arm, seed, runs.of(Job(task, arm, seed)).points)
                yield _over(run, task, arm, runs.of)


def _runs(
    subject: Subject, run: Run, jobs: Sequence[Job], read: Sequence[tuple[LoopTask, Learner]]
) -> Runs:
    return Runs(BundleAt(subject.bundle, subject.trust), cache_dir() / "loop", run, jobs, read)


def _seeds(run: Run) -> tuple[int, ...]:
    return _SEEDS[:1] if run.quick else _SEEDS


def _asked(of: LoopTask, seed: int) -> list[Job]:
    return [Job(of, f"{ASKED}{name}", seed) for name in of.wordings]


def _head_jobs(run: Run, of: LoopTask) -> Iterator[Job]:
    for seed in _seeds(run):
        yield from _asked(of, seed)
        for arm in ("head", "head, not certified anew", ALONE):
            yield Job(of, arm, seed)
        for attacked in get_args(Attacked) if of.attacked else ():
            yield Job(of, attacked, seed)


def _heads(run: Run, of: LoopTask, came: _Came) -> Iterator[Row]:
    for seed in _seeds(run):
        first: dict[str, float] = {}
        for job in _asked(of, seed):
            points = came(job).points
            first[job.arm] = points[0].escalated
            yield from _rows(run, of, job.arm, seed, points)
        points = came(Job(of, "head", seed)).points
        first["head"] = points[0].escalated
        yield from _rows(run, of, "head", seed, points)
        yield _fall(run, (of, "head", seed), points, first)
        for arm in ("head, not certified anew", ALONE):
            yield from _rows(run, of, arm, seed, came(Job(of, arm, seed)).points)
        for attacked in get_args(Attacked) if of.attacked else ():
            yield _attack(run, of, attacked, seed, came(Job(of, attacked, seed)).points)


def _lora(run: Run, of: LoopTask, seed: int, came: _Came) -> Iterator[Row]:
    others = [*_asked(of, seed), Job(of, "head", seed)]
    first = {job.arm: came(job).points[0].escalated for job in others}
    points = came(Job(of, "lora", seed)).points
    first["lora"] = points[0].escalated
    yield from _rows(run, of, "lora", seed, points)
    yield _fall(run, (of, "lora", seed), points, first)


def _over(run: Run, of: LoopTask, arm: Product, came: _Came) -> Row:
    """What the product mean escalates in the end beside B alone."""
    ends = [
        [came(Job(of, each, seed)).points[-1].escalated for each in ("lora", arm)]
        for seed in _seeds(run)
    ]
    rank = arms.plan_of(of, arm, 0).rank
    return run.row(
        f"loop: {of.name}, LoRA: escalated by the product mean of rank {rank} over B alone of "
        "rank 8",
        Estimate(100 * float(np.mean([product - alone for alone, product in ends])), len(ends)),
        "points",
        "in the end, by seed: "
        + ", ".join(f"{100 * product:.1f} and {100 * alone:.1f} %" for alone, product in ends),
    )


def _cost(run: Run, what: str, jobs: Sequence[Job], came: _Came) -> Row:
    spent = [came(job).cpu_s / 60 for job in jobs]
    return run.row(
        f"{what}, computing time",
        Estimate(sum(spent), len(spent)),
        "core min",
        "when each was run; without what is read of the rows before that",
    )


def _rows(run: Run, of: LoopTask, arm: str, seed: int, points: Sequence[Point]) -> Iterator[Row]:
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
        certified = not arm.endswith("anew")
        how = f"target {100 * of.alpha:g} % at δ = .1"
        how = how if certified else f"not certified for what runs; {how}"
        yield run.row(
            f"{name}: {of.target} on the test part",
            Estimate(100 * last.risk[0], 1, (100 * last.risk[1], 100 * last.risk[2])),
            "%",
            how,
        )
        risks = [each.risk for each in points if each.risk is not None]
        yield run.row(
            f"{name}: {of.target}, highest lower end of its interval in any round",
            Estimate(100 * max(low for _, low, _ in risks), len(risks)),
            "%",
            how
            + "; by round: "
            + ", ".join(
                f"{100 * at:.1f} ({100 * low:.1f}–{100 * up:.1f})" for at, low, up in risks
            ),
            reach=100 * of.alpha if certified else None,
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
    points: Sequence[Point],
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


def _attack(run: Run, of: LoopTask, arm: Attacked, seed: int, points: Sequence[Point]) -> Row:
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
