"""What tuning without statistics picks, for comparison only. Nothing here is certified."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from cascade.binomial import check_level
from cascade.errors import InvalidInput
from cascade.rows import labelled, unit_floats


@dataclass(frozen=True, slots=True)
class UncertifiedThreshold:
    """A threshold whose risk is an observation on the tuning rows, no guarantee.

    Arguments:
        threshold: lowest confidence to accept, in [0, 1].
        coverage: share of the tuning rows accepted, in (0, 1].
        risk: error rate among these; None where it was picked without labels.
    """

    threshold: float
    coverage: float
    risk: float | None


def naive_threshold(
    confidence: ArrayLike, correct: ArrayLike, *, alpha: float
) -> UncertifiedThreshold | None:
    """The lowest threshold whose *observed* selective risk is at most alpha.

    This is what tuning by eye or by empirical risk does, and it exceeds alpha about every second
    time.

    Arguments are those of ``certify``; every confidence that occurs is tried.

    Returns:
        The threshold, or None when every one has an observed risk above alpha.

    Raises:
        InvalidInput: bad shapes, NaN, or numbers out of range.
    """
    floats, right = labelled(confidence, correct)
    check_level("alpha", alpha)
    order = np.argsort(-floats, kind="stable")
    falling = floats[order]
    errors = np.cumsum(~right[order])
    accepted = np.arange(1, len(floats) + 1)
    # Rows that tie are accepted together: only the last of each tie is a threshold.
    last_of_tie = np.append(np.diff(falling) < 0, True)
    good = np.flatnonzero(last_of_tie & (errors <= alpha * accepted))
    if not len(good):
        return None
    best = good[-1]
    return UncertifiedThreshold(
        threshold=float(falling[best]),
        coverage=float(accepted[best] / len(floats)),
        risk=float(errors[best] / accepted[best]),
    )


def quantile_threshold(confidence: ArrayLike, *, escalate: float) -> UncertifiedThreshold:
    """The threshold at which about a share ``escalate`` of the tuning rows falls below: what
    routers do that are tuned by call share. It says nothing about errors.

    Arguments:
        confidence: confidences of the tuning rows, in [0, 1], shape ``[rows]``; no labels.
        escalate: share to escalate, in [0, 1).

    Raises:
        InvalidInput: bad shapes, NaN, or numbers out of range.
    """
    floats = unit_floats("confidence", confidence)
    if not 0 <= escalate < 1:
        raise InvalidInput("escalate", f"{escalate} is not in 0 … 1, without 1")
    threshold = float(np.quantile(floats, escalate, method="higher"))
    return UncertifiedThreshold(threshold, float(np.mean(floats >= threshold)), None)
