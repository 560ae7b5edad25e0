"""Intervals by resampling documents: what belongs together is drawn together.

With few documents the ordinary bootstrap (Efron 1979). With many, the bag of little bootstraps
(Kleiner, Talwalkar, Sarkar and Jordan 2014, arXiv 1112.5016): disjoint subsets of documents, each
resampled up to the size of the whole, so that the spread is that of the whole at the price of the
subset. Intervals are percentile intervals; a subset's is taken relative to its own figure.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from cascade.errors import InvalidInput
from cascade.rows import Floats

WHOLE = 4000
"""Up to so many documents all are resampled."""

_SUBSETS = 10
_SUBSET = 1000  # documents; for a million that is n^0.5, and figures like AUROC are stable
_CELLS = 2_000_000  # weights held at a time


class Weighted(Protocol):
    """Figures of rows under weights; ``cascade.replay.figures.Figures`` is one."""

    def of(self, weights: NDArray[np.int64]) -> Mapping[str, Floats]:
        """Each figure for each weighting."""
        ...


@dataclass(frozen=True, slots=True)
class Interval:
    """A figure with its interval; the bounds are ``None`` where it could not be resampled."""

    value: float
    low: float | None
    high: float | None


def intervals(
    of_rows: Callable[[NDArray[np.int64]], Weighted],
    documents: NDArray[np.int64],
    *,
    replicates: int,
    level: float = 0.95,
    seed: int = 1,
) -> dict[str, Interval]:
    """Figures of all rows, each with its interval.

    Arguments:
        of_rows: makes the figures of the rows at these places.
        documents: the number of each row's document, 0 … documents - 1, shape ``[rows]``.
        replicates: resamples in all; 0 for none, which leaves out the intervals.
        level: of confidence, in (0, 1).
        seed: the same one gives the same intervals.

    Raises:
        InvalidInput: fewer than 0 or more than 100,000 replicates.
    """
    if not 0 <= replicates <= 100_000:
        raise InvalidInput("bootstrap", f"{replicates} is not in 0 … 100000")
    rows = np.arange(len(documents))
    whole = of_rows(rows)
    values = {name: float(each[0]) for name, each in whole.of(_ones(len(rows))).items()}
    many = int(documents.max()) + 1
    if not replicates or many < 2:
        return {name: Interval(value, None, None) for name, value in values.items()}
    rng = np.random.default_rng(seed)
    tails = [(1 - level) / 2, (1 + level) / 2]
    if many <= WHOLE:
        offsets = [_offsets(whole, documents, many, replicates, tails=tails, rng=rng)]
    else:
        offsets = []
        chosen = rng.permutation(many)[: _SUBSETS * _SUBSET]
        size = len(chosen) // _SUBSETS
        for subset in range(_SUBSETS):
            place = np.full(many, -1)
            mine = chosen[subset * size : (subset + 1) * size]
            place[mine] = np.arange(size)
            some = np.flatnonzero(place[documents] >= 0)
            figures = of_rows(some)
            each = max(1, replicates // _SUBSETS)
            offsets.append(
                _offsets(figures, place[documents[some]], many, each, tails=tails, rng=rng)
            )
    found = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # all NaN: no bound
        for name, value in values.items():
            low, high = np.nanmean([each[name] for each in offsets], axis=0).tolist()
            known = np.isfinite([value, low, high]).all()
            found[name] = (
                Interval(value, value + low, value + high) if known else Interval(value, None, None)
            )
    return found


def _offsets(
    figures: Weighted,
    documents: NDArray[np.int64],
    draws: int,
    replicates: int,
    *,
    tails: list[float],
    rng: np.random.Generator,
) -> dict[str, Floats]:
    """Bounds of each figure, relative to that of the rows as they are; NaN where it has none."""
    many = int(documents.max()) + 1
    # Counted as often as in a resample: where a tie of many rows is not that of one.
    often = _ones(len(documents)) * max(1, round(draws / many))
    own = figures.of(often)
    drawn: dict[str, list[Floats]] = {name: [] for name in own}
    batch = max(1, _CELLS // len(documents))
    for start in range(0, replicates, batch):
        size = min(batch, replicates - start)
        often = rng.multinomial(draws, np.full(many, 1 / many), size=size)
        for name, values in figures.of(often[:, documents]).items():
            drawn[name].append(values)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        return {
            name: np.nanquantile(np.concatenate(values), tails) - own[name][0]
            for name, values in drawn.items()
        }


def _ones(rows: int) -> NDArray[np.int64]:
    return np.ones((1, rows), np.int64)
