"""What records tell of the tiers of a ladder, as arrays: tiers down, rows across."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import count

import numpy as np
from numpy.typing import NDArray

from cascade.errors import InvalidInput
from cascade.pair import right_or_wrong
from cascade.records import RecordSet
from cascade.rows import Bools, Floats


@dataclass(frozen=True, slots=True, eq=False)
class LadderRows:
    """Rows of which every tier's answer is graded; arrays have the shape ``[tiers, rows]``.

    Arguments:
        tiers: from the lowest to the highest.
        records: the rows themselves, in order.
        remote: which of them are off the device, shape ``[tiers]``.
        score: how sure each tier is, in [0, 1]: its raw score, or the geometric mean probability of
            its tokens; NaN throughout for a tier that tells neither.
        correct: whether each answer is right.
        answer: a number for each answer, equal where the texts are; -1 where they are not kept.
        latency_s, cost_usd: NaN where not measured. What a device's answer costs counts as nothing
            where it was not measured.
        left_out: rows of which a tier's answer or grade is missing.
    """

    tiers: tuple[str, ...]
    records: RecordSet
    remote: Bools
    score: Floats
    correct: Bools
    answer: NDArray[np.int64]
    latency_s: Floats
    cost_usd: Floats
    left_out: int

    def __len__(self) -> int:
        return int(self.correct.shape[1])

    def take(self, rows: NDArray[np.int64]) -> LadderRows:
        """Some of the rows."""
        names = ("score", "correct", "answer", "latency_s", "cost_usd")
        return replace(
            self,
            records=self.records.take(rows),
            left_out=0,
            **{name: getattr(self, name)[:, rows] for name in names},
        )


def ladder_rows(records: RecordSet, tiers: Sequence[str]) -> LadderRows:
    """The rows that every tier answered and that are graded.

    Raises:
        NotFound: no such tier.
        InvalidInput: fewer than two tiers, one twice, grades between 0 and 1, or no row is left.
    """
    if len(tiers) < 2 or len(set(tiers)) < len(tiers):
        raise InvalidInput("ladder", "needs two or more different tiers, e.g. device,tier1,tier2")
    grades = np.stack([records.correct(tier) for tier in tiers])
    answered = np.stack([records.answered(tier) for tier in tiers])
    usable = (answered & ~np.isnan(grades)).all(axis=0)
    if not usable.any():
        raise InvalidInput("records", f"no row has graded answers of all of {', '.join(tiers)}")
    some = records if usable.all() else records.take(usable)
    kinds = {tier.name: tier.kind for tier in records.header.tiers}
    remote = np.array([kinds[tier] == "cloud" for tier in tiers])
    cost = np.stack([some.column(tier, "cost_usd") for tier in tiers])
    for i in np.flatnonzero(~remote):
        if np.isnan(cost[i]).all():
            cost[i] = 0.0
    return LadderRows(
        tiers=tuple(tiers),
        records=some,
        remote=remote,
        score=np.stack([_score(some, tier) for tier in tiers]),
        correct=np.stack(
            [right_or_wrong(tier, each[usable]) for tier, each in zip(tiers, grades, strict=True)]
        ),
        answer=_answers(some, tiers),
        latency_s=np.stack([some.column(tier, "latency_s") for tier in tiers]),
        cost_usd=cost,
        left_out=int(np.sum(~usable)),
    )


def _score(records: RecordSet, tier: str) -> Floats:
    raw = records.column(tier, "raw_score")
    if not np.isnan(raw).any():
        return raw
    tokens: Floats = np.exp(records.column(tier, "mean_logprob"))
    return tokens if not np.isnan(tokens).any() else np.full(len(raw), np.nan)


def _answers(records: RecordSet, tiers: Sequence[str]) -> NDArray[np.int64]:
    numbers = count()
    place: dict[str, int] = {"": -1}
    rows = []
    for tier in tiers:
        texts = records.texts(tier, "answer")
        if not any(texts):
            texts = records.texts(tier, "answer_sha256")
        place |= {text: next(numbers) for text in dict.fromkeys(texts) if text not in place}
        rows.append(np.fromiter(map(place.__getitem__, texts), np.int64, len(texts)))
    return np.stack(rows)
