"""The ``federation.rollout`` section of the cluster's YAML."""

from __future__ import annotations

import math
from typing import Self

from pydantic import Field, model_validator

from cascade.federation.fleet import LATENCY_BOUNDS_S, MEASURES, slower_than
from cloud.strict_model import StrictModel


class BoundsConfig(StrictModel):
    """By how much shares may be higher on the candidate's devices than on the parent's at the same
    time; null does not look at one. The candidate is promoted once each is shown to be less, and
    rolled back once one is shown to be more.

    Arguments:
        escalations: requests that were escalated.
        corrections: requests whose answer a user corrected.
        audit_errors: audited answers that were wrong.
        load_failures: of the candidate's devices, those on which it was to be applied and could not
            be; not compared with the parent. ``minimum_devices`` without one show the default.
        slow: requests that took longer than ``slow_s``.
    """

    escalations: float | None = Field(default=0.1, gt=0, lt=1)
    corrections: float | None = Field(default=0.05, gt=0, lt=1)
    audit_errors: float | None = Field(default=0.1, gt=0, lt=1)
    load_failures: float | None = Field(default=0.3, gt=0, lt=1)
    slow: float | None = Field(default=0.1, gt=0, lt=1)


class RolloutConfig(StrictModel):
    """How approved adapters reach devices.

    Arguments:
        channel: that serves them; its bundle must be there already.
        percent: of its devices that get the candidate first.
        minimum_devices: that must have reported of it before it is promoted.
        minimum_s, most_s: no promotion before, and a way back after, where nothing was shown.
        delta: tolerated probability of a wrong way back, and of a wrong promotion, however often
            the counts are looked at.
        slow_s: one of the bounds of the devices' histogram of latencies.
    """

    channel: str = Field(default="stable", pattern=r"^[A-Za-z0-9._-]{1,64}$")
    percent: int = Field(default=10, ge=1, le=99)
    minimum_devices: int = Field(default=20, ge=1, le=1_000_000)
    minimum_s: float = Field(default=3600.0, ge=0, le=31_536_000)
    most_s: float = Field(default=1_209_600.0, gt=0, lt=math.inf)
    delta: float = Field(default=0.05, gt=0, lt=0.5)
    slow_s: float = 2.0
    bounds: BoundsConfig = BoundsConfig()

    @model_validator(mode="after")
    def _fit(self) -> Self:
        if self.slow_s not in LATENCY_BOUNDS_S:
            known = ", ".join(f"{bound:g}" for bound in LATENCY_BOUNDS_S)
            raise ValueError(f"slow_s must be one of {known}")
        if self.minimum_s > self.most_s:
            raise ValueError("minimum_s is above most_s")
        if not self.margins:
            raise ValueError("bounds are all null: nothing would be looked at")
        return self

    @property
    def margins(self) -> dict[str, float]:
        """The bound of each measure that is looked at."""
        given = self.bounds.model_dump()
        named = {name: given[name] for name in MEASURES}
        named[slower_than(self.slow_s)] = given["slow"]
        return {name: margin for name, margin in named.items() if margin is not None}
