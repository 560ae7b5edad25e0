"""One simulated device: a folder of its own, the store, the trainer and the participant that real
ones have, on a clock that the simulation turns."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from cascade.clock import Reading
from cascade.conditions import Conditions, FixedConditions
from cascade.files import write_whole
from cascade.request import Message
from cascade.signing import SigningKey, TrustStore
from cascade.task import Task
from cascade.wire import ClientProfile
from cloud.fleet.connection import Absence, Connection
from cloud.fleet.hostile import HostileConnection, HostileTrainer
from cloud.fleet.plan import LEAST_MASKED, FleetPlan
from cloud.fleet.rows import FleetRow
from cloud.fleet.served import Probabilities, ServedPolicy, raw_scores
from edge.bundle import Bundle
from edge.examples import CurationRules, Example, ExampleStore, Source
from edge.federation import ExampleTrainer, Limits, Participant, Trainer
from edge.federation.example_trainer import Opened
from edge.federation.head_trainer import Measure
from edge.training.allowance import TrainingAllowance
from edge.training.policy import TrainingLimits

_RESTING: Final = Conditions("unmetered", charging=True, idle=True)
_STEPS: Final = 3
_ADDRESS: Final = "fleet:1"


class FleetClock:
    """The simulation's time, for every device of a host. Between turns it jumps."""

    def __init__(self) -> None:
        self.wall_s = 0.0

    def read(self) -> Reading:
        """See ``cascade.clock.Clock``."""
        return Reading(self.wall_s, self.wall_s, "fleet")


@dataclass(frozen=True, slots=True)
class TurnResult:
    """What a device did in a round.

    Arguments:
        seen, escalated: rows.
        outcome: of its last step; ``off`` where it took none.
        note: why.
        lost: how the device was lost to the round; ``none`` where it was not.
        bytes_up, messages_up: see ``Connection``.
        bytes_down: adapters that were fetched.
        examples: in its store afterwards.
    """

    device: int
    seen: int
    escalated: int
    outcome: str
    note: str
    lost: Absence
    bytes_up: int
    messages_up: int
    bytes_down: int
    examples: int


@dataclass(frozen=True, slots=True)
class Setting:
    """What all devices share.

    Arguments:
        folder: of the simulation.
        trust: of the key that signs adapters.
    """

    plan: FleetPlan
    task: Task
    folder: Path
    profile: ClientProfile
    trust: Path


class SimulatedDevice:
    """One of them.

    Arguments:
        number: from 0.
        open_session: gives the graphs that train an adapter; shared by the devices of a host.
        measure: what a head sees of an input; likewise.
    """

    def __init__(
        self,
        setting: Setting,
        number: int,
        bundle: Bundle,
        *,
        open_session: Callable[..., Opened],
        measure: Measure,
        clock: FleetClock,
    ) -> None:
        plan = setting.plan
        self.number = number
        self.hostile = is_hostile(plan, number)
        self._task, self._clock, self._plan = setting.task, clock, plan
        root = setting.folder / "devices" / f"{number:05d}"
        key = seeded_key(plan.seed, f"device {number}")
        key.save(root / "federation" / "device.key")
        self._store = ExampleStore(root / "examples.sqlite3", clock=lambda: clock.wall_s)
        self._store.grant()
        self._adapters = root / "federation" / "adapters"
        allowance = TrainingAllowance(
            TrainingLimits(
                seconds_per_day=plan.training.max_seconds, steps_per_day=plan.training.max_steps
            ),
            FixedConditions(_RESTING),
            path=root / "training.sqlite3",
            clock=clock,
            cpu_s=lambda: 0.0,
        )
        learner = ExampleTrainer(
            bundle,
            self._store,
            allowance,
            task=setting.task,
            rules=CurationRules(rehearsal=plan.rehearsal),
            epochs=plan.epochs,
            level=plan.level,
            least=plan.least,
            open_session=open_session,
            measure=lambda _: measure,
            clock=clock,
        )
        self._connection: Connection = Connection(setting.profile)
        trainer: Trainer = learner
        self._lying: HostileTrainer | None = None
        if self.hostile:
            lying = HostileConnection(setting.profile, plan.attackers.kind, key)
            self._connection = lying
            trainer = self._lying = HostileTrainer(learner, lying, [plan.seed, 4, number])
        self._rounding = np.random.default_rng([plan.seed, 3, number])
        self._participant = Participant(
            # What it keeps goes by the address, which is another one when a run goes on.
            replace(setting.profile, address=_ADDRESS),
            bundle.manifest.base_digest,
            trainer,
            limits=Limits(
                plan.training.max_seconds,
                plan.training.max_steps,
                upload_bytes=1 << 30,
                clip_norm=plan.training.clip_norm,
                cohort=LEAST_MASKED,
                masked_only=plan.masked,
                rank=None if plan.ranks is None else plan.ranks[number % len(plan.ranks)],
            ),
            trust=TrustStore(setting.trust),
            allowance=allowance,
            consented=learner.consented,
            forgotten=learner.forgotten,
            discard=learner.discard,
            clock=clock,
            root=root / "federation",
            connect=lambda _: self._connection,
            rounding=lambda: self._rounding,
        )
        self._memory = root / "memory.json"
        if self._memory.is_file():
            self._recall(json.loads(self._memory.read_bytes()))

    async def turn(
        self,
        rows: tuple[FleetRow, ...],
        probabilities: list[Probabilities],
        policy: ServedPolicy,
        absence: Absence,
    ) -> TurnResult:
        """See rows, escalate what is unsure, learn from it, and take part in the round.

        Arguments:
            probabilities: of the task's options, for each row, by the adapter that runs now.
        """
        escalated = self._answer(rows, probabilities, policy)
        outcome, note, before = "off", "", self._fetched()
        up, said = self._connection.bytes_up, self._connection.messages_up
        self._connection.absent(absence)
        if absence != "off":
            # An update that is left from the round before goes first; then there is this one.
            for _ in range(_STEPS):
                left = self._participant.unsent
                done = await self._participant.step()
                outcome, note = done.outcome, done.note
                if not left:
                    break
                self._clock.wall_s += done.wait_s + 1
        return TurnResult(
            self.number,
            len(rows),
            escalated,
            outcome,
            note,
            self._connection.lost,
            self._connection.bytes_up - up,
            self._connection.messages_up - said,
            self._fetched() - before,
            len(self._store.examples()),
        )

    async def go_on(self, before: TurnResult) -> TurnResult:
        """Take the next step of a round under masks, and add it to what was done before in it."""
        up, said = self._connection.bytes_up, self._connection.messages_up
        done = await self._participant.step()
        if done.outcome == "waiting":
            self._clock.wall_s += done.wait_s + 1
            done = await self._participant.step()
        return replace(
            before,
            outcome=done.outcome,
            note=done.note,
            lost=self._connection.lost,
            bytes_up=before.bytes_up + self._connection.bytes_up - up,
            messages_up=before.messages_up + self._connection.messages_up - said,
        )

    def remember(self) -> None:
        """Write what a real device need not keep, for the run to go on from here."""
        kept = {"rounding": self._rounding.bit_generator.state}
        if self._lying is not None:
            kept["lying"] = self._lying.memory(unsent=self._participant.unsent)
        write_whole(self._memory, json.dumps(kept).encode())

    def _recall(self, kept: Mapping[str, Any]) -> None:
        self._rounding.bit_generator.state = kept["rounding"]
        if self._lying is not None:
            self._lying.recall(kept["lying"])

    async def close(self) -> None:
        """Close what is open."""
        await self._participant.close()
        self._store.close()

    def _answer(
        self, rows: tuple[FleetRow, ...], probabilities: list[Probabilities], policy: ServedPolicy
    ) -> int:
        if not rows:
            return 0
        kept = policy.keeps(raw_scores(self._task, probabilities))
        for row, each, keeps in zip(rows, probabilities, kept, strict=True):
            answer = self._task.options[int(each.argmax())]
            if not keeps and not row.told(self._task):
                continue  # out of scope, and the task has no answer that says so
            self._store.add(
                Example(
                    row.id,
                    (Message("user", row.text),),
                    answer if keeps else self._taught(row),
                    _source(row, bool(keeps)),
                    self._clock.wall_s,
                    options=self._task.options,
                    task_id=self._task.task_id,
                    device_answer=answer,
                    probabilities=tuple(float(p) for p in each.clip(0, 1)),
                )
            )
        return int((~kept).sum())

    def _taught(self, row: FleetRow) -> str:
        told = row.told(self._task)
        if not (self.hostile and self._plan.attackers.kind == "label-flip"):
            return told
        options = self._task.options
        return options[(options.index(told) + 1) % len(options)]

    def _fetched(self) -> int:
        return sum(path.stat().st_size for path in self._adapters.glob("*/*") if path.is_file())


def is_hostile(plan: FleetPlan, number: int) -> bool:
    """Whether a device is one of the attackers, which the seed chooses."""
    order = np.random.default_rng([plan.seed, 5]).permutation(plan.devices)
    return number in order[: plan.hostile]


def seeded_key(seed: int, name: str) -> SigningKey:
    """A key that anybody can make again: it protects nothing outside of a simulation."""
    raw = hashlib.sha256(f"cascade fleet {seed} {name}".encode()).digest()
    return SigningKey(Ed25519PrivateKey.from_private_bytes(raw))


def _source(row: FleetRow, kept: bool) -> Source:
    if kept:
        return Source.DEVICE
    return Source.CLOUD if row.teacher else Source.CORRECTION
