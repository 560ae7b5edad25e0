"""What a fleet starts from: an adapter that changes nothing yet, or one that was trained on a few
labelled rows in one place, as an operator would do before the first round."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

import numpy as np

from cascade.request import Message
from cascade.task import Task
from cloud.fleet.plan import FleetPlan
from cloud.fleet.rows import FleetRow
from cloud.fleet.served import Weights
from edge.adapter import LoraPair
from edge.bundle import Bundle
from edge.head import HeadSpec
from edge.model import OnnxModel
from edge.training import LessonMaker, Trainer, TrainingExample, TrainingPlan, drawn_a
from edge.training.gradient import GradientSession
from edge.training.head import train_head
from edge.training.learners import Measuring

_MODULES: Final = ("q_proj", "v_proj")
_EPOCHS: Final = 10


def starting_weights(
    bundle: Bundle,
    plan: FleetPlan,
    task: Task,
    rows: Sequence[FleetRow],
    trunk: Path,
    *,
    watch: Callable[[int, int], None] = lambda done, total: None,
) -> Weights:
    """The first adapter.

    Arguments:
        rows: labelled ones; may be none for LoRA, which then changes nothing.
        trunk: folder of what the bundle shows of inputs.
        watch: told how many rows were read for a head, or steps taken for LoRA, of how many.

    Raises:
        InvalidInput: a head has no labels, or all are of one answer.
    """
    examples = [
        TrainingExample((Message("user", row.text),), row.answer or task.outside, task.options)
        for row in rows
        if row.answer or task.outside
    ]
    if plan.learner == "head":
        model = OnnxModel(bundle)
        data = Measuring(model, task, keep=trunk, scores=False).data(
            examples, lambda done: watch(done, len(examples))
        )
        spec = HeadSpec(task, model.hidden_layer)
        return Weights({}, train_head(spec, data, on_top_of_lm=0.0, seed=plan.seed).head)
    session = GradientSession(bundle, keep=trunk)
    pairs = _untrained(session, plan)
    if examples:
        maker = LessonMaker(bundle, task)
        trainer = Trainer(
            session, [maker.lesson(each) for each in examples], _recipe(plan), parent=pairs
        )
        for taken, _ in enumerate(trainer.run(), start=1):
            watch(taken, trainer.steps)
        pairs = {**pairs, **trainer.result()}
    return Weights(pairs)


def _recipe(plan: FleetPlan) -> TrainingPlan:
    how = plan.training
    return TrainingPlan(
        layers=how.layers,
        modules=_MODULES,
        rank=plan.rank,
        frozen_a="the adapter's own" if how.trained == "b" else "",
        optimiser=how.optimiser,
        learning_rate=how.learning_rate,
        epochs=_EPOCHS,
        batch_size=how.batch,
        val_share=0.0,
        patience=0,
        seed=plan.seed,
    )


def _untrained(session: GradientSession, plan: FleetPlan) -> Mapping[str, LoraPair]:
    """A drawn from the seed, B 0, of the q and v projections of the plan's layers."""
    layers = sorted({slot.name.rpartition(".")[0] for slot in session.slots}, key=_number)
    chosen = set(layers[-plan.training.layers :])
    pairs = {}
    for slot in session.slots:
        if slot.name.rpartition(".")[0] not in chosen:
            continue
        for module, width in zip(slot.modules, slot.widths, strict=True):
            if module.rpartition(".")[2] in _MODULES:
                a = drawn_a(f"fleet {plan.seed}", module, slot.columns, plan.rank)
                pairs[module] = LoraPair(a, np.zeros((plan.rank, width), np.float32))
    return pairs


def _number(layer: str) -> int:
    return int(layer.split(".")[1])
