"""What a device measures while it answers: per-token signals, and scores over a closed set.

Only measurements live here. Turning them into a calibrated confidence is ``cascade.confidence``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Float32s = NDArray[np.float32]

ScoreMode = Literal["exact", "search"]
"""How a closed set is scored: every answer, or the best one with a bound on all others."""

SEARCH_TOLERANCE = 0.1
"""How far apart the bounds of a search may be. A confidence is fitted to the lower bound that this
gives: another value here needs another name for the feature in ``cascade.confidence``."""


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
class ScoreBounds:
    """How a closed set was scored, and what that proves about the best answer.

    Arguments:
        mode: see ``ScoreMode``.
        lower, upper: bounds of the best answer's probability within the set, in (0, 1]; equal in
            exact mode.
        unexplored: upper bound of the share of the set that the answers not scored have, in [0, 1);
            0 in exact mode. Its lower bound is 0.
        nodes, nodes_scored: distributions that scoring every answer takes, and those that were
            computed; 0 where answers are not made of tokens.
    """

    mode: ScoreMode
    lower: float
    upper: float
    unexplored: float
    nodes: int
    nodes_scored: int


@dataclass(frozen=True, slots=True)
class OptionScores:
    """Scores of a closed set of answers, float64, shape ``[options]`` each, in the caller's order.

    Arguments:
        logprobs: log probability of each whole answer under the prompt, every token summed; an
            upper bound of it for the answers that a search left unscored.
        prior_logprobs: the same under the prompt with an empty input, exact in either mode; zeros
            when not corrected.
        probabilities: softmax of ``logprobs − prior_logprobs`` over the set (contextual calibration
            in the log domain, Zhao et al. 2021, arXiv 2102.09690; Holtzman et al. 2021,
            arXiv 2104.08315). Not calibrated. In exact mode they sum to 1. In search mode each is a
            *lower bound*, 0 for answers left unscored, and they sum to 1 − ``unexplored``; the best
            answer is exact mode's, too, up to the rounding of the model's logits.
        mode, unexplored, nodes, nodes_scored: see ``ScoreBounds``.
    """

    options: tuple[str, ...]
    logprobs: NDArray[np.float64]
    prior_logprobs: NDArray[np.float64]
    probabilities: NDArray[np.float64]
    mode: ScoreMode = "exact"
    unexplored: float = 0.0
    nodes: int = 0
    nodes_scored: int = 0

    @property
    def best(self) -> int:
        """Index of the most probable answer; the first one of equals."""
        return int(np.argmax(self.probabilities))

    @property
    def max_probability(self) -> float:
        """Probability of the best answer within the set; in search mode its lower bound.

        In [1/options, 1] when exact, above 0 when searched.
        """
        return float(self.probabilities[self.best])

    @property
    def bounds(self) -> ScoreBounds:
        """What is proven of ``max_probability``."""
        lower = self.max_probability
        upper = min(1.0, lower / (1.0 - self.unexplored))
        return ScoreBounds(self.mode, lower, upper, self.unexplored, self.nodes, self.nodes_scored)


def option_signals(scores: OptionScores) -> Signals:
    """The distribution over a set that is not made of tokens, measured as that of one token."""
    falling = np.sort(scores.probabilities)[::-1]
    entropy = -float(np.dot(scores.probabilities, scores.logprobs))
    return Signals(
        logprobs=np.array([min(0.0, scores.logprobs[scores.best])], np.float32),
        entropies=np.array([max(0.0, entropy)], np.float32),
        margins=np.array([falling[0] - falling[1]], np.float32),
    )
