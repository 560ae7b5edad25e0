"""The grid of thresholds and where its order of test begins, planned on the *develop* part alone.

Where a fixed sequence starts matters for power, not for validity. The very highest thresholds keep
so few rows that their tests cannot pass, and a sequence that begins there ends there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike

from cascade.binomial import binomial_tail, check_level, predicted_tail
from cascade.certify.targets import Target, selective_risk
from cascade.errors import InvalidInput
from cascade.rows import Floats, same_length, unit_floats

COVERAGES = tuple(round(0.05 + 0.025 * step, 3) for step in range(39))
"""Target shares of locally answered rows at which thresholds are placed: .05, .075 … 1."""

_START_TOLERANCE = 0.03  # chances to pass that differ by less count as equal
_PRIOR_ROWS = 16  # what the guess that a mean is at its target is worth, before rows are seen


def plan_grid(
    confidence: ArrayLike,
    correct: ArrayLike,
    *,
    rows: int,
    alpha: float,
    delta: float,
    coverages: tuple[float, ...] = COVERAGES,
) -> Floats:
    """Thresholds in the order of test for the selective risk, for a certify part to come.

    ``plan_targets`` for the target that matters most.

    Arguments:
        confidence, correct: develop rows, shapes ``[develop rows]``.
        rows: size of the certify part, ≥ 1.
        alpha, delta, coverages: as in ``certify`` and ``threshold_grid``.

    Returns:
        float64, shape ``[thresholds]``, strictly falling; the last is 0 when ``coverages`` ends
        at 1.

    Raises:
        InvalidInput: bad shapes, NaN, or numbers out of range.
        CascadeError: scipy is not installed.
    """
    floats, target = unit_floats("confidence", confidence), selective_risk(correct, alpha=alpha)
    same_length("confidence", floats, "correct", target.local)
    return plan_targets(floats, [target], rows=rows, delta=delta, coverages=coverages)


def plan_targets(
    confidence: ArrayLike,
    targets: Sequence[Target],
    *,
    rows: int,
    delta: float,
    coverages: tuple[float, ...] = COVERAGES,
    rising: bool = False,
) -> Floats:
    """Thresholds in the order of test, planned on the *develop* part for a certify part to come.

    ``threshold_grid`` without the thresholds before the start. The start is the first threshold
    whose predicted chance to pass is within .03 of the best. For 0/1 losses, of which develop shows
    k among m, the number among the expected certify rows is beta-binomial; the prior has its mean
    at alpha and the weight of 16 rows, so that thresholds that keep few rows are neither written
    off nor taken for perfect. Other losses are predicted by a normal approximation. The chances of
    several targets are multiplied. All this only costs or saves coverage: no promise rests on it.

    Starts by expected coverage on simulated certify parts, and several starts that share delta,
    were tried: over pools of several shapes neither kept more than this.

    Arguments:
        confidence: develop confidences, in [0, 1], shape ``[develop rows]``.
        targets: as for ``certify_targets``, of the develop rows.
        rows: size of the certify part, ≥ 1.
        delta, coverages: as in ``certify_targets`` and ``threshold_grid``.
        rising: test from the lowest threshold up, towards more escalation; for targets such as
            money that less escalation makes easier.

    Returns:
        float64, shape ``[thresholds]``, strictly falling, or rising if so asked.

    Raises:
        InvalidInput: bad shapes, NaN, or numbers out of range.
        CascadeError: scipy is not installed.
    """
    floats = unit_floats("confidence", confidence)
    for target in targets:
        same_length("confidence", floats, target.kind, target.local)
    check_level("delta", delta)
    if rows < 1:
        raise InvalidInput("rows", f"{rows} is below 1")
    thresholds = threshold_grid(floats, coverages)
    if rising:
        thresholds = thresholds[::-1].copy()
    chance = np.ones(len(thresholds))
    for target in targets:
        chance *= _chance_to_pass(target, floats, thresholds, rows, delta)
    start = int(np.argmax(chance >= chance.max() - _START_TOLERANCE))
    return thresholds[start:]


def threshold_grid(confidence: ArrayLike, coverages: tuple[float, ...] = COVERAGES) -> Floats:
    """Thresholds that keep about these shares of rows, placed on the *develop* part.

    Arguments:
        confidence: develop confidences, in [0, 1], shape ``[rows]``.
        coverages: strictly rising shares in (0, 1].

    Returns:
        float64, shape ``[≤ coverages]``, strictly falling; ties among the confidences merge
        thresholds. Coverage 1 gives threshold 0: everything is accepted, unseen rows too.

    Raises:
        InvalidInput: bad shapes, NaN, or numbers out of range.
    """
    floats = unit_floats("confidence", confidence)
    shares = unit_floats("coverages", coverages)
    if shares[0] <= 0 or (np.diff(shares) <= 0).any():
        raise InvalidInput("coverages", "must rise strictly, from above 0 to at most 1")
    falling = np.sort(floats)[::-1]
    ranks = np.ceil(shares * len(floats) - 1e-9).astype(np.int64) - 1
    thresholds = np.where(shares == 1, 0.0, falling[ranks])
    return np.unique(thresholds)[::-1].copy()


def _chance_to_pass(
    target: Target, confidence: Floats, thresholds: Floats, rows: int, delta: float
) -> Floats:
    """Predicted probability that each threshold's own test passes."""
    total, seen = target.totals(confidence, thresholds)
    expected = np.maximum(1, np.round(seen / len(confidence) * rows))
    if target.method == "clopper_pearson":
        most = _most_errors(expected, target.unit_alpha, delta)
        prior = (_PRIOR_ROWS * target.unit_alpha, _PRIOR_ROWS * (1 - target.unit_alpha))
        return np.array(
            [
                predicted_tail(
                    int(m), int(n), seen_successes=int(k), seen_trials=int(s), prior=prior
                )
                for m, n, k, s in zip(most, expected, total, seen, strict=True)
            ]
        )
    return np.array(
        [
            _normal_chance(target, confidence, threshold, n, delta)
            for threshold, n in zip(thresholds, expected, strict=True)
        ]
    )


def _most_errors(rows: Floats, alpha: float, delta: float) -> Floats:
    """The largest number of errors whose p-value is ≤ delta, -1 where there is none."""
    passes, fails = np.full(len(rows), -1.0), rows.copy()
    while (open_ := fails - passes > 1).any():
        middle = np.where(open_, (passes + fails) // 2, passes)
        good = binomial_tail(middle, rows, alpha) <= delta
        passes = np.where(open_ & good, middle, passes)
        fails = np.where(open_ & ~good, middle, fails)
    return passes


def _normal_chance(
    target: Target, confidence: Floats, threshold: float, rows: float, delta: float
) -> float:
    """Chance that the mean of ``rows`` new losses falls below what passes, which for bounded losses
    is about alpha - s·√(2 ln(1/delta) / rows), s being their standard deviation (betting) or the
    largest that a mean of alpha allows (Hoeffding-Bentkus)."""
    losses = target.counted(confidence, threshold)
    if len(losses) < 2:
        return 0.0
    alpha = target.unit_alpha
    spread = max(float(losses.var()), 1 / (4 * len(losses)) / len(losses))
    assumed = spread if target.method == "betting" else alpha * (1 - alpha)
    critical = alpha - math.sqrt(2 * math.log(1 / delta) * assumed / rows)
    # New rows vary, and so do the develop rows from which the mean is known.
    error = math.sqrt(spread * (1 / rows + 1 / len(losses)))
    return NormalDist(float(losses.mean()), error).cdf(critical)
