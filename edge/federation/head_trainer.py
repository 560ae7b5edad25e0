"""What a device adds to a head in a round: numpy, and what the model shows of its examples.

It fits the served head to its own examples, and lightly to answers of its own, and stays near it
(``edge.training.head``). Rows of answers that it has no example of are sent as they were: fitted,
they would only be pushed away from everything, and the coordinator does not count them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from cascade.federation.tensors import Floats
from cascade.task import Task
from edge.adapter import Adapter
from edge.bundle import Bundle
from edge.examples import Example, Weighted
from edge.head import Head
from edge.model import OnnxModel
from edge.training.head import HeadData, answer_losses, class_counts, head_scores, train_head
from edge.training.softmax import Doubles

STRENGTHS: Final = (0.5, 0.15, 0.05)
"""Penalties on the distance from the served head. A device takes the one that does best on what it
has kept aside: two answers want a strong one, 27 a weak one, and cross-validation on a device's few
kinds, which are easily told apart, a much too weak one."""

Measure = Callable[[Task, str], tuple[Floats, Doubles]]
"""What a model with some adapter shows of an input: features, and scores of the answers; the scores
are not looked at where a head does without them."""


def measuring(bundle: Bundle) -> Callable[[Adapter], Measure]:
    """Reads examples with the bundle's own decoder, under the adapter's pairs."""

    def of(adapter: Adapter) -> Measure:
        model = OnnxModel(bundle)
        model.use_adapter(model.load_adapter(adapter))
        head = adapter.head
        assert head is not None
        if head.spec.lm_weight:
            return model.measured
        none = np.zeros(len(head.spec.task.options))
        return lambda task, text: (model.features(task, text), none)

    return of


def of_head(head: Head, examples: Sequence[Weighted]) -> list[Weighted]:
    """Those of the head's task."""
    return [each for each in examples if _is_of(head.spec.task, each.example)]


def head_data(head: Head, examples: Sequence[Weighted], measure: Measure) -> HeadData | None:
    """The examples that are of the head's task, as it sees them; ``None`` without any."""
    task, mine = head.spec.task, of_head(head, examples)
    if not mine:
        return None
    texts = [each.example.messages[-1].content for each in mine]
    seen = [measure(task, text) for text in texts]
    return HeadData(
        np.stack([features for features, _ in seen]),
        np.stack([scores for _, scores in seen]),
        np.array([task.options.index(each.example.answer) for each in mine], np.intp),
        np.array([each.weight for each in mine], np.float64),
        tuple(texts),
    )


def _is_of(task: Task, example: Example) -> bool:
    """Whether an example was asked with the task's answers, in any order, and not for another task.

    One that was asked for no task is taken, and one for a group of it (``TASK.VALUE``,
    ``cascade.tune.group_tasks``). A task without a name is whatever is asked with its answers.
    """
    if set(example.options) != set(task.options):
        return False
    asked = example.task_id
    return not task.task_id or asked in ("", task.task_id) or asked.startswith(f"{task.task_id}.")


def losses(head: Head, data: HeadData) -> list[float]:
    """−log P(right answer) of each example, as a device with this head scores it."""
    return [float(each) for each in answer_losses(head_scores(head, data), data)]


def learned(head: Head, data: HeadData, rehearsal: HeadData | None, held_out: HeadData) -> Head:
    """The head after this device's examples; rows of answers without one are the same.

    Arguments:
        rehearsal: answers of its own, which are fitted along and give no answer a row.
        held_out: by which the penalty is chosen: the best of three, so that the head's losses on
            it are a little too low. The test whether it is better, on the same examples, lets up to
            three times its level through (``edge.training.worth_sending``).

    Raises:
        InvalidInput: all examples are of one answer.
    """
    mine = class_counts(data) > 0
    fitted_to = data if rehearsal is None else data.joined(rehearsal)
    found = [_fitted(head, fitted_to, mine, strength) for strength in STRENGTHS]
    return min(found, key=lambda each: sum(losses(each, held_out)))


def _fitted(head: Head, data: HeadData, mine: NDArray[np.bool_], strength: float) -> Head:
    found = train_head(
        head.spec, data, parent=head, l2=strength, on_top_of_lm=head.spec.lm_weight
    ).head
    return Head(
        head.spec,
        _where(mine, found.weight, head.weight),
        _where(mine, found.bias, head.bias),
        head.mean,
        head.scale,
    )


def _where(rows: NDArray[np.bool_], new: Floats, old: Floats) -> Floats:
    chosen = np.array(old)
    chosen[rows] = new[rows]
    return chosen
