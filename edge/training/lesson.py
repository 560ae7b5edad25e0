"""What is learned from one example, as tokens: which rows of logits should say what.

Tokens lie in *segments*: a text is a chain, a closed set behind its prompt is a tree, and every
token sees its ancestors alone. A segment's activations below the trained layers are computed once
(``edge.training.trunk``); lessons that share a segment share it in a run too. How a prompt is
worded is the caller's business.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from cascade.errors import InvalidInput
from edge.trie import ROOT, Trie

Integers = NDArray[np.int64]
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Segment:
    """Tokens that see none of another segment.

    Arguments:
        ids: one or more token ids.
        parents: of each token the index of the one before it, smaller than its own; −1 for one
            that is the first.
    """

    ids: tuple[int, ...]
    parents: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def digest(self) -> str:
        """Hex sha256 of the tokens and their shape."""
        return hashlib.sha256(np.array([self.ids, self.parents], "<i8").tobytes()).hexdigest()

    @cached_property
    def positions(self) -> Integers:
        """int64 [T]: how many ancestors a token has; what it is rotated by."""
        depth = np.zeros(len(self), np.int64)
        for index, parent in enumerate(self.parents):
            if parent >= 0:
                depth[index] = depth[parent] + 1
        return depth

    def bias(self) -> Floats:
        """float32 [T, T] for attention scores: 0 for a token's ancestors and itself, else −∞."""
        bias = np.full((len(self), len(self)), -np.inf, np.float32)
        for index, parent in enumerate(self.parents):
            if parent >= 0:
                bias[index] = bias[parent]
            bias[index, index] = 0
        return bias


@dataclass(frozen=True)
class Target:
    """A token that may follow: behind token ``at`` of segment ``segment``."""

    segment: int
    at: int
    token: int


@dataclass(frozen=True)
class ClosedSet:
    """How the answers of a closed set come out of a lesson's targets; see ``edge.build.loss``.

    Arguments:
        right: index of the right answer.
        answers: per answer (target, sign) of what is summed.
        ends: per answer (end, sign), for those that begin another answer.
        continued: per end the targets that go on.
    """

    right: int
    answers: tuple[tuple[tuple[int, float], ...], ...]
    ends: tuple[tuple[tuple[int, float], ...], ...]
    continued: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Lesson:
    """One example. Its loss is the mean of its targets' negative log probabilities or, with a
    closed set, −log of the right answer's probability in it.

    Arguments:
        weight: of this loss among those of other examples, ≥ 0.
    """

    segments: tuple[Segment, ...]
    targets: tuple[Target, ...]
    closed_set: ClosedSet | None = None
    weight: float = field(default=1.0)

    @property
    def tokens(self) -> int:
        """Tokens of all segments."""
        return sum(map(len, self.segments))

    @cached_property
    def digest(self) -> str:
        """Hex sha256 of all that is learned, without the weight."""
        parts = [segment.digest for segment in self.segments]
        return hashlib.sha256(repr((parts, self.targets, self.closed_set)).encode()).hexdigest()


def text_lesson(prompt: Sequence[int], answer: Sequence[int], *, weight: float = 1.0) -> Lesson:
    """To write ``answer`` after ``prompt``; both are token ids, the answer's with its stop token.

    Raises:
        InvalidInput: one of them is empty.
    """
    if not prompt or not answer:
        raise InvalidInput("prompt" if not prompt else "answer", "has no tokens")
    ids = (*prompt, *answer[:-1])
    targets = tuple(Target(0, len(prompt) - 1 + index, token) for index, token in enumerate(answer))
    return Lesson((_chain(ids),), targets, weight=weight)


def choice_lesson(
    prompt: Sequence[int],
    trie: Trie,
    right: int,
    *,
    prior: Sequence[int] | None = None,
    weight: float = 1.0,
) -> Lesson:
    """To choose answer ``right`` of a closed set after ``prompt``, scored as ``edge.choose`` does.

    Arguments:
        prompt: token ids.
        trie: of the answers' tokens.
        prior: token ids of the prompt with an empty input, whose scores are subtracted.

    Raises:
        InvalidInput: a prompt is empty.
    """
    sides = [(tuple(prompt), 1.0)] + ([] if prior is None else [(tuple(prior), -1.0)])
    segments: list[Segment] = []
    targets: list[Target] = []
    answers: list[list[tuple[int, float]]] = [[] for _ in trie.nodes]
    ends: list[list[tuple[int, float]]] = [[] for _ in trie.nodes]
    continued: list[tuple[int, ...]] = []
    for number, (ids, sign) in enumerate(sides):
        if not ids:
            raise InvalidInput("prompt", "has no tokens")
        segment, place = _tree(ids, trie)
        segments.append(segment)
        edge = {}  # target by the node that it leads to
        for node in trie.inner:
            for child in trie.children[node]:
                edge[child] = len(targets)
                targets.append(Target(number, place[node], trie.tokens[child]))
        for answer, node in enumerate(trie.nodes):
            answers[answer] += [(edge[step], sign) for step in trie.path(node)]
            if trie.children[node]:
                ends[answer].append((len(continued), sign))
                continued.append(tuple(edge[child] for child in trie.children[node]))
    closed_set = ClosedSet(
        right, tuple(map(tuple, answers)), tuple(map(tuple, ends)), tuple(continued)
    )
    return Lesson(tuple(segments), tuple(targets), closed_set, weight)


def by_segment(lesson: Lesson) -> tuple[Lesson, ...]:
    """A closed set's lesson as one of each segment, of which the prior's is the same for all
    inputs. The log probabilities of its answers are the sums of theirs, up to a constant.

    Raises:
        InvalidInput: it is of no closed set.
    """
    whole = lesson.closed_set
    if whole is None:
        raise InvalidInput("lesson", "is of no closed set")
    parts = []
    for number, segment in enumerate(lesson.segments):
        own = [i for i, target in enumerate(lesson.targets) if target.segment == number]
        targets = {before: now for now, before in enumerate(own)}
        going_on = [i for i, each in enumerate(whole.continued) if each[0] in targets]
        ends = {before: now for now, before in enumerate(going_on)}
        part = ClosedSet(
            whole.right,
            tuple(_those(each, targets) for each in whole.answers),
            tuple(_those(each, ends) for each in whole.ends),
            tuple(tuple(targets[i] for i in whole.continued[end]) for end in going_on),
        )
        alone = tuple(replace(lesson.targets[i], segment=0) for i in own)
        parts.append(Lesson((segment,), alone, part, lesson.weight))
    return tuple(parts)


def _those(
    signs: tuple[tuple[int, float], ...], places: Mapping[int, int]
) -> tuple[tuple[int, float], ...]:
    return tuple((places[i], sign) for i, sign in signs if i in places)


def _chain(ids: tuple[int, ...]) -> Segment:
    return Segment(ids, tuple(range(-1, len(ids) - 1)))


def _tree(prompt: tuple[int, ...], trie: Trie) -> tuple[Segment, dict[int, int]]:
    """A prompt with the inner nodes of a trie behind it, and the token at which each node is."""
    ids, parents = list(prompt), list(range(-1, len(prompt) - 1))
    place = {ROOT: len(prompt) - 1}
    for node in trie.inner[1:]:
        place[node] = len(ids)
        ids.append(trie.tokens[node])
        parents.append(place[trie.parents[node]])
    return Segment(tuple(ids), tuple(parents)), place
