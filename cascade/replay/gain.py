"""The order of the expected gain beside that of the confidence, on the same resamples."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np
from numpy.typing import NDArray

from cascade.gain import deferral_order
from cascade.pair import Pair
from cascade.replay.bootstrap import Weighted
from cascade.replay.figures import Figures
from cascade.rows import Floats

_BY_GAIN: Final = "deferral_auc_by_gain"
_LEAD: Final = "deferral_auc_gain_lead"


class WithGain:
    """Figures, and what of them changes when the largest gains are escalated first.

    Arguments:
        plain: of the rows in the order of their confidence.
        gain: expected from escalating, in [−1, 1], shape ``[rows]``; NaN, which goes first, where
            it cannot be told.
    """

    def __init__(self, plain: Weighted, rows: Pair, gain: Floats) -> None:
        order = deferral_order(np.where(np.isnan(gain), 1.0, gain))
        self._plain = plain
        self._by_gain = Figures(rows, order, np.zeros(len(rows), np.bool_))

    def of(self, weights: NDArray[np.int64]) -> Mapping[str, Floats]:
        """See ``Weighted``."""
        found, other = dict(self._plain.of(weights)), self._by_gain.of(weights)
        for name in ("", "_normalised"):
            found[f"{_BY_GAIN}{name}"] = other[f"deferral_auc{name}"]
        found[_LEAD] = other["deferral_auc"] - found["deferral_auc"]
        return found
