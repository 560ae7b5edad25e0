"""Which thresholds of a grid are certified, given a p-value for each: family-wise tests.

Every family keeps P(any certified threshold is bad) ≤ delta, for p-values that may depend on each
other in any way. None looks at anything but the p-values and the order of the grid.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, Protocol

import numpy as np

from cascade.certificate import FamilyName
from cascade.errors import InvalidInput
from cascade.rows import Bools, Floats


class Family(Protocol):
    """A family-wise test."""

    @property
    def name(self) -> FamilyName:
        """How certificates call it."""

    @property
    def starts(self) -> Sequence[int]:
        """Places where fixed sequences begin; empty for other families."""

    def certified(self, p_values: Floats, delta: float) -> Bools:
        """Which thresholds pass.

        Arguments:
            p_values: in the order of the grid, shape ``[…, thresholds]``.
            delta: family-wise level, in (0, 1).

        Returns:
            bool, the shape of ``p_values``.

        Raises:
            InvalidInput: the family does not fit a grid of this size.
        """

    def first_level(self, delta: float, size: int) -> float:
        """The largest level at which a threshold can be tested before any other has passed."""


@dataclass(frozen=True, slots=True)
class FixedSequence:
    """One threshold after another, in the order of the grid, up to the first that fails.

    With one start every test has the full level delta: if any certified threshold is bad, the first
    bad one was rejected by its own test. With k starts each brings delta / k; a sequence that
    reaches the next start adds its level to it, and one that fails loses its own (the fallback
    procedure, Wiens and Dmitrienko 2005, J. Biopharm. Stat. 15:929). Several starts insure against
    a first threshold that fails, at a price to all others; ``plan_grid`` makes one start enough.

    Arguments:
        starts: places in the grid, strictly rising, from 0.
    """

    starts: tuple[int, ...] = (0,)
    name: ClassVar[FamilyName] = "fixed_sequence"

    def __post_init__(self) -> None:
        rising = all(a < b for a, b in pairwise(self.starts))
        if not self.starts or self.starts[0] < 0 or not rising:
            raise InvalidInput("starts", "must be at least one place, strictly rising, from 0")

    def certified(self, p_values: Floats, delta: float) -> Bools:
        """See ``Family``."""
        size = p_values.shape[-1]
        if self.starts[-1] >= size:
            raise InvalidInput("starts", f"{self.starts[-1]} is beyond a grid of {size}")
        brought = np.zeros(size)
        brought[list(self.starts)] = self.first_level(delta, size)
        level = np.zeros(p_values.shape[:-1])
        passed = np.zeros(p_values.shape, np.bool_)
        for place in range(size):
            level = np.minimum(level + brought[place], delta)
            passed[..., place] = (level > 0) & (p_values[..., place] <= level)
            level = np.where(passed[..., place], level, 0.0)
        return passed

    def first_level(self, delta: float, size: int) -> float:
        """See ``Family``."""
        return delta / len(self.starts)


@dataclass(frozen=True, slots=True)
class Bonferroni:
    """Every threshold at level delta / their number. Needs no order, and costs the most."""

    name: ClassVar[FamilyName] = "bonferroni"
    starts: ClassVar[tuple[int, ...]] = ()

    def certified(self, p_values: Floats, delta: float) -> Bools:
        """See ``Family``."""
        return p_values <= self.first_level(delta, p_values.shape[-1])

    def first_level(self, delta: float, size: int) -> float:
        """See ``Family``."""
        return delta / size


@dataclass(frozen=True, slots=True)
class Holm:
    """Smallest p-value first, at delta / the number not yet passed (Holm 1979). Passes whatever
    Bonferroni does, and more. Needs no order."""

    name: ClassVar[FamilyName] = "holm"
    starts: ClassVar[tuple[int, ...]] = ()

    def certified(self, p_values: Floats, delta: float) -> Bools:
        """See ``Family``."""
        size = p_values.shape[-1]
        order = np.argsort(p_values, axis=-1, kind="stable")
        levels = delta / (size - np.arange(size))
        smallest_first = np.take_along_axis(p_values, order, axis=-1) <= levels
        unbroken = np.logical_and.accumulate(smallest_first, axis=-1)
        passed = np.zeros(p_values.shape, np.bool_)
        np.put_along_axis(passed, order, unbroken, axis=-1)
        return passed

    def first_level(self, delta: float, size: int) -> float:
        """See ``Family``."""
        return delta / size


def furthest(passed: Bools) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
    """The last place that passed along the grid, -1 where none did.

    Arguments:
        passed: shape ``[…, thresholds]``.

    Returns:
        int64, shape ``[…]``.
    """
    size = passed.shape[-1]
    last = size - 1 - np.argmax(passed[..., ::-1], axis=-1)
    return np.where(passed.any(axis=-1), last, -1).astype(np.int64)
