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
    Study,
    naive,
    shared_study,
)
from benchmarks.decision.pools import Pool, flat
from benchmarks.rows import Row
from benchmarks.run import Run
from benchmarks.timing import Estimate
from cascade.binomial import clopper_pearson_interval


def rows(subject: None, run: Run) -> Iterator[Row]:
    """The rate on the worst synthetic pool for each alpha and size, of ours and of the naive rule,
    and of the other families at n = 1,000; then on each record set, for each alpha."""
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
    for pool in study.recorded:
        run.say(pool.name)
        yield from _on_records(pool, study, run, reach)


def _on_records(pool: Pool, study: Study, run: Run, reach: float) -> Iterator[Row]:
    """The rate at the worst size, of ours and of the naive rule."""
    drawn = (
        f"{study.parts} certify parts of each size ({', '.join(map(str, SIZES))}) drawn i.i.d. "
        f"with replacement from {len(pool.confidence)} rows, whose risk in all is "
        f"{1 - pool.correct.mean():.3f}; confidences by a Platt map fitted on other documents; a "
        f"violation is a risk above alpha over all these rows; delta = {DELTA:g}; exact interval"
    )
    tuned = {n: naive(pool, ALPHAS, n, parts=study.parts) for n in SIZES}
    for alpha in ALPHAS:
        best = f"the best threshold in hindsight keeps {pool.best_coverage(alpha):.3f}"
        ours = {n: _violations(study.certified(pool, alpha, n)[OURS], alpha) for n in SIZES}
        worst = max(ours, key=ours.__getitem__)
        yield run.row(
            f"violations, {OURS}, {pool.name}, α = {alpha:g}",
            _rate(ours[worst], study.parts),
            "share",
            f"{drawn}; the worst size counts: {worst}; {best}",
            reach=reach,
        )
        rates = {n: _violations(tuned[n][alpha], alpha) for n in SIZES}
        worst = max(rates, key=rates.__getitem__)
        yield run.row(
            f"violations, naive rule, {pool.name}, α = {alpha:g}",
            _rate(rates[worst], study.parts),
            "share",
            f"the lowest threshold whose observed risk is at most alpha; {drawn}; the worst size "
            f"counts: {worst}; {best}",
            sense=">=",
            peer="naive rule",
        )


def _violations(chosen: Chosen, alpha: float) -> int:
    return int(np.sum(chosen.risk > alpha))


def _rate(count: int, of: int) -> Estimate:
    return Estimate(count / of, of, clopper_pearson_interval(count, of))
