"""How soon the monitor demotes a policy whose risk has risen, and how often one that holds.

Beside it stands the detector of the smallest delay, told both risks (``cusum``). The streams are
independent coin tosses. The monitor's detector is that of ``cascade.monitor``, computed for many
streams at once; ``tests/cascade/monitor`` holds both to the same numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from benchmarks.decision.cusum import NAME, Cusum, threshold
from benchmarks.rows import Row
from benchmarks.run import Run
from benchmarks.timing import Estimate, median
from cascade.monitor.detector import RICH, RISES, STAKES, alternative, entering, left

ALPHAS = (0.05, 0.1, 0.2)
RISE = 0.10
AUDITS = 10_000
FALSE_ALARM = 0.01
_GIVE_UP = 3_000  # audits after the change
_SETTLED = 500  # audits after which CUSUM has forgotten how it began
_SEED = 20260


@dataclass(frozen=True, slots=True)
class Detectors:
    """``ChangeDetector`` for many streams at once.

    Arguments:
        alpha: the null of all of them.
        running: what the bets hold, shape ``[RISES, streams]``.
    """

    alpha: float
    running: NDArray[np.float64]
    audits: int = 0

    @classmethod
    def new(cls, alpha: float, streams: int) -> Detectors:
        """Before the first audit."""
        return cls(alpha, np.zeros((len(RISES), streams)))

    def after(self, wrong: NDArray[np.bool_]) -> Detectors:
        """One more label for each, shape ``[streams]``."""
        n = self.audits + 1
        rates = np.array([[alternative(self.alpha, rise)] for rise in RISES])
        factors = np.where(wrong, rates / self.alpha, (1 - rates) / (1 - self.alpha))
        stakes = np.array(STAKES)[:, None] * entering(n)
        running = np.minimum((self.running + stakes) * factors, RICH)
        return Detectors(self.alpha, running, n)

    @property
    def wealth(self) -> NDArray[np.float64]:
        """Shape ``[streams]``."""
        wealth: NDArray[np.float64] = self.running.sum(0) + left(self.audits)
        return wealth


def rows(subject: object, run: Run) -> Iterator[Row]:
    """Delays after changes at several moments, and false alarms without one, for each alpha."""
    del subject
    for alpha in ALPHAS:
        run.say(f"alpha {alpha:g}")
        for good in (0, 500, 2_000, 10_000):
            yield from _delays(alpha, good, run)
        yield from _bound(alpha, run)
        yield _false_alarms(alpha, run)


class Alarmed(Protocol):
    """Something that looks at many streams, an audit at a time."""

    def after(self, wrong: NDArray[np.bool_]) -> Self:
        """One more label for each, shape ``[streams]``."""
        ...


DetectorT = TypeVar("DetectorT", bound=Alarmed)


def delays(alpha: float, good: int, streams: int, seed: int) -> tuple[NDArray[np.int64], int]:
    """Audits from the change to the monitor's demotion; see ``first_alarms``."""
    return first_alarms(
        Detectors.new(alpha, streams),
        lambda detectors: detectors.wealth >= 1 / FALSE_ALARM,
        alpha=alpha,
        good=good,
        streams=streams,
        seed=seed,
    )


def first_alarms(
    detectors: DetectorT,
    alarms: Callable[[DetectorT], NDArray[np.bool_]],
    *,
    alpha: float,
    good: int,
    streams: int,
    seed: int,
) -> tuple[NDArray[np.int64], int]:
    """Audits from the change to the alarm.

    Arguments:
        detectors: of all streams, before the first audit; ``alarms``: which of them raise one.
        good: audits at risk ``alpha`` before it rises by ``RISE``.

    Returns:
        One number for each stream without a false alarm, ``_GIVE_UP + 1`` where it was not noticed;
        and how many false alarms there were.
    """
    rng = np.random.default_rng(seed)
    never = _GIVE_UP + 1
    found = np.full(streams, never, np.int64)
    false = np.zeros(streams, np.bool_)
    for audit in range(1, good + _GIVE_UP + 1):
        risk = alpha if audit <= good else alpha + RISE
        detectors = detectors.after(rng.random(streams) < risk)
        alarm = alarms(detectors)
        if audit <= good:
            false |= alarm
        else:
            found = np.where(alarm & (found == never), audit - good, found)
            if (found[~false] < never).all():
                break
    return found[~false], int(false.sum())


def false_alarms(alpha: float, audits: int, streams: int, seed: int) -> int:
    """Streams of risk exactly ``alpha`` that are demoted within so many audits."""
    rng = np.random.default_rng(seed)
    detectors = Detectors.new(alpha, streams)
    alarmed = np.zeros(streams, np.bool_)
    for _ in range(audits):
        detectors = detectors.after(rng.random(streams) < alpha)
        alarmed |= detectors.wealth >= 1 / FALSE_ALARM
    return int(alarmed.sum())


def _delays(alpha: float, good: int, run: Run) -> Iterator[Row]:
    streams = 400 if run.quick else 4_000
    found, false = delays(alpha, good, streams, _SEED)
    when = "at the first audit" if not good else f"after {good:,} audits"
    figure = f"drift, alpha {alpha:g}, risk +{RISE:g} {when}"
    how = (
        f"audits from the change to demotion at wealth 100, {streams:,} streams, {false} of them "
        "left out for a false alarm before it"
    )
    yield run.row(
        f"{figure}: median delay", median(found.tolist()), "audits", how, reach=250.0, sense="<="
    )
    soon = int((found <= 300).sum())
    yield run.row(
        f"{figure}: P(delay ≤ 300)",
        _share(soon, len(found)),
        "",
        how,
        reach=0.65,
        sense=">=",
    )


def _bound(alpha: float, run: Run) -> Iterator[Row]:
    """The same for CUSUM; when the change comes makes no difference to it."""
    streams, calibrating = (400, 2_000) if run.quick else (4_000, 20_000)
    limit = threshold(
        alpha,
        alpha + RISE,
        audits=AUDITS,
        false_alarm=FALSE_ALARM,
        streams=calibrating,
        seed=_SEED + 2,
    )
    found, _ = first_alarms(
        Cusum.new(alpha, alpha + RISE, streams),
        lambda cusum: cusum.sums >= limit,
        alpha=alpha,
        good=_SETTLED,
        streams=streams,
        seed=_SEED + 3,
    )
    figure = f"drift, alpha {alpha:g}, risk +{RISE:g}: CUSUM"
    how = (
        f"CUSUM that is told both risks, threshold {limit:.2f} such that {FALSE_ALARM:.0%} of "
        f"{calibrating:,} streams of risk alpha reach it within {AUDITS:,} audits; {streams:,} "
        f"streams, the change after {_SETTLED} audits. Of all detectors with false alarms at that "
        "constant rate its worst mean delay is the smallest (Moustakides 1986); it promises "
        "nothing beyond these audits"
    )
    yield run.row(f"{figure}, median delay", median(found.tolist()), "audits", how, peer=NAME)
    soon = _share(int((found <= 300).sum()), len(found))
    yield run.row(f"{figure}, P(delay ≤ 300)", soon, "", how, sense=">=", peer=NAME)


def _false_alarms(alpha: float, run: Run) -> Row:
    streams = 2_000 if run.quick else 20_000
    alarmed = false_alarms(alpha, AUDITS, streams, _SEED + 1)
    return run.row(
        f"drift, alpha {alpha:g}, risk exactly alpha: false alarms",
        _share(alarmed, streams),
        "",
        f"demoted within {AUDITS:,} audits, {streams:,} streams; proven ≤ {FALSE_ALARM:g} at any "
        "number of audits (Ville's inequality)",
        reach=FALSE_ALARM,
        sense="<=",
    )


def _share(successes: int, trials: int) -> Estimate:
    from cascade.binomial import clopper_pearson_interval

    return Estimate(successes / trials, trials, clopper_pearson_interval(successes, trials))
