"""Two tiers of a record set side by side: the rows of which everything that is needed is known.

What ``cascade tune`` and ``cascade replay`` start from. Rows that cannot be used are counted by the
reason, never guessed at.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from cascade.errors import InvalidInput
from cascade.records import RecordSet
from cascade.records.record_set import outcome_column
from cascade.rows import Bools, Floats
from cascade.signals import ScoreMode


@dataclass(frozen=True, slots=True, eq=False)
class Pair:
    """The local tier and the one to which it escalates; every array has the shape ``[rows]``.

    Arguments:
        records: the rows that are used, in order.
        local, cloud: names of the tiers; ``cloud`` is ``None`` where there is only one.
        score: raw scores of the local tier, in [0, 1].
        correct: whether its answers are right.
        cloud_correct: the same for the cloud; ``None`` without it.
        left_out: rows that cannot be used, by the reason.
    """

    records: RecordSet
    local: str
    cloud: str | None
    score: Floats
    correct: Bools
    cloud_correct: Bools | None
    left_out: dict[str, int]

    def __len__(self) -> int:
        return len(self.score)

    def column(self, tier: str, name: str) -> Floats | None:
        """A number of each outcome, NaN where it is missing; ``None`` where none has it."""
        values = self.records.column(tier, name)
        return None if np.isnan(values).all() else values

    def take(self, rows: NDArray[np.int64]) -> Pair:
        """Some of the rows, in this order; nothing more is left out."""
        cloud = self.cloud_correct
        return replace(
            self,
            records=self.records.take(rows),
            score=self.score[rows],
            correct=self.correct[rows],
            cloud_correct=None if cloud is None else cloud[rows],
            left_out={},
        )

    def documents(self) -> NDArray[np.int64]:
        """The number of each row's document, from 0, in the order in which they first occur."""
        return self.records.document_numbers()

    def mode(self) -> ScoreMode:
        """How the local tier scored its options; ``"exact"`` where the file does not say.

        Raises:
            InvalidInput: some rows one way, some the other.
        """
        searched = self.records.source.equal(outcome_column(self.local, "option_mode"), "search")
        mine = searched[self.records.places]
        if mine.all():
            return "search"
        if mine.any():
            raise InvalidInput(
                "records",
                f"{self.local} scored {int(mine.sum())} of {len(mine)} rows in search mode and the "
                "others exactly; record them alike (cascade record --mode)",
            )
        return "exact"


def pair(
    records: RecordSet,
    *,
    local: str | None = None,
    cloud: str | None = None,
    alone: bool = False,
) -> Pair:
    """The usable rows of two tiers.

    Arguments:
        local: the tier whose answers are judged; the lowest by default.
        cloud: where it escalates; by default the next one, if there is one.
        alone: look at the local tier only: rows are used whatever became of them above.

    Raises:
        NotFound: no such tier.
        InvalidInput: the two are one, a grade lies between right and wrong, or no row is left.
    """
    weak = records.tiers[0] if local is None else local
    score, grade = records.column(weak, "raw_score"), records.correct(weak)
    strong = _above(records, weak) if cloud is None else cloud
    if strong == weak:
        raise InvalidInput("cloud", f"is {weak}, the local tier itself; name another")
    if alone:
        strong = None
    usable = np.ones(len(records), np.bool_)
    left_out: dict[str, int] = {}

    def leave_out(missing: Bools, why: str) -> None:
        nonlocal usable
        if number := int(np.sum(usable & missing)):
            left_out[why] = number
        usable = usable & ~missing

    leave_out(~records.answered(weak), f"{weak} gave no answer")
    leave_out(np.isnan(score), f"{weak} has no raw score")
    leave_out(np.isnan(grade), f"{weak} is not graded")
    strong_grade = None
    if strong is not None:
        strong_grade = records.correct(strong)
        leave_out(~records.answered(strong), f"{strong} gave no answer")
        leave_out(np.isnan(strong_grade), f"{strong} is not graded")
    if not usable.any():
        why = ", ".join(f"{why} ({number})" for why, number in left_out.items())
        raise InvalidInput("records", f"no row can be used: {why}")
    return Pair(
        records if usable.all() else records.take(usable),
        weak,
        strong,
        score[usable],
        right_or_wrong(weak, grade[usable]),
        None
        if strong is None or strong_grade is None
        else right_or_wrong(strong, strong_grade[usable]),
        left_out,
    )


def right_or_wrong(tier: str, grades: Floats) -> Bools:
    """Grades as bools.

    Raises:
        InvalidInput: one lies between 0 and 1.
    """
    between = (grades != 0) & (grades != 1)
    if between.any():
        raise InvalidInput(
            "records",
            f"{int(between.sum())} grades of {tier} lie between 0 and 1; answers must be right or "
            "wrong, so grade them by another grader",
        )
    return grades.astype(np.bool_)


def _above(records: RecordSet, tier: str) -> str | None:
    place = records.tiers.index(tier) + 1
    return records.tiers[place] if place < len(records.tiers) else None
