"""The matrix of a suite: every scenario and variant by every tier, and the cascade of them.

Pure functions of record sets; how those come about is ``cascade.cli.suite``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cascade.metrics import PairedDifference, auroc, deferral_curve, ece, paired_difference
from cascade.records.record_set import RecordSet
from cascade.records.summary import TierSummary, summarise
from cascade.rows import Bools, Floats

CLEAN = "clean"
"""The variant in which the inputs are as they are."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One tier on one variant of one scenario.

    Arguments:
        summary: accuracy with its interval, latency, tokens, cost.
        auroc, ece: of the *raw* score, which is not a confidence; ``None`` without scores, or where
            they cannot be told (all answers right, say).
        change: accuracy minus that on the clean inputs, of the rows that both answered; ``None`` on
            those themselves.
    """

    scenario: str
    variant: str
    summary: TierSummary
    auroc: float | None
    ece: float | None
    change: PairedDifference | None


@dataclass(frozen=True, slots=True)
class CascadeCell:
    """The first tier backed by the last, the least sure answers escalated first.

    Arguments:
        n: rows that both answered and that are graded.
        normalised_auc: of the deferral curve; 1 is the oracle, 0 is chance. ``None`` where neither
            tier is right alone on any row.
        best_accuracy, best_share: the highest point of the curve and the smallest share of
            escalated rows that reaches it: in hindsight, on these very rows.
    """

    scenario: str
    variant: str
    weak: str
    strong: str
    n: int
    normalised_auc: float | None
    best_accuracy: float
    best_share: float


def cells(scenario: str, variant: str, records: RecordSet, clean: RecordSet) -> list[Cell]:
    """A cell for each tier; ``clean`` are the records of the same rows as they are."""
    return [
        Cell(
            scenario,
            variant,
            summary,
            *_discrimination(records, summary.name),
            None if variant == CLEAN else _change(records, clean, summary.name),
        )
        for summary in summarise(records).tiers
    ]


def cascade_cell(scenario: str, variant: str, records: RecordSet) -> CascadeCell | None:
    """First and last tier together; ``None`` with one tier, or without scores and grades."""
    weak, strong = records.tiers[0], records.tiers[-1]
    scores, first, last = (
        records.column(weak, "raw_score"),
        records.correct(weak),
        records.correct(strong),
    )
    usable = ~np.isnan(scores) & _graded(first) & _graded(last)
    if weak == strong or not usable.any():
        return None
    curve = deferral_curve(scores[usable], first[usable], last[usable])
    best = int(np.argmax(curve.accuracy))
    return CascadeCell(
        scenario,
        variant,
        weak,
        strong,
        int(usable.sum()),
        curve.normalised_auc,
        float(curve.accuracy[best]),
        float(curve.share[best]),
    )


def _discrimination(records: RecordSet, tier: str) -> tuple[float | None, float | None]:
    scores, correct = records.column(tier, "raw_score"), records.correct(tier)
    usable = ~np.isnan(scores) & _graded(correct)
    if not usable.any():
        return None, None
    right = correct[usable]
    both = 0 < right.sum() < len(right)
    return (auroc(scores[usable], right) if both else None), ece(scores[usable], right)


def _change(records: RecordSet, clean: RecordSet, tier: str) -> PairedDifference | None:
    place = {name: row for row, name in enumerate(clean.ids)}
    mine = [row for row, name in enumerate(records.ids) if name in place]
    theirs = [place[records.ids[row]] for row in mine]
    now, before = records.correct(tier)[mine], clean.correct(tier)[theirs]
    usable = _graded(now) & _graded(before)
    return paired_difference(now[usable], before[usable]) if usable.any() else None


def _graded(correct: Floats) -> Bools:
    """Where an answer is known to be right or wrong."""
    graded: Bools = np.isin(correct, (0.0, 1.0))
    return graded
