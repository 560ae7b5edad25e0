"""Random batches and adapters that both sides of a comparison draw from the same seed."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from edge.adapter import LoraPair
from edge.training.lesson import Floats, Lesson, text_lesson

LAYERS, RANK = 4, 8


def lessons(seed: int, vocabulary: int) -> list[Lesson]:
    """Two texts of 16 to 64 random tokens, of which the last 4 to 12 are to be written."""
    rng = np.random.default_rng(seed)
    drawn = []
    for _ in range(2):
        ids = rng.integers(0, vocabulary, int(rng.integers(16, 65))).tolist()
        targets = int(rng.integers(4, 13))
        drawn.append(text_lesson(ids[:-targets], ids[-targets:]))
    return drawn


def of_length(tokens: int, vocabulary: int) -> list[Lesson]:
    """One text of so many tokens, of which the last ten are to be written."""
    ids = np.random.default_rng(tokens).integers(0, vocabulary, tokens + 1).tolist()
    return [text_lesson(ids[:-10], ids[-10:])]


def pairs(seed: int, linears: Iterable[tuple[str, int, int]]) -> dict[str, LoraPair]:
    """An adapter in the midst of its training.

    Arguments:
        linears: name, inputs and outputs.
    """
    rng = np.random.default_rng([seed, 1])
    return {
        name: LoraPair(
            (rng.normal(size=(inputs, RANK)) / inputs**0.5).astype(np.float32),
            (rng.normal(size=(RANK, outputs)) * 0.02).astype(np.float32),
        )
        for name, inputs, outputs in sorted(linears)
    }


def flat(gradients: dict[str, tuple[Floats, Floats]]) -> Floats:
    """All numbers as one vector, in the order of names."""
    return np.concatenate([half.ravel() for _, both in sorted(gradients.items()) for half in both])
