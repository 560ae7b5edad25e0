"""Many certify parts drawn from a pool at once, and what each rule makes of them.

Drawn i.i.d. with replacement, so the counts between two thresholds are multinomial: they are drawn
directly, and all parts are certified by the product's p-values and families as arrays. The develop
part, on which grid and order of test are planned, is drawn anew for every block of certify parts.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field
from functools import cache

import numpy as np
from numpy.typing import NDArray

from benchmarks.decision.pools import Pool, pools, recorded
from cascade.certify import Family, FixedSequence, Holm, plan_grid, threshold_grid
from cascade.certify.families import furthest
from cascade.certify.p_values import clopper_pearson
from cascade.rows import Bools, Floats

DELTA = 0.1
ALPHAS = (0.05, 0.1, 0.2)
SIZES = (300, 1000, 3000)
DEVELOP = 400
"""Rows of the develop part."""

OURS = "planned sequence"
OTHERS = ("sequence from the top", "Holm", "sequences from six starts")
"""What ours is compared with: three other exact methods, on the whole grid."""
KNOWN_START = "sequence from the start that the pool itself tells"
"""A limit for all sequences, not a method: no develop part knows so much."""

_BLOCKS, _BLOCKS_QUICK = 50, 5
_PARTS = 20  # certify parts a block
_TRIALS = 400  # certify parts drawn only to find the best start


@dataclass(frozen=True, slots=True)
class Chosen:
    """What a rule chose on each certify part, judged on the whole pool.

    Arguments:
        coverage: share of the pool that is kept, 0 where nothing was certified, shape ``[parts]``.
        risk: error rate of what is kept, 0 where nothing was, shape ``[parts]``.
    """

    coverage: Floats
    risk: Floats


@dataclass(slots=True)
class Study:
    """Pools, and the draws made so far.

    Arguments:
        pools: synthetic ones. ``recorded``: the shipped record sets.
    """

    pools: tuple[Pool, ...]
    recorded: tuple[Pool, ...]
    quick: bool
    _certified: dict[tuple[str, float, int], dict[str, Chosen]] = field(default_factory=dict)

    @property
    def blocks(self) -> int:
        """Develop parts a pool, alpha and size."""
        return _BLOCKS_QUICK if self.quick else _BLOCKS

    @property
    def parts(self) -> int:
        """Certify parts a pool, alpha and size."""
        return self.blocks * _PARTS

    def certified(self, pool: Pool, alpha: float, n: int) -> dict[str, Chosen]:
        """By method: ours, the others, the limit. Drawn once for all who ask."""
        key = (pool.name, alpha, n)
        if key not in self._certified:
            self._certified[key] = certified(pool, alpha, n, blocks=self.blocks)
        return self._certified[key]


@cache
def shared_study(quick: bool) -> Study:
    """The bundled pools, drawn from once for all groups of a run."""
    return Study(pools(), recorded(), quick)


def certified(pool: Pool, alpha: float, n: int, *, blocks: int) -> dict[str, Chosen]:
    """What each method certifies on ``blocks * 20`` certify parts of n rows."""
    rng = _generator(pool, n, alpha)
    chosen: dict[str, list[tuple[Floats, Floats]]] = {}
    for _ in range(blocks):
        develop = rng.integers(0, len(pool.confidence), DEVELOP)
        confidence, correct = pool.confidence[develop], pool.correct[develop]
        whole = threshold_grid(confidence)
        planned = plan_grid(confidence, correct, rows=n, alpha=alpha, delta=DELTA)
        accepted, errors = draw_counts(pool, whole, n, _PARTS, rng)
        p_values = clopper_pearson(errors, accepted, alpha)
        coverage, risk = pool.coverage_and_risk(whole)
        starts = np.unique(np.linspace(0, len(whole) - 1, 7)[:-1].astype(np.int64))
        families: dict[str, tuple[Family, int]] = {
            OURS: (FixedSequence(), len(whole) - len(planned)),
            OTHERS[0]: (FixedSequence(), 0),
            OTHERS[1]: (Holm(), 0),
            OTHERS[2]: (FixedSequence(tuple(starts.tolist())), 0),
            KNOWN_START: (FixedSequence(), _best_start(pool, whole, alpha, n, rng)),
        }
        for name, (family, first) in families.items():
            last = furthest(family.certified(p_values[:, first:], DELTA))
            place = np.where(last >= 0, last + first, 0)
            some = last >= 0
            chosen.setdefault(name, []).append(
                (np.where(some, coverage[place], 0.0), np.where(some, risk[place], 0.0))
            )
    return {name: _join(each) for name, each in chosen.items()}


def _best_start(
    pool: Pool, thresholds: Floats, alpha: float, n: int, rng: np.random.Generator
) -> int:
    """The start from which a fixed sequence keeps most on average, on draws of its own."""
    accepted, errors = draw_counts(pool, thresholds, n, _TRIALS, rng)
    passed = clopper_pearson(errors, accepted, alpha) <= DELTA
    coverage, _ = pool.coverage_and_risk(thresholds)
    reached, mean = np.zeros(_TRIALS), np.zeros(len(thresholds))
    for place in reversed(range(len(thresholds))):
        reached = np.where(passed[:, place], np.maximum(reached, coverage[place]), 0.0)
        mean[place] = reached.mean()
    return int(mean.argmax())


def naive(pool: Pool, alphas: tuple[float, ...], n: int, *, parts: int) -> dict[float, Chosen]:
    """What the naive rule picks on ``parts`` certify parts of n rows, by alpha."""
    rows = _generator(pool, n).integers(0, len(pool.confidence), (parts, n))
    chosen = {}
    for alpha in alphas:
        threshold = naive_thresholds(pool.confidence[rows], pool.correct[rows], alpha)
        coverage, risk = pool.coverage_and_risk(threshold)
        some = np.isfinite(threshold)
        chosen[alpha] = Chosen(np.where(some, coverage, 0.0), np.where(some, risk, 0.0))
    return chosen


def naive_thresholds(confidence: Floats, correct: Bools, alpha: float) -> Floats:
    """``cascade.certify.naive_threshold`` of many parts at once; infinite where it finds none.

    Arguments:
        confidence, correct: shape ``[parts, rows]``.

    Returns:
        shape ``[parts]``.
    """
    order = np.argsort(-confidence, axis=1, kind="stable")
    falling = np.take_along_axis(confidence, order, axis=1)
    errors = np.take_along_axis(~correct, order, axis=1).cumsum(axis=1)
    last_of_tie = np.ones(falling.shape, np.bool_)
    last_of_tie[:, :-1] = falling[:, :-1] > falling[:, 1:]
    last = furthest(last_of_tie & (errors <= alpha * np.arange(1, falling.shape[1] + 1)))
    found = falling[np.arange(len(last)), np.maximum(last, 0)]
    return np.where(last >= 0, found, np.inf)


def draw_counts(
    pool: Pool, thresholds: Floats, n: int, parts: int, rng: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Accepted rows and errors at each threshold, for parts drawn i.i.d. with replacement.

    Arguments:
        thresholds: strictly falling.

    Returns:
        two arrays, shape ``[parts, thresholds]``.
    """
    coverage, risk = pool.coverage_and_risk(thresholds)
    wrong = np.diff(coverage * risk, prepend=0.0)
    right = np.diff(coverage * (1 - risk), prepend=0.0)
    shares = np.maximum([*wrong, *right, 1 - coverage[-1]], 0.0)
    counts = rng.multinomial(n, shares / shares.sum(), size=parts)
    size = len(thresholds)
    errors = counts[:, :size].cumsum(axis=1)
    return errors + counts[:, size : 2 * size].cumsum(axis=1), errors


def _join(each: list[tuple[Floats, Floats]]) -> Chosen:
    return Chosen(np.concatenate([c for c, _ in each]), np.concatenate([r for _, r in each]))


def _generator(pool: Pool, n: int, alpha: float = 0.0) -> np.random.Generator:
    """The same draws for the same pool, size and alpha, whatever else is run."""
    return np.random.default_rng([zlib.crc32(pool.name.encode()), n, round(alpha * 1000)])
