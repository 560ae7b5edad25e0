"""What runs on all devices of a simulated fleet: an adapter's weights, and what decides about its
answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cascade.confidence import ConfidenceModel
from cascade.rows import Bools, Floats
from cascade.task import Task
from edge.adapter import LoraPair
from edge.head import Head

Probabilities = NDArray[np.float32]
"""Of the task's options, shape ``[options]``; their sum is 1."""


@dataclass(frozen=True, slots=True)
class Weights:
    """An adapter's: pairs, or a head."""

    pairs: Mapping[str, LoraPair]
    head: Head | None = None


@dataclass(frozen=True, slots=True)
class ServedPolicy:
    """What decides on a device whether it keeps an answer.

    Arguments:
        confidence: of an answer.
        threshold: the lowest confidence that is kept; ``None`` escalates all.
    """

    confidence: ConfidenceModel
    threshold: float | None

    def keeps(self, scores: Floats) -> Bools:
        """Which answers of these raw scores are kept."""
        if self.threshold is None or not len(scores):
            return np.zeros(len(scores), bool)
        return np.asarray((scores > 0) & (self.confidence.batch(scores) >= self.threshold))


def raw_scores(task: Task, found: Sequence[Probabilities]) -> Floats:
    """The score of each best answer, in [0, 1]: its probability, or 0 where it says that the input
    is none of the task's, which no device keeps."""
    outside = task.options.index(task.outside) if task.outside else -1
    return np.array(
        [0.0 if int(each.argmax()) == outside else float(each.max()) for each in found]
    ).clip(0, 1)
