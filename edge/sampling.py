"""Draws one token from a row of logits. What the parameters mean is said in ``cascade.sampling``.

Order: repetition penalty → top-k → top-p → min-p → temperature, which is llama.cpp's default order
of samplers; Hugging Face applies the temperature first, so that its top-p keeps more tokens at
higher temperatures. Every filter keeps the head of one ranking, by logit and then by the lower id,
so the result depends neither on a sorting algorithm nor on the machine's vector width.

Draws come from NumPy's PCG64, whose raw stream is the same on every machine and in every release:
equal logits and an equal seed give equal tokens. Logits themselves differ between processors, in
their last bits.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cascade.sampling import Sampling
from edge.decoder import Row

# Distances from the largest logit at which the nucleus is looked for, nearest first: a language
# model's nucleus is nearly always within the first two.
_REACHES = (8.0, 16.0, math.inf)
# The nucleus' last bin alone is sorted, so that a flat row costs no more than a steep one.
_BINS = 2048
# Weights are summed by blocks, of which one is searched: a tenth of the time of one long sum.
_BLOCK = 256


@dataclass(frozen=True, slots=True)
class Kept:
    """The tokens that the filters keep.

    Arguments:
        tokens: int64, shape ``[kept]``, ascending.
        weights: float64, shape ``[kept]``, proportional to the probabilities, the largest is 1.
    """

    tokens: NDArray[np.int64]
    weights: NDArray[np.float64]


class Sampler:
    """Chooses the tokens of one answer.

    Arguments:
        sampling: checked parameters.
        vocab_size: length of the rows.
        seen: tokens of the prompt, for the repetition penalty.
    """

    def __init__(self, sampling: Sampling, vocab_size: int, seen: Iterable[int] = ()) -> None:
        self._sampling = sampling
        self._bits = np.random.PCG64(sampling.seed)
        self._penalised = sampling.repetition_penalty != 1
        self._seen = np.zeros(vocab_size, np.bool_)
        if self._penalised:
            self._seen[list(seen)] = True

    @property
    def plain(self) -> bool:
        """Whether the choice is the largest logit of the row as it is."""
        return self._sampling.greedy and not self._penalised

    def draw(
        self, logits: Row, allowed: NDArray[np.bool_] | None = None, log_z: float | None = None
    ) -> int:
        """The next token.

        Arguments:
            logits: float32, shape ``[vocab]``, left as they were.
            allowed: tokens that a grammar allows, at least one, or ``None`` for all. They are
                filtered as if the others did not exist.
            log_z: natural log of the sum of exp(logits), where it is known already.
        """
        if self._penalised or allowed is not None:
            log_z = None
        if self._penalised:
            logits = penalise(logits, self._seen, self._sampling.repetition_penalty)
        if allowed is not None:
            logits = np.where(allowed, logits, np.float32(-np.inf))
        token = self.pick(logits, log_z)
        if self._penalised:
            self._seen[token] = True
        return token

    def pick(self, logits: Row, log_z: float | None) -> int:
        """The token of a row in which penalty and grammar have been applied; see ``draw``."""
        if self._sampling.greedy:
            return int(logits.argmax())
        # The upper 53 bits, as a float64 in [0, 1).
        share = (int(self._bits.random_raw()) >> 11) * 2.0**-53
        if self._sampling.keeps_all:
            return _drawn(tempered(logits, self._sampling.temperature), share)
        kept = keep(logits, self._sampling, log_z)
        return int(kept.tokens[_drawn(kept.weights, share)])


def penalise(logits: Row, seen: NDArray[np.bool_], penalty: float) -> Row:
    """``logits`` with those of the tokens in ``seen`` made less likely, as a new array."""
    tokens = np.flatnonzero(seen)
    values = logits[tokens]
    penalised = logits.copy()
    penalised[tokens] = np.where(values > 0, values / penalty, values * penalty)
    return penalised


def tempered(logits: Row, temperature: float) -> Row:
    """Weights of the whole vocabulary, proportional to the probabilities, the largest is 1."""
    weights: Row = logits - logits.max()
    weights *= np.float32(1 / temperature)
    np.exp(weights, out=weights)
    return weights


def keep(logits: Row, sampling: Sampling, log_z: float | None = None) -> Kept:
    """Filter ``logits`` and apply the temperature.

    Arguments:
        logits: float32, shape ``[vocab]``, −inf for impossible tokens.
        sampling: with a temperature above 0.
        log_z: natural log of the sum of exp(logits), where it is known already.
    """
    top = np.float32(logits.max())
    floor = top + math.log(sampling.min_p) if sampling.min_p > 0 else -math.inf
    if 0 < sampling.top_k < len(logits):
        tokens = _largest(logits, sampling.top_k)
        if sampling.top_p < 1:
            shifted = logits[tokens] - top
            weights = np.exp(shifted)
            goal = sampling.top_p * float(weights.sum(dtype=np.float64))
            tokens = tokens[_nucleus(shifted, weights, goal)]
    elif sampling.top_p < 1:
        shifted = logits - top
        z = float(np.exp(shifted).sum(dtype=np.float64)) if log_z is None else math.exp(log_z - top)
        tokens = _whole_nucleus(shifted, sampling.top_p * z)
    else:
        tokens = np.flatnonzero(logits >= floor)
    values = logits[tokens].astype(np.float64)
    heard = values >= floor
    return Kept(tokens[heard], np.exp((values[heard] - top) / sampling.temperature))


def _largest(logits: Row, count: int) -> NDArray[np.int64]:
    """The ``count`` largest, ascending by id. Of equals at the boundary the first are taken."""
    boundary = np.partition(logits, len(logits) - count)[len(logits) - count]
    kept = logits > boundary
    equal = np.flatnonzero(logits == boundary)
    kept[equal[: count - int(np.count_nonzero(kept))]] = True
    return np.flatnonzero(kept)


def _whole_nucleus(shifted: Row, goal: float) -> NDArray[np.int64]:
    """The nucleus of a row whose largest logit is 0: looks only where it can be."""
    for reach in _REACHES:
        near = np.flatnonzero(shifted >= -reach)
        values = shifted[near]
        weights = np.exp(values)
        if float(weights.sum(dtype=np.float64)) >= goal:
            break
    return near[_nucleus(values, weights, goal)]


def _nucleus(shifted: Row, weights: Row, goal: float) -> NDArray[np.int64]:
    """Indices, ascending, of the fewest largest of ``shifted`` whose ``weights`` sum to ``goal``;
    of equals the first. All of them where rounding lets the sum fall short."""
    depth = max(float(-shifted[weights > 0].min()), 1e-6)
    bins = np.minimum(shifted * np.float32(-(_BINS - 1) / depth), _BINS - 1).astype(np.int64)
    bounds = np.bincount(bins, weights, _BINS).cumsum()
    boundary = int(bounds.searchsorted(goal))
    if boundary == _BINS:
        return np.arange(len(shifted))
    inside = bins < boundary
    before = float(bounds[boundary - 1]) if boundary else 0.0
    at = np.flatnonzero(bins == boundary)
    at = at[np.argsort(-shifted[at], kind="stable")]
    count = int((before + weights[at].cumsum(dtype=np.float64)).searchsorted(goal)) + 1
    inside[at[:count]] = True
    return np.flatnonzero(inside)


def _drawn(weights: NDArray[np.float64] | Row, share: float) -> int:
    """Index at which the running sum of ``weights`` passes ``share``, in [0, 1), of their sum."""
    starts = np.arange(0, len(weights), _BLOCK)
    bounds = np.add.reduceat(weights, starts, dtype=np.float64).cumsum()
    point = share * float(bounds[-1])
    block = int(bounds.searchsorted(point, side="right"))
    first = int(starts[block])
    inner = weights[first : first + _BLOCK].cumsum(dtype=np.float64)
    rest = point - (float(bounds[block - 1]) if block else 0.0)
    # Both sums round differently: what is beyond the end belongs to the last possible token.
    last = int(inner.searchsorted(inner[-1]))
    return first + min(int(inner.searchsorted(rest, side="right")), last)
