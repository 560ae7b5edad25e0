"""What learns best from few labels on one device: a head, LoRA, both, or nothing.

Two tasks with the real device model: sentiment (the demo's wording; labels from its develop part,
accuracy on its test part) and commands to a home (fifteen intents; templates of one side never
appear on the other). Nothing is chosen on the rows that are reported: the recipes are the defaults
of ``cascade adapters train``. "Nothing" is the model's own corrected scores, as ``choose`` gives
them with the task's examples in the prompt. An arm's CPU is that of training alone: what reading
the examples takes is a row of its own.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.decision.datasets.commands import COMMANDS
from benchmarks.edge.subject import Subject
from benchmarks.rows import Row
from benchmarks.run import Run
from benchmarks.timing import Estimate, measure
from cascade.binomial import clopper_pearson_interval
from cascade.cli.demo.data import load_sentences
from cascade.cli.demo.parts import Sizes, largest_sizes, split
from cascade.cli.demo.setting import SENTENCES, TASK
from cascade.download import pull
from cascade.records import text_key
from cascade.records.split import assign
from cascade.request import Message
from cascade.signing import TrustStore
from cascade.task import Task
from edge import Bundle, OnnxModel
from edge.adapter import LoraPair
from edge.training import LessonMaker, Trainer, TrainingExample, TrainingPlan, open_training
from edge.training.head import HeadData, head_scores
from edge.training.learners import Candidate, Measuring, activate, best, head_candidate
from edge.training.trainer import kept_aside

_LABELS, _QUICK_LABELS = (50, 100, 400), (50, 100)
_TEST, _QUICK_TEST = {"sentiment": 480, "commands": 240}, 100
"""A command is scored against fifteen answers behind a long prompt, under each adapter anew."""
_THREADS = os.cpu_count() or 1
_PLAN = TrainingPlan(val_share=0.2, max_tokens=1024)
"""The defaults, but for the share kept aside, for a tenth of 50 labels tells nothing, and for the
length, because the commands have an example of each intent in their prompt."""


@dataclass(frozen=True, slots=True)
class _Set:
    """A task with labelled examples to learn from, in a fair order, and to test on."""

    name: str
    task: Task
    learn: Sequence[TrainingExample]
    test: Sequence[TrainingExample]


def rows(subject: Subject, run: Run) -> Iterator[Row]:
    """Accuracies by task, number of labels and arm."""
    bundle = Bundle.open(subject.bundle, TrustStore(subject.trust))
    keep = Path(subject.folder.name) / "measured"
    for each in (_sentiment(), _commands()):
        most = _QUICK_TEST if run.quick else _TEST[each.name]
        yield from _of_set(run, bundle, each, each.test[:most], keep)


def _of_set(
    run: Run, bundle: Bundle, of: _Set, test: Sequence[TrainingExample], keep: Path
) -> Iterator[Row]:
    model = OnnxModel(bundle, threads=_THREADS)
    measuring = Measuring(model, of.task, keep=keep)
    run.say(f"{of.name}: reading {len(test)} test examples")
    base_test = measuring.data(test)
    how = f"{len(test)} test examples"
    yield run.row(
        f"learners: {of.name}, nothing learned",
        _accuracy(base_test.scores, base_test),
        "%",
        f"{how}; the model's own corrected scores",
        sense=">=",
    )
    for count in _QUICK_LABELS if run.quick else _LABELS:
        examples = of.learn[:count]
        maker = LessonMaker(bundle, of.task)
        lessons = [maker.lesson(example) for example in examples]
        aside = {lesson.digest for lesson in kept_aside(lessons, _PLAN)[1]}
        kept = np.array([lesson.digest in aside for lesson in lessons])

        run.say(f"{of.name}: {count} labels, head")
        activate(model, {})
        data = measuring.data(examples)
        made: dict[str, tuple[Candidate, HeadData]] = {}
        spent: dict[str, float] = {}

        def head() -> None:
            made["head"] = (_head(of, model, data, kept), base_test)  # noqa: B023

        spent["head"] = measure(head).cpu_s

        run.say(f"{of.name}: {count} labels, LoRA")
        session, _ = open_training(bundle, None, threads=_THREADS, keep=keep)
        trainer = Trainer(session, lessons, _PLAN)
        for _ in trainer.read():
            pass

        def lora() -> None:
            for _ in trainer.run():  # noqa: B023
                pass

        spent["lora"] = measure(lora).cpu_s
        pairs = trainer.result()
        del session
        activate(model, pairs)
        under = Measuring(model, of.task)
        under_test = under.data(test)
        made["lora"] = (Candidate("lora", pairs, None, trainer.best_loss), under_test)
        with_both = _head(of, model, under.data(examples), kept, pairs=pairs)
        made["both"] = (with_both, under_test)
        chosen = best([candidate for candidate, _ in made.values()])
        for name, (candidate, seen) in made.items():
            scores = seen.scores if candidate.head is None else head_scores(candidate.head, seen)
            loss = "none" if candidate.loss is None else f"{candidate.loss:.3f}"
            note = f"{how}; loss on {int(kept.sum())} kept aside: {loss}"
            if candidate.head is not None:
                note += f"; weight of the model's own scores {candidate.head.spec.lm_weight:.2f}"
            if candidate is chosen:
                note += "; this is the one that train takes"
            yield run.row(
                f"learners: {of.name}, {count} labels, {_NAMES[name]}",
                _accuracy(scores, seen),
                "%",
                note,
                sense=">=",
            )
            if name in spent:
                yield run.row(
                    f"learners: {of.name}, {count} labels, CPU of {_NAMES[name]}",
                    Estimate(spent[name], 1),
                    "s",
                    f"training alone, {_THREADS} threads of onnxruntime",
                )


_NAMES = {"head": "a head", "lora": "LoRA", "both": "LoRA with a head"}


def _head(
    of: _Set,
    model: OnnxModel,
    data: HeadData,
    kept: NDArray[np.bool_],
    *,
    pairs: Mapping[str, LoraPair] | None = None,
) -> Candidate:
    return head_candidate(
        of.task,
        model.hidden_layer,
        data.take(np.flatnonzero(~kept)),
        data.take(np.flatnonzero(kept)),
        pairs=pairs or {},
        learner="head" if pairs is None else "both",
    )


def _accuracy(scores: NDArray[np.float64], data: HeadData) -> Estimate:
    right = int((scores.argmax(axis=1) == data.labels).sum())
    low, high = clopper_pearson_interval(right, len(data))
    return Estimate(100 * right / len(data), len(data), (100 * low, 100 * high))


def _sentiment() -> _Set:
    sentences = load_sentences(pull(SENTENCES)).sentences
    most = largest_sizes(sentences)
    parts = split(sentences, Sizes(most.develop, 1000, min(_TEST["sentiment"], most.test)))
    develop, test = (
        [_example(row.text, row.label, TASK) for row in part]
        for part in (parts.develop, parts.test)
    )
    return _Set("sentiment", TASK, develop, test)


def _commands() -> _Set:
    task = COMMANDS.wording
    assert task is not None
    found = COMMANDS.rows()
    sides = assign(
        [row.document for row in found],
        [text_key(row.prompt) for row in found],
        {"learn": 0.5, "test": 0.5},
        "learners-1",
    )
    learn, test = (
        [
            _example(row.prompt, row.reference, task)
            for row, side in zip(found, sides, strict=True)
            if side == name
        ]
        for name in ("learn", "test")
    )
    return _Set("commands", task, learn, test)


def _example(text: str, answer: str, task: Task) -> TrainingExample:
    return TrainingExample((Message("user", text),), answer, task.options)
