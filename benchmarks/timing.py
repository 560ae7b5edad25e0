"""Time, measured so that a busy machine does little harm: process CPU time beside wall time, sides
alternating within one run, medians with an interval that assumes no distribution."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Sample:
    """What one piece of work took, in seconds: of this process's CPU, and by the clock."""

    cpu_s: float
    wall_s: float

    def each(self, count: int) -> Sample:
        """Per unit, of ``count`` equal units."""
        return Sample(self.cpu_s / count, self.wall_s / count)


@dataclass(frozen=True, slots=True)
class Estimate:
    """A median of ``n`` values, with a 95 % interval where ``n`` allows one."""

    value: float
    n: int
    ci: tuple[float, float] | None = None


def measure(work: Callable[[], object]) -> Sample:
    """Time one call."""
    cpu, wall = time.process_time(), time.perf_counter()
    work()
    return Sample(time.process_time() - cpu, time.perf_counter() - wall)


def alternate(
    sides: Mapping[str, Callable[[], Sample]], rounds: int, *, warm_up: int = 1
) -> dict[str, list[Sample]]:
    """Take samples of all sides in turn, so that whatever slows the machine slows all of them.

    Every other round goes backwards, because the first of a round may fare better or worse.
    """
    samples: dict[str, list[Sample]] = {name: [] for name in sides}
    for number in range(-warm_up, rounds):
        order = list(sides) if number % 2 == 0 else list(sides)[::-1]
        for name in order:
            sample = sides[name]()
            if number >= 0:
                samples[name].append(sample)
    return samples


def median(values: Sequence[float]) -> Estimate:
    """The median and its order-statistic interval.

    The k-th smallest and k-th largest of n values enclose the median with probability
    1 − 2 P(Bin(n, 1/2) < k), whatever the distribution; k is the largest that keeps it at 95 %.
    There is none below 6 values.
    """
    ordered, n = sorted(values), len(values)
    rank, tail = 0, 1 / 2**n
    while tail <= 0.025:
        rank += 1
        tail += math.comb(n, rank) / 2**n
    ci = (ordered[rank - 1], ordered[n - rank]) if rank else None
    return Estimate(statistics.median(ordered), n, ci)


def ratio(over: Sequence[float], under: Sequence[float]) -> Estimate:
    """Median of the ratios of samples that were taken in the same round."""
    return median([a / b for a, b in zip(over, under, strict=True)])


def cpu(samples: Sequence[Sample]) -> list[float]:
    """CPU seconds."""
    return [sample.cpu_s for sample in samples]


def wall(samples: Sequence[Sample]) -> list[float]:
    """Wall seconds."""
    return [sample.wall_s for sample in samples]
