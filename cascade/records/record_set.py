"""A set of records: one header, and the records as columns of numbers or one by one.

Analysis takes columns; a record becomes an object only when it is asked for, so a million of them
are arrays and nothing else. Where the records lie is a ``Source``'s business.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Final, Protocol, Self, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cascade.errors import InvalidInput, NotFound
from cascade.records.outcome import COUNTS, LISTS, NUMBERS, OK
from cascade.records.record import Header, Record
from cascade.rows import Bools, Floats
from cascade.signals import Float32s

Rows = NDArray[np.int64]
_NONE: Final = np.zeros(0, np.float32)
T = TypeVar("T", bound=np.generic)


@dataclass(frozen=True, slots=True)
class Lists:
    """A list of numbers for each record, end to end: those of record i are
    ``values[offsets[i]:offsets[i + 1]]``.

    Arguments:
        values: float32, shape ``[all numbers]``.
        offsets: int64, shape ``[records + 1]``, not falling, from 0.
    """

    values: Float32s
    offsets: Rows

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> Float32s:
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        index %= len(self)
        return self.values[self.offsets[index] : self.offsets[index + 1]]

    @classmethod
    def of(cls, values: Float32s, lengths: NDArray[np.integer]) -> Self:
        """Numbers end to end, and how many of them each record has."""
        return cls(values, np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]))

    def take(self, rows: Rows) -> Lists:
        """The lists of these records, in this order."""
        lengths = np.diff(self.offsets)[rows]
        taken = Lists.of(self.values[:0], lengths)
        shift = np.repeat(self.offsets[rows] - taken.offsets[:-1], lengths)
        return Lists(self.values[shift + np.arange(taken.offsets[-1])], taken.offsets)


class Source(Protocol):
    """Where records lie. Columns are named by ``outcome_column`` and its like."""

    def __len__(self) -> int:
        """How many records there are."""
        ...

    def names(self, prefix: str) -> tuple[str, ...]:
        """Names of the columns that begin with ``prefix``, sorted, without it."""
        ...

    def numbers(self, column: str) -> Floats:
        """A column of numbers, shape ``[records]``; NaN where there is none."""
        ...

    def texts(self, column: str) -> list[str]:
        """A column of texts; empty where there is none."""
        ...

    def equal(self, column: str, text: str) -> Bools:
        """Where a column of texts holds ``text``."""
        ...

    def numbered(self, column: str) -> Rows:
        """A number for each text of a column, from 0, in the order in which they first occur."""
        ...

    def lists(self, column: str) -> Lists:
        """A column of lists; without numbers where there is none."""
        ...

    def records(self, rows: Rows) -> Iterator[Record]:
        """The records at these places, in this order."""
        ...


class RecordSet:
    """Records with their header. Make one with ``of``, or read a file with ``load``.

    Arguments:
        rows: places in ``source`` of the records of this set; ``None`` for all, in order.
    """

    def __init__(self, header: Header, source: Source, rows: Rows | None = None) -> None:
        self.header = header
        self._source = source
        self._rows = rows

    @classmethod
    def of(cls, header: Header, records: Iterable[Record]) -> Self:
        """A set of records in memory.

        Raises:
            InvalidInput: there is none, two have one id, or one could not be read back from a file;
                record and field are named.
        """
        Header.from_json(header.to_json())
        some = tuple(
            Record.from_json(record.to_json(), header, f"record {place}")
            for place, record in enumerate(records, start=1)
        )
        check_ids([record.id for record in some])
        return cls(header, InMemory(some))

    def __len__(self) -> int:
        return len(self._source) if self._rows is None else len(self._rows)

    def __iter__(self) -> Iterator[Record]:
        return self._source.records(self._places())

    def __getitem__(self, index: int) -> Record:
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        return next(self._source.records(self._places()[[index]]))

    def __eq__(self, other: object) -> bool:
        """The same header, and equal records in the same order."""
        return (
            isinstance(other, RecordSet)
            and self.header == other.header
            and len(self) == len(other)
            and all(one == two for one, two in zip(self, other, strict=True))
        )

    __hash__ = None  # type: ignore[assignment]

    @property
    def source(self) -> Source:
        """Where the records lie; ``places`` says which of them are this set's."""
        return self._source

    @property
    def places(self) -> Rows:
        """Places in ``source``, int64, shape ``[records]``."""
        return self._places()

    @property
    def tiers(self) -> tuple[str, ...]:
        """Names of the tiers, from the lowest to the highest."""
        return self.header.tier_names

    @property
    def ids(self) -> list[str]:
        """The records' ids."""
        return self._texts("id")

    @property
    def documents(self) -> list[str]:
        """The document of each record."""
        return self._texts("document")

    def document_numbers(self) -> Rows:
        """The number of each record's document, from 0, in the order in which they first occur."""
        of_source = self._source.numbered("document")
        if self._rows is None:
            return of_source
        _, first, place = np.unique(of_source[self._rows], return_index=True, return_inverse=True)
        rank = np.empty(len(first), np.int64)
        rank[np.argsort(first)] = np.arange(len(first))
        return rank[place]

    @property
    def inputs(self) -> list[str]:
        """``input_sha256`` of each record."""
        return self._texts("input_sha256")

    @property
    def group_names(self) -> tuple[str, ...]:
        """Names of the groups that any record of the file has, sorted."""
        return self._source.names(group_column(""))

    @property
    def feature_names(self) -> tuple[str, ...]:
        """Names of the features that any record of the file has, sorted."""
        return self._source.names(feature_column(""))

    def column(self, tier: str, name: str) -> Floats:
        """A number of each outcome, float64, shape ``[records]``; NaN where there is none.

        Arguments:
            name: a field of ``NUMBERS`` or ``COUNTS``, e.g. ``"raw_score"``.

        Raises:
            NotFound: no such tier or field; those that there are, are named.
        """
        _check_known("field", name, (*NUMBERS, *COUNTS))
        return self._picked(self._source.numbers(outcome_column(self._known(tier), name)))

    def correct(self, tier: str) -> Floats:
        """How right each answer is, in [0, 1]; NaN where there is none or nobody graded it."""
        return self.column(tier, "correct")

    def answered(self, tier: str) -> Bools:
        """Where ``tier`` gave an answer, shape ``[records]``."""
        return self._picked(self._source.equal(outcome_column(self._known(tier), "status"), OK))

    def texts(self, tier: str, name: str) -> list[str]:
        """A text of each outcome (``status``, ``answer``, …); empty where there is none."""
        return self._texts(outcome_column(self._known(tier), name))

    def lists(self, tier: str, name: str) -> Lists:
        """A list of each outcome, e.g. the signals of its tokens; empty where there is none.

        Arguments:
            name: a field of ``LISTS``, e.g. ``"token_logprobs"``.

        Raises:
            NotFound: no such tier or field; those that there are, are named.
            InvalidInput: the file has a list with a number that is not finite or out of range.
        """
        _check_known("field", name, tuple(LISTS))
        lists = self._source.lists(outcome_column(self._known(tier), name))
        return lists if self._rows is None else lists.take(self._rows)

    def feature(self, name: str) -> Floats:
        """A feature of each record, float64; NaN where it has none.

        Raises:
            NotFound: no record has it; those that there are, are named.
        """
        _check_known("feature", name, self.feature_names)
        return self._picked(self._source.numbers(feature_column(name)))

    def group(self, name: str) -> list[str]:
        """What each record has as this group; empty where it has none.

        Raises:
            NotFound: no record has it; those that there are, are named.
        """
        _check_known("group", name, self.group_names)
        return self._texts(group_column(name))

    def take(self, which: ArrayLike) -> RecordSet:
        """The records at these indices, in their order; or, of a bool array, where it is true.

        Raises:
            InvalidInput: an index is out of range, or a bool array has another length.
        """
        chosen = np.asarray(which)
        if chosen.dtype == np.bool_:
            if chosen.shape != (len(self),):
                raise InvalidInput("which", f"has shape {chosen.shape} for {len(self)} records")
            chosen = np.flatnonzero(chosen)
        elif chosen.ndim != 1 or (chosen.size and not np.issubdtype(chosen.dtype, np.integer)):
            raise InvalidInput("which", "must be a one-dimensional array of indices or of bools")
        if chosen.size and not (chosen.min() >= 0 and chosen.max() < len(self)):
            raise InvalidInput("which", f"has an index that is not in 0 … {len(self) - 1}")
        return RecordSet(self.header, self._source, self._places()[chosen.astype(np.int64)])

    def _places(self) -> Rows:
        return np.arange(len(self._source)) if self._rows is None else self._rows

    def _picked(self, values: NDArray[T]) -> NDArray[T]:
        return values if self._rows is None else values[self._rows]

    def _texts(self, column: str) -> list[str]:
        texts = self._source.texts(column)
        return texts if self._rows is None else [texts[row] for row in self._rows]

    def _known(self, tier: str) -> str:
        _check_known("tier", tier, self.tiers)
        return tier


def outcome_column(tier: str, name: str) -> str:
    """How a field of a tier's outcome is called as a column."""
    return f"tier.{tier}.{name}"


def group_column(name: str) -> str:
    """How a group is called as a column."""
    return f"group.{name}"


def feature_column(name: str) -> str:
    """How a feature is called as a column."""
    return f"feature.{name}"


def check_ids(ids: Sequence[str], where: str = "") -> None:
    """Raise ``InvalidInput`` where there are no records or two have one id.

    Arguments:
        where: written before the name of the field, e.g. of the file.
    """
    if not ids:
        raise InvalidInput(f"{where}records", "there are none")
    if len(set(ids)) == len(ids):
        return
    seen: dict[str, int] = {}
    for place, name in enumerate(ids, start=1):
        if name in seen:
            raise InvalidInput(
                f"{where}record {place}.id", f"{name!r} is also that of record {seen[name]}"
            )
        seen[name] = place


class InMemory:
    """Records as objects; a ``Source``. Columns are made when they are asked for."""

    def __init__(self, records: tuple[Record, ...]) -> None:
        self._records = records

    def __len__(self) -> int:
        return len(self._records)

    def names(self, prefix: str) -> tuple[str, ...]:
        """See ``Source``."""
        maps = (
            (record.groups if prefix == group_column("") else record.features)
            for record in self._records
        )
        return tuple(sorted({name for names in maps for name in names}))

    def numbers(self, column: str) -> Floats:
        """See ``Source``."""
        kind, _, rest = column.partition(".")
        if kind == "feature":
            values = [record.features.get(rest) for record in self._records]
        else:
            tier, _, name = rest.partition(".")
            outcomes = (record.outcomes.get(tier) for record in self._records)
            values = [outcome.number(name) if outcome else None for outcome in outcomes]
        return np.array([np.nan if value is None else value for value in values], np.float64)

    def texts(self, column: str) -> list[str]:
        """See ``Source``."""
        kind, _, rest = column.partition(".")
        if kind == "group":
            return [record.groups.get(rest, "") for record in self._records]
        if kind == "tier":
            tier, _, name = rest.partition(".")
            outcomes = (record.outcomes.get(tier) for record in self._records)
            if name == "option_mode":
                scores = (outcome.scores if outcome else None for outcome in outcomes)
                return [score.mode if score else "" for score in scores]
            return [getattr(outcome, name) or "" if outcome else "" for outcome in outcomes]
        return [getattr(record, column) or "" for record in self._records]

    def equal(self, column: str, text: str) -> Bools:
        """See ``Source``."""
        return np.array([value == text for value in self.texts(column)], np.bool_)

    def numbered(self, column: str) -> Rows:
        """See ``Source``."""
        texts = self.texts(column)
        place = dict(zip(dict.fromkeys(texts), count(), strict=False))
        return np.fromiter(map(place.__getitem__, texts), np.int64, len(texts))

    def lists(self, column: str) -> Lists:
        """See ``Source``."""
        _, tier, name = column.split(".")
        outcomes = (record.outcomes.get(tier) for record in self._records)
        arrays = [outcome.array(name) if outcome else None for outcome in outcomes]
        whole = [_NONE if array is None else array for array in arrays]
        return Lists.of(np.concatenate(whole), np.array([len(array) for array in whole]))

    def records(self, rows: Rows) -> Iterator[Record]:
        """See ``Source``."""
        return (self._records[row] for row in rows)


def _check_known(kind: str, name: str, known: tuple[str, ...]) -> None:
    if name not in known:
        raise NotFound(f"no {kind} {name!r}; there are {', '.join(known) or 'none'}")
