"""What one step of a participating device did, and when the next one is due."""

from __future__ import annotations

import random
import secrets
from dataclasses import dataclass, replace
from typing import Final, Literal

from cascade.clock import Clock
from cascade.federation.terms import RetryWindow
from edge.federation.state import DeviceFolder, DeviceState
from edge.federation.timer import Timer

UNSAID_WAIT_S: Final = 60.0
"""Until the next step, where the coordinator has not said when."""

Outcome = Literal[
    "waiting",
    "not_ready",
    "spent",
    "not_needed",
    "declined",
    "no_gain",
    "failed",
    "withdrawn",
    "unsent",
    "paused",
    "masking",
    "sent",
]


@dataclass(frozen=True, slots=True)
class Step:
    """What one step did, when the next one may be taken, and why, in a line."""

    outcome: Outcome
    wait_s: float
    note: str = ""


class Pace:
    """Keeps the coordinator's word on when to come back."""

    def __init__(self, folder: DeviceFolder, clock: Clock) -> None:
        self._folder, self._clock = folder, clock
        self._random = random.Random(secrets.randbits(64))

    def later(
        self,
        state: DeviceState,
        outcome: Outcome,
        window: RetryWindow,
        note: str = "",
        least_s: float = 0.0,
    ) -> Step:
        """Save the state, and wait for a time drawn from the window, ``least_s`` at the least."""
        wait_s = max(window.draw(self._random), least_s)
        self._folder.save(replace(state, wait=Timer(wait_s, self._clock.read())))
        return Step(outcome, wait_s, note)
