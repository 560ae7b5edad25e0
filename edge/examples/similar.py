"""Which texts say nearly the same: the Jaccard similarity of their shingles, exactly.

A shingle is a run of four characters. Posting lists find every pair that shares one, so there is no
chance in it; a device's store is small enough to do without MinHash (5,000 sentences: see
docs/examples.md).
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from cascade.errors import InvalidInput

_SHINGLE: Final = 4


def near(texts: Sequence[str], threshold: float) -> list[list[int]]:
    """For each text, the places of earlier ones whose similarity is at least ``threshold``.

    Arguments:
        threshold: in (0, 1]; 1 finds texts of the same shingles alone.

    Raises:
        InvalidInput: ``threshold`` is out of range.
    """
    if not 0 < threshold <= 1:
        raise InvalidInput("near", f"{threshold} is not in (0, 1]")
    sets = [shingles(text) for text in texts]
    sizes = np.array([len(each) for each in sets], dtype=np.int64)
    postings = _postings(sets)
    found: list[list[int]] = []
    for place, own in enumerate(sets):
        lists = [postings[shingle] for shingle in own.tolist()]
        shared = np.bincount(np.concatenate(lists), minlength=len(sets))[:place]
        together = sizes[place] + sizes[:place] - shared
        found.append(np.flatnonzero(shared >= threshold * together).tolist())
    return found


def jaccard(one: str, other: str) -> float:
    """Similarity of two texts in [0, 1]."""
    first, second = shingles(one), shingles(other)
    shared = len(np.intersect1d(first, second, assume_unique=True))
    return shared / (len(first) + len(second) - shared)


def shingles(text: str) -> NDArray[np.uint32]:
    """The different runs of four characters of a text, hashed and sorted; never empty.

    Of two different ones, one in 4 billion counts as the same.
    """
    padded = f" {text} "
    runs = {padded[i : i + _SHINGLE] for i in range(max(1, len(padded) - _SHINGLE + 1))}
    return np.unique(np.array([zlib.crc32(run.encode()) for run in runs], dtype=np.uint32))


def _postings(sets: Sequence[NDArray[np.uint32]]) -> dict[int, NDArray[np.int64]]:
    """For each shingle, the places of the texts that have it."""
    if not sets:
        return {}
    every = np.concatenate(sets)
    places = np.repeat(np.arange(len(sets)), [len(each) for each in sets])
    order = np.argsort(every, kind="stable")
    known, starts = np.unique(every[order], return_index=True)
    parts = np.split(places[order], starts[1:])
    return dict(zip(known.tolist(), parts, strict=True))
