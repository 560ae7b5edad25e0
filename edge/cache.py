"""Key-value caches: what a decoder remembers of the sequences it read, and which to go on from.

A cache knows which tokens it holds, so that reading a sequence computes only what follows the part
in common with an earlier one. Several caches let conversations and tasks take turns without losing
their beginnings. Running the graph over them is ``edge.decoder``'s business.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from edge.bundle import Manifest

# Capacity grows in steps, so that short prompts do not pay for the longest context.
_STEP = 256


class KeyValueCache:
    """Keys and values of one token sequence, as one adapter sees it.

    Attributes:
        tokens: the ids whose keys and values are valid, from the first on.
        arrays: float32, shape ``[1, kv_heads, capacity, head_dim]``, key and value of each layer in
            turn. The graph extends them in place; ``reserve`` replaces them.
        adapter: digest of the adapter that was active, "" for none.
    """

    def __init__(self, manifest: Manifest) -> None:
        self._manifest = manifest
        self.tokens: list[int] = []
        self.arrays: list[NDArray[np.float32]] = []
        self.adapter = ""
        self.last_used = 0

    @property
    def capacity(self) -> int:
        """Tokens that fit without growing."""
        return self.arrays[0].shape[2] if self.arrays else 0

    def common_prefix(self, tokens: Sequence[int]) -> int:
        """How many of ``tokens``, from the first on, are held."""
        limit = min(len(self.tokens), len(tokens))
        for position in range(limit):
            if self.tokens[position] != tokens[position]:
                return position
        return limit

    def reserve(self, tokens: int) -> bool:
        """Make room for ``tokens``; true when the arrays were replaced."""
        if tokens <= self.capacity:
            return False
        manifest = self._manifest
        capacity = min(-(-tokens // _STEP) * _STEP, manifest.context_tokens)
        shape = (1, manifest.kv_heads, capacity, manifest.head_dim)
        grown = [np.zeros(shape, np.float32) for _ in range(2 * manifest.layers)]
        for new, old in zip(grown, self.arrays, strict=False):
            new[:, :, : old.shape[2]] = old
        self.arrays = grown
        return True

    def copy_from(self, other: KeyValueCache, length: int) -> None:
        """Hold the first ``length`` tokens of ``other``, and nothing else."""
        self.reserve(length)
        for mine, theirs in zip(self.arrays, other.arrays, strict=True):
            mine[:, :, :length] = theirs[:, :, :length]
        self.tokens = other.tokens[:length]
        self.adapter = other.adapter


class CachePool:
    """At most ``size`` caches, and the choice among them.

    Arguments:
        size: ≥ 1. A cache takes its memory when it is first used.
    """

    def __init__(self, manifest: Manifest, size: int) -> None:
        self._manifest = manifest
        self._size = size
        self._caches: list[KeyValueCache] = []
        self._clock = 0

    def pick(self, tokens: Sequence[int], adapter: str) -> KeyValueCache:
        """The cache on which to read ``tokens``: it holds the longest known beginning of them.

        A cache that would lose more tokens than the two sequences share is left as it is; the
        beginning is copied to the cache that was unused for longest instead. So a new conversation
        does not end an old one because both start with the same instruction, while inputs of one
        task take turns behind theirs.
        """
        best, shared = self._longest(tokens, adapter)
        if best is None or (self._size > 1 and len(best.tokens) - shared > shared):
            target = self._unused_for_longest(spare=best)
            if best is not None and shared:
                target.copy_from(best, shared)
            else:
                target.tokens.clear()
            best = target
        best.adapter = adapter
        self._clock += 1
        best.last_used = self._clock
        return best

    def forget(self) -> int:
        """Empty every cache; returns the number of tokens forgotten."""
        held = sum(len(cache.tokens) for cache in self._caches)
        for cache in self._caches:
            cache.tokens.clear()
        return held

    def _longest(self, tokens: Sequence[int], adapter: str) -> tuple[KeyValueCache | None, int]:
        best, longest = None, -1
        for cache in self._caches:
            if cache.adapter == adapter and (shared := cache.common_prefix(tokens)) > longest:
                best, longest = cache, shared
        return best, longest

    def _unused_for_longest(self, spare: KeyValueCache | None) -> KeyValueCache:
        if len(self._caches) < self._size:
            self._caches.append(KeyValueCache(self._manifest))
            return self._caches[-1]
        others = [cache for cache in self._caches if cache is not spare] or self._caches
        return min(others, key=lambda cache: cache.last_used)
