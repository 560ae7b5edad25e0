"""What the server does with an aggregated change: take it as it is, or as a gradient of its own.

Server optimisers of Reddi et al. 2021 (arXiv 2003.00295, algorithms 1 and 2), on the change of
linear strategies. The state is a value: who stores the round stores it along.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from cascade.errors import InvalidInput
from cascade.federation import Tensors
from cascade.federation.tensors import Floats


@dataclass(frozen=True, slots=True)
class State:
    """Running moments of the change, by tensor name; empty before the first round.

    Arguments:
        first: float32; momentum.
        second: float32, ≥ 0; mean square. Adam's alone.
    """

    first: Tensors = field(default_factory=dict)
    second: Tensors = field(default_factory=dict)


FRESH = State()
"""Before the first round."""


class ServerOptimiser(Protocol):
    """One step a round."""

    def step(self, change: Tensors, state: State) -> tuple[dict[str, Floats], State]:
        """What to add to the served tensors, and the state for the next round."""
        ...


@dataclass(frozen=True, slots=True)
class Plain:
    """Adds the change, times ``rate``; FedAvg at 1."""

    rate: float = 1.0

    def __post_init__(self) -> None:
        _positive("rate", self.rate)

    def step(self, change: Tensors, state: State) -> tuple[dict[str, Floats], State]:
        """rate · Δ."""
        return _each(change, lambda name, delta: self.rate * delta), state


@dataclass(frozen=True, slots=True)
class Momentum:
    """FedAvgM: v ← β v + Δ; adds rate · v (arXiv 1909.06335)."""

    rate: float = 1.0
    beta: float = 0.9

    def __post_init__(self) -> None:
        _positive("rate", self.rate)
        _share("beta", self.beta)

    def step(self, change: Tensors, state: State) -> tuple[dict[str, Floats], State]:
        """rate · v."""
        first = _each(change, lambda n, delta: self.beta * _past(state.first, n, delta) + delta)
        return _each(first, lambda name, v: self.rate * v), State(first)


@dataclass(frozen=True, slots=True)
class Adam:
    """FedAdam: m ← β₁ m + (1 − β₁) Δ; v ← β₂ v + (1 − β₂) Δ²; adds rate · m / (√v + τ).

    Without bias correction, as in the paper; v starts at τ².

    Arguments:
        tau: how small a change counts as noise, > 0; of the size of a typical element of Δ.
    """

    rate: float = 0.01
    beta1: float = 0.9
    beta2: float = 0.99
    tau: float = 1e-3

    def __post_init__(self) -> None:
        _positive("rate", self.rate)
        _positive("tau", self.tau)
        _share("beta1", self.beta1)
        _share("beta2", self.beta2)

    def step(self, change: Tensors, state: State) -> tuple[dict[str, Floats], State]:
        """rate · m / (√v + τ)."""
        b1, b2 = self.beta1, self.beta2
        first = _each(change, lambda n, d: b1 * _past(state.first, n, d) + (1 - b1) * d)
        second = _each(
            change, lambda n, d: b2 * _past(state.second, n, d, self.tau**2) + (1 - b2) * d**2
        )
        step = _each(first, lambda n, m: self.rate * m / (np.sqrt(second[n]) + self.tau))
        return step, State(first, second)


class _Formula(Protocol):
    def __call__(self, name: str, tensor: Floats, /) -> Floats: ...


def _each(tensors: Tensors, formula: _Formula) -> dict[str, Floats]:
    return {name: np.asarray(formula(name, tensor), np.float32) for name, tensor in tensors.items()}


def _past(moments: Mapping[str, Floats], name: str, like: Floats, start: float = 0.0) -> Floats:
    found = moments.get(name)
    return np.full_like(like, start) if found is None else found


def _positive(name: str, value: float) -> None:
    if not 0 < value < np.inf:
        raise InvalidInput(name, f"{value} is not a positive number")


def _share(name: str, value: float) -> None:
    if not 0 <= value < 1:
        raise InvalidInput(name, f"{value} is not in 0 … 1, 1 left out")
