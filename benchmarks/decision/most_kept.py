"""How much any method can keep that is right about its promise: a bound, by Neyman and Pearson.

Let c be a share of the pool to be kept, at a risk r(c) below alpha, and let the pool be weighted
anew, so that the risk of that share is alpha and its size is still c: wrong rows of it count alpha
/ r times, right ones (1 - alpha)/(1 - r) times. Where no larger share of the weighted pool has a
risk below alpha either, keeping c or more of it breaks the promise (with a weight larger by
nothing). A method whose promise holds for every pool does so with a probability of at most delta.
So "it kept c or more" is a test of level delta of the weighted pool against the real one, and its
probability under the real one is at most the power of the best such test, which looks at the
likelihood ratio of the rows kept and of the errors among them (Neyman and Pearson 1933). The mean
coverage is the integral of these probabilities over c.
"""

from __future__ import annotations

import numpy as np
from scipy import stats

from benchmarks.decision.pools import Pool

_STEPS = 100  # shares at which the bound is computed; between two that of the smaller one counts
_TAIL = 1e-9  # probability that is added to a power instead of being computed


def most_kept(pool: Pool, alpha: float, n: int, delta: float) -> float:
    """An upper bound of the mean coverage over certify parts, as a share of the best in hindsight.

    Arguments:
        n: rows of a certify part, drawn i.i.d. with replacement.
        delta: probability with which the promise may be broken, in (0, 1).
    """
    best = pool.best_coverage(alpha)
    thresholds = np.quantile(pool.confidence, np.linspace(1, 0, _STEPS + 1)[1:])
    coverage, risk = pool.coverage_and_risk(thresholds)
    bound, reached = [1.0], [0.0]
    for place, (share, rate) in enumerate(zip(coverage.tolist(), risk.tolist(), strict=True)):
        if share >= best:
            break
        # Errors of the larger shares, once this one's rows are weighted.
        later = coverage[place:] * risk[place:] + share * (alpha - rate)
        if 0 < rate < alpha and (later >= alpha * coverage[place:] - 1e-12).all():
            reached.append(share)
            bound.append(min(bound[-1], power(share, rate, alpha, n, delta)))
    return float(np.diff([*reached, best]) @ bound) / best


def power(share: float, rate: float, alpha: float, n: int, delta: float) -> float:
    """P(the best test of level ``delta`` rejects), of "the risk is alpha" where it is ``rate``.

    Arguments:
        share: P(a row is among those kept), in (0, 1]; ``rate``: P(one of those is wrong), below
            alpha.
    """
    low, high = (int(stats.binom.ppf(tail, n, share)) for tail in (_TAIL, 1 - _TAIL))
    rows = np.arange(low, high + 1)[:, None]
    errors = np.arange(int(stats.binom.ppf(1 - _TAIL, high, alpha)) + 1)[None, :]
    kept = stats.binom.pmf(rows, n, share)
    true, null = (kept * stats.binom.pmf(errors, rows, each) for each in (rate, alpha))
    ratio = errors * np.log(alpha / rate) + (rows - errors) * np.log((1 - alpha) / (1 - rate))
    order = np.argsort(ratio, axis=None)  # the least likely under the null come first
    level = np.cumsum(null.ravel()[order])
    inside = int(np.searchsorted(level, delta, side="right"))
    found = float(true.ravel()[order[:inside]].sum())
    if inside < len(order):
        # A test may toss a coin at its edge.
        spent = float(level[inside - 1]) if inside else 0.0
        place = order[inside]
        found += float(true.ravel()[place]) * (delta - spent) / float(null.ravel()[place])
    return min(1.0, found + 3 * _TAIL)
