"""Figures of several rankings of the same rows, and differences between them, on the same
resamples of documents."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from cascade.pair import Pair
from cascade.replay import Figures, Interval, intervals
from cascade.rows import Floats

FIGURES = {"AUROC": "auroc", "deferral AUC": "deferral_auc_normalised"}
"""What rankings are compared by, with the names of ``cascade.replay.UNITS``."""

Verdict = Literal["win", "tie", "loss"]


@dataclass(frozen=True, slots=True)
class Paired:
    """One figure of one ranking, and ours minus it."""

    value: Interval
    difference: Interval

    @property
    def verdict(self) -> Verdict:
        """Ours wins or loses where the interval of the difference excludes 0, else it is a tie."""
        low, high = self.difference.low, self.difference.high
        if low is None or high is None or low <= 0 <= high:
            return "tie"
        return "win" if low > 0 else "loss"


def compare(
    rows: Pair, scores: Mapping[str, Floats], ours: str, *, replicates: int, seed: int = 1
) -> dict[tuple[str, str], Paired]:
    """Every ranking beside ours.

    Arguments:
        scores: of each ranking, ours among them, in [0, 1], shapes ``[rows]``.
        ours: the name of ours.
        replicates: resamples of documents.

    Returns:
        By figure (a key of ``FIGURES``) and ranking.
    """
    found = intervals(
        lambda places: _Side.by_side(rows, scores, ours, places),
        rows.documents(),
        replicates=replicates,
        seed=seed,
    )
    return {
        (figure, name): Paired(found[f"{name}/{figure}"], found[f"{name}/{figure}/difference"])
        for figure in FIGURES
        for name in scores
    }


@dataclass(frozen=True, slots=True)
class _Side:
    """The figures of all rankings under the same weights: what makes differences paired."""

    figures: Mapping[str, Figures]
    ours: str

    @classmethod
    def by_side(
        cls, rows: Pair, scores: Mapping[str, Floats], ours: str, places: NDArray[np.int64]
    ) -> _Side:
        some = rows.take(places)
        everything = np.ones(len(some), np.bool_)
        return cls(
            {name: Figures(some, each[places], everything) for name, each in scores.items()}, ours
        )

    def of(self, weights: NDArray[np.int64]) -> dict[str, Floats]:
        each = {name: figures.of(weights) for name, figures in self.figures.items()}
        found = {}
        for figure, key in FIGURES.items():
            for name, values in each.items():
                found[f"{name}/{figure}"] = values[key]
                found[f"{name}/{figure}/difference"] = each[self.ours][key] - values[key]
        return found
