"""Central differential privacy: Gaussian noise on the clipped sum, and what it costs in ε.

The mechanism is the subsampled Gaussian of DP-FedAvg (arXiv 1710.06963): each device's update is
clipped to an L2 norm, the sum gets noise of ``noise_multiplier`` times that norm, and is divided by
the *expected* cohort, which no single device can change. Two fleets are neighbours if one has one
device more. ε is computed by ``dp-accounting`` (extra ``privacy``), not here.

What the promise rests on: the coordinator adds the noise, so it is trusted (with secure aggregation
it sees sums only); devices are drawn by it, each with the same probability and by itself, or else
``sampling="none"``; weights are all 1; and noise is drawn in float64, whose gaps leak in theory
(Mironov 2012).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from cascade.errors import CascadeError, InvalidInput
from cloud.federation.robust import Doubles, bound_norms

Sampling = Literal["poisson", "none"]

_INTERVAL = 1e-3
"""Of the discretised privacy loss. Ten times the library's default, at which long histories take
many seconds; it makes ε larger, by less than 0.1 % over 5,000 sampled rounds."""


@dataclass(frozen=True, slots=True)
class PrivateMean:
    """A ``Rule``: Σ clip(x_i) + noise, over the expected cohort.

    Arguments:
        clip: L2 norm that no device's row passes, > 0.
        noise_multiplier: standard deviation of the noise in units of ``clip``, > 0.
        expected: devices that a round draws on average: q N. Not the number that came.
        rng: of the noise. Seed it from a secret, and use it for no other sum.
    """

    clip: float
    noise_multiplier: float
    expected: float
    rng: np.random.Generator

    def __post_init__(self) -> None:
        for name in ("clip", "noise_multiplier", "expected"):
            if not 0 < getattr(self, name) < math.inf:
                raise InvalidInput(name, f"{getattr(self, name)} is not a positive number")

    def combine(self, rows: Doubles, weights: Doubles) -> Doubles:
        """The noised mean; ``weights`` are not used: a weight would multiply the sensitivity."""
        return self.noised(bound_norms(rows, self.clip).sum(axis=0), self.clip)

    def noised(self, total: Doubles, sensitivity: float) -> Doubles:
        """The same from a sum that masks have formed.

        Arguments:
            sensitivity: what one device can change the sum by, in L2: ``FixedPoint.norm_after`` of
                the norm that devices clip to. A curious server cannot check it under masks.
        """
        noise = self.rng.normal(0.0, self.noise_multiplier * sensitivity, total.shape)
        return (total + noise) / self.expected


@dataclass(frozen=True, slots=True)
class NoisedRounds:
    """Rounds of one kind, for the account.

    Arguments:
        rounds: how many, ≥ 1.
        noise_multiplier: > 0.
        rate: probability with which each device takes part, in (0, 1]; with sampling "none" it is
            not used.
        sampling: "poisson" where the coordinator draws each device by itself with ``rate`` and
            nobody else can tell who was drawn; "none" where devices come when they like: then each
            round counts in full, for a device may have been in all of them.
    """

    rounds: int
    noise_multiplier: float
    rate: float = 1.0
    sampling: Sampling = "none"

    def __post_init__(self) -> None:
        if self.rounds < 1:
            raise InvalidInput("rounds", f"{self.rounds} is not 1 or more")
        if not 0 < self.noise_multiplier < math.inf:
            raise InvalidInput("noise_multiplier", f"{self.noise_multiplier} is not positive")
        if not 0 < self.rate <= 1:
            raise InvalidInput("rate", f"{self.rate} is not in 0 … 1, 0 left out")
        if self.sampling not in get_args(Sampling):
            raise InvalidInput("sampling", f"must be one of {', '.join(get_args(Sampling))}")


@dataclass(frozen=True, slots=True)
class Cost:
    """ε before a round and after it, at the same δ."""

    before: float
    after: float
    delta: float


def epsilon(history: Iterable[NoisedRounds], delta: float) -> float:
    """ε at ``delta`` of everything in ``history``, composed; 0 for none.

    Exact where no round is sampled: Gaussian mechanisms compose to one, of 1 / z² = Σ nᵢ / zᵢ²
    (arXiv 1905.02383). With sampling by privacy loss distributions (PLD), which are
    tight for this mechanism; rounded up.

    Raises:
        InvalidInput: ``delta`` is not in (0, 1).
        CascadeError: the extra ``privacy`` is not installed, or cannot compute it.
    """
    if not 0 < delta < 1:
        raise InvalidInput("delta", f"{delta} is not between 0 and 1")
    try:
        import dp_accounting
    except ModuleNotFoundError:
        raise CascadeError(
            "accounting needs dp-accounting: pip install 'edge-cloud-cascade[privacy]'"
        ) from None
    rounds = list(history)
    if not rounds:
        return 0.0
    sampled = [each for each in rounds if each.sampling == "poisson" and each.rate < 1]
    whole = [each for each in rounds if each not in sampled]
    inverse = math.sqrt(
        math.fsum(n.rounds / n.noise_multiplier / n.noise_multiplier for n in whole)
    )
    try:
        if not sampled:
            return float(dp_accounting.get_epsilon_gaussian(1 / inverse, delta))
        return _by_distributions(sampled, inverse, delta)
    except (ArithmeticError, MemoryError, RuntimeError, ValueError) as problem:
        raise CascadeError(f"ε of these rounds cannot be computed: {problem}") from None


def cost_of_next(history: Iterable[NoisedRounds], planned: NoisedRounds, delta: float) -> Cost:
    """What a round would make of ε: to show, and to refuse, before it begins."""
    rounds = list(history)
    return Cost(epsilon(rounds, delta), epsilon([*rounds, planned], delta), delta)


def usual_delta(devices: int) -> float:
    """N^−1.1: below one in the number of devices, as in arXiv 1710.06963.

    Raises:
        InvalidInput: fewer than two devices.
    """
    if devices < 2:
        raise InvalidInput("devices", f"{devices}: there is nobody to hide among")
    return float(devices**-1.1)


def _by_distributions(sampled: Sequence[NoisedRounds], inverse: float, delta: float) -> float:
    """With one more Gaussian of the noise ``1 / inverse``, or none at 0."""
    from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent
    from dp_accounting.pld import PLDAccountant

    accountant = PLDAccountant(value_discretization_interval=_INTERVAL)
    for each in sampled:
        noise = GaussianDpEvent(each.noise_multiplier)
        accountant.compose(PoissonSampledDpEvent(each.rate, noise), each.rounds)
    if inverse:
        accountant.compose(GaussianDpEvent(1 / inverse))
    return float(accountant.get_epsilon(delta))
