"""How many labels an infeasible target would need, if what was observed held on."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from cascade.certify.targets import Target
from cascade.rows import Floats

_MAX_LABELS = 10**9


def labels_needed(
    targets: Sequence[Target], confidence: Floats, thresholds: Floats, level: float
) -> int | None:
    """Fresh certify rows at which some threshold would pass all targets at ``level``.

    At each threshold every target's observed mean is taken to hold on, and its row count to grow
    with the sample; the target that needs most counts, then the threshold that needs least. An
    estimate: half of all fresh samples will look worse. For betting it is that of
    Hoeffding-Bentkus, which seldom needs fewer.

    Returns:
        a number of rows, or None where at no threshold all observed means are below their alphas.
    """
    most = np.zeros(len(thresholds))
    for target in targets:
        total, rows = target.totals(confidence, thresholds)
        for i, (sum_of_losses, count) in enumerate(zip(total, rows, strict=True)):
            if not count:
                most[i] = np.inf
                continue
            trials = rows_needed(target, sum_of_losses / count, level)
            scaled = np.inf if trials is None else math.ceil(trials * len(confidence) / count)
            most[i] = max(most[i], scaled)
    least = float(most.min())
    return int(least) if math.isfinite(least) else None


def rows_needed(target: Target, unit_mean: float, level: float) -> int | None:
    """Rows that must count for a target to pass at ``level`` when their mean loss, on the scale
    from 0 to 1, is ``unit_mean``; None where no number does."""
    exact = target.method == "clopper_pearson"

    def passes(rows: int) -> bool:
        total = math.ceil(unit_mean * rows) if exact else unit_mean * rows
        return bool(target.p_values_of(total, rows, target.unit_alpha) <= level)

    if unit_mean >= target.unit_alpha:
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
