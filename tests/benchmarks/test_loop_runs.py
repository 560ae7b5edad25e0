"""Arms side by side, in processes of their own, on a tiny bundle."""

from __future__ import annotations

import multiprocessing
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.federated.loop import arms
from benchmarks.federated.loop.arms import Ground
from benchmarks.federated.loop.runs import ASKED, Job, Point, Runs, kept
from benchmarks.federated.loop.tasks import LoopTask
from benchmarks.run import Run
from cascade.errors import CascadeError
from cascade.task import Task
from cascade.testing import TinyBundle
from cloud.fleet import BundleAt, FleetRow
from edge.bundle import TRUNK_GRAPH, FileEntry

RUN = Run(quick=False, hardware="a machine")
WORDING = Task("colours", ("red", "green"), "{input}:", " ", "{input}")
TASK = LoopTask(
    name="colours",
    task=WORDING,
    rows=tuple(FleetRow(str(n), f"{n} is warm", WORDING.options[n % 2]) for n in range(300)),
    starting=4,
    per_round=5,
    most=None,
    target="risk",
    alpha=0.3,
    partition="iid",
    wordings={"plain": WORDING},
)


def test_they_come_to_what_each_would_alone(tiny: TinyBundle, tmp_path: Path) -> None:
    at = BundleAt(tiny.path, tiny.path.parent / "trust")
    jobs = [Job(TASK, f"{ASKED}plain", seed) for seed in (0, 1)]
    broken = Job(replace(TASK, name="broken", starting=0), "head", 0)  # a head needs some
    with Runs(at, tmp_path / "kept", RUN, [broken, *jobs], [(TASK, "head")]) as runs:
        found = [runs.of(job) for job in jobs]
        with pytest.raises(CascadeError, match="broken, head, seed 0: starting: must be at least"):
            runs.of(broken)
    ground = Ground.of(at, tmp_path / "other")
    for seed, each in enumerate(found):
        alone = arms.asked(TASK, WORDING, seed, ground)
        (point,) = each.points
        assert (point.escalated, point.accuracy) == (alone.escalation, alone.accuracy)
        assert each.cpu_s > 0
    read = {path.name for path in (tmp_path / "kept" / "trunk").rglob("*.npz")}
    assert len(read) == len(TASK.rows)


def test_what_is_kept_is_of_these_very_graphs(tiny: TinyBundle, tmp_path: Path) -> None:
    ground = Ground.of(BundleAt(tiny.path, tiny.path.parent / "trust"), tmp_path)
    ground.found.mkdir(parents=True)
    job, calls = Job(TASK, f"{ASKED}plain", 0), []

    def work() -> list[Point]:
        calls.append(job)
        return [Point(0.5, 0.5, (0.1, 0.0, 0.2), 0.5, None, None)]

    found = [kept(job, ground, work) for _ in range(2)]
    assert found[0] == found[1]
    assert len(calls) == 1
    ground.bundle.manifest.files[TRUNK_GRAPH] = FileEntry(1, "0" * 64)
    kept(job, ground, work)
    assert len(calls) == 2


def test_leaving_early_ends_what_runs(tiny: TinyBundle, tmp_path: Path) -> None:
    at = BundleAt(tiny.path, tiny.path.parent / "trust")
    jobs = [Job(TASK, f"{ASKED}plain", seed) for seed in range(200)]
    with pytest.raises(KeyboardInterrupt):
        _interrupted(at, tmp_path / "kept", jobs)
    assert 1 <= len(list((tmp_path / "kept" / "found").glob("*.json"))) < len(jobs)
    assert not multiprocessing.active_children()


def _interrupted(at: BundleAt, folder: Path, jobs: list[Job]) -> None:
    with Runs(at, folder, RUN, jobs, []) as runs:
        runs.of(jobs[0])
        raise KeyboardInterrupt
