"""Combining rows of which some may be hostile: norm bound, trimmed mean, median, (multi-)Krum.

Written out in numpy, because the kept implementations are parts of torch or of other federations;
the tests compare with the papers' definitions taken literally. None of these is enough by itself:
backdoors spread over honest devices pass all of them (arXiv 2602.15671), so the behaviour of what
comes out is tested, too.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from cascade.errors import InvalidInput

Doubles: TypeAlias = NDArray[np.float64]


class Rule(Protocol):
    """How the devices' rows become one."""

    def combine(self, rows: Doubles, weights: Doubles) -> Doubles:
        """One row.

        Arguments:
            rows: float64, shape ``[devices, elements]``; finite.
            weights: ≥ 0, sum 1, shape ``[devices]``.

        Raises:
            InvalidInput: there are too few rows for the rule.
        """
        ...


@dataclass(frozen=True, slots=True)
class WeightedMean:
    """Σ w_i x_i: linear, the only rule that secure aggregation can carry out."""

    def combine(self, rows: Doubles, weights: Doubles) -> Doubles:
        """The mean."""
        return weights @ rows


@dataclass(frozen=True, slots=True)
class TrimmedMean:
    """In each coordinate, the mean without the largest and the smallest values (arXiv 1803.01498).

    It looks at values, not at who sent them, and so has no weights: a device that claims many
    examples would buy influence.

    Arguments:
        share: of the devices to leave out at each end, in [0, 0.5); at least the share of attackers
            that is to be withstood. Rounded up to whole devices.
    """

    share: float

    def __post_init__(self) -> None:
        if not 0 <= self.share < 0.5:
            raise InvalidInput("share", f"{self.share} is not in 0 … 0.5, 0.5 left out")

    def combine(self, rows: Doubles, weights: Doubles) -> Doubles:
        """The trimmed mean; ``weights`` are not used."""
        count = len(rows)
        cut = self.cut(count)
        if count <= 2 * cut:
            raise InvalidInput(
                "updates", f"are {count}; {2 * cut + 1} are needed to leave {cut} out at each end"
            )
        ordered = np.sort(rows, axis=0)
        return np.asarray(ordered[cut : count - cut].mean(axis=0), np.float64)

    def cut(self, count: int) -> int:
        """How many of so many devices are left out at each end."""
        return math.ceil(self.share * count - 1e-9)


@dataclass(frozen=True, slots=True)
class Median:
    """The median in each coordinate (arXiv 1803.01498); without weights, as ``TrimmedMean``."""

    def combine(self, rows: Doubles, weights: Doubles) -> Doubles:
        """The median; ``weights`` are not used."""
        return np.asarray(np.median(rows, axis=0), np.float64)


@dataclass(frozen=True, slots=True)
class MultiKrum:
    """The weighted mean of the rows that lie nearest to their neighbours (Blanchard et al. 2017).

    Arguments:
        byzantine: f, how many hostile devices are to be withstood, ≥ 0; n ≥ 2 f + 3 devices are
            needed.
        keep: m, how many rows are averaged, 1 for Krum proper; at most n − f.
    """

    byzantine: int
    keep: int = 1

    def __post_init__(self) -> None:
        if self.byzantine < 0 or self.keep < 1:
            raise InvalidInput("krum", "needs byzantine of 0 or more and keep of 1 or more")

    def combine(self, rows: Doubles, weights: Doubles) -> Doubles:
        """The mean of the selected rows, by their weights."""
        kept = self.select(squared_distances(rows))
        return np.asarray(weights[kept] @ rows[kept] / weights[kept].sum(), np.float64)

    def select(self, distances: Doubles) -> NDArray[np.intp]:
        """Indices of the kept ones, in rising order.

        Arguments:
            distances: squared, shape ``[n, n]``.
        """
        count = len(distances)
        if count < 2 * self.byzantine + 3 or count < self.keep + self.byzantine:
            needed = max(2 * self.byzantine + 3, self.keep + self.byzantine)
            raise InvalidInput("updates", f"are {count}; Krum needs {needed}")
        scores = krum_scores(distances, self.byzantine)
        return np.sort(np.argsort(scores, kind="stable")[: self.keep])


def krum_scores(distances: Doubles, byzantine: int) -> Doubles:
    """Each row's sum of squared distances to its n − f − 2 nearest others (Blanchard et al., §4).

    Arguments:
        distances: squared, shape ``[n, n]``.
        byzantine: f, at most n − 3.
    """
    others = distances + np.diag(np.full(len(distances), np.inf))
    nearest = np.sort(others, axis=1)[:, : len(distances) - byzantine - 2]
    return np.asarray(nearest.sum(axis=1), np.float64)


def squared_distances(rows: Doubles) -> Doubles:
    """‖x_i − x_j‖² of all pairs, shape ``[n, n]``."""
    # Of differences, one row at a time: |x|² + |y|² − 2xy loses small distances between large rows.
    return np.stack([np.sum((rows - row) ** 2, axis=1) for row in rows])


def bound_norms(rows: Doubles, bound: float) -> Doubles:
    """Rows shortened to an L2 norm of at most ``bound``, which is > 0; their directions stay."""
    if not 0 < bound < math.inf:
        raise InvalidInput("bound", f"{bound} is not a positive number")
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.asarray(rows * (bound / np.maximum(norms, bound)), np.float64)
