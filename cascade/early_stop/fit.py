"""Fitting a rule to records: which part of them is for what, and in which order."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Final

import numpy as np
from numpy.typing import ArrayLike

from cascade.confidence import ConfidenceModel
from cascade.early_stop.rule import CHECKPOINTS, MOST_TOKENS, Checkpoint, EarlyStop
from cascade.early_stop.token_lists import TokenLists
from cascade.early_stop.tolerance import StopCertificate, tolerated_cutoff
from cascade.errors import CascadeError, InfeasibleTarget, InvalidInput
from cascade.rows import Bools, Floats, outcomes, unit_floats

MIN_ROWS: Final = 20
"""A checkpoint that fewer answers reach, or of either kind fewer than a quarter of this, is left
out."""

_CHANCE: Final = 0.1
_C: Final = 0.2  # of the regressions' penalty: many columns say nearly the same, rows are few


def plan_threshold(
    confidence: ArrayLike, correct: ArrayLike, *, rows: int, alpha: float, delta: float
) -> float | None:
    """The lowest threshold that a certificate of the selective risk has a fair chance to end at,
    from the develop part: about one in ten.

    Too low a threshold stops less than it could; below one that is too high the certificate cannot
    go. Were the certify part just like develop, thresholds whose p-value is ``delta`` would pass
    every other time; one time in ten those do whose p-value is 1.28 standard deviations above.

    Arguments:
        confidence, correct: of the develop part, shape ``[develop rows]``.
        rows: size of the certify part, ≥ 1.
        alpha, delta: as for ``cascade.certify.certify``.

    Returns:
        a threshold in (0, 1], or ``None`` where none would pass, or all answers would be kept.

    Raises:
        InvalidInput: bad shapes, NaN, or numbers out of range.
        CascadeError: scipy is not installed.
    """
    from cascade.certify import selective_risk, threshold_grid

    floats, target = unit_floats("confidence", confidence), selective_risk(correct, alpha=alpha)
    grid = threshold_grid(floats)
    wrong, kept = target.totals(floats, grid)
    larger = rows / len(floats)
    p_values = target.p_values_of(np.ceil(wrong * larger), np.floor(kept * larger), alpha)
    fair = NormalDist().cdf(NormalDist().inv_cdf(delta) - NormalDist().inv_cdf(_CHANCE))
    passed = np.flatnonzero((p_values <= fair) & (grid > 0))
    return float(grid[passed[-1]]) if len(passed) else None


@dataclass(frozen=True, slots=True)
class StopRule:
    """Checkpoints without a cutoff: what ``fit_early_stop`` makes of the develop part.

    Arguments:
        threshold, lowest_score, checkpoints: as in ``EarlyStop``.
    """

    threshold: float
    lowest_score: float | None
    checkpoints: tuple[Checkpoint, ...]

    def lowest(self, signals: TokenLists) -> Floats:
        """The lowest log odds of being kept that any checkpoint shows, shape ``[rows]``; infinite
        for answers too short for all. A cutoff stops the rows where this is at most the cutoff."""
        lowest = np.full(len(signals), np.inf)
        for checkpoint in self.checkpoints:
            rows, running = signals.running(checkpoint.tokens)
            lowest[rows] = np.minimum(lowest[rows], checkpoint.logits(running))
        return lowest


def fit_early_stop(
    signals: TokenLists,
    confidence: ArrayLike,
    model: ConfidenceModel,
    *,
    threshold: float,
    at: Sequence[int] = CHECKPOINTS,
) -> StopRule:
    """Fit the checkpoints on the develop part.

    Three disjoint parts come after each other: *develop* for the confidence, for ``threshold``
    (by ``plan_threshold``) and for this; *stop* for ``certify_early_stop``, whose answers nobody
    needs to grade; then *certify* for the policy's threshold, with stopped rows masked and no
    threshold of the grid below the planned one.

    Arguments:
        signals: of the develop part.
        confidence: of the same rows, in [0, 1], shape ``[rows]``.
        model: of the confidence, for the bound.
        threshold: the confidence from which an answer is kept, in (0, 1].
        at: numbers of tokens, ≥ 1, rising.

    Raises:
        InvalidInput: bad shapes or numbers out of range.
        CascadeError: scikit-learn is not installed.
    """
    if not 0 < threshold <= 1:
        raise InvalidInput("threshold", f"{threshold} is not above 0 and at most 1")
    if list(at) != sorted(set(at)) or any(not 1 <= tokens <= MOST_TOKENS for tokens in at):
        raise InvalidInput("at", "must be rising numbers of tokens, each at least 1")
    kept = _of_rows(signals, confidence) >= threshold
    return StopRule(threshold, model.lowest_score(threshold), _regressions(signals, kept, at))


def certify_early_stop(
    rule: StopRule,
    signals: TokenLists,
    confidence: ArrayLike,
    *,
    lost: float = 0.05,
    delta: float = 0.1,
) -> EarlyStop:
    """Choose the cutoff on records that nothing was fitted to: the highest of which
    ``tolerated_cutoff`` can say that it stops few of the answers that are kept.

    Arguments:
        signals, confidence: of the stop part; no labels.
        lost: largest share of the kept answers that may be stopped, in (0, 1).
        delta: probability of exceeding it, over the draw of the stop part, in (0, 1).

    Raises:
        InfeasibleTarget: too few answers are kept; it names how many records would be needed. The
            bound alone, which needs none, is ``bound_alone(rule)``.
        InvalidInput: bad shapes, or numbers out of range.
        CascadeError: scipy is not installed.
    """
    if not rule.checkpoints:
        raise InvalidInput("rule", "has no checkpoint: too few answers of one kind; add records")
    kept = _of_rows(signals, confidence) >= rule.threshold
    lowest = rule.lowest(signals)
    try:
        cutoff = tolerated_cutoff(lowest[kept], lost=lost, delta=delta)
    except InfeasibleTarget as problem:
        share = float(kept.mean())
        needed = (
            math.ceil(problem.labels_needed / share) if share and problem.labels_needed else None
        )
        how = f"about {needed} answers would be needed" if needed else "none is kept"
        raise InfeasibleTarget(
            f"no cutoff is certain to stop at most {lost:g} of the answers that are kept: "
            f"{int(kept.sum())} of {len(kept)} are; {how}",
            needed,
        ) from None
    certificate = StopCertificate(
        lost=lost,
        delta=delta,
        n=len(kept),
        kept=int(kept.sum()),
        stopped=int((lowest[kept] <= cutoff).sum()),
        data_digest=_digest(kept, lowest),
    )
    return EarlyStop(rule.threshold, rule.lowest_score, rule.checkpoints, cutoff, certificate)


def bound_alone(rule: StopRule) -> EarlyStop:
    """The rule that stops by the bound and nothing else."""
    return EarlyStop(rule.threshold, rule.lowest_score)


def mask(confidence: ArrayLike, stopped: ArrayLike) -> Floats:
    """Confidences as the policy's certificate is to see them: 0 where the answer was stopped, so
    that no threshold above 0 accepts it. Shape ``[rows]``.

    Raises:
        InvalidInput: bad shapes, or confidences out of [0, 1].
    """
    floats, gone = unit_floats("confidence", confidence), outcomes("stopped", stopped)
    if len(floats) != len(gone):
        raise InvalidInput("stopped", f"has {len(gone)} rows for {len(floats)}")
    return np.where(gone, 0.0, floats)


def _regressions(signals: TokenLists, kept: Bools, at: Sequence[int]) -> tuple[Checkpoint, ...]:
    try:
        from sklearn.linear_model import LogisticRegression
    except ImportError:
        raise CascadeError(
            "fitting an early stop needs scikit-learn: pip install 'edge-cloud-cascade[tune]'"
        ) from None
    checkpoints = []
    for tokens in at:
        rows, running = signals.running(tokens)
        target = kept[rows]
        if len(rows) < MIN_ROWS or min(target.sum(), (~target).sum()) < MIN_ROWS / 4:
            continue
        center, scale = running.mean(axis=0), np.maximum(running.std(axis=0), 1e-9)
        fitted = LogisticRegression(C=_C, max_iter=1000).fit((running - center) / scale, target)
        weights = fitted.coef_[0] / scale
        checkpoints.append(
            Checkpoint(
                tokens,
                tuple(map(float, weights)),
                float(fitted.intercept_[0] - weights @ center),
                float(np.mean(signals.tokens[rows] - tokens)),
            )
        )
    return tuple(checkpoints)


def _digest(kept: Bools, lowest: Floats) -> str:
    digest = hashlib.sha256(kept.tobytes())
    digest.update(np.ascontiguousarray(lowest, dtype="<f8").tobytes())
    return digest.hexdigest()


def _of_rows(signals: TokenLists, confidence: ArrayLike) -> Floats:
    floats = unit_floats("confidence", confidence)
    if len(floats) != len(signals):
        raise InvalidInput("confidence", f"has {len(floats)} rows for {len(signals)} answers")
    return floats
