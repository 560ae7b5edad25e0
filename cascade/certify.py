"""Chooses the confidence above which the device may answer, with a guarantee on its errors.

Learn then Test (Angelopoulos et al. 2021, arXiv 2110.01052): fixed-sequence testing over a grid of
thresholds with exact binomial p-values. Needs the ``tune`` extra (scipy). The result is a
``cascade.certificate.Certificate``; fitting the confidence itself is ``cascade.calibrate``.

The mathematics
---------------
R(t) = P(wrong | confidence ≥ t) is the selective risk at threshold t. Among the certify rows let
n_t be those with confidence ≥ t, and k_t the wrong ones of these. For rows drawn independently and
a threshold fixed before they were seen, k_t given n_t is Bin(n_t, R(t)). So

    p(t) = P(Bin(n_t, alpha) ≤ k_t),        p(t) = 1 where n_t = 0

is a valid p-value for "R(t) > alpha": P(p(t) ≤ delta | n_t) ≤ delta for every n_t, hence also for
the random one. p(t) ≤ delta exactly when the one-sided Clopper-Pearson bound is at most alpha.

The thresholds are tested one after another, in an order that is fixed beforehand, each at the full
level delta, up to the first that fails. If any certified threshold is bad (R > alpha), then the
first bad one in the order was rejected by its own test, which happens with probability ≤ delta. So
the family-wise error is ≤ delta with no correction for the number of thresholds, whatever the curve
R looks like.

Where the sequence starts matters for power, not for validity. The very highest thresholds keep so
few rows that their tests cannot pass, and a sequence that begins there ends there. ``plan_grid``
therefore chooses the start on the *develop* part alone: the smallest coverage whose chance to pass,
predicted from develop, is about as good as any. From there it goes down to accepting everything.

Two departures from independent draws, so that nobody is misled. A certify part with a fixed count
from each domain is stratified: k_t then varies less than a binomial (Hoeffding 1956), which errs on
the safe side. Several rows of one document can err together: k_t then varies more, and the
guarantee is about rows as if they were drawn singly; so keep few rows a document.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cascade.binomial import binomial_tail, check_level, predicted_tail, upper_bound
from cascade.certificate import Certificate
from cascade.errors import InfeasibleTarget, InvalidInput
from cascade.rows import Bools, Floats, labelled, unit_floats

COVERAGES = tuple(round(0.05 + 0.025 * step, 3) for step in range(39))
"""Target shares of locally answered rows at which thresholds are placed: .05, .075 … 1."""

_START_TOLERANCE = 0.01  # chances to pass that differ by less count as equal
_MAX_LABELS = 10**9


def certify(
    confidence: ArrayLike, correct: ArrayLike, *, alpha: float, delta: float, grid: ArrayLike
) -> Certificate:
    """The lowest threshold of ``grid`` that fixed-sequence testing reaches.

    Arguments:
        confidence: confidences of the certify rows, in [0, 1], shape ``[rows]``.
        correct: whether each local answer was right, bool or 0/1, shape ``[rows]``.
        alpha: largest tolerated selective risk, in (0, 1).
        delta: tolerated probability of exceeding it, in (0, 1).
        grid: thresholds in the order of test, strictly falling, in [0, 1], shape ``[thresholds]``;
            fixed before these rows were seen, e.g. by ``plan_grid`` on other rows.

    Raises:
        InfeasibleTarget: the first test fails. ``labels_needed`` estimates how many fresh rows
            would do, or is None where the observed error is nowhere below alpha.
        InvalidInput: bad shapes, NaN, or numbers out of range.
        CascadeError: scipy is not installed.
    """
    floats, right = labelled(confidence, correct)
    check_level("alpha", alpha)
    check_level("delta", delta)
    thresholds = _check_grid(grid)
    accepted, errors = _counts(floats, right, thresholds)
    p_values = binomial_tail(errors, accepted, alpha)
    passed = int(np.argmin(np.append(p_values <= delta, False)))
    if not passed:
        raise _infeasible(accepted, errors, len(floats), alpha, delta)
    last = passed - 1
    return Certificate(
        alpha=float(alpha),
        delta=float(delta),
        n=len(floats),
        n_accepted=int(accepted[last]),
        errors=int(errors[last]),
        threshold=float(thresholds[last]),
        p_value=float(p_values[last]),
        risk_upper=upper_bound(int(errors[last]), int(accepted[last]), delta),
        data_digest=_digest_rows(floats, right),
        grid_digest=_digest(thresholds),
        grid_size=len(thresholds),
    )


def plan_grid(
    confidence: ArrayLike,
    correct: ArrayLike,
    *,
    rows: int,
    alpha: float,
    delta: float,
    coverages: tuple[float, ...] = COVERAGES,
) -> Floats:
    """Thresholds in the order of test, planned on the *develop* part for a certify part to come.

    ``threshold_grid`` without the thresholds before the start. The start is the smallest coverage
    whose predicted chance to pass is within .01 of the best: with m develop rows kept and k of them
    wrong, errors among the expected certify rows are beta-binomial under a uniform prior.

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
    floats, right = labelled(confidence, correct)
    check_level("alpha", alpha)
    check_level("delta", delta)
    if rows < 1:
        raise InvalidInput("rows", f"{rows} is below 1")
    thresholds = threshold_grid(floats, coverages)
    kept, wrong = _counts(floats, right, thresholds)
    expected = np.maximum(1, np.round(kept / len(floats) * rows)).astype(np.int64)
    chance = _chance_to_pass(kept, wrong, expected, alpha, delta)
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


@dataclass(frozen=True, slots=True)
class UncertifiedThreshold:
    """What plain tuning picks: its risk is an observation on the tuning rows, no guarantee.

    Arguments:
        threshold: lowest confidence to accept, in [0, 1].
        coverage: share of the tuning rows accepted, in (0, 1].
        risk: error rate among these, ≤ alpha.
    """

    threshold: float
    coverage: float
    risk: float


def naive_threshold(
    confidence: ArrayLike, correct: ArrayLike, *, alpha: float
) -> UncertifiedThreshold | None:
    """The lowest threshold whose *observed* selective risk is at most alpha. For comparison only.

    This is what tuning without statistics does, and it exceeds alpha about every second time.

    Arguments are those of ``certify``; every confidence that occurs is tried.

    Returns:
        The threshold, or None when every one has an observed risk above alpha.

    Raises:
        InvalidInput: bad shapes, NaN, or numbers out of range.
    """
    floats, right = labelled(confidence, correct)
    check_level("alpha", alpha)
    thresholds = np.unique(floats)
    accepted, errors = _counts(floats, right, thresholds)
    good = np.flatnonzero(errors <= alpha * accepted)
    if not len(good):
        return None
    best = good[0]
    return UncertifiedThreshold(
        threshold=float(thresholds[best]),
        coverage=float(accepted[best] / len(floats)),
        risk=float(errors[best] / accepted[best]),
    )


def _counts(
    confidence: Floats, correct: Bools, thresholds: Floats
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows at or above each threshold, and the wrong ones among them."""
    order = np.argsort(confidence, kind="stable")
    first = np.searchsorted(confidence[order], thresholds, side="left")
    wrong_from = np.append(np.cumsum(~correct[order][::-1])[::-1], 0).astype(np.int64)
    return (len(confidence) - first).astype(np.int64), wrong_from[first]


def _chance_to_pass(
    kept: NDArray[np.int64],
    wrong: NDArray[np.int64],
    rows: NDArray[np.int64],
    alpha: float,
    delta: float,
) -> Floats:
    """Predicted probability that each threshold's own test passes on ``rows`` accepted rows."""
    chances = np.zeros(len(rows))
    for i, n in enumerate(rows.tolist()):
        tail = binomial_tail(np.arange(n + 1), np.full(n + 1, n), alpha)
        most_errors = int(np.sum(tail <= delta)) - 1
        chances[i] = predicted_tail(
            most_errors, n, seen_successes=int(wrong[i]), seen_trials=int(kept[i])
        )
    return chances


def _infeasible(
    accepted: NDArray[np.int64], errors: NDArray[np.int64], n: int, alpha: float, delta: float
) -> InfeasibleTarget:
    seen = f"the first threshold tested keeps {accepted[0]} of {n} rows, {errors[0]} of them wrong"
    target = f"an error of at most {alpha:g} among local answers, with {1 - delta:.0%} certainty"
    needed = min(
        (
            math.ceil(trials * n / int(m))
            for m, k in zip(accepted, errors, strict=True)
            if m and (trials := _trials_needed(int(k) / int(m), alpha, delta)) is not None
        ),
        default=None,
    )
    if needed is None:
        advice = (
            "no number of labels would help, for the observed error is nowhere below the target"
        )
    else:
        advice = f"about {needed} fresh labels would be needed if the observed error holds"
    return InfeasibleTarget(f"cannot certify {target}: {seen}; {advice}", needed)


def _trials_needed(rate: float, alpha: float, delta: float) -> int | None:
    """Accepted rows at which an observed error ``rate`` passes the test; None where none does."""

    def passes(trials: int) -> bool:
        return bool(binomial_tail(math.ceil(rate * trials), trials, alpha) <= delta)

    if rate >= alpha:
        return None
    enough = 1
    while not passes(enough):
        enough *= 2
        if enough > _MAX_LABELS:
            return None
    too_few = enough // 2
    while enough - too_few > 1:
        middle = (too_few + enough) // 2
        too_few, enough = (too_few, middle) if passes(middle) else (middle, enough)
    return enough


def _check_grid(grid: ArrayLike) -> Floats:
    thresholds = unit_floats("grid", grid)
    if (np.diff(thresholds) >= 0).any():
        raise InvalidInput("grid", "must fall strictly, from the highest threshold to the lowest")
    return thresholds


def _digest_rows(confidence: Floats, correct: Bools) -> str:
    """sha256 over the rows sorted by confidence, then outcome: their order does not matter."""
    order = np.lexsort((correct, confidence))
    return _digest(confidence[order], correct[order])


def _digest(*arrays: Floats | Bools) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        kind = "u1" if array.dtype == np.bool_ else "<f8"
        digest.update(np.ascontiguousarray(array, dtype=kind).tobytes())
    return digest.hexdigest()
