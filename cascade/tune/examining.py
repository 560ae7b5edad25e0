"""What a policy does on rows that had no part in it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cascade.early_stop import Savings
from cascade.pair import Pair
from cascade.policy import Policy
from cascade.rows import Bools
from cascade.tune.aims import Aim, Observed, observe, settled
from cascade.verdicts import judge, saved


@dataclass(frozen=True, slots=True)
class Tested:
    """A policy on the test part.

    Arguments:
        n, accepted: rows, and those answered locally.
        unverified: rows that stay on the device without being accepted, for there is little to
            gain.
        unmeasured: rows without a confidence; none of them is accepted.
        promises: what is seen of each target.
        accuracy, local_accuracy, cloud_accuracy: of the cascade and of each side alone; the first
            and the last ``None`` without a cloud tier.
        saved: what stopping early saves; ``None`` without it.
    """

    n: int
    accepted: int
    unverified: int
    unmeasured: int
    promises: tuple[Observed, ...]
    local_accuracy: float
    accuracy: float | None
    cloud_accuracy: float | None
    saved: Savings | None = None

    @property
    def coverage(self) -> float:
        """Share answered locally."""
        return self.accepted / self.n


def examine(rows: Pair, aims: Sequence[Aim], policy: Policy) -> Tested:
    """What a policy does on rows that had no part in it.

    Raises:
        InvalidInput: the rows lack what a target, or an early stop, takes.
    """
    seen = judge(policy, rows.records, rows.local)
    cloud = rows.cloud_correct
    mine = None if cloud is None else np.where(seen.escalated, cloud, rows.correct)
    return Tested(
        n=len(rows),
        accepted=int(seen.accepted.sum()),
        unverified=int(seen.unverified.sum()),
        unmeasured=int(seen.unmeasured.sum()),
        promises=tuple(
            observe(settled(aim.target(rows), seen.little_gain), seen.accepted) for aim in aims
        ),
        local_accuracy=float(rows.correct.mean()),
        accuracy=None if mine is None else float(mine.mean()),
        cloud_accuracy=None if cloud is None else float(cloud.mean()),
        saved=saved(policy, rows.records, rows.local, seen),
    )


def keeps(policy: Policy, rows: Pair) -> Bools:
    """Which local answers a policy accepts, shape ``[rows]``."""
    return judge(policy, rows.records, rows.local).accepted
