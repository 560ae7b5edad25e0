"""Scoring a closed set of answers over the trie of their tokens.

Every answer's log probability is the sum over its tokens, given the prompt. Where one answer is a
prefix of another, the shorter one also has to *end*: it takes the probability that no longer answer
is continued, 1 − Σ P(continuation). So the answers are disjoint events, whatever their tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from cascade.errors import InvalidInput
from edge.decoder import Row
from edge.measure import RowStats, row_stats

_TINY = 1e-12


@dataclass(slots=True)
class Node:
    """A prefix of at least one answer; ``option`` is the index of the answer that ends here."""

    children: dict[int, Node] = field(default_factory=dict)
    option: int | None = None


def build_trie(sequences: Sequence[Sequence[int]]) -> Node:
    """The trie of token sequences, shape ``[options][tokens]``, each with at least one token.

    Raises:
        InvalidInput: two answers have the same tokens, or one has none.
    """
    root = Node()
    for index, tokens in enumerate(sequences):
        if not tokens:
            raise InvalidInput("options", f"answer {index + 1} has no tokens in this vocabulary")
        node = root
        for token in tokens:
            node = node.children.setdefault(token, Node())
        if node.option is not None:
            raise InvalidInput(
                "options",
                f"answers {node.option + 1} and {index + 1} are the same to this model's tokenizer",
            )
        node.option = index
    return root


@dataclass(frozen=True, slots=True)
class Step:
    """One token of an answer: its log probability and the distribution it came from."""

    logprob: float
    stats: RowStats


@dataclass(frozen=True, slots=True)
class TrieScores:
    """Scores of every answer.

    Arguments:
        logprobs: float64, shape ``[options]``.
        steps: per answer, its tokens' steps, without the implied end of a prefix answer.
    """

    logprobs: NDArray[np.float64]
    steps: tuple[tuple[Step, ...], ...]


def score(root: Node, options: int, read: Callable[[tuple[int, ...]], Row]) -> TrieScores:
    """Score every answer with one run per inner node of the trie.

    Arguments:
        options: number of answers in the trie.
        read: logits (float32, shape ``[vocab]``) after the prompt and the given tokens; called
            depth first, so that a cache of the previous call's prefix saves all but the last token.
    """
    logprobs = np.full(options, -np.inf)
    steps: list[tuple[Step, ...]] = [()] * options

    def walk(node: Node, path: tuple[int, ...], taken: tuple[Step, ...], total: float) -> None:
        logits = read(path)
        stats = row_stats(logits)
        # Copied out before descending: the next read overwrites the row.
        nexts = {token: float(logits[token]) - stats.log_z for token in node.children}
        if node.option is not None:
            going_on = sum(math.exp(value) for value in nexts.values())
            logprobs[node.option] = total + math.log(max(1.0 - going_on, _TINY))
            steps[node.option] = taken
        for token, child in node.children.items():
            step = (*taken, Step(nexts[token], stats))
            if child.children:
                walk(child, (*path, token), step, total + nexts[token])
            elif child.option is not None:
                logprobs[child.option] = total + nexts[token]
                steps[child.option] = step

    walk(root, (), (), 0.0)
    return TrieScores(logprobs, tuple(steps))


def normalise(logprobs: NDArray[np.float64], prior: NDArray[np.float64]) -> NDArray[np.float64]:
    """softmax(logprobs − prior), float64, shape ``[options]``, sums to 1."""
    corrected = logprobs - prior
    weights: NDArray[np.float64] = np.exp(corrected - corrected.max())
    weights /= weights.sum()
    return weights
