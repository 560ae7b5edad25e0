"""Several lessons as one run of the gradient graph: its inputs but for activations and adapter.

All segments are one forest: tokens with the same way to them are one token, so what lessons begin
with, the wording of a task and its examples above all, is there once. Nothing is padded. Losses of
single lessons are told apart again from the graph's outputs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edge.training.lesson import Floats, Integers, Lesson, Segment


@dataclass(frozen=True, slots=True)
class Pack:
    """One run.

    Arguments:
        segments: each once, in the order in which their activations are to be stacked.
        taken: int64 [T], which rows of that stack the run takes.
        inputs: of the graph, by name.
    """

    lessons: tuple[Lesson, ...]
    segments: tuple[Segment, ...]
    taken: Integers
    inputs: dict[str, NDArray[np.generic]]

    def losses(self, target_logprobs: Floats, answer_logprobs: Floats) -> list[float]:
        """The loss of each lesson, unweighted, from the graph's outputs [P] and [O]."""
        losses, target, answer = [], 0, 0
        for lesson in self.lessons:
            own = target_logprobs[target : target + len(lesson.targets)]
            target += len(lesson.targets)
            if lesson.closed_set is None:
                losses.append(-float(own.mean()))
            else:
                losses.append(-float(answer_logprobs[answer + lesson.closed_set.right]))
                answer += len(lesson.closed_set.answers)
        return losses

    def answers(self, answer_logprobs: Floats) -> list[Floats]:
        """The output [O] by lessons with a closed set: log probabilities of each one's answers."""
        sizes = [len(each.closed_set.answers) for each in self.lessons if each.closed_set]
        return np.split(answer_logprobs, np.cumsum(sizes)[:-1])


def pack(lessons: Sequence[Lesson], shares: Sequence[float]) -> Pack:
    """Put lessons into one run.

    Arguments:
        shares: what each lesson's loss counts in the sum.
    """
    forest = _Forest()
    places_of = {
        segment.digest: forest.add(segment) for lesson in lessons for segment in lesson.segments
    }
    segments = {segment.digest: segment for lesson in lessons for segment in lesson.segments}
    _, taken = np.unique(np.concatenate(list(places_of.values())), return_index=True)
    whole = forest.whole()
    places = np.array(
        [
            places_of[lesson.segments[target.segment].digest][target.at]
            for lesson in lessons
            for target in lesson.targets
        ],
        np.int64,
    )
    rows, target_rows = np.unique(places, return_inverse=True)
    inputs: dict[str, NDArray[np.generic]] = {
        "positions": whole.positions[None],
        "attention_bias": whole.bias(),
        "logit_rows": rows,
        "target_rows": target_rows.astype(np.int64),
        "target_ids": np.array(
            [target.token for lesson in lessons for target in lesson.targets], np.int64
        ),
        "target_weights": np.concatenate(
            [
                np.full(
                    len(lesson.targets),
                    0.0 if lesson.closed_set else share / len(lesson.targets),
                    np.float32,
                )
                for lesson, share in zip(lessons, shares, strict=True)
            ]
        ),
    }
    inputs |= _closed_sets(lessons, shares)
    return Pack(tuple(lessons), tuple(segments.values()), taken.astype(np.int64), inputs)


def in_packs(lessons: Sequence[Lesson], most_tokens: int) -> Iterator[list[Lesson]]:
    """Runs of neighbouring lessons with at most so many tokens, beside those that a lesson has in
    common with the first of its run; a longer lesson has its own."""
    held: list[Lesson] = []
    forest, first = _Forest(), 0
    for lesson in lessons:
        shared = sum(place < first for place in forest.places(lesson))
        if held and len(forest) - shared > most_tokens:
            yield held
            held, forest = [], _Forest()
            forest.places(lesson)
        if not held:
            first = len(forest)
        held.append(lesson)
    if held:
        yield held


class _Forest:
    """Tokens of segments, of which those with the same way to them are one."""

    def __init__(self) -> None:
        self._known: dict[tuple[int, int], int] = {}

    def __len__(self) -> int:
        return len(self._known)

    def add(self, segment: Segment) -> list[int]:
        """Where each token of a segment is."""
        places: list[int] = []
        for token, parent in zip(segment.ids, segment.parents, strict=True):
            key = (places[parent] if parent >= 0 else -1, token)
            places.append(self._known.setdefault(key, len(self._known)))
        return places

    def places(self, lesson: Lesson) -> set[int]:
        """Where the tokens of a lesson are."""
        return {place for segment in lesson.segments for place in self.add(segment)}

    def whole(self) -> Segment:
        """All tokens."""
        return Segment(
            tuple(token for _, token in self._known), tuple(parent for parent, _ in self._known)
        )


def _closed_sets(
    lessons: Sequence[Lesson], shares: Sequence[float]
) -> dict[str, NDArray[np.generic]]:
    sets = [lesson.closed_set for lesson in lessons if lesson.closed_set is not None]
    targets = sum(len(lesson.targets) for lesson in lessons)
    answers = sum(len(each.answers) for each in sets)
    ends = sum(len(each.continued) for each in sets)
    answer_targets = np.zeros((answers, targets), np.float32)
    answer_ends = np.zeros((answers, ends), np.float32)
    end_targets = np.zeros((ends, targets), np.float32)
    groups = np.zeros((len(sets), answers), np.float32)
    weights = np.zeros(answers, np.float32)
    target = answer = end = group = 0
    for lesson, share in zip(lessons, shares, strict=True):
        own = lesson.closed_set
        if own is not None:
            for row, (summed, ended) in enumerate(zip(own.answers, own.ends, strict=True)):
                for index, sign in summed:
                    answer_targets[answer + row, target + index] += sign
                for index, sign in ended:
                    answer_ends[answer + row, end + index] += sign
            for row, going_on in enumerate(own.continued):
                end_targets[end + row, [target + index for index in going_on]] = 1
            groups[group, answer : answer + len(own.answers)] = 1
            weights[answer + own.right] = share
            answer, end, group = answer + len(own.answers), end + len(own.continued), group + 1
        target += len(lesson.targets)
    return {
        "answer_targets": answer_targets,
        "answer_ends": answer_ends,
        "end_targets": end_targets,
        "answer_groups": groups,
        "answer_weights": weights,
    }
