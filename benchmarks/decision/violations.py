"""How often a certificate is wrong, where the truth is known; the naive rule beside it."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from benchmarks.decision.draws import (
    ALPHAS,
    DELTA,
    OTHERS,
    OURS,
    SIZES,
    Chosen,
    naive,
    shared_study,
)
from benchmarks.decision.pools import flat
from benchmarks.rows import Row
from benchmarks.run import Run
from benchmarks.timing import Estimate
from cascade.binomial import clopper_pearson_interval


def rows(subject: None, run: Run) -> Iterator[Row]:
    """The rate on the worst pool for each alpha and size, of ours and of the naive rule; and of the
    other families at n = 1,000."""
    study = shared_study(run.quick)
    reach = DELTA + 2 * math.sqrt(DELTA * (1 - DELTA) / study.parts)
    drawn = (
        f"{study.parts} certify parts drawn i.i.d. with replacement from each of "
        f"{len(study.pools) + 1} pools of known risk; a violation is a risk above alpha over the "
        f"whole pool; delta = {DELTA:g}; the worst pool counts; exact 95 % interval"
    )
    for n in SIZES:
        by_alpha = {alpha: (*study.pools, flat(alpha)) for alpha in ALPHAS}
        tuned = {pool.name: naive(pool, ALPHAS, n, parts=study.parts) for pool in study.pools}
        run.say(f"n = {n}")
        for alpha in ALPHAS:
            where = f"α = {alpha:g}, n = {n}"
            for method in (OURS, *OTHERS) if n == 1000 else (OURS,):
                rates = {
                    pool.name: _violations(study.certified(pool, alpha, n)[method], alpha)
                    for pool in by_alpha[alpha]
                }
                worst = max(rates, key=rates.__getitem__)
                yield run.row(
                    f"violations, {method}, {where}",
                    _rate(rates[worst], study.parts),
                    "share",
                    f"{drawn}; worst pool: {worst}" if method == OURS else drawn,
                    reach=reach,
                )
            rates = {name: _violations(chosen[alpha], alpha) for name, chosen in tuned.items()}
            worst = max(rates, key=rates.__getitem__)
            yield run.row(
                f"violations, naive rule, {where}",
                _rate(rates[worst], study.parts),
                "share",
                "the lowest threshold whose observed risk is at most alpha, on the same pools but "
                "the flat one; it must be caught, so more than the bound is to be reached",
                reach=reach,
                sense=">=",
                peer="naive rule",
            )


def _violations(chosen: Chosen, alpha: float) -> int:
    return int(np.sum(chosen.risk > alpha))


def _rate(count: int, of: int) -> Estimate:
    return Estimate(count / of, of, clopper_pearson_interval(count, of))
