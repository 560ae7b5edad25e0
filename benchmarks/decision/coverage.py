"""How much a certificate keeps on the device, relative to the best threshold in hindsight."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from benchmarks.decision.draws import (
    ALPHAS,
    DELTA,
    DEVELOP,
    KNOWN_START,
    OTHERS,
    OURS,
    SIZES,
    Study,
    shared_study,
)
from benchmarks.decision.most_kept import most_kept
from benchmarks.rows import Row
from benchmarks.run import Run
from benchmarks.timing import Estimate
from cascade.certify import COVERAGES
from cascade.rows import Floats

_WIDE = 0.8  # hindsight coverage from which a share of it is to be kept
_MEASURED_AT = 1000
_KEEP, _BESIDE = 0.85, 0.95


def rows(subject: None, run: Run) -> Iterator[Row]:
    """Mean and 10th percentile for each pool, alpha and size, and ours over the best other method.

    Where the best threshold in hindsight keeps less than the first of the grid there are no rows.
    """
    study = shared_study(run.quick)
    for pool in (*study.pools, *study.recorded):
        run.say(pool.name)
        for alpha in ALPHAS:
            best = pool.best_coverage(alpha)
            if best < COVERAGES[0]:
                continue
            for n in SIZES:
                chosen = study.certified(pool, alpha, n)
                # A threshold that is too low keeps more than hindsight allows; that is no merit.
                kept = {name: np.minimum(chosen[name].coverage / best, 1.0) for name in chosen}
                where = f"{pool.name}, α = {alpha:g}, n = {n}"
                bound = best >= _WIDE and n == _MEASURED_AT
                drawn = (
                    f"{study.parts} certify parts, {study.blocks} develop parts of {DEVELOP} rows; "
                    "share of the pool above the certified threshold over the largest whose risk "
                    "is at most alpha; 0 where nothing was certified"
                )
                yield run.row(
                    f"coverage kept of {best:.2f}, {where}",
                    _mean(kept[OURS], study.blocks),
                    "share",
                    f"mean over {drawn}; 95 % interval of the mean, by develop parts",
                    reach=_KEEP if bound else None,
                    sense=">=",
                )
                yield run.row(
                    f"coverage kept of {best:.2f}, 10th percentile, {where}",
                    Estimate(float(np.quantile(kept[OURS], 0.1)), study.parts),
                    "share",
                    f"10th percentile over {drawn}",
                    sense=">=",
                )
                if bound:
                    yield run.row(
                        f"coverage kept with the start known, {where}",
                        _mean(kept[KNOWN_START], study.blocks),
                        "share",
                        "a limit, not a method: the fixed sequence on the same draws, from the "
                        "start that keeps most on average on other draws from the pool",
                        sense=">=",
                    )
                    yield run.row(
                        f"coverage that no valid method can exceed, {where}",
                        Estimate(most_kept(pool, alpha, n, DELTA), 1),
                        "share",
                        "computed, not measured: an upper bound of the mean over certify parts, "
                        "from the power of the best exact test of level delta at each share kept "
                        "(Neyman and Pearson)",
                        sense=">=",
                    )
                yield from _beside(kept, where, study, run, judged=not bound)


def _beside(
    kept: dict[str, Floats], where: str, study: Study, run: Run, *, judged: bool
) -> Iterator[Row]:
    """Ours over the best of the others, by mean coverage on the same draws."""
    means = {name: float(kept[name].mean()) for name in OTHERS}
    best = max(means, key=means.__getitem__)
    if not means[best]:
        return  # none of them certified anything, so ours cannot be worse
    yield run.row(
        f"coverage over the best of three, {where}",
        Estimate(float(kept[OURS].mean()) / means[best], study.parts),
        "×",
        f"mean coverage of the {OURS} over the largest of: {', '.join(OTHERS)}; the same draws",
        reach=_BESIDE if judged else None,
        sense=">=",
        peer=best,
    )


def _mean(values: Floats, blocks: int) -> Estimate:
    """Mean, with an interval that takes the parts of one develop part as one observation."""
    by_block = values.reshape(blocks, -1).mean(axis=1)
    half = 1.96 * float(by_block.std(ddof=1)) / float(np.sqrt(blocks))
    mean = float(values.mean())
    return Estimate(mean, len(values), (mean - half, mean + half))
