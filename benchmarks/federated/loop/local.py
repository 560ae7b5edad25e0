"""Devices that learn by themselves alone: each fits a head to the starting labels and to what it
has escalated so far, and nothing is sent. Each has its own certificate, from the same rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

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


def alone(of: LoopTask, seed: int, ground: Ground) -> list[list[Standing]]:
    """How each device stands, by round; number 0 first."""
    plan, given = plan_of(of, "head", seed), parts_of(of, seed)
    start = starting_weights(ground.bundle, plan, of.task, given.starting, ground.trunk).head
    assert start is not None
    heads = _Heads(Measuring(OnnxModel(ground.bundle), of.task, keep=ground.trunk, scores=False))
    referee = Referee(heads, plan, of.task, given)
    owned = plan.partition.share_out(given.fleet, DEVICES, seed)
    by_round = [[referee.standing("start", Weights({}, start))] * DEVICES]
    learned: list[list[tuple[FleetRow, str]]] = [
        [(row, row.teacher or row.answer or of.task.outside) for row in given.starting]
        for _ in range(DEVICES)
    ]
    running = [start] * DEVICES
    for number in range(1, ROUNDS + 1):
        standings = []
        for device in range(DEVICES):
            rows = owned[device][(number - 1) * plan.per_round : number * plan.per_round]
            if rows:
                found = heads.probabilities(rows, Weights({}, running[device]))
                kept = by_round[-1][device].policy.keeps(raw_scores(of.task, found))
                told = [row.teacher or row.answer or of.task.outside for row in rows]
                learned[device] += [
                    each
                    for each, k in zip(zip(rows, told, strict=True), kept, strict=True)
                    if not k
                ]
                running[device] = _fitted(of, start, learned[device], heads)
            name = f"{number}/{device}"
            standings.append(referee.standing(name, Weights({}, running[device])))
        by_round.append(standings)
    return by_round


def _fitted(of: LoopTask, start: Head, learned: list[tuple[FleetRow, str]], heads: _Heads) -> Head:
    rows = tuple(row for row, _ in learned)
    data = HeadData(
        heads.features(rows),
        np.zeros((len(rows), len(of.task.options))),
        np.array([of.task.options.index(told) for _, told in learned], np.intp),
        np.ones(len(rows)),
        tuple(row.text for row in rows),
    )
    found = train_head(start.spec, data, on_top_of_lm=0.0).head
    return replace(found, spec=start.spec)
