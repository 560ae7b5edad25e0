"""A fleet's life, round by round: devices see rows, escalate, learn and send; the cluster makes an
adapter of it, which is judged, certified anew and served.

Devices and coordinator are the product's own; what is simulated is time, what devices are asked,
and who drops out or lies. All of it follows from the seed.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Final, Literal, Protocol

import numpy as np

from cascade.task import Task
from cloud.fleet.checkpoint import Checkpoint, Checkpoints, identity, running
from cloud.fleet.cluster import FleetCluster
from cloud.fleet.connection import Absence
from cloud.fleet.device import Setting, TurnResult
from cloud.fleet.figures import FleetResult, RoundFigures, figures
from cloud.fleet.hosts import BundleAt, Hosts, InProcess, RayActors, RaySession, Turn
from cloud.fleet.interrupt import uninterrupted
from cloud.fleet.plan import DAY_S, FleetPlan
from cloud.fleet.referee import FleetGate, Referee, Standing
from cloud.fleet.rows import FleetRow, Parts, lasting
from cloud.fleet.served import Weights
from cloud.fleet.starting import starting_weights
from edge.bundle import Bundle

_BEGINS_S: Final = 1_800_000_000.0
"""Wall time of a simulation's first day, whenever it is run."""


_LOST: Final[tuple[Absence, ...]] = ("off", "cut_off")
_LOST_UNDER_MASKS: Final[tuple[Absence, ...]] = ("off", "after_keys", "cut_off", "after_update")
_RESTS_S: Final = 600.0
"""For which the fleet is left alone after it: the longest time that a device was told to wait."""
_COMES_BACK_S: Final = 60.0
"""Between two steps of a device in a round under masks; half of the time that a phase waits."""


class Watcher(Protocol):
    """Is told how far a simulation is."""

    def __call__(
        self,
        stage: Literal["starting", "judge", "devices"],
        round_number: int,
        done: int,
        total: int,
    ) -> None:
        """``done`` of ``total`` devices have had their turn; of ``judge``, rows were answered; of
        ``starting``, rows or steps of the first adapter, and 0 of 0 before all else."""
        ...


class FleetSimulation:
    """One simulation.

    Arguments:
        folder: its own; keeps the registry, the store, and a folder for each device.
        bundle: that runs on every device.
        at: the same bundle, for other processes.
        rows: parts that share nothing.
        trunk: folder of activations, which runs on the same bundle may share.
        processes: Ray actors that host the devices; 0 has them in this process, without Ray.
        data: what the rows are, for people.
        resume: go on from the last whole round of this very run, which was ended in ``folder``;
            begin it where there is none.

    Raises:
        InvalidInput: there is a run in ``folder`` that is not to be resumed, or is another one.
        CascadeError: another process runs there.
    """

    def __init__(
        self,
        folder: Path,
        plan: FleetPlan,
        task: Task,
        bundle: Bundle,
        at: BundleAt,
        *,
        rows: Parts,
        trunk: Path,
        processes: int = 0,
        data: str = "",
        watch: Watcher = lambda stage, round_number, done, total: None,
        resume: bool = False,
    ) -> None:
        self._plan, self._task, self._rows, self._data = plan, task, rows, data
        self._bundle, self._watch = bundle, watch
        self._ended = ""
        self._owned = plan.partition.share_out(rows.fleet, plan.devices, plan.seed)
        self.lasting = lasting(self._owned, plan.per_round)
        """For how many rounds devices have rows, see ``cloud.fleet.rows.lasting``."""
        with ExitStack() as opened:
            opened.callback(os.close, running(folder, first=True))
            what = identity(plan, task, rows, bundle.manifest.base_digest)
            self._checkpoints = Checkpoints(folder, what)
            kept = self._checkpoints.begin(resume=resume)
            self._open(opened, folder, at, trunk, processes=processes, kept=kept)
            self._opened = opened.pop_all()

    def _open(
        self,
        opened: ExitStack,
        folder: Path,
        at: BundleAt,
        trunk: Path,
        *,
        processes: int,
        kept: Checkpoint | None,
    ) -> None:
        plan, task, bundle, rows = self._plan, self._task, self._bundle, self._rows
        self._wall_s = _BEGINS_S if kept is None else kept.wall_s
        self._done: list[RoundFigures] = [] if kept is None else list(kept.rounds)
        self._watch("starting", 0, 0, 0)
        if processes:
            with uninterrupted():
                opened.callback(RaySession(processes).close)
        start: Weights | str
        if kept is not None:
            start = kept.start
        else:
            start = starting_weights(
                bundle,
                plan,
                task,
                rows.starting,
                trunk,
                watch=lambda done, total: self._watch("starting", 0, done, total),
            )
        with uninterrupted():
            self._cluster = FleetCluster(
                folder,
                plan,
                bundle,
                start,
                gate=lambda cluster: FleetGate(plan, self._standing),
                now=lambda: self._wall_s,
            )
            opened.callback(self._cluster.close)
            setting = Setting(plan, task, folder, self._cluster.profile, self._cluster.trust)
            self._hosts: Hosts = (
                RayActors(processes, setting, at, trunk)
                if processes
                else InProcess(setting, at, trunk)
            )
            opened.callback(self._hosts.close)
        self._judging = 0
        self._referee = Referee(
            self._hosts,
            plan,
            task,
            rows,
            watch=lambda done, total: self._watch("judge", self._judging, done, total),
        )
        if kept is not None and kept.first is not None:
            self._standing(kept.first)

    def run(self) -> Iterator[RoundFigures]:
        """All rounds that are still to be done; of a new run, number 0 first. May be left after any
        of them. Ends before its last round where a budget of ε allows no further one."""
        if not self._done:
            self._cluster.tick()
            began = time.perf_counter()
            served = self._cluster.served()
            standing = self._standing(served[1])
            seconds = time.perf_counter() - began
            yield self._noted(figures(0, standing, served=served, seconds=seconds))
        for number in range(len(self._done), self._plan.rounds + 1):
            self._ended = self._cluster.ended()
            if self._ended:
                return
            yield self._noted(self._round(number))

    def result(self) -> FleetResult:
        """What was found so far."""
        rows = self._rows
        manifest = self._bundle.manifest
        return FleetResult(
            plan=self._plan.to_json(),
            data=self._data,
            bundle=(manifest.name, manifest.base_digest),
            parts={
                name: len(getattr(rows, name))
                for name in ("develop", "certify", "test", "fleet", "out_of_scope", "starting")
            },
            lasting=self.lasting,
            rounds=tuple(self._done),
            complete=len(self._done) == self._plan.rounds + 1,
            ended=self._ended,
        )

    def close(self) -> None:
        """End all devices and the cluster."""
        with uninterrupted():
            self._opened.close()

    def _noted(self, found: RoundFigures) -> RoundFigures:
        self._done.append(found)
        self._hosts.remember()
        self._checkpoints.keep(
            Checkpoint(self._wall_s, self._cluster.start, self._referee.first, tuple(self._done))
        )
        return found

    def _round(self, number: int) -> RoundFigures:
        began, counted = time.perf_counter(), self._cluster.counters()
        self._judging = number
        first = self._cluster.next_round()
        ends_s = self._wall_s + DAY_S
        turns = self._turns(number)
        if self._plan.masked:
            turns = self._unmask(first, turns)
        self._wall_s = max(ends_s, self._wall_s)
        self._cluster.tick()
        ended = self._cluster.rounds_since(first)
        served = self._cluster.served()
        last = ended[-1] if ended else None
        errors = [each.aggregation_error for each in ended if each.aggregation_error is not None]
        return figures(
            number,
            self._standing(served[1]),
            served=served,
            verdict=last.state if last is not None else "collecting",
            note=last.note if last is not None else "",
            turns=turns,
            counted=_since(counted, self._cluster.counters()),
            aggregation_error=errors[-1] if errors else None,
            cost=self._cluster.cost(),
            seconds=time.perf_counter() - began,
        )

    def _turns(self, number: int) -> list[TurnResult]:
        plan = self._plan
        rng = np.random.default_rng([plan.seed, 7, number])
        order = [int(place) for place in rng.permutation(plan.devices)]
        turns = [Turn(device, self._given(device, number), _absence(plan, rng)) for device in order]
        done: list[TurnResult] = []
        if plan.mode == "synchronous":
            done = self._taken(turns, number, done)
        else:
            # What counts depends on who comes first: the order is the seed's, not the scheduler's.
            for turn in turns:
                done = self._taken([turn], number, done)
                self._cluster.tick()
        return sorted(done, key=lambda turn: turn.device)

    def _unmask(self, coordinated: int, turns: list[TurnResult]) -> list[TurnResult]:
        """Let devices come back until the coordinator's round has its sum, or is abandoned."""
        while (at := self._cluster.masking(coordinated)) is not None:
            if at.phase == "keys":  # whoever was to train today has
                self._wall_s = at.closes_at
            else:
                self._wall_s += _COMES_BACK_S
            self._cluster.tick()
            there = [turn for turn in turns if turn.outcome == "masking"]
            after = {each.device: each for each in self._hosts.go_on(there, self._wall_s + 60.0)}
            turns = [after.get(turn.device, turn) for turn in turns]
        self._wall_s += _RESTS_S
        return turns

    def _taken(self, turns: list[Turn], number: int, before: list[TurnResult]) -> list[TurnResult]:
        served = self._cluster.served()[1]
        policy, weights = self._standing(served).policy, self._cluster.weights(served)
        done = list(before)
        for result in self._hosts.turns(turns, weights, policy, self._wall_s + 60.0):
            done.append(result)
            self._watch("devices", number, len(done), self._plan.devices)
        return done

    def _given(self, device: int, number: int) -> tuple[FleetRow, ...]:
        """What a device sees in a round; fewer, and then nothing, once it has seen all its rows."""
        size = self._plan.per_round
        return self._owned[device][(number - 1) * size : number * size]

    def _standing(self, digest: str) -> Standing:
        return self._referee.standing(digest, self._cluster.weights(digest))


def _absence(plan: FleetPlan, rng: np.random.Generator) -> Absence:
    drawn, how = rng.random(2)
    if drawn >= plan.dropout:
        return "none"
    kinds = _LOST_UNDER_MASKS if plan.masked else _LOST
    return kinds[int(how * len(kinds))]


def _since(before: Mapping[str, int], now: Mapping[str, int]) -> dict[str, int]:
    return dict(Counter(now) - Counter(before))
