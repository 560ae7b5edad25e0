"""Which examples are learned from, how much each one weighs, and why the others are left out.

A pure function of the examples, the standing consent and the rules. Nothing is dropped in silence:
each example comes back with its weight or with a reason.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass
from typing import Final

import numpy as np

from cascade.errors import InvalidInput
from cascade.rows import Floats
from edge.examples.consent import Consent
from edge.examples.example import Example, Source, normalised
from edge.examples.label_noise import doubts, label_right
from edge.examples.similar import jaccard, near

REASONS: Final = {
    "no_consent": "nobody consented to learning, or consent was withdrawn",
    "never_train": "the request, or personal data in it, forbade it",
    "data_class": "its data class is never learned from",
    "task": "its task is never learned from",
    "waiting": "nobody but the device says that its answer is right",
    "rejected": "a user said that its answer is wrong",
    "empty": "there is no answer to learn",
    "duplicate": "the same was asked and answered in another example",
    "conflict": "the same was asked, and a better or newer source answers otherwise",
    "near_duplicate": "nearly the same was asked and answered in another example",
}
"""Why an example is left out, in the order in which they are looked at."""


_Set = tuple[str, frozenset[str]]
"""A task and its answers; none where they are free."""

_LEAST_SURE: Final = 0.5
"""What the device itself thinks more likely wrong than right is not rehearsed."""


@dataclass(frozen=True, slots=True)
class CurationRules:
    """How to choose.

    Arguments:
        near: prompts of at least this similarity say the same, in (0, 1]; see ``similar``.
        trust: P(a tier of the cluster is right) where it does not tell itself, in (0, 1].
        doubted_rows: rows with probabilities that a task needs before its labels are doubted, ≥ 2.
        lowest: no doubted example weighs less, in [0, 1].
        balance: no class is made to count more or less than this many times what it did, ≥ 1,
            before all are scaled to the sum that they had.
        rehearsal: weight of what the device answered itself and was sure of, in [0, 1]; see
            ``Curated.rehearsal``. 0 rehearses nothing.

    Raises:
        InvalidInput: a rule is out of range; it is named.
    """

    near: float = 0.8
    trust: float = 0.9
    doubted_rows: int = 20
    lowest: float = 0.25
    balance: float = 3.0
    rehearsal: float = 0.1

    def __post_init__(self) -> None:
        allowed = {
            "near": 0 < self.near <= 1,
            "trust": 0 < self.trust <= 1,
            "doubted_rows": self.doubted_rows >= 2,
            "lowest": 0 <= self.lowest <= 1,
            "balance": 1 <= self.balance < float("inf"),
            "rehearsal": 0 <= self.rehearsal <= 1,
        }
        for name, good in allowed.items():
            if not good:
                raise InvalidInput(f"rules.{name}", f"{getattr(self, name)} is out of range")


@dataclass(frozen=True, slots=True)
class Weighted:
    """An example that is used.

    Arguments:
        weight: of its loss, > 0; 1 for an ordinary one.
        doubted: its label is probably wrong, and weighs less for it.
    """

    example: Example
    weight: float
    doubted: bool = False


@dataclass(frozen=True, slots=True)
class LeftOut:
    """An example that is not.

    Arguments:
        reason: one of ``REASONS``.
        because_of: request id of the example that stands in its place, if one does.
    """

    example: Example
    reason: str
    because_of: str = ""


@dataclass(frozen=True, slots=True)
class Curated:
    """What came of it.

    Arguments:
        learn: what to learn from. Of each closed set's classes, the weights are balanced.
        held_out: what to validate on, and never learned from; not balanced.
        rehearsal: answers of the device to closed sets on which nobody has spoken, at a small
            weight each. Escalations are the hard ones: a head that learns from these alone forgets
            what it knew of the others. They are no lessons by themselves, nor counted as such.
        noise: estimated share of wrong labels by task, where there were enough to tell.
    """

    learn: tuple[Weighted, ...]
    held_out: tuple[Weighted, ...]
    rehearsal: tuple[Weighted, ...]
    left_out: tuple[LeftOut, ...]
    noise: dict[str, float]

    def reasons(self) -> dict[str, int]:
        """How many were left out, by why."""
        found = Counter(each.reason for each in self.left_out)
        return {reason: found[reason] for reason in REASONS if found[reason]}


def curate(
    examples: Iterable[Example], consent: Consent | None, rules: CurationRules | None = None
) -> Curated:
    """Choose and weigh examples. The same ones in any order give the same.

    Arguments:
        consent: the terms that stand now, which are checked again; ``None`` where none do.
    """
    rules = rules or CurationRules()
    left_out: list[LeftOut] = []
    groups: dict[_Set, list[Example]] = defaultdict(list)
    waiting: dict[_Set, list[Example]] = defaultdict(list)
    for example in examples:
        reason = _unusable(example, consent)
        if reason is None or reason == "rejected":
            groups[_set(example)].append(example)
        if reason == "waiting":
            waiting[_set(example)].append(example)
        elif reason is not None:
            left_out.append(LeftOut(example, reason))
    learn: list[Weighted] = []
    held_out: list[Weighted] = []
    rehearsal: list[Weighted] = []
    noise: dict[str, float] = {}
    for task, options in sorted(groups, key=lambda key: (key[0], sorted(key[1]))):
        kept, out = _distinct(groups[task, options], rules.near)
        left_out += out
        weighted, share = _weighted(kept, rules)
        if share is not None:
            noise[task] = share
        held_out += [each for each in weighted if each.example.held_out]
        lessons = _balanced([each for each in weighted if not each.example.held_out], rules.balance)
        learn += lessons
        spoken = {each.prompt for each in groups[task, options]}
        most = sum(each.weight for each in lessons)
        rehearsal += _rehearsed(waiting[task, options], spoken, most, rules.rehearsal)
    used = {each.example.request_id for each in rehearsal}
    left_out += [
        LeftOut(each, "waiting")
        for group in waiting.values()
        for each in group
        if each.request_id not in used
    ]
    return Curated(tuple(learn), tuple(held_out), tuple(rehearsal), tuple(left_out), noise)


def _set(example: Example) -> _Set:
    return example.task_id, frozenset(example.options)


def _unusable(example: Example, consent: Consent | None) -> str | None:
    refusal = "no_consent" if consent is None else consent.refusal(example)
    if refusal is not None:
        return refusal
    if example.rejected:
        return "rejected"
    if example.source is Source.DEVICE:
        return "waiting"
    return None if example.answer.strip() else "empty"


def _distinct(group: Sequence[Example], threshold: float) -> tuple[list[Example], list[LeftOut]]:
    """One example for each thing asked: the best source's, and of one source the newest."""
    rejected = sorted((each for each in group if each.rejected), key=_age)
    wrong = {_asked_and_answered(each): each for each in rejected}  # the newest of each
    ordered = sorted(
        (each for each in group if not each.rejected),
        key=lambda each: (-each.source.rank, -each.at_s, each.request_id),
    )
    first: dict[str, Example] = {}
    out: list[LeftOut] = []
    for example in ordered:
        word = wrong.get(_asked_and_answered(example))
        if word is not None and (example.source is Source.CLOUD or example.at_s <= word.at_s):
            out.append(LeftOut(example, "rejected", word.request_id))
            continue
        better = first.setdefault(example.prompt, example)
        if better is not example:
            same = normalised(better.answer) == normalised(example.answer)
            reason = "duplicate" if same else "conflict"
            out.append(LeftOut(example, reason, better.request_id))
    apart = list(first.values())
    kept: list[Example] = []
    places: set[int] = set()
    for place, earlier in enumerate(near([each.question for each in apart], threshold)):
        example = apart[place]
        # Of two prompts that differ by a word, two answers teach what that word does.
        twin = next(
            (
                apart[other]
                for other in earlier
                if other in places and _answered_alike(apart[other], example, threshold)
            ),
            None,
        )
        if twin is None:
            places.add(place)
            kept.append(example)
        else:
            out.append(LeftOut(example, "near_duplicate", twin.request_id))
    return kept, out


def _age(example: Example) -> tuple[float, str]:
    return example.at_s, example.request_id


def _asked_and_answered(example: Example) -> tuple[str, str]:
    return example.prompt, normalised(example.answer)


def _answered_alike(one: Example, other: Example, threshold: float) -> bool:
    first, second = normalised(one.answer), normalised(other.answer)
    if first == second:
        return True
    return not one.options and jaccard(first, second) >= threshold


def _weighted(kept: Sequence[Example], rules: CurationRules) -> tuple[list[Weighted], float | None]:
    """Each example with P(its label is right), and the share of wrong labels where one can tell."""
    own = {each.request_id: each.weight if each.source is Source.CLOUD else 1.0 for each in kept}
    scored = [
        each for each in kept if each.options and len(each.probabilities) == len(each.options)
    ]
    if len(scored) < rules.doubted_rows:
        return [Weighted(each, own[each.request_id]) for each in kept], None
    options = sorted(scored[0].options)
    p = np.array([_in_order(each, options) for each in scored])
    labels = np.array([options.index(each.answer) for each in scored])
    found = doubts(p, labels)
    trust = [own[e.request_id] if own[e.request_id] < 1 else rules.trust for e in scored]
    right = label_right(p, labels, trust)
    doubted = {
        each.request_id: max(rules.lowest, min(own[each.request_id], float(right[row])))
        for row, each in enumerate(scored)
        if found.suspect[row] and each.source is Source.CLOUD  # a user's word stands
    }
    return [
        Weighted(
            each, doubted.get(each.request_id, own[each.request_id]), each.request_id in doubted
        )
        for each in kept
    ], found.noise


def _rehearsed(
    waiting: Sequence[Example], spoken: Set[str], most: float, weight: float
) -> list[Weighted]:
    """The device's own answers of one closed set, one for each prompt and the newest one's.

    Arguments:
        spoken: prompts on which somebody has.
        most: what all of them weigh together at most: lessons are not to drown in them.
    """
    chosen: dict[str, Weighted] = {}
    for example in sorted(waiting, key=lambda each: (-each.at_s, each.request_id)):
        sure = 1.0 if example.confidence is None else example.confidence
        if not example.options or example.held_out or sure < _LEAST_SURE:
            continue
        if example.prompt not in spoken:
            chosen.setdefault(example.prompt, Weighted(example, weight * sure))
    total = sum(each.weight for each in chosen.values())
    if not total or not most:
        return []
    share = min(1.0, most / total)
    return [Weighted(each.example, share * each.weight) for each in chosen.values()]


def _in_order(example: Example, options: Sequence[str]) -> list[float]:
    of = dict(zip(example.options, example.probabilities, strict=True))
    return [of[option] for option in options]


def _balanced(weighted: Sequence[Weighted], balance: float) -> list[Weighted]:
    """Classes of a closed set brought towards the same total weight, each by a factor of at most
    ``balance`` either way; then all are scaled alike, so that their sum stays."""
    if not weighted or not weighted[0].example.options:
        return list(weighted)
    weights: Floats = np.array([each.weight for each in weighted])
    names, places = np.unique([each.example.answer for each in weighted], return_inverse=True)
    totals = np.bincount(places, weights=weights)
    factors = np.clip(totals.sum() / len(names) / totals, 1 / balance, balance)
    after = weights * factors[places]
    after *= weights.sum() / after.sum()
    return [
        Weighted(each.example, float(weight), each.doubted)
        for each, weight in zip(weighted, after, strict=True)
    ]
