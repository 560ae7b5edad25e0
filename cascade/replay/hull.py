"""AIQ of many cost–quality curves at once: ``cascade.metrics.aiq`` without a loop over the curves.

The hull is wrapped like a gift (Jarvis 1973): from each corner to the point in the steepest
direction, so a step is one pass over all points of all curves. The curves have few points.
"""

from __future__ import annotations

import numpy as np

from cascade.rows import Floats


def heights_under_hulls(costs: Floats, quality: Floats) -> Floats:
    """Mean heights of non-decreasing convex hulls from 0 to the largest cost, shape ``[curves]``.

    Arguments:
        costs: ≥ 0 and never falling along a curve, shape ``[curves, points]``; nothing is counted
            below a curve's first one.
        quality: of each point, same shape.

    Returns:
        NaN where the largest cost is 0, or where one is not finite: there is no axis.
    """
    reached = np.maximum.accumulate(quality, axis=1)
    last, points = costs.shape[1] - 1, np.arange(costs.shape[1])
    area, corner = np.zeros((len(costs), 1)), np.zeros((len(costs), 1), np.int64)
    x, y = costs[:, :1], reached[:, :1]
    while (corner < last).any():
        right, up = costs - x, reached - y
        # Of points at one cost the best one counts, which after accumulating is the last.
        slope = np.divide(up, right, out=np.full(costs.shape, np.inf), where=right > 0)
        slope[points <= corner] = -np.inf
        following = last - np.argmax(slope[:, ::-1], axis=1)[:, None]
        corner = np.where(corner < last, following, last)
        to_x, to_y = (np.take_along_axis(each, corner, axis=1) for each in (costs, reached))
        area += (to_x - x) * (to_y + y) / 2
        x, y = to_x, to_y
    end = costs[:, -1]
    heights: Floats = np.divide(area[:, 0], end, out=np.full(len(end), np.nan), where=end > 0)
    return heights
