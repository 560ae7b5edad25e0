"""Optimisers on one vector of parameters: AdamW, SGD, clipping, and how the step size changes.

Numbers are float32, as torch has them by default, so that both agree to rounding.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

Floats: TypeAlias = NDArray[np.float32]
Schedule = Literal["constant", "linear", "cosine"]


class Optimiser(Protocol):
    """Keeps its state from step to step."""

    def step(self, parameters: Floats, gradient: Floats, learning_rate: float) -> Floats:
        """The parameters after one step; all float32, shape ``[parameters]``."""
        ...

    def state(self) -> dict[str, Floats]:
        """What has to be kept to go on later."""
        ...

    def restore(self, state: Mapping[str, Floats]) -> None:
        """Go on from what ``state`` gave."""
        ...


class AdamW:
    """Adam with decoupled weight decay (Loshchilov and Hutter, arXiv 1711.05101).

    Arguments:
        size: number of parameters.
        betas: decay of the means of gradient and square, each in [0, 1).
        epsilon: added to the root of the mean square, > 0.
        weight_decay: share of the parameters, times the learning rate, taken off at each step, ≥ 0.
    """

    def __init__(
        self,
        size: int,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        epsilon: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        self._betas, self._epsilon, self._decay = betas, epsilon, weight_decay
        self._mean: Floats = np.zeros(size, np.float32)
        self._square: Floats = np.zeros(size, np.float32)
        self._steps = 0

    def step(self, parameters: Floats, gradient: Floats, learning_rate: float) -> Floats:
        first, second = self._betas
        self._steps += 1
        self._mean = _decayed(self._mean, gradient, first)
        self._square = _decayed(self._square, gradient * gradient, second)
        # Both means begin at zero; what that takes away is given back.
        size = learning_rate / (1 - first**self._steps)
        scale = math.sqrt(1 - second**self._steps)
        divisor = np.sqrt(self._square) / np.float32(scale) + np.float32(self._epsilon)
        kept = parameters * np.float32(1 - learning_rate * self._decay)
        after: Floats = kept - np.float32(size) * self._mean / divisor
        return after

    def state(self) -> dict[str, Floats]:
        return {
            "mean": self._mean,
            "square": self._square,
            "steps": np.array([self._steps], np.float32),
        }

    def restore(self, state: Mapping[str, Floats]) -> None:
        self._mean, self._square = state["mean"], state["square"]
        self._steps = int(state["steps"][0])


class Sgd:
    """Stochastic gradient descent with momentum, as torch defines both.

    Arguments:
        size: number of parameters.
        momentum: share of the step before that is added, in [0, 1).
        weight_decay: share of the parameters that is added to the gradient, ≥ 0.
    """

    def __init__(self, size: int, *, momentum: float = 0.0, weight_decay: float = 0.0) -> None:
        self._momentum, self._decay = momentum, weight_decay
        self._velocity: Floats = np.zeros(size, np.float32)

    def step(self, parameters: Floats, gradient: Floats, learning_rate: float) -> Floats:
        towards = gradient + np.float32(self._decay) * parameters
        self._velocity = np.float32(self._momentum) * self._velocity + towards
        after: Floats = parameters - np.float32(learning_rate) * self._velocity
        return after

    def state(self) -> dict[str, Floats]:
        return {"velocity": self._velocity}

    def restore(self, state: Mapping[str, Floats]) -> None:
        self._velocity = state["velocity"]


def _decayed(mean: Floats, value: Floats, beta: float) -> Floats:
    """``beta`` of the mean, the rest of the value."""
    after: Floats = np.float32(beta) * mean + np.float32(1 - beta) * value
    return after


def clipped(gradient: Floats, norm: float) -> Floats:
    """``gradient``, made shorter where it is longer than ``norm`` > 0."""
    length = float(np.sqrt(np.sum(gradient.astype(np.float64) ** 2)))
    return gradient if length <= norm else gradient * np.float32(norm / length)


def scheduled(schedule: Schedule, step: int, steps: int, warm_up: float) -> float:
    """Share of the full learning rate at a step, in (0, 1].

    Arguments:
        step: from 0.
        steps: in all, ≥ 1.
        warm_up: share of the steps in which it rises linearly, in [0, 1).
    """
    rising = math.ceil(warm_up * steps)
    if step < rising:
        return (step + 1) / rising
    if schedule == "constant":
        return 1.0
    gone = (step - rising) / max(1, steps - rising)
    return 1 - gone if schedule == "linear" else (1 + math.cos(math.pi * gone)) / 2
