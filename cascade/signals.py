"""What a device measures while it answers: per-token signals, and scores over a closed set.

Only measurements live here. Turning them into a calibrated confidence is ``cascade.confidence``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Float32s = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Signals:
    """Per-token measurements of one decoded answer, float32, shape ``[tokens]`` each.

    Arguments:
        logprobs: natural log probability of the chosen token, ≤ 0.
        entropies: entropy of the next-token distribution in nats, ≥ 0.
        margins: difference of the two largest next-token probabilities, in [0, 1].
    """

    logprobs: Float32s
    entropies: Float32s
    margins: Float32s

    def __len__(self) -> int:
        return len(self.logprobs)

    @property
    def mean_probability(self) -> float:
        """Geometric mean of the token probabilities, in [0, 1]; 0 for an empty answer.

        The raw score of a free answer: exp of the mean log probability.
        """
        if not len(self):
            return 0.0
        return float(np.exp(np.mean(self.logprobs, dtype=np.float64)))


EMPTY_SIGNALS = Signals(*(np.zeros(0, np.float32) for _ in range(3)))


@dataclass(frozen=True, slots=True)
class OptionScores:
    """Scores of a closed set of answers, float64, shape ``[options]`` each, in the caller's order.

    Arguments:
        logprobs: log probability of each whole answer under the prompt, every token summed.
        prior_logprobs: the same under the prompt with an empty input; zeros when not corrected.
        probabilities: softmax of ``logprobs − prior_logprobs`` over the set (contextual calibration
            in the log domain, Zhao et al. 2021, arXiv 2102.09690; Holtzman et al. 2021,
            arXiv 2104.08315). Sums to 1. Not calibrated.
        mode: ``"exact"`` when every answer was scored.
    """

    options: tuple[str, ...]
    logprobs: NDArray[np.float64]
    prior_logprobs: NDArray[np.float64]
    probabilities: NDArray[np.float64]
    mode: Literal["exact"] = "exact"

    @property
    def best(self) -> int:
        """Index of the most probable answer; the first one of equals."""
        return int(np.argmax(self.probabilities))

    @property
    def max_probability(self) -> float:
        """Probability of the best answer within the set, in [1/options, 1]."""
        return float(self.probabilities[self.best])
