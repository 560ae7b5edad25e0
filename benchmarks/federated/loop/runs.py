"""What the arms come to: a process for each core, in which one arm runs after the other.

What one has found is kept by what it was run on (plan, data, bundle), so that a benchmark that was
ended goes on where it was.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from functools import cache
from multiprocessing.connection import wait
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self, cast

import numpy as np
from threadpoolctl import threadpool_limits

from benchmarks.federated.loop import arms, local
from benchmarks.federated.loop.arms import Ground
from benchmarks.federated.loop.tasks import Arm, LoopTask
from benchmarks.run import Run
from cascade.errors import CascadeError
from cascade.files import write_whole
from cloud.fleet import BundleAt
from cloud.fleet.figures import RoundFigures
from cloud.fleet.plan import Learner
from cloud.fleet.referee import Standing

ALONE: Final = "head, alone"
ASKED: Final = "asked, "


@dataclass(frozen=True, slots=True)
class Point:
    """A fleet at one time. Shares are in [0, 1]."""

    escalated: float
    accuracy: float
    risk: tuple[float, float, float] | None
    end_to_end: float
    teacher: float | None
    out_of_scope: float | None


@dataclass(frozen=True, slots=True)
class Found:
    """What an arm came to.

    Arguments:
        points: by round; number 0 first.
        cpu_s: that it took of this machine's processors, when it was run.
    """

    points: tuple[Point, ...]
    cpu_s: float


@dataclass(frozen=True, slots=True)
class Job:
    """One arm of a task at one seed.

    Arguments:
        arm: an ``Arm``, ``ALONE``, or ``ASKED`` and the name of a wording.
    """

    of: LoopTask
    arm: str
    seed: int

    @property
    def name(self) -> str:
        """Of it alone, in one benchmark."""
        return f"{self.of.name}, {self.arm}, seed {self.seed}"


@dataclass(frozen=True, slots=True)
class _Where:
    """What a worker needs beside its work."""

    at: BundleAt
    folder: Path
    run: Run


class Runs:
    """Jobs under way, to be used in a ``with``; leaving it ends what has not ended yet.

    Arguments:
        jobs: in the order in which they begin.
        read: what is looked at of all rows before that, so that jobs which run side by side do not
            compute it twice.
    """

    def __init__(
        self,
        at: BundleAt,
        folder: Path,
        run: Run,
        jobs: Sequence[Job],
        read: Sequence[tuple[LoopTask, Learner]],
    ) -> None:
        self._where = _Where(at, folder, run)
        self._jobs, self._read = jobs, read
        self._found: dict[str, Future[Found]] = {}

    def __enter__(self) -> Self:
        count = min(os.cpu_count() or 1, len(self._jobs))
        self._pool = ProcessPoolExecutor(
            count, multiprocessing.get_context("spawn"), initializer=_begin
        )
        for of, learner in self._read:
            for part in range(count):
                self._pool.submit(_read, of, learner, (part, count), self._where)
        for job in self._jobs:
            self._found[job.name] = self._pool.submit(_found, job, self._where)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is not None:
            for child in multiprocessing.active_children():
                child.terminate()
        self._pool.shutdown(cancel_futures=True)

    def of(self, job: Job) -> Found:
        """What a job came to, once it has.

        Raises:
            CascadeError: it failed.
        """
        try:
            return self._found[job.name].result()
        except BrokenProcessPool as problem:
            raise CascadeError(f"{job.name}: a process that ran arms was killed") from problem


def kept(job: Job, ground: Ground, work: Callable[[], Sequence[Point]]) -> Found:
    """What is kept of this very run; else what ``work`` finds."""
    plan = arms.plan_of(job.of, job.arm, job.seed).to_json()
    known = json.dumps(
        [
            job.arm,
            {name: each for name, each in plan.items() if each is not None},  # what is off
            job.of.task.to_json(),
            {name: each.to_json() for name, each in job.of.wordings.items()},
            [repr(row) for row in job.of.rows],
            # Of all its graphs: base digests stay when those of the trunk round otherwise.
            {name: each.sha256 for name, each in ground.bundle.manifest.files.items()},
        ],
        sort_keys=True,
    )
    path = ground.found / f"{hashlib.sha256(known.encode()).hexdigest()}.json"
    try:
        return _read_back(json.loads(path.read_bytes()))
    except (OSError, ValueError, TypeError, KeyError):  # not there, or of another version
        began = time.process_time()
        found = Found(tuple(work()), time.process_time() - began)
        write_whole(path, json.dumps(asdict(found)).encode())
        return found


def _read_back(value: Any) -> Found:
    points = [
        Point(**{**each, "risk": None if each["risk"] is None else tuple(each["risk"])})
        for each in value["points"]
    ]
    return Found(tuple(points), value["cpu_s"])


def _begin() -> None:
    """A worker: one core is its own, Ctrl-C its parent's business, and without it it ends."""
    threadpool_limits(1)  # numpy's products; else each worker waits for the others' cores
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_follow, args=(parent.sentinel,), daemon=True).start()


def _follow(sentinel: int) -> None:
    wait([sentinel])
    os._exit(1)


@cache
def _ground(where: _Where) -> Ground:
    return Ground.of(where.at, where.folder)


def _read(of: LoopTask, learner: Learner, part: tuple[int, int], where: _Where) -> None:
    number, parts = part
    where.run.say(f"{of.name}: reading for {learner}, part {number + 1} of {parts}")
    arms.read(of, learner, of.rows[number::parts], _ground(where))


def _found(job: Job, where: _Where) -> Found:
    def work() -> Sequence[Point]:
        where.run.say(job.name)
        return _run(job, ground, where.run)

    ground = _ground(where)
    try:
        return kept(job, ground, work)
    except CascadeError as problem:  # others of its kind do not survive the way to the parent
        raise CascadeError(f"{job.name}: {problem}") from None


def _run(job: Job, ground: Ground, run: Run) -> list[Point]:
    of, seed = job.of, job.seed
    if job.arm == ALONE:
        return [_mean([_point(each) for each in one]) for one in local.alone(of, seed, ground)]
    if job.arm.startswith(ASKED):
        wording = of.wordings[job.arm.removeprefix(ASKED)]
        return [_point(arms.asked(of, wording, seed, ground))]
    arm = cast(Arm, job.arm)
    return [_point(each) for each in arms.simulated(of, arm, seed, ground, run.say)]


def _point(each: RoundFigures | Standing) -> Point:
    return Point(
        each.escalation,
        each.accuracy,
        each.risk,
        each.end_to_end,
        each.teacher,
        each.out_of_scope,
    )


def _mean(points: Sequence[Point]) -> Point:
    """Over the devices; the interval is that of one test part."""

    def mean(values: list[float]) -> float:
        return float(np.mean(values))

    risks = [each.risk for each in points if each.risk is not None]
    outside = [each.out_of_scope for each in points if each.out_of_scope is not None]
    return Point(
        mean([each.escalated for each in points]),
        mean([each.accuracy for each in points]),
        None if not risks else tuple(np.mean(risks, axis=0).tolist()),
        mean([each.end_to_end for each in points]),
        points[0].teacher,
        mean(outside) if outside else None,
    )
