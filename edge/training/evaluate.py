"""Is an adapter better than its parent? The same examples asked of both, and their differences.

Answers are those that a device gives: ``OnnxModel`` asked as ``Device.ask`` and ``Device.choose``
ask it. Intervals are of paired differences, because both answer the same questions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from cascade.graders import Answered, Grader
from cascade.metrics import paired_difference
from edge.adapter import Adapter, LoraPair
from edge.bundle import Bundle
from edge.model import OnnxModel
from edge.training.examples import LessonMaker, TrainingExample
from edge.training.gradient import GradientSession
from edge.training.head import answer_losses, head_scores
from edge.training.learners import Measuring
from edge.training.trunk import Keep

OnExample = Callable[[int], None]

_AT_ONCE = 8
"""Examples between two words about how far it is."""


@dataclass(frozen=True, slots=True)
class Figure:
    """One figure of both.

    Arguments:
        parent, adapter: means over the examples.
        difference: adapter minus parent.
        interval: of the difference, 95 %.
        n: examples.
    """

    parent: float
    adapter: float
    difference: float
    interval: tuple[float, float]
    n: int


def losses(
    bundle: Bundle,
    examples: Sequence[TrainingExample],
    maker: LessonMaker,
    adapter: Adapter | None,
    *,
    threads: int = 1,
    on_example: OnExample = lambda done: None,
) -> list[float]:
    """The loss of each example: by the adapter's head where a device answers by it, and else as
    training counts it.

    Arguments:
        on_example: told how many are done.
    """
    found = np.zeros(len(examples))
    head = None if adapter is None else adapter.head
    by_head, others = list[int](), list[int]()
    for index, each in enumerate(examples):
        task = maker.task_of(each.options) if each.options else None
        headed = head is not None and task is not None and head.spec.task.asked_like(task)
        (by_head if headed else others).append(index)
    if others:
        session, pairs = open_training(bundle, adapter, threads=threads)
        for start in range(0, len(others), _AT_ONCE):
            part = others[start : start + _AT_ONCE]
            lessons = [maker.lesson(examples[index]) for index in part]
            found[part] = session.run(lessons, pairs).losses
            on_example(start + len(part))
    if adapter is not None and head is not None and by_head:
        model = OnnxModel(bundle, threads=threads)
        model.use_adapter(model.load_adapter(adapter))
        measuring = Measuring(model, head.spec.task, scores=bool(head.spec.lm_weight))
        asked = [examples[index] for index in by_head]
        data = measuring.data(asked, lambda done: on_example(len(others) + done))
        found[by_head] = answer_losses(head_scores(head, data), data)
    return [float(each) for each in found]


def open_training(
    bundle: Bundle, adapter: Adapter | None, *, threads: int = 1, keep: Keep = "memory"
) -> tuple[GradientSession, dict[str, LoraPair]]:
    """A session with an adapter's frozen lower layers in it, and its pairs of the trained ones.

    Arguments:
        keep: see ``GradientSession``.

    Raises:
        BundleError: the bundle cannot train, or the adapter does not fit it.
    """
    pairs = {} if adapter is None else dict(adapter.pairs)
    if adapter is not None:
        adapter.inputs(bundle.manifest)  # refuses what does not fit
    session = GradientSession(bundle, frozen=pairs, threads=threads, keep=keep)
    return session, {name: pair for name, pair in pairs.items() if name in session.modules}


def answers(
    model: OnnxModel,
    examples: Sequence[TrainingExample],
    maker: LessonMaker,
    grader: Grader,
    on_example: OnExample,
) -> list[float]:
    """The grade of each answer of ``model``, whatever adapter it has active: 0 or 1."""
    grades = []
    for number, example in enumerate(examples):
        question = example.messages[-1].content
        if example.options:
            task = maker.task_of(example.options)
            answer = model.choose(
                task.for_device(question),
                example.options,
                prior_prompt=task.prior_prompt(),
                option_prefix=task.option_prefix,
            )
            right = answer.text == example.answer
        else:
            limit = model.count_tokens(example.answer) + 8
            answer = model.generate(example.messages, max_tokens=limit)
            asked = Answered(question, answer.text, example.answer)
            grade = None if grader.grade is None else grader.grade(asked)
            right = grade is not None and grade >= 1
        grades.append(float(right))
        on_example(number + 1)
    return grades


def figure(parent: Sequence[float], adapter: Sequence[float], *, accuracy: bool) -> Figure:
    """Both means, and the paired difference: Tango's interval for accuracies, the normal one
    for the mean of other differences."""
    one, two = np.array(adapter), np.array(parent)
    if accuracy:
        paired = paired_difference(one, two)
        interval, difference = paired.interval, paired.difference
    else:
        differences = one - two
        difference = float(differences.mean())
        half = 0.0
        if len(one) > 1:
            half = 1.96 * float(differences.std(ddof=1)) / math.sqrt(len(one))
        interval = (difference - half, difference + half)
    return Figure(float(two.mean()), float(one.mean()), difference, interval, len(one))


def by_kind(
    examples: Sequence[TrainingExample], grades: Mapping[str, Sequence[float]]
) -> dict[str, Figure]:
    """Accuracies of free text and of closed sets, where there are any.

    Arguments:
        grades: of ``"parent"`` and ``"adapter"``.
    """
    figures = {}
    for name, closed in (("choose_accuracy", True), ("text_accuracy", False)):
        chosen = [i for i, example in enumerate(examples) if bool(example.options) is closed]
        if chosen:
            parent, adapter = ([grades[side][i] for i in chosen] for side in ("parent", "adapter"))
            figures[name] = figure(parent, adapter, accuracy=True)
    return figures
