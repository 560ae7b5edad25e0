"""The seam to whatever finds personal data in a text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from cascade.errors import InvalidInput


@dataclass(frozen=True, slots=True)
class PiiSpan:
    """One finding.

    Arguments:
        start, end: of the text's characters, half open.
        kind: capital letters, digits and ``_``, e.g. ``"EMAIL_ADDRESS"``.
        score: how sure the detector is, in [0, 1]. Not calibrated.
    """

    start: int
    end: int
    kind: str
    score: float


class PiiDetector(Protocol):
    """Finds personal data. Blocks; called in a worker thread, by several threads at one time."""

    def find(self, text: str) -> Sequence[PiiSpan]:
        """All findings in ``text``, in any order; they may overlap. Whatever is raised, the text
        is not sent."""
        ...


def merged(text: str, found: Sequence[PiiSpan], min_score: float) -> tuple[PiiSpan, ...]:
    """Findings of at least ``min_score``, left to right, without overlaps: those that overlap
    become one, of the kind of the surest (the longest among equals).

    Raises:
        InvalidInput: a finding lies outside of the text.
    """
    kept = sorted((each for each in found if each.score >= min_score), key=lambda each: each.start)
    spans: list[PiiSpan] = []
    best: list[PiiSpan] = []
    for each in kept:
        if not 0 <= each.start < each.end <= len(text):
            raise InvalidInput("pii", f"{each.start}:{each.end} is not within the text")
        if spans and each.start < spans[-1].end:
            surest = max(best[-1], each, key=lambda one: (one.score, one.end - one.start))
            best[-1] = surest
            last = spans[-1]
            spans[-1] = PiiSpan(last.start, max(last.end, each.end), surest.kind, surest.score)
        else:
            spans.append(each)
            best.append(each)
    return tuple(spans)
