"""Promote, go back, or wait: a sequential test that may be looked at whenever one likes. Pure.

Of each measure there is the candidate's running share c and the parent's p, on devices that serve
at the same time. Both have confidence sequences (``cascade.monitor.RiskSequence``), so that with
probability 1 − e the difference lies in

    [low_c(e/2) − high_p(e/2),  high_c(e/2) − low_p(e/2)]

at all times at once. The candidate goes back once the lower end of some measure is above its
margin; with e = delta / (number of measures) a candidate that keeps to every margin is ever sent
back with probability at most delta. It is promoted once the upper end of *every* measure is at most
its margin: one that is beyond some margin would have to be shown below it, which happens with
probability at most e, whatever the other measures say (an intersection-union test, Berger 1982).

Failures to load are compared with nothing: the parent is not applied anew meanwhile.

What is covered are running shares of what was reported. Devices are assigned by a hash, so both
groups are alike but for chance; ``minimum_devices`` bounds that chance, not this test.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from cascade.federation.fleet import ALONE
from cascade.monitor import RiskSequence

Move = Literal["promote", "roll_back", "wait"]

Counts = Mapping[str, tuple[int, int]]
"""Trials and events of each measure."""


@dataclass(frozen=True, slots=True)
class Shown:
    """What is shown of one measure.

    Arguments:
        trials, events: on the candidate's devices; ``parent_*``: on the parent's.
        low, high: bounds of the difference of both shares, in [−1, 1]; of failures to load, of the
            candidate's own share, in [0, 1].
        margin: that it may have.
    """

    measure: str
    trials: int
    events: int
    parent_trials: int
    parent_events: int
    low: float
    high: float
    margin: float

    @property
    def text(self) -> str:
        """In a line."""
        mine = f"{self.measure} {_share(self.events, self.trials)} of {self.trials}"
        if self.measure in ALONE:
            return f"{mine}: {self.low:.3f} … {self.high:.3f}, {self.margin:g} allowed"
        theirs = f"parent {_share(self.parent_events, self.parent_trials)} of {self.parent_trials}"
        return f"{mine}, {theirs}: {self.low:+.3f} … {self.high:+.3f}, {self.margin:+g} allowed"


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a rollout stands.

    Arguments:
        why: the move's reason in a line.
    """

    move: Move
    why: str
    shown: tuple[Shown, ...]


def decide(
    candidate: Counts,
    parent: Counts,
    margins: Mapping[str, float],
    *,
    delta: float,
    devices: int,
    minimum_devices: int,
    age_s: float,
    minimum_s: float,
    most_s: float,
) -> Standing:
    """What is to be done with a candidate.

    Arguments:
        devices: that have reported of it.
        age_s: how long it has been served.
    """
    error = delta / len(margins)
    shown = tuple(
        _shown(measure, candidate.get(measure, (0, 0)), parent.get(measure, (0, 0)), margin, error)
        for measure, margin in margins.items()
    )
    for found in shown:
        if found.low > found.margin:
            return Standing("roll_back", f"worse: {found.text}", shown)
    missing = [found.measure for found in shown if found.high > found.margin]
    if not missing and devices >= minimum_devices and age_s >= minimum_s:
        return Standing("promote", f"{len(shown)} measures within their margins", shown)
    if missing:
        waits = f"not shown yet: {', '.join(missing)}"
    elif devices < minimum_devices:
        waits = f"{devices} of {minimum_devices} devices have reported"
    else:
        waits = f"served for {age_s:.0f} of {minimum_s:g} s"
    if age_s > most_s:
        return Standing("roll_back", f"after {most_s:g} s {waits}", shown)
    return Standing("wait", waits, shown)


def _shown(
    measure: str, mine: tuple[int, int], theirs: tuple[int, int], margin: float, error: float
) -> Shown:
    here, there = RiskSequence(*mine), RiskSequence(*theirs)
    if measure in ALONE:
        low, high = here.lower(error), here.upper(error)
    else:
        half = error / 2
        low, high = here.lower(half) - there.upper(half), here.upper(half) - there.lower(half)
    return Shown(measure, *mine, *theirs, low=low, high=high, margin=margin)


def devices_needed(margins: Mapping[str, float], *, delta: float) -> int:
    """How many devices without a failure show that one that each device speaks of once is within
    its margin; 0 where no such measure is looked at."""
    error = delta / len(margins)
    needed = 0
    for measure in ALONE & margins.keys():
        while RiskSequence(needed, 0).upper(error) > margins[measure]:
            needed += 1
    return needed


def _share(events: int, trials: int) -> str:
    return f"{events / trials:.1%}" if trials else "nothing"
