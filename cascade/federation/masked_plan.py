"""What a round under masks needs to say of itself, the same to all of its devices: how many are
summed, how many must stay, and how numbers become integers.

Under masks the server learns a sum and no device's part of it, so nothing can be weighted after the
fact: every device counts alike.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Final, Self

from cascade.errors import InvalidInput
from cascade.federation.masking.fixed_point import FixedPoint
from cascade.federation.masking.messages import MAX_COHORT
from cascade.strict import Fields

MASKED_FORMAT: Final = "cascade-masked-1"
"""The payload: words of the masked update, as ``FixedPoint.to_bytes`` writes them."""


@dataclass(frozen=True, slots=True)
class MaskedPlan:
    """The part of a plan that is there where updates are summed under masks.

    Arguments:
        cohort: devices that are summed at most, 2 or more.
        threshold: devices that must stay to the end, more than half of ``cohort``.
        levels: integers for [0, clip norm] at least; see ``FixedPoint.choose``.
        phase_s: seconds that each phase after the first waits for those who are late, > 0.

    Raises:
        InvalidInput: a number is out of its range.
    """

    cohort: int
    threshold: int
    levels: int
    phase_s: float

    def __post_init__(self) -> None:
        if not 2 <= self.cohort <= MAX_COHORT:
            raise InvalidInput("plan.masked.cohort", f"must be 2 to {MAX_COHORT}")
        if not self.cohort // 2 < self.threshold <= self.cohort:
            raise InvalidInput(
                "plan.masked.threshold",
                f"{self.threshold} is not more than half of {self.cohort} and at most all",
            )
        if not 1 <= self.levels < 1 << 52:
            raise InvalidInput("plan.masked.levels", "must be 1 to 2^52 − 1")
        if not 0 < self.phase_s < math.inf:
            raise InvalidInput("plan.masked.phase_s", "must be a finite number above 0")

    def fixed(self, clip_norm: float) -> FixedPoint:
        """How numbers of an update of this norm are written: none is larger than its norm."""
        return FixedPoint.choose(self.cohort, clip_norm, self.levels)

    def to_json(self) -> dict[str, float]:
        """As it is written in a plan."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: object, where: str) -> Self:
        """Read what ``to_json`` gave.

        Raises:
            InvalidInput: a field is missing, unknown or unusable.
        """
        fields = Fields(value, where)
        plan = cls(
            cohort=fields.integer("cohort", 2, MAX_COHORT),
            threshold=fields.integer("threshold", 2, MAX_COHORT),
            levels=fields.integer("levels", 1, (1 << 52) - 1),
            phase_s=fields.number("phase_s", 0.0),
        )
        fields.end()
        return plan
