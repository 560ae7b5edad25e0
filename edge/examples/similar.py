"""Which texts say nearly the same: the Jaccard similarity of their shingles.

A shingle is a run of four characters. Posting lists find every pair that shares one; a device's
store is small enough to do without MinHash (see docs/examples.md). Of a long text the shingles of
the smallest hashes alone are looked at, which are a fair draw and the same ones in every text. So
short texts, those of fewer than ``_MOST`` shingles, are compared exactly, and of long ones the
similarity is estimated, with a standard error below 0.03.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from cascade.errors import InvalidInput

_SHINGLE: Final = 4
_MOST: Final = 400
_MIX: Final = np.uint32(2_654_435_761)  # odd: no two hashes become one
_BITS: Final = 32

Ints = NDArray[np.int64]


def near(texts: Sequence[str], threshold: float) -> list[list[int]]:
    """For each text, the places of earlier ones whose similarity is at least ``threshold``.

    Arguments:
        threshold: in (0, 1]; 1 finds texts of the same shingles alone.

    Raises:
        InvalidInput: ``threshold`` is out of range.
    """
    if not 0 < threshold <= 1:
        raise InvalidInput("near", f"{threshold} is not in (0, 1]")
    if not texts:
        return []
    sets = [shingles(text) for text in texts]
    sizes = np.array([len(each) for each in sets], dtype=np.int64)
    reaches = np.array([_reach(each) for each in sets], dtype=np.int64)
    starts = np.cumsum(sizes) - sizes
    every = np.concatenate(sets).astype(np.int64)
    ordered = every + (np.repeat(np.arange(len(sets)), sizes) << _BITS)
    postings = _postings(every, sizes)
    found: list[list[int]] = []
    for place, own in enumerate(sets):
        lists = [postings[shingle] for shingle in own.tolist()]
        shared = np.bincount(np.concatenate(lists), minlength=len(sets))[:place]
        # All shingles of the one of the shorter reach are counted.
        least = np.where(reaches[:place] < reaches[place], sizes[:place], sizes[place])
        others = np.flatnonzero(shared >= threshold * least)
        limits = np.minimum(reaches[others], reaches[place])
        counted = np.searchsorted(ordered, (others << _BITS) + limits, "right") - starts[others]
        together = counted + np.searchsorted(own, limits, "right") - shared[others]
        found.append(others[shared[others] >= threshold * together].tolist())
    return found


def jaccard(one: str, other: str) -> float:
    """Similarity of two texts in [0, 1]."""
    first, second = shingles(one), shingles(other)
    limit = min(_reach(first), _reach(second))
    shared = len(np.intersect1d(first, second, assume_unique=True))
    together = np.count_nonzero(first <= limit) + np.count_nonzero(second <= limit) - shared
    return float(shared / together)


def shingles(text: str) -> NDArray[np.uint32]:
    """The different runs of four characters of a text, hashed and sorted, at most ``_MOST``; never
    empty.

    Of two different ones, one in 4 billion counts as the same.
    """
    padded = f" {text} "
    runs = {padded[i : i + _SHINGLE] for i in range(max(1, len(padded) - _SHINGLE + 1))}
    # A checksum alone is no fair draw: alike runs have alike ones.
    hashes = np.array([zlib.crc32(run.encode()) for run in runs], dtype=np.uint32) * _MIX
    return np.unique(hashes)[:_MOST]


def _reach(of: NDArray[np.uint32]) -> int:
    """The hash up to which all shingles of a text are known."""
    return int(of[-1]) if len(of) == _MOST else 2**_BITS - 1


def _postings(every: Ints, sizes: Ints) -> dict[int, Ints]:
    """For each shingle, the places of the texts that have it."""
    places = np.repeat(np.arange(len(sizes)), sizes)
    order = np.argsort(every, kind="stable")
    known, starts = np.unique(every[order], return_index=True)
    parts = np.split(places[order], starts[1:])
    return dict(zip(known.tolist(), parts, strict=True))
