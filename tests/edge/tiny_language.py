"""A tiny language whose every distribution is known, to check the readers of tries against."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from hypothesis import strategies as st

from cascade.local import CancelToken
from edge.decoder import TreeNode

VOCABULARY = 5
PROMPT = (1, 2)

ANSWERS = st.lists(
    st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=4).map(tuple),
    min_size=1,
    max_size=12,
    unique=True,
)

Answer = tuple[int, ...]


class TinyLanguage:
    """A fixed random distribution after every path; reads like ``edge.decoder.Decoder``.

    Arguments:
        peak: scale of the logits: 0 is uniform, 10 all but certain.
        free_tokens: how many tree nodes fit behind the prompt.
    """

    def __init__(self, seed: int = 7, peak: float = 1.0, free_tokens: int = 10_000) -> None:
        self.seed, self.peak, self.free_tokens = seed, peak, free_tokens
        self.passes: list[int] = []
        self.paths: list[Answer] = []
        self._row = np.zeros(VOCABULARY, np.float32)
        self._tree: list[TreeNode] = []

    def logits_after(self, path: Answer) -> np.ndarray:
        noise = np.random.default_rng([self.seed, *path]).normal(size=VOCABULARY)
        return (self.peak * noise).astype(np.float32)

    def read(self, tokens: Sequence[int], cancel: CancelToken | None = None) -> np.ndarray:
        assert tuple(tokens) == PROMPT
        self._row[:] = self.logits_after(())  # overwritten by the next call, as in a decoder
        return self._row

    def keep(self, tokens: int) -> None:
        raise AssertionError("what is kept is not the reading's business")

    def read_tree(
        self,
        tokens: Sequence[int],
        nodes: Sequence[TreeNode],
        cancel: CancelToken | None = None,
        *,
        known: int = 0,
    ) -> np.ndarray:
        assert tuple(tokens) == PROMPT
        assert 0 <= known < len(nodes) <= self.free_tokens
        assert known in (0, len(self._tree)), "an unknown beginning would be computed again"
        assert list(nodes[:known]) == self._tree[:known]
        self._tree = list(nodes)
        paths: list[Answer] = []
        for index, (parent, token) in enumerate(nodes):
            assert -1 <= parent < index
            paths.append((*(paths[parent] if parent >= 0 else ()), token))
        self.passes.append(len(nodes) - known)
        self.paths += paths[known:]
        return np.array([self.logits_after(path) for path in paths[known:]])

    def log_probability(self, path: Answer, token: int) -> float:
        row = self.logits_after(path).astype(np.float64)
        return float(row[token] - row.max() - np.log(np.exp(row - row.max()).sum()))

    def enumerated(self, answers: Sequence[Answer]) -> np.ndarray:
        """Log probability of each answer, one by one and without a trie."""
        return np.array([self._enumerated(answers, answer) for answer in answers])

    def _enumerated(self, answers: Sequence[Answer], answer: Answer) -> float:
        total = sum(self.log_probability(answer[:i], token) for i, token in enumerate(answer))
        longer = {
            other[len(answer)]
            for other in answers
            if len(other) > len(answer) and other[: len(answer)] == answer
        }
        others = set(range(VOCABULARY)) - longer
        ending = sum(math.exp(self.log_probability(answer, token)) for token in others)
        return total + (math.log(max(ending, 1e-12)) if longer else 0.0)
