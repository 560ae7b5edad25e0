"""Signals of one row of logits, in a few fused passes over float32."""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from cascade.signals import Signals
from edge.decoder import Row


class RowStats(NamedTuple):
    """One next-token distribution.

    Arguments:
        argmax: the most probable token; the lowest id of equals.
        log_z: natural log of the sum of exp(logits).
        entropy: in nats, ≥ 0.
        margin: difference of the two largest probabilities, in [0, 1].
    """

    argmax: int
    log_z: float
    entropy: float
    margin: float


def row_stats(logits: Row) -> RowStats:
    """Measure ``logits`` (float32, shape ``[vocab]``, left as they were)."""
    argmax = int(logits.argmax())
    top = logits[argmax]
    shifted, weights = _scratch(len(logits))
    np.subtract(logits, top, out=shifted)
    np.exp(shifted, out=weights)
    z = float(weights.sum())
    # H = log Z − Σ p·x for x = logits − max.
    with np.errstate(invalid="ignore"):
        mean = float(np.dot(weights, shifted)) / z
    if math.isnan(mean):  # −inf logits have weight 0 and add nothing
        mean = float(np.dot(weights, np.maximum(shifted, np.float32(-1e30)))) / z
    weights[argmax] = 0.0
    margin = (1.0 - float(weights.max())) / z if len(weights) > 1 else 1.0
    return RowStats(argmax, float(top) + math.log(z), max(0.0, math.log(z) - mean), margin)


_of_thread = threading.local()


def _scratch(size: int) -> tuple[Row, Row]:
    """Two rows that this thread writes over: fresh ones would cost nearly half of the time in page
    faults, since the allocator maps arrays of this size anew each time."""
    kept: tuple[Row, Row] | None = getattr(_of_thread, "rows", None)
    if kept is None or len(kept[0]) != size:
        kept = _of_thread.rows = (np.empty(size, np.float32), np.empty(size, np.float32))
    return kept


@dataclass(slots=True)
class SignalLog:
    """Collects the signals of an answer token by token."""

    logprobs: list[float] = field(default_factory=list)
    entropies: list[float] = field(default_factory=list)
    margins: list[float] = field(default_factory=list)

    def add(self, logprob: float, stats: RowStats) -> None:
        """One more token, chosen with ``logprob`` from the distribution of ``stats``."""
        self.logprobs.append(logprob)
        self.entropies.append(stats.entropy)
        self.margins.append(stats.margin)

    def signals(self) -> Signals:
        """What was collected."""
        return Signals(
            np.array(self.logprobs, np.float32),
            np.array(self.entropies, np.float32),
            np.array(self.margins, np.float32),
        )
