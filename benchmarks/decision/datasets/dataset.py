"""What a data set of the shipped records is: inputs, and how they are asked and graded.

The texts are never in this repository: each data set reads them out of a package's file, or writes
them itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from cascade.records import text_key
from cascade.records.split import RowKey, documents_in_turn, one_of_each_input
from cascade.task import Task

SEED = "cascade-record-sets-1"
"""Changes every order. Fixed, so that the rows are the same on every machine."""


@dataclass(frozen=True, slots=True)
class Row:
    """One input.

    Arguments:
        id: unique within the data set, and the record's id.
        document: what the row is a part of; rows of one document stay in one part of a split.
        reference: the right answer, as the grader takes it.
        groups: what it belongs to, e.g. ``{"domain": "tweet"}``.
    """

    id: str
    document: str
    prompt: str
    reference: str
    groups: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Dataset:
    """A data set by name.

    Arguments:
        description, licence: one line each, for the header of the records.
        group: the one group that its rows have, or empty.
        wording: how the closed set is asked for; ``None`` for free text.
        grader: as ``cascade record --grader`` takes it.
        max_tokens: longest free answer.
        rows: reads them, in the order in which they are asked: each beginning of it is a fair
            sample of the whole.
    """

    name: str
    description: str
    licence: str
    group: str
    wording: Task | None
    grader: str
    max_tokens: int
    rows: Callable[[], Sequence[Row]]


def fairly_ordered(rows: Iterable[Row], *, balance: str = "") -> list[Row]:
    """One row of each input, documents in turn in a seeded order, so that a run may end anywhere.

    Arguments:
        balance: name of a group; its values then take turns, too, and each has as many rows as the
            rarest.
    """
    of_id = {row.id: row for row in rows}
    keys = [
        RowKey(row.id, row.document, text_key(row.prompt), row.groups.get(balance, ""))
        for row in of_id.values()
    ]
    unique = one_of_each_input(keys, SEED)
    kinds = sorted({key.group for key in unique})
    turns = [documents_in_turn([k for k in unique if k.group == kind], SEED) for kind in kinds]
    return [of_id[key.id] for turn in zip(*turns, strict=False) for key in turn]
