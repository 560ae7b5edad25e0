"""What is compared: each arm is a whole fleet, or what it would be without learning."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, get_args

import numpy as np

from benchmarks.federated.loop.tasks import Arm, Attacked, LoopTask
from cascade.request import Message
from cascade.signing import TrustStore
from cascade.task import Task
from cloud.federation.config import AggregationConfig, PlanConfig
from cloud.fleet import BundleAt, FleetPlan, FleetRow, FleetSimulation, Partition, Parts, parts
from cloud.fleet.figures import RoundFigures
from cloud.fleet.plan import Attackers, Learner
from cloud.fleet.referee import Referee, Standing
from cloud.fleet.served import Probabilities, Weights
from edge.bundle import Bundle
from edge.model import OnnxModel
from edge.training.examples import LessonMaker, TrainingExample
from edge.training.gradient import GradientSession
from edge.training.learners import Measuring
from edge.training.softmax import log_softmax

DEVICES: Final = 10
ROUNDS: Final = 6

_HEAD: Final = PlanConfig(clip_norm=20.0)
"""Heads are sent as they are fitted; 20 bounds an odd one."""
_FFA: Final = PlanConfig(layers=4, learning_rate=0.05, batch=8, clip_norm=20.0)
_PRODUCT: Final = _FFA.model_copy(update={"trained": "both", "learning_rate": 0.01})
_RANK: Final = 8
_PRODUCT_RANK: Final[dict[str, int]] = {"lora, product": 4, "lora, product of rank 3": 3}
"""B alone of rank 8 is 25 KB, A and B are 31 and 24. ``docs/loop.md`` has what was tried."""

_AGGREGATION: Final = {"head": AggregationConfig(rate=2.0), "lora": AggregationConfig()}
"""Devices of few examples learn in directions of their own, of which an average leaves little."""

ATTACKERS: Final = 0.3
"""Share of the devices."""


@dataclass(frozen=True, slots=True)
class Ground:
    """Where an arm is run.

    Arguments:
        at: bundle and keys.
        trunk: what the bundle shows of inputs, shared by all runs.
        scratch: for the folders of simulations, removed behind each.
        found: what runs came to.
    """

    bundle: Bundle
    at: BundleAt
    trunk: Path
    scratch: Path
    found: Path

    @classmethod
    def of(cls, at: BundleAt, folder: Path) -> Ground:
        """In a folder that may be there from an earlier run."""
        bundle = Bundle.open(at.path, TrustStore(at.trust))
        return cls(bundle, at, folder / "trunk", folder / "runs", folder / "found")


def plan_of(of: LoopTask, arm: str, seed: int) -> FleetPlan:
    """A simulation of the task. Arms that are no fleet have that of ``head``."""
    product_rank = _PRODUCT_RANK.get(arm)
    learner: Learner = "lora" if arm == "lora" or product_rank else "head"
    attacked = arm in get_args(Attacked)
    training = (_PRODUCT if product_rank else _FFA) if learner == "lora" else _HEAD
    return FleetPlan(
        devices=DEVICES,
        rounds=ROUNDS,
        seed=seed,
        partition=Partition.of(of.partition),
        per_round=of.per_round,
        learner=learner,
        starting=of.starting,
        recertify=arm != "head, not certified anew",
        attackers=Attackers.of(f"{ATTACKERS}:{arm.removeprefix('head, ')}")
        if attacked
        else Attackers(),
        most_worse=0.02 if attacked else 0.01,
        gate_delta=0.01 if attacked else None,  # as a cluster's gate does: liars try in every round
        target=of.target,
        alpha=of.alpha,
        aggregation=_AGGREGATION[learner].model_copy(
            update={"rule": of.attacked} if attacked else {}
        ),
        rank=product_rank or _RANK,
        training=training.model_copy(
            update={"seed": seed} | ({"max_steps": of.lora_steps} if learner == "lora" else {})
        ),
    )


def parts_of(of: LoopTask, seed: int) -> Parts:
    """The task's rows by their use."""
    return parts(
        of.rows, seed=seed, most=of.most, starting=of.starting, outside=bool(of.task.outside)
    )


def simulated(
    of: LoopTask,
    arm: Arm,
    seed: int,
    ground: Ground,
    say: Callable[[str], None] = lambda line: None,
) -> list[RoundFigures]:
    """All rounds of a fleet; number 0 first."""
    plan = plan_of(of, arm, seed)
    folder = ground.scratch / f"{of.name}-{arm}-{seed}".replace(" ", "-")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    simulation = FleetSimulation(
        folder.absolute(),
        plan,
        (of.lora or of.task) if plan.learner == "lora" else of.task,
        ground.bundle,
        ground.at,
        rows=parts_of(of, seed),
        trunk=ground.trunk.absolute(),
    )
    found = []
    try:
        for each in simulation.run():
            say(
                f"{of.name}, {arm}, seed {seed}: round {each.round}, escalated "
                f"{each.escalation:.1%}, right {each.accuracy:.1%}"
            )
            found.append(each)
    finally:
        simulation.close()
        shutil.rmtree(folder, ignore_errors=True)
    return found


def read(of: LoopTask, learner: Learner, rows: Sequence[FleetRow], ground: Ground) -> None:
    """Keep what arms look at of these rows."""
    if learner == "head":
        model = OnnxModel(ground.bundle)
        measuring = Measuring(model, of.task, keep=ground.trunk, scores=False)
        for row in rows:
            measuring.of(row.text)
        return
    session = GradientSession(ground.bundle, keep=ground.trunk)
    task = of.lora or of.task
    maker = LessonMaker(ground.bundle, task)
    for row in rows:
        asked = TrainingExample((Message("user", row.text),), task.options[0], task.options)
        for segment in maker.lesson(asked).segments:
            session.activations.get(segment)


def asked(of: LoopTask, wording: Task, seed: int, ground: Ground) -> Standing:
    """How the base model does that is only asked, with its prior subtracted, as ``choose`` does."""
    plan = plan_of(of, "head", seed)
    return Referee(_Asking(ground, wording), plan, of.task, parts_of(of, seed)).standing(
        "asked", Weights({})
    )


class _Asking:
    """``cloud.fleet.referee.Answering`` for one wording and no adapter."""

    def __init__(self, ground: Ground, wording: Task) -> None:
        self._measuring = Measuring(OnnxModel(ground.bundle), wording, keep=ground.trunk)

    def probabilities(self, rows: Sequence[FleetRow], weights: Weights) -> list[Probabilities]:
        """Of the options, for each row."""
        scores = np.stack([self._measuring.of(row.text)[1] for row in rows])
        return list(np.exp(log_softmax(scores)).astype(np.float32))
