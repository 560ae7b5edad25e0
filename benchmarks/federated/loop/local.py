"""Devices that learn by themselves alone: each fits a head to the starting labels, to what it has
escalated so far and, lightly, to what it kept, and nothing is sent. Each has its own certificate,
from the same rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from benchmarks.federated.loop.arms import DEVICES, ROUNDS, Ground, parts_of, plan_of
from benchmarks.federated.loop.tasks import LoopTask
from cloud.fleet import FleetRow
from cloud.fleet.referee import Referee, Standing
from cloud.fleet.served import Probabilities, Weights, raw_scores
from cloud.fleet.starting import starting_weights
from edge.head import Floats, Head
from edge.model import OnnxModel
from edge.training.head import HeadData, train_head
from edge.training.learners import Measuring
from edge.training.softmax import log_softmax


class _Heads:
    """``cloud.fleet.referee.Answering`` for heads."""

    def __init__(self, measuring: Measuring) -> None:
        self.measuring = measuring

    def features(self, rows: Sequence[FleetRow]) -> Floats:
        return np.stack([self.measuring.of(row.text)[0] for row in rows])

    def probabilities(self, rows: Sequence[FleetRow], weights: Weights) -> list[Probabilities]:
        head = weights.head
        assert head is not None
        logits = head.logits(self.features(rows))
        return list(np.exp(log_softmax(logits)).astype(np.float32))


@dataclass(frozen=True, slots=True)
class _Lesson:
    row: FleetRow
    answer: str
    weight: float = 1.0


def alone(of: LoopTask, seed: int, ground: Ground) -> list[list[Standing]]:
    """How each device stands, by round; number 0 first."""
    plan, given = plan_of(of, "head", seed), parts_of(of, seed)
    start = starting_weights(ground.bundle, plan, of.task, given.starting, ground.trunk).head
    assert start is not None
    heads = _Heads(Measuring(OnnxModel(ground.bundle), of.task, keep=ground.trunk, scores=False))
    referee = Referee(heads, plan, of.task, given)
    owned = plan.partition.share_out(given.fleet, DEVICES, seed)
    by_round = [[referee.standing("start", Weights({}, start))] * DEVICES]
    learned = [[_Lesson(row, row.told(of.task)) for row in given.starting] for _ in range(DEVICES)]
    running = [start] * DEVICES
    for number in range(1, ROUNDS + 1):
        standings = []
        for device in range(DEVICES):
            rows = owned[device][(number - 1) * plan.per_round : number * plan.per_round]
            if rows:
                found = heads.probabilities(rows, Weights({}, running[device]))
                kept = by_round[-1][device].policy.keeps(raw_scores(of.task, found))
                learned[device] += [
                    _Lesson(row, of.task.options[int(p.argmax())], plan.rehearsal)
                    if k
                    else _Lesson(row, row.told(of.task))
                    for row, p, k in zip(rows, found, kept, strict=True)
                ]
                running[device] = _fitted(of, start, learned[device], heads)
            name = f"{number}/{device}"
            standings.append(referee.standing(name, Weights({}, running[device])))
        by_round.append(standings)
    return by_round


def _fitted(of: LoopTask, start: Head, learned: Sequence[_Lesson], heads: _Heads) -> Head:
    data = HeadData(
        heads.features([each.row for each in learned]),
        np.zeros((len(learned), len(of.task.options))),
        np.array([of.task.options.index(each.answer) for each in learned], np.intp),
        np.array([each.weight for each in learned]),
        tuple(each.row.text for each in learned),
    )
    found = train_head(start.spec, data, on_top_of_lm=0.0).head
    return replace(found, spec=start.spec)
