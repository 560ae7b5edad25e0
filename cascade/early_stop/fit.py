"""Fitting a rule to records: which part of them is for what, and in which order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Final

import numpy as np
from numpy.typing import ArrayLike

from cascade.confidence import ConfidenceModel
from cascade.early_stop.rule import CHECKPOINTS, MOST_TOKENS, Checkpoint, EarlyStop
from cascade.early_stop.token_lists import TokenLists
from cascade.errors import CascadeError, InfeasibleTarget, InvalidInput
from cascade.rows import Bools, Floats, outcomes, unit_floats

MIN_ROWS: Final = 20
"""A checkpoint that fewer answers reach, or of either kind fewer than a quarter of this, is left
out."""

_CHANCE: Final = 0.1
_SHARES: Final = tuple(place / 100 for place in range(1, 101))  # of answers, to be stopped


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

    def unkept(self, signals: TokenLists) -> Floats:
        """How sure the surest checkpoint was that the answer is not kept, in [0, 1], shape
        ``[rows]``; 0 for answers too short for all. A score, not a probability."""
        highest = np.zeros(len(signals))
        for checkpoint in self.checkpoints:
            rows, running = signals.running(checkpoint.tokens)
            highest[rows] = np.maximum(highest[rows], _unkept(checkpoint.logits(running)))
        return highest


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
    (by ``plan_threshold``) and for this; then ``certify_early_stop``
    on records of their own, whose answers nobody needs to grade; then *certify* for the policy's
    threshold, with stopped rows masked and no threshold of the grid below the planned one.

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
    develop: tuple[TokenLists, ArrayLike],
    fresh: tuple[TokenLists, ArrayLike],
    *,
    epsilon: float = 0.05,
    delta: float = 0.1,
) -> EarlyStop:
    """Choose the cutoff on records that nothing was fitted to.

    Stopping at a cutoff is accepting the verdict "not kept"; the wrong verdicts among the stopped
    are binomial, so the search is ``cascade.certify.certify``: exact p-values, fixed-sequence
    testing down a grid planned on the develop part.

    Arguments:
        develop, fresh: signals and confidences of each part; no labels.
        epsilon: largest share of the stopped answers that would have been kept, in (0, 1); see
            ``plan_epsilon``.
        delta: probability of exceeding it, over the draw of ``fresh``, in (0, 1).

    Raises:
        InfeasibleTarget: no cutoff passes; it names how many records would be needed. The bound
            alone, which needs none, is ``bound_alone(rule)``.
        InvalidInput: bad shapes, or numbers out of range.
        CascadeError: scipy is not installed.
    """
    from cascade.certify import certify

    new, new_confidence = fresh
    right = _of_rows(new, new_confidence) < rule.threshold
    grid = plan_cutoffs(rule, *develop, rows=len(new), epsilon=epsilon, delta=delta)
    unkept = rule.unkept(new)
    try:
        certificate = certify(unkept, right, alpha=epsilon, delta=delta, grid=grid)
    except InfeasibleTarget as problem:
        needed = problem.labels_needed
        how = f"about {needed} fresh answers would be needed" if needed else "none was seen to"
        raise InfeasibleTarget(
            f"no cutoff is certain to stop at most {epsilon:g} of answers that would be kept, on "
            f"{len(right)} answers; {how}",
            needed,
        ) from None
    return EarlyStop(
        rule.threshold,
        rule.lowest_score,
        rule.checkpoints,
        _cutoff(certificate.threshold),
        certificate,
    )


def plan_cutoffs(
    rule: StopRule,
    signals: TokenLists,
    confidence: ArrayLike,
    *,
    rows: int,
    epsilon: float,
    delta: float,
) -> Floats:
    """Cutoffs in the order of test, planned on the develop part; see ``certify_early_stop``.

    Arguments:
        rows: size of the part to come, ≥ 1.

    Returns:
        on the scale of ``StopRule.unkept``, above 0, strictly falling, shape ``[cutoffs]``.

    Raises:
        InvalidInput, CascadeError: as ``certify_early_stop``.
    """
    from cascade.certify import plan_grid

    if not rule.checkpoints:
        raise InvalidInput("rule", "has no checkpoint: too few answers of one kind; add records")
    kept = _of_rows(signals, confidence) >= rule.threshold
    grid = plan_grid(
        _unseen(rule, signals, kept),
        ~kept,
        rows=rows,
        alpha=epsilon,
        delta=delta,
        coverages=_SHARES,
    )
    above = grid[grid > 0]  # at 0 everything would be stopped, answers without a token too
    if not len(above):
        raise InfeasibleTarget("no answer reaches a checkpoint; there is nothing to stop", None)
    return above


def plan_epsilon(coverage: float, *, lost: float = 0.05, most: float = 0.05) -> float:
    """The epsilon at which stopping loses at most a share ``lost`` of the answers that are kept.

    Of a request, ε · P(stopped) is lost and ``coverage`` kept, and at most what is not kept, or
    hardly more, is stopped: so ε = lost · coverage / (1 − coverage), but not above ``most``.

    Arguments:
        coverage: share of the develop part that is kept, strictly between 0 and 1.

    Raises:
        InvalidInput: a number is out of range.
    """
    for name, value in (("coverage", coverage), ("lost", lost), ("most", most)):
        if not 0 < value < 1:
            raise InvalidInput(name, f"{value} is not between 0 and 1")
    return min(most, lost * coverage / (1 - coverage))


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
        fitted = LogisticRegression(max_iter=1000).fit((running - center) / scale, target)
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


def _unseen(rule: StopRule, signals: TokenLists, kept: Bools) -> Floats:
    """``StopRule.unkept`` of each develop row by regressions of the other half: what the rule will
    show on rows that it was not fitted to, or nearly."""
    at = [checkpoint.tokens for checkpoint in rule.checkpoints]
    halves = [np.arange(first, len(signals), 2) for first in (0, 1)]
    scores = np.zeros(len(signals))
    for half, other in (halves, halves[::-1]):
        checkpoints = _regressions(signals.take(half), kept[half], at)
        scores[other] = StopRule(rule.threshold, None, checkpoints).unkept(signals.take(other))
    return scores if scores.any() else rule.unkept(signals)


def _unkept(logits: Floats) -> Floats:
    """Log odds of being kept as a falling score in [0, 1], by arithmetic that IEEE 754 rounds alike
    everywhere: what is certified on records is then what a device does, to the last bit."""
    score: Floats = 0.5 - logits / (2 * (1 + np.abs(logits)))
    return score


def _cutoff(unkept: float) -> float:
    """The largest log odds whose ``_unkept`` reaches ``unkept``."""
    low, high = -1e9, 1e9
    while (middle := (low + high) / 2) not in (low, high):
        reaches = float(_unkept(np.array([middle]))[0]) >= unkept
        low, high = (middle, high) if reaches else (low, middle)
    return low


def _of_rows(signals: TokenLists, confidence: ArrayLike) -> Floats:
    floats = unit_floats("confidence", confidence)
    if len(floats) != len(signals):
        raise InvalidInput("confidence", f"has {len(floats)} rows for {len(signals)} answers")
    return floats
