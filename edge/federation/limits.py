"""What a device gives to federated rounds at most. The plan of a lease may ask for less, never for
more: such a lease is given back."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Final

from cascade.clock import Reading, own_time
from cascade.federation.plan import RoundPlan

DAY_S: Final = 86_400.0


@dataclass(frozen=True, slots=True)
class Limits:
    """A device's own budget.

    Arguments:
        seconds, steps: of training, in one round.
        rounds_per_day: in which it takes part, 0 or more.
        upload_bytes: of one update.
        clip_norm: the largest update that it sends: a plan with a larger norm would let more of its
            examples through.
        cohort: devices, fewer than which this one is not summed with, where updates are masked; 2
            or more.
        masked_only: it takes part only where the cluster learns no more than a sum.
        rank: of the adapter that it trains: of a larger one it takes the leading part, where the
            cluster averages products; ``None`` for any.
    """

    seconds: float = 900.0
    steps: int = 200
    rounds_per_day: int = 2
    upload_bytes: int = 1_000_000
    clip_norm: float = 10.0
    cohort: int = 3
    masked_only: bool = False
    rank: int | None = None

    def exceeded_by(self, plan: RoundPlan, payload_bytes: int) -> str | None:
        """What a plan asks too much of, in a few words; ``None`` where it asks nothing so."""
        asked: tuple[tuple[str, float, float], ...] = (
            ("seconds", plan.max_seconds, self.seconds),
            ("steps", plan.max_steps, self.steps),
            ("bytes", payload_bytes, self.upload_bytes),
            ("of the update's norm", plan.clip_norm, self.clip_norm),
        )
        for what, wanted, allowed in asked:
            if wanted > allowed:
                return f"the plan asks for {wanted:g} {what}, this device gives {allowed:g}"
        if plan.masked is None:
            return "the plan has no masks, and this device wants them" if self.masked_only else None
        if plan.masked.threshold < self.cohort:
            return (
                f"the plan sums as few as {plan.masked.threshold} devices, this one wants "
                f"{self.cohort}"
            )
        return None


@dataclass(frozen=True, slots=True)
class Usage:
    """In how many rounds a device took part on one UTC day.

    Arguments:
        now: the device's own time; see ``cascade.clock.own_time``.
        rounds: on the day of ``now``.
    """

    now: Reading = field(default_factory=lambda: Reading(0.0, 0.0, ""))
    rounds: int = 0

    def at(self, reading: Reading) -> Usage:
        """The usage at a later reading: a new day begins at nothing."""
        now = own_time(self.now, reading)
        today = now.wall_s // DAY_S == self.now.wall_s // DAY_S
        return Usage(now, self.rounds if today else 0)

    def one_more(self) -> Usage:
        """With one round more."""
        return replace(self, rounds=self.rounds + 1)
