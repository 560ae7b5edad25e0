"""Where simulated devices live: a few processes, Ray actors, of which each hosts many devices.

All devices of a host share one loaded gradient graph, and the activations below the trained layers,
which no round changes, are kept in a folder that all hosts share. An answer's probabilities come
from that graph too: they are those of ``Device.choose``, and cost the trained layers alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from cascade.request import Message
from cascade.signing import TrustStore
from cascade.task import Task
from cloud.fleet.checkpoint import running
from cloud.fleet.connection import Absence
from cloud.fleet.device import (
    FleetClock,
    Setting,
    SimulatedDevice,
    TurnResult,
)
from cloud.fleet.rows import FleetRow
from cloud.fleet.served import Probabilities, ServedPolicy, Weights
from edge.adapter import Adapter
from edge.bundle import Bundle
from edge.federation.example_trainer import Opened
from edge.model import OnnxModel
from edge.training.examples import LessonMaker, TrainingExample
from edge.training.gradient import GradientSession
from edge.training.learners import Measuring
from edge.training.lesson import Lesson
from edge.training.softmax import log_softmax

_CLOSE_S: Final = 20.0
_PIECE: Final = 32


@dataclass(frozen=True, slots=True)
class BundleAt:
    """A bundle for another process to open: its folder, and that of the keys to trust."""

    path: Path
    trust: Path


@dataclass(frozen=True, slots=True)
class Turn:
    """What one device is to do in a round."""

    device: int
    rows: tuple[FleetRow, ...]
    absence: Absence


class Host:
    """Devices in one process. Not thread-safe."""

    def __init__(self, setting: Setting, bundle: BundleAt, trunk: Path) -> None:
        self._setting = setting
        self._bundle = Bundle.open(bundle.path, TrustStore(bundle.trust))
        self._session = GradientSession(self._bundle, keep=trunk)
        self._maker = LessonMaker(self._bundle, setting.task)
        self._trunk = trunk
        self._measuring: Measuring | None = None
        self._clock = FleetClock()
        self._devices: dict[int, SimulatedDevice] = {}
        self._lessons: dict[str, Lesson] = {}
        self._loop = asyncio.new_event_loop()
        self._lock = running(setting.folder)

    def turns(
        self, turns: Sequence[Turn], weights: Weights, policy: ServedPolicy, wall_s: float
    ) -> list[TurnResult]:
        """Let devices take their turns, one after the other.

        Arguments:
            weights: of the adapter that runs on all of them.
            wall_s: the simulation's time.
        """
        done = []
        for turn in turns:
            self._clock.wall_s = wall_s
            device = self._device(turn.device)
            work = device.turn(
                turn.rows, self.probabilities(turn.rows, weights), policy, turn.absence
            )
            done.append(self._loop.run_until_complete(work))
        return done

    def go_on(self, before: TurnResult, wall_s: float) -> TurnResult:
        """Let a device take its next step in a round under masks; see ``SimulatedDevice``."""
        self._clock.wall_s = wall_s
        return self._loop.run_until_complete(self._device(before.device).go_on(before))

    def probabilities(self, rows: Sequence[FleetRow], weights: Weights) -> list[Probabilities]:
        """Of the task's options, for each row."""
        if weights.head is not None:
            if not rows:
                return []
            logits = weights.head.logits(np.stack([self._features(row.text) for row in rows]))
            return list(np.exp(log_softmax(logits)).astype(np.float32))
        own = {name: p for name, p in weights.pairs.items() if name in self._session.modules}
        return self._session.probabilities([self._lesson(row) for row in rows], own)

    def _features(self, text: str) -> NDArray[np.float32]:
        if self._measuring is None:
            model = OnnxModel(self._bundle)
            self._measuring = Measuring(model, self._setting.task, keep=self._trunk, scores=False)
        return self._measuring.of(text)[0]

    def _measured(self, task: Task, text: str) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
        return self._features(text), np.zeros(len(task.options))

    def close(self) -> None:
        """Close what is open."""
        for device in self._devices.values():
            self._loop.run_until_complete(device.close())
        self._loop.close()
        os.close(self._lock)

    def remember(self) -> None:
        """Have all devices write what they need in order to go on."""
        for device in self._devices.values():
            device.remember()

    def _device(self, number: int) -> SimulatedDevice:
        if number not in self._devices:
            self._devices[number] = SimulatedDevice(
                self._setting,
                number,
                self._bundle,
                open_session=self._opened,
                measure=self._measured,
                clock=self._clock,
            )
        return self._devices[number]

    def _opened(self, adapter: Adapter) -> Opened:
        adapter.inputs(self._bundle.manifest)  # refuses what does not fit
        return self._session, dict(adapter.pairs)

    def _lesson(self, row: FleetRow) -> Lesson:
        options = self._setting.task.options
        if row.id not in self._lessons:
            asked = TrainingExample((Message("user", row.text),), row.answer or options[0], options)
            self._lessons[row.id] = self._maker.lesson(asked)
        return self._lessons[row.id]


class Hosts(Protocol):
    """Several hosts."""

    def turns(
        self, turns: Sequence[Turn], weights: Weights, policy: ServedPolicy, wall_s: float
    ) -> Iterator[TurnResult]:
        """Turns of different devices, as they end: those of one host in order."""
        ...

    def go_on(self, before: Sequence[TurnResult], wall_s: float) -> list[TurnResult]:
        """The next steps of these devices in a round under masks, in the order given."""
        ...

    def probabilities(self, rows: Sequence[FleetRow], weights: Weights) -> list[Probabilities]:
        """Of the task's options, for each row."""
        ...

    def remember(self) -> None:
        """Have all devices write what they need in order to go on."""
        ...

    def close(self) -> None:
        """End all of them."""
        ...


class InProcess:
    """One host in this process, for small fleets."""

    def __init__(self, setting: Setting, bundle: BundleAt, trunk: Path) -> None:
        # A loop cannot run inside another one's thread: the host has a thread of its own.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="cascade-fleet")
        opening = self._thread.submit(Host, setting, bundle, trunk)
        try:
            self._host = opening.result()
        except BaseException:
            self._thread.shutdown()
            raise

    def turns(
        self, turns: Sequence[Turn], weights: Weights, policy: ServedPolicy, wall_s: float
    ) -> Iterator[TurnResult]:
        """See ``Hosts``."""
        for turn in turns:
            yield from self._thread.submit(
                self._host.turns, [turn], weights, policy, wall_s
            ).result()

    def go_on(self, before: Sequence[TurnResult], wall_s: float) -> list[TurnResult]:
        """See ``Hosts``."""
        return [self._thread.submit(self._host.go_on, each, wall_s).result() for each in before]

    def probabilities(self, rows: Sequence[FleetRow], weights: Weights) -> list[Probabilities]:
        """See ``Hosts``."""
        return [
            found
            for piece in _pieces(rows)
            for found in self._thread.submit(self._host.probabilities, piece, weights).result()
        ]

    def remember(self) -> None:
        """See ``Hosts``."""
        self._thread.submit(self._host.remember).result()

    def close(self) -> None:
        """See ``Hosts``."""
        self._thread.submit(self._host.close).result()
        self._thread.shutdown()


class RaySession:
    """Ray on this machine, for hosts. To be started before gRPC is: Ray forks.

    Arguments:
        count: of actors that there will be, ≥ 1.
    """

    def __init__(self, count: int) -> None:
        from cloud.local_ray import start_ray

        # Names of Ray's sockets have a limit that the simulation's own folder may be beyond.
        self._folder = Path(tempfile.mkdtemp(prefix="cascade-"))
        try:
            start_ray(self._folder, num_cpus=count, serving=False)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Stop it."""
        from cloud.local_ray import stop_ray

        stop_ray()
        shutil.rmtree(self._folder, ignore_errors=True)


class RayActors:
    """Hosts as Ray actors, of which device ``n`` lives on number n mod count."""

    def __init__(self, count: int, setting: Setting, bundle: BundleAt, trunk: Path) -> None:
        import ray

        self._ray = ray
        actor = ray.remote(num_cpus=1)(Host)
        self._actors: list[Any] = [actor.remote(setting, bundle, trunk) for _ in range(count)]

    def turns(
        self, turns: Sequence[Turn], weights: Weights, policy: ServedPolicy, wall_s: float
    ) -> Iterator[TurnResult]:
        """See ``Hosts``."""
        given, seen = self._ray.put(weights), self._ray.put(policy)
        waiting = [
            self._actors[turn.device % len(self._actors)].turns.remote([turn], given, seen, wall_s)
            for turn in turns
        ]
        while waiting:
            done, waiting = self._ray.wait(waiting)
            yield from self._ray.get(done[0])

    def go_on(self, before: Sequence[TurnResult], wall_s: float) -> list[TurnResult]:
        """See ``Hosts``."""
        size = len(self._actors)
        work = [self._actors[each.device % size].go_on.remote(each, wall_s) for each in before]
        found: list[TurnResult] = self._ray.get(work)
        return found

    def probabilities(self, rows: Sequence[FleetRow], weights: Weights) -> list[Probabilities]:
        """See ``Hosts``."""
        given, size = self._ray.put(weights), len(self._actors)
        work = [
            self._actors[place % size].probabilities.remote(piece, given)
            for place, piece in enumerate(_pieces(rows))
        ]
        return [found for piece in self._ray.get(work) for found in piece]

    def remember(self) -> None:
        """See ``Hosts``."""
        self._ray.get([each.remember.remote() for each in self._actors])

    def close(self) -> None:
        """See ``Hosts``."""
        # An actor that was killed has nothing to close.
        with contextlib.suppress(self._ray.exceptions.RayError):
            self._ray.get([each.close.remote() for each in self._actors], timeout=_CLOSE_S)


def _pieces(rows: Sequence[FleetRow]) -> list[list[FleetRow]]:
    """The same ones for any number of hosts: what runs together rounds together."""
    return [list(rows[start : start + _PIECE]) for start in range(0, len(rows), _PIECE)]
