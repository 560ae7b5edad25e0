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
    """Measure ``logits`` (float32, shape ``[vocab]``, left as they were).

    In as few calls as can be: after a decode step has gone through the caches, each of them costs
    more to begin than to compute.
    """
    argmax = int(logits.argmax())
    top = float(logits[argmax])
    if not math.isfinite(top):  # NaN and +inf come first; log_z tells
        return RowStats(argmax, math.nan, math.nan, math.nan)
    weights, ones = _scratch(len(logits))
    np.subtract(logits, logits[argmax], weights)
    np.exp(weights, weights)
    z = float(np.vdot(weights, ones))
    # H = log Z − Σ p·x for x = logits − max.
    mean = _weighted(weights, logits) / z - top
    weights[argmax] = 0.0
    margin = (1.0 - float(weights[weights.argmax()])) / z if len(weights) > 1 else 1.0
    log_z = math.log(z)
    return RowStats(argmax, top + log_z, max(0.0, log_z - mean), margin)


def _weighted(weights: Row, logits: Row) -> float:
    """Σ weight · logit, where logits of −inf have weight 0 and add nothing."""
    total = float(np.vdot(weights, logits))  # unlike dot, it warns of no NaN
    if math.isnan(total):
        total = float(np.vdot(weights, np.maximum(logits, np.float32(-1e30))))
    return total


_of_thread = threading.local()


def _scratch(size: int) -> tuple[Row, Row]:
    """A row that this thread writes over, and one of ones: fresh ones would cost nearly half of the
    time in page faults, since the allocator maps arrays of this size anew each time."""
    kept: tuple[Row, Row] | None = getattr(_of_thread, "rows", None)
    if kept is None or len(kept[0]) != size:
        kept = _of_thread.rows = (np.empty(size, np.float32), np.ones(size, np.float32))
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
