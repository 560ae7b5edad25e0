"""Pools of answered questions whose risk at every threshold is known, because a pool is finite and
all its labels are: draws from it are draws from a known population.

Synthetic ones of many shapes, and the shipped record sets: real models' answers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from benchmarks.decision.shipped import NAMES, records
from cascade.calibrate import fit_platt
from cascade.pair import pair
from cascade.records import RecordSet, split
from cascade.rows import Bools, Floats, labelled

_SIZE = 20_000
_SEED = 20_260
_SHARES = {"develop": 0.3, "pool": 0.7}
_SPLIT = "pools"


@dataclass(frozen=True)
class Pool:
    """Confidences of a model's answers and whether these are right.

    Arguments:
        name: as in the rows' figures.
        confidence: in [0, 1], shape ``[rows]``.
        correct: bool, shape ``[rows]``.
    """

    name: str
    confidence: Floats
    correct: Bools

    def __post_init__(self) -> None:
        labelled(self.confidence, self.correct)

    @cached_property
    def _falling(self) -> tuple[Floats, Floats, Floats]:
        """Distinct confidences, falling; rows at or above each; and the wrong ones of these."""
        values, place = np.unique(self.confidence, return_inverse=True)
        rows = np.bincount(place, minlength=len(values))[::-1].cumsum()
        wrong = np.bincount(place, weights=~self.correct, minlength=len(values))[::-1].cumsum()
        return values[::-1], rows.astype(np.float64), wrong

    def coverage_and_risk(self, thresholds: Floats) -> tuple[Floats, Floats]:
        """Share of the pool at or above each threshold, and its error rate; 0 where it is empty."""
        values, rows, wrong = self._falling
        count = np.searchsorted(-values, -thresholds, side="right")
        kept, errors = np.append(0, rows)[count], np.append(0, wrong)[count]
        return kept / len(self.confidence), errors / np.maximum(kept, 1)

    def best_coverage(self, alpha: float) -> float:
        """The largest share to keep at a risk of at most alpha, in hindsight; 0 if none."""
        _, rows, wrong = self._falling
        good = wrong <= alpha * rows
        return float((rows[good] / len(self.confidence)).max(initial=0.0))


def pools() -> tuple[Pool, ...]:
    """Synthetic pools of several shapes."""
    return tuple(_draw(name, shape, seed) for seed, (name, shape) in enumerate(_SHAPES.items()))


def recorded() -> tuple[Pool, ...]:
    """The shipped record sets, each less the rows that its confidences were fitted on."""
    return tuple(of_records(f"{name} records", records(name)) for name in NAMES)


def of_records(name: str, whole: RecordSet) -> Pool:
    """The lowest tier's answers, with a Platt map fitted on documents that are not in the pool."""
    parts = split(whole, _SHARES, seed=_SPLIT)
    develop, rest = (pair(parts[part], alone=True) for part in _SHARES)
    confidence = fit_platt(develop.score, develop.correct)
    return Pool(name, confidence.batch(rest.score), rest.correct)


def flat(alpha: float) -> Pool:
    """Confidence says nothing and the risk is just above alpha: nearly any certificate is wrong."""
    rng = np.random.default_rng([_SEED, 99])
    wrong = np.arange(_SIZE) < np.ceil((alpha + 0.002) * _SIZE)
    return Pool("flat", rng.random(_SIZE), ~rng.permutation(wrong))


def _uniform(rng: np.random.Generator) -> Floats:
    return rng.random(_SIZE)


_Shape = tuple[Callable[[np.random.Generator], Floats], Callable[[Floats], Floats]]

# How confidences are drawn, and P(right) given the confidence.
_SHAPES: dict[str, _Shape] = {
    # P(right) is the confidence; a fifth is wrong in all.
    "calibrated": (lambda rng: rng.beta(4, 1, _SIZE), lambda c: c),
    # Right above some confidence and wrong below: what thresholds were made for.
    "steep": (_uniform, lambda c: 0.99 / (1 + np.exp(-12 * (c - 0.15)))),
    # Nearly always right; the risk of keeping everything is .05.
    "easy": (_uniform, lambda c: 0.9 + 0.1 * c),
    # The risk changes so slowly that thresholds with a risk near alpha are many.
    "shallow": (_uniform, lambda c: 0.78 + 0.17 * c),
    # A strong model that is better than it says.
    "strong": (lambda rng: rng.beta(8, 1, _SIZE), lambda c: np.minimum(1, c + 0.03)),
    # Eleven values of confidence, as from counting votes.
    "tied": (lambda rng: np.round(rng.beta(3, 1, _SIZE), 1), lambda c: 0.5 + 0.5 * c),
    # Worst where it is surest: a sequence that starts at the top ends there.
    "overconfident": (_uniform, lambda c: np.where(c > 0.95, 0.8, 0.55 + 0.45 * np.sqrt(c))),
}


def _draw(name: str, shape: _Shape, seed: int) -> Pool:
    confidence, chance = shape
    rng = np.random.default_rng([_SEED, seed])
    values = confidence(rng)
    return Pool(name, values, rng.random(_SIZE) < chance(values))
