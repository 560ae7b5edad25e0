"""When a device may train: its conditions, and budgets of time, steps, energy and participation.

Pure: what was used, what holds now, and the verdict with all its reasons. The books are kept, and
conditions watched while training runs, by ``edge.training.allowance``.

A condition that has to hold has to be *told*: unlike in ``cascade.constraints``, what is unknown
stands in the way, for training is never urgent. The temperature alone is taken for fine where no
sensor tells it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final, Self

from cascade.clock import Reading, own_time
from cascade.conditions import Conditions
from cascade.errors import InvalidInput

DAY_S: Final = 86_400.0
WEEK_S: Final = 7 * DAY_S


class Hold(StrEnum):
    """Why a device does not train now."""

    NOT_IDLE = "not_idle"
    """Somebody uses it, or nobody told that they do not."""
    NOT_CHARGING = "not_charging"
    """It runs on its battery, or nobody told that it does not."""
    NOT_UNMETERED = "not_unmetered"
    """There is no unmetered connection for an update, as far as anybody told."""
    TOO_HOT = "too_hot"
    """It is warmer than allowed."""
    TIME_SPENT = "time_spent"
    """The day's seconds are used."""
    STEPS_SPENT = "steps_spent"
    """The day's steps are used."""
    ENERGY_SPENT = "energy_spent"
    """The day's energy is used."""
    TOO_SOON = "too_soon"
    """The last participation in a round is too recent."""
    WEEK_FULL = "week_full"
    """It participated in as many rounds as it may in seven days."""
    ALREADY_TRAINING = "already_training"
    """Another process of this device trains."""
    STOPPED = "stopped"
    """The process that trains was told to end."""
    BOOKS_UNREADABLE = "books_unreadable"
    """Nobody can tell what was used."""


@dataclass(frozen=True, slots=True)
class TrainingLimits:
    """What a device's owner allows. Days are those of UTC.

    Arguments:
        idle, charging, unmetered: whether these have to hold; the last one only where an update is
            to be sent.
        max_temperature_c: of what the conditions tell; ``None`` for any.
        seconds_per_day: wall time of training, ≥ 0.
        steps_per_day: optimiser steps, ≥ 0.
        joules_per_day: CPU seconds × ``watts``, ≥ 0; ``None`` sets no limit.
        watts: what one busy CPU takes, > 0, as the host knows or guesses it.
        separation_s: between two participations in rounds, ≥ 0.
        per_week: participations in seven days, ≥ 0.

    Raises:
        InvalidInput: a limit is out of range; it is named.
    """

    idle: bool = True
    charging: bool = True
    unmetered: bool = True
    max_temperature_c: float | None = 45.0
    seconds_per_day: float = 600.0
    steps_per_day: int = 1_000
    joules_per_day: float | None = None
    watts: float = 2.0
    separation_s: float = 6 * 3_600.0
    per_week: int = 7

    def __post_init__(self) -> None:
        for name in ("seconds_per_day", "steps_per_day", "separation_s", "per_week"):
            if not 0 <= getattr(self, name) < math.inf:
                raise InvalidInput(f"training.{name}", "is not a number of at least 0")
        if self.joules_per_day is not None and not 0 <= self.joules_per_day < math.inf:
            raise InvalidInput("training.joules_per_day", "is not a number of at least 0")
        if not 0 < self.watts < math.inf:
            raise InvalidInput("training.watts", f"{self.watts} is not a positive number")
        if self.max_temperature_c is not None and not math.isfinite(self.max_temperature_c):
            raise InvalidInput("training.max_temperature_c", "is not a finite number of degrees")


@dataclass(frozen=True, slots=True)
class Usage:
    """What was used, as of one moment; see ``cascade.budget.Account`` for its idea of time.

    Arguments:
        now_s: the device's own time in seconds since 1970: never runs backwards.
        uptime_s, boot: the reading that it was brought up to.
        seconds, steps, joules: used in the UTC day of ``now_s``.
        participations: ``now_s`` of those of the last seven days, oldest first.
    """

    now_s: float
    uptime_s: float
    boot: str
    seconds: float = 0.0
    steps: int = 0
    joules: float = 0.0
    participations: tuple[float, ...] = ()

    @classmethod
    def opened(cls, reading: Reading) -> Self:
        """Of a device that never trained."""
        return cls(reading.wall_s, reading.uptime_s, reading.boot)

    def at(self, reading: Reading) -> Self:
        """The usage at a later reading: a new day begins at nothing."""
        now_s = own_time(Reading(self.now_s, self.uptime_s, self.boot), reading).wall_s
        today = now_s // DAY_S == self.now_s // DAY_S
        return replace(
            self,
            now_s=now_s,
            uptime_s=reading.uptime_s,
            boot=reading.boot,
            seconds=self.seconds if today else 0.0,
            steps=self.steps if today else 0,
            joules=self.joules if today else 0.0,
            participations=tuple(at for at in self.participations if now_s - at < WEEK_S),
        )

    def after(self, *, seconds: float = 0.0, steps: int = 0, joules: float = 0.0) -> Self:
        """After some training."""
        return replace(
            self,
            seconds=self.seconds + seconds,
            steps=self.steps + steps,
            joules=self.joules + joules,
        )

    def participated(self) -> Self:
        """After taking part in a round, now."""
        return replace(self, participations=(*self.participations, self.now_s))


@dataclass(frozen=True, slots=True)
class Permission:
    """The verdict.

    Arguments:
        reasons: all that stands in the way, in the order of ``Hold``; empty where it may train.
        seconds, steps, joules: what is left of the day, ≥ 0; ``joules`` may be infinite.
        retry_s: seconds after which the budgets that stand in the way no longer do; 0 where only
            conditions do, which may change at any moment, and where nothing does.
        day_s: seconds until the day's budgets are whole again.
    """

    reasons: tuple[Hold, ...]
    seconds: float
    steps: int
    joules: float
    retry_s: float = 0.0
    day_s: float = 0.0

    @property
    def allowed(self) -> bool:
        """Whether training may begin, or go on."""
        return not self.reasons

    def covers(self, *, seconds: float = 0.0, steps: int = 0) -> bool:
        """Whether a plan fits into what is left; one that does not is to be refused or shortened
        before it is begun."""
        return self.allowed and seconds <= self.seconds and steps <= self.steps


def may_train(
    limits: TrainingLimits, usage: Usage, conditions: Conditions, *, participate: bool = False
) -> Permission:
    """Whether a device may train now.

    Arguments:
        usage: brought up to now.
        participate: for a round, after which an update is sent, and not for itself alone.
    """
    seconds_left = max(0.0, limits.seconds_per_day - usage.seconds)
    steps_left = max(0, limits.steps_per_day - usage.steps)
    allowed_j = math.inf if limits.joules_per_day is None else limits.joules_per_day
    joules_left = max(0.0, allowed_j - usage.joules)
    hot_c, limit_c = conditions.temperature_c, limits.max_temperature_c
    recent = usage.participations
    since_s = usage.now_s - recent[-1] if recent else math.inf
    stands = {
        Hold.NOT_IDLE: limits.idle and conditions.idle is not True,
        Hold.NOT_CHARGING: limits.charging and conditions.charging is not True,
        Hold.NOT_UNMETERED: participate
        and limits.unmetered
        and conditions.connectivity != "unmetered",
        Hold.TOO_HOT: hot_c is not None and limit_c is not None and hot_c > limit_c,
        Hold.TIME_SPENT: seconds_left <= 0,
        Hold.STEPS_SPENT: steps_left <= 0,
        Hold.ENERGY_SPENT: joules_left <= 0,
        Hold.TOO_SOON: participate and since_s < limits.separation_s,
        Hold.WEEK_FULL: participate and len(recent) >= limits.per_week,
    }
    reasons = tuple(hold for hold, holds in stands.items() if holds)
    waits = [_wait_s(hold, limits, usage) for hold in reasons]
    retry_s, day_s = max(waits, default=0.0), _day_s(usage)
    return Permission(reasons, seconds_left, steps_left, joules_left, retry_s, day_s)


def _day_s(usage: Usage) -> float:
    return DAY_S - usage.now_s % DAY_S


def _wait_s(hold: Hold, limits: TrainingLimits, usage: Usage) -> float:
    """How long a budget stands in the way; 0 for what is not a budget."""
    match hold:
        case Hold.TIME_SPENT | Hold.STEPS_SPENT | Hold.ENERGY_SPENT:
            return _day_s(usage)
        case Hold.TOO_SOON:
            return usage.participations[-1] + limits.separation_s - usage.now_s
        case Hold.WEEK_FULL:
            # The one that has to leave the week for there to be room; with none allowed, never.
            place = len(usage.participations) - limits.per_week
            if place >= len(usage.participations):
                return WEEK_S
            return usage.participations[place] + WEEK_S - usage.now_s
        case _:
            return 0.0
