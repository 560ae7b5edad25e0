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
    weights = _scratch()
    z = mass = second = 0.0
    # H = log Z − Σ p·x for x = logits − max. NaN and infinities are told by ``log_z``.
    with np.errstate(invalid="ignore"):
        for start in range(0, len(logits), _BLOCK):
            part = logits[start : start + _BLOCK]
            block = weights[: len(part)]
            np.subtract(part, top, out=block)
            np.exp(block, out=block)
            z += float(block.sum())
            mass += _weighted(block, part)
            if start <= argmax < start + _BLOCK:
                block[argmax - start] = 0.0
            second = max(second, float(block.max()))
    if not math.isfinite(z):
        return RowStats(argmax, math.nan, math.nan, math.nan)
    log_z, mean = math.log(z), mass / z - float(top)
    margin = (1.0 - second) / z if len(logits) > 1 else 1.0
    return RowStats(argmax, float(top) + log_z, max(0.0, log_z - mean), margin)


# What fits, beside the logits themselves, into the second-level cache of small processors.
_BLOCK = 24576
_of_thread = threading.local()


def _scratch() -> Row:
    """A block that this thread writes over: fresh ones would cost nearly half of the time in page
    faults, since the allocator maps arrays of this size anew each time."""
    kept: Row | None = getattr(_of_thread, "block", None)
    if kept is None:
        kept = _of_thread.block = np.empty(_BLOCK, np.float32)
    return kept


def _weighted(weights: Row, logits: Row) -> float:
    """Σ weight · logit, where logits of −inf have weight 0 and add nothing."""
    total = float(np.dot(weights, logits))
    if math.isnan(total):
        total = float(np.dot(weights, np.maximum(logits, np.float32(-1e30))))
    return total


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
