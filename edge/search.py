"""The best answer of a trie with a proven bound on all that was not read.

An answer's corrected score is its log probability minus its prior. The answers below a prefix share
the prefix's probability, so whatever their tokens turn out to be,

    Σ exp(score) over the answers below  ≤  P(prefix) / min exp(prior) over the answers below.

That bounds each one of them, too. The search reads the prefixes with the largest bounds, many at a
time, until no bound reaches the best answer known and all of them together leave its share of the
set certain enough. Bounds hold up to the rounding of the model's logits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cascade.signals import SEARCH_TOLERANCE
from edge.reading import TrieScores
from edge.trie import ROOT, Trie

BATCH_NODES = 16
"""Prefixes of one pass at most.

A pass of n positions costs about c₀ + n·c₁ with c₀ of 0.8 to 4 times c₁: a step of one token takes
1.8 to 5 times as long as one more node of a wide pass. Small passes pay c₀ often; wide ones read
prefixes that the answers of the same pass rule out. Replayed over 77 labels in 137 inner nodes on
SmolLM2-135M, 16 to 32 were the cheapest, prior or not.
"""


@dataclass(frozen=True, slots=True)
class Found:
    """What a search knows at its end.

    Arguments:
        weights: exp(corrected score) of each answer relative to the best one, which has 1; 0 for
            answers that are not known. Float64, shape ``[options]``.
        unknown: upper bound on the summed weights of the answers that are not known, ≥ 0.
    """

    weights: NDArray[np.float64]
    unknown: float


def search(
    scores: TrieScores,
    expand: Callable[[Sequence[int]], None],
    prior: NDArray[np.float64],
    tolerance: float = SEARCH_TOLERANCE,
) -> Found:
    """Find the best answer.

    Arguments:
        scores: of the trie, its root read.
        expand: reads inner nodes into ``scores``.
        prior: subtracted from each answer's log probability, shape ``[options]``.
        tolerance: largest difference allowed between the upper and the lower bound of the best
            answer's probability within the set, in [0, 1]. 1 asks for the best answer alone.
    """
    trie = scores.trie
    lowest = _lowest_below(trie, prior)
    frontier = _inner_children(trie, ROOT)
    while True:
        bounds = scores.prefixes[frontier] - lowest[frontier]
        descending = np.argsort(-bounds, kind="stable")
        frontier, bounds = frontier[descending], bounds[descending]
        needed = _needed(bounds, scores.answers - prior, tolerance)
        if needed == 0:
            return _found(scores.answers - prior, bounds)
        batch = frontier[: min(needed, BATCH_NODES)]
        expand(batch.tolist())
        grown = [_inner_children(trie, node) for node in batch]
        frontier = np.concatenate([frontier[len(batch) :], *grown])


def _needed(bounds: NDArray[np.float64], corrected: NDArray[np.float64], tolerance: float) -> int:
    """How many of the prefixes, of descending bounds, stand between now and the end."""
    if np.isnan(corrected).all():
        return len(bounds)
    best = float(np.nanmax(corrected))
    # A tie counts as reaching it: among equals the first option wins, wherever it is.
    reaching = int(np.searchsorted(-bounds, -best, side="right"))
    known = float(np.exp(corrected[~np.isnan(corrected)] - best).sum())
    # left[i]: what all but the first `reaching + i` could weigh.
    left = np.append(np.cumsum(np.exp(bounds[reaching:] - best)[::-1])[::-1], 0.0)
    certain = 1 / known - 1 / (known + left) <= tolerance
    return reaching + int(np.argmax(certain))


def _found(corrected: NDArray[np.float64], bounds: NDArray[np.float64]) -> Found:
    best = np.nanmax(corrected)
    weights = np.nan_to_num(np.exp(corrected - best), nan=0.0)
    return Found(weights, float(np.exp(bounds - best).sum()))


def _lowest_below(trie: Trie, prior: NDArray[np.float64]) -> NDArray[np.float64]:
    """The lowest prior among the answers that begin with each node, shape ``[nodes]``."""
    lowest = np.full(len(trie), np.inf)
    lowest[list(trie.nodes)] = prior
    for node in range(len(trie) - 1, ROOT, -1):
        parent = trie.parents[node]
        lowest[parent] = min(lowest[parent], lowest[node])
    return lowest


def _inner_children(trie: Trie, node: int) -> NDArray[np.intp]:
    return np.array([c for c in trie.children[node] if trie.children[c]], np.intp)
