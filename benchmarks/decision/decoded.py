"""Free answers token by token, drawn from a model of how decoding goes, to any number.

Every answer has a difficulty that its tokens show with noise, and that decides whether it is right
and how long it gets. Nothing here is fitted to a real model; several shapes stand for several kinds
of traffic.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cascade.early_stop import TokenLists
from cascade.logistic import sigmoid
from cascade.rows import Bools, Floats

MAX_TOKENS = 64


@dataclass(frozen=True, slots=True)
class Shape:
    """How answers are drawn.

    Arguments:
        name: as in the rows' figures.
        hard: mean difficulty, in standard deviations; the share of wrong answers rises with it.
        noise: how far a token's log probability strays from what the difficulty says.
        late: in (0, 1]: the share of an answer after which difficulty shows; 1 shows it from the
            first token on evenly, less hides it in the beginning.
        longer: how much longer hard answers are.
    """

    name: str
    hard: float
    noise: float
    late: float
    longer: float


SHAPES = (
    Shape("plain", 0.0, 1.0, 1.0, 0.5),
    Shape("noisy", 0.0, 2.0, 1.0, 0.0),
    Shape("hard", 1.0, 1.0, 1.0, 0.5),
    # The beginnings of easy and hard answers look alike.
    Shape("late", 0.0, 1.0, 0.4, 0.5),
)


@dataclass(frozen=True, slots=True)
class Decoded:
    """Drawn answers.

    Arguments:
        signals: of their tokens.
        score: raw scores, shape ``[rows]``.
        correct: whether each is right, shape ``[rows]``.
    """

    signals: TokenLists
    score: Floats
    correct: Bools


def draw(shape: Shape, rows: int, seed: int) -> Decoded:
    """``rows`` answers, the same for the same arguments."""
    rng = np.random.default_rng([rows, seed])
    difficulty = rng.normal(shape.hard, 1.0, rows)
    length = 3 + rng.poisson(16 * np.exp(shape.longer * np.clip(difficulty, -2, 2)), rows)
    tokens = np.minimum(length, MAX_TOKENS)
    offsets = np.concatenate([[0], np.cumsum(tokens)])
    row = np.repeat(np.arange(rows), tokens)
    share = (np.arange(offsets[-1]) - offsets[row]) / tokens[row]
    shown = difficulty[row] * (1.0 if shape.late == 1 else (share >= 1 - shape.late) / shape.late)
    scale = np.exp(-2.0 + 0.7 * shown + shape.noise * rng.normal(size=len(row)))
    logprobs = -np.minimum(scale, 12.0)
    entropies = np.minimum(scale * rng.uniform(0.5, 1.5, len(row)), 10.0)
    margins = np.exp(-entropies * rng.uniform(0.5, 1.5, len(row)))
    # As records keep them.
    logprobs, entropies, margins = (
        np.round(values, 5).astype(np.float32).astype(np.float64)
        for values in (logprobs, entropies, margins)
    )
    mean = np.add.reduceat(logprobs, offsets[:-1]) / tokens
    correct = rng.random(rows) < sigmoid(1.5 - 2.5 * difficulty)
    signals = TokenLists(logprobs, entropies, margins, offsets.astype(np.int64))
    return Decoded(signals, np.exp(mean), correct)
