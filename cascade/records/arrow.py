"""Records as Arrow columns: where they lie, what type each has, and whether their content is good.

Reading and writing files of them is ``cascade.records.parquet``. pyarrow comes with the extra
``tune`` and is imported on the first use.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import ModuleType
from typing import TYPE_CHECKING, Final

import numpy as np

from cascade.errors import CascadeError, InvalidInput
from cascade.records.outcome import COUNTS, LISTS, NUMBERS, OK, STATUS, TEXTS, TOGETHER
from cascade.records.record import Header, Record
from cascade.records.record_set import Lists, RecordSet, Rows, check_ids, outcome_column
from cascade.rows import Bools, Floats

if TYPE_CHECKING:
    import pyarrow as pa

REQUIRED: Final = ("id", "document", "input_sha256")
NESTED: Final = {"groups": "group", "features": "feature", "outcomes": "tier"}
"""Fields of a record that become several columns, and what the names of those begin with."""

_BATCH: Final = 4096


class ArrowSource:
    """Records in a Parquet file or an Arrow table; a ``Source``."""

    def __init__(self, header: Header, data: pa.Table, schema: pa.Schema, name: str) -> None:
        self.name = name
        self.schema = schema
        self._header = header
        self._data = data  # a pyarrow.Table, or a ParquetFile whose columns are read on demand
        self._numbers: dict[str, Floats] = {}
        self._texts: dict[str, list[str]] = {}
        self._columns: dict[str, pa.ChunkedArray] = {}
        self._whole: pa.Table | None = None

    def __len__(self) -> int:
        counted = self._data if self._is_table() else self._data.metadata
        return int(counted.num_rows)

    def names(self, prefix: str) -> tuple[str, ...]:
        """See ``Source``."""
        names = (name for name in self.schema.names if name.startswith(prefix))
        return tuple(sorted(name.removeprefix(prefix) for name in names))

    def numbers(self, column: str) -> Floats:
        """See ``Source``."""
        if column not in self._numbers:
            if column in self.schema.names:
                chunked = self.column(column).cast("float64", safe=False)
                values = chunked.to_numpy().astype(np.float64)
            else:
                values = np.full(len(self), np.nan)
            values.flags.writeable = False
            self._numbers[column] = values
        return self._numbers[column]

    def texts(self, column: str) -> list[str]:
        """See ``Source``."""
        if column not in self._texts:
            there = column in self.schema.names
            # Through numpy: four times as fast as to_pylist.
            self._texts[column] = (
                self.column(column).fill_null("").to_numpy().tolist() if there else [""] * len(self)
            )
        return self._texts[column]

    def equal(self, column: str, text: str) -> Bools:
        """See ``Source``."""
        if column not in self.schema.names:
            return np.zeros(len(self), np.bool_)
        equal = arrow_module("compute").equal(self.column(column), text).fill_null(False)
        result: Bools = equal.to_numpy().astype(np.bool_)
        return result

    def numbered(self, column: str) -> Rows:
        """See ``Source``."""
        if column not in self.schema.names or not len(self):
            return np.zeros(len(self), np.int64)
        whole = self.column(column).fill_null("").combine_chunks()
        # More than 2 GiB of text stays in chunks; with one dictionary for all of them.
        parts = whole.dictionary_encode()
        parts = parts.unify_dictionaries().chunks if hasattr(parts, "chunks") else [parts]
        numbers: Rows = np.concatenate([part.indices.to_numpy() for part in parts])
        return numbers.astype(np.int64)

    def lists(self, column: str) -> Lists:
        """See ``Source``."""
        if column not in self.schema.names:
            return Lists.of(np.zeros(0, np.float32), np.zeros(len(self), np.int64))
        compute = arrow_module("compute")
        chunked = self.column(column)
        lengths = compute.list_value_length(chunked).fill_null(0).to_numpy()
        values = compute.list_flatten(chunked).to_numpy().astype(np.float32)  # null becomes NaN
        lists = Lists.of(values, lengths)
        low, high = LISTS[column.rpartition(".")[2]]
        bad = ~(np.isfinite(values) & (values >= low) & (values <= high))
        if bad.any():
            first = int(np.argmax(bad))
            place = int(np.searchsorted(lists.offsets, first, side="right"))
            raise InvalidInput(
                f"{self.name} record {place}: column {column}",
                f"{values[first]} is not a finite number in {low:g} … {high:g}",
            )
        return lists

    def records(self, rows: Rows) -> Iterator[Record]:
        """See ``Source``."""
        table = self.table()
        for start in range(0, len(rows), _BATCH):
            some = rows[start : start + _BATCH]
            for place, flat in zip(some, table.take(some).to_pylist(), strict=True):
                where = f"{self.name} record {place + 1}"
                yield Record.from_json(_nested(flat), self._header, where)

    def table(self) -> pa.Table:
        """Every column."""
        if self._whole is None:
            self._whole = self._data if self._is_table() else self._data.read()
        return self._whole

    def column(self, name: str) -> pa.ChunkedArray:
        """One column."""
        if self._whole is not None or self._is_table():
            return self.table()[name]
        # Checking and converting ask for a column several times; lists, which may be large, once.
        if name in self._columns:
            return self._columns[name]
        # A group called "a.b" has a column that looks nested in that of "a": pick by name again.
        column = self._data.read(columns=[name])[name]
        if name.rpartition(".")[2] not in LISTS:
            self._columns[name] = column
        return column

    def _is_table(self) -> bool:
        return isinstance(self._data, arrow_module().Table)


def checked(header: Header, source: ArrowSource) -> RecordSet:
    """The set, once names, types, texts and numbers are known to be good; lists are not looked at.

    Raises:
        InvalidInput: the first column that is not, with the record where it is one.
    """
    names = source.schema.names
    for name in REQUIRED:
        if name not in names:
            raise InvalidInput(f"{source.name}: column {name}", "is missing")
    for field in source.schema:
        where = f"{source.name}: column {field.name}"
        if names.count(field.name) > 1:
            raise InvalidInput(where, "is there twice")
        expected = column_type(field.name, header, source.name)
        if not (field.type == expected or _same(field.type, expected)):
            raise InvalidInput(where, f"has the type {field.type}, not {expected}")
        if str(expected) in ("double", "int64"):
            _check_numbers(source, field.name)
    _check_texts(source)
    for tier in header.tier_names:
        _check_together(source, tier)
        _check_status(source, tier)
    if not len(source) or len(arrow_module("compute").unique(source.column("id"))) < len(source):
        check_ids(source.texts("id"), f"{source.name}: ")
    return RecordSet(header, source)


def _check_numbers(source: ArrowSource, name: str) -> None:
    low, high = _range(name)
    values = source.numbers(name)
    # Null is NaN in ``values``; a NaN of the file itself is not.
    bad = np.isinf(values) | (values < low) | (values > high)
    bad |= _mask(arrow_module("compute").is_nan(source.column(name)))
    if bad.any():
        problem = f"{values[np.argmax(bad)]} is not a finite number in {low:g} … {high:g}"
        _refuse(source, name, bad, problem)


def _check_texts(source: ArrowSource) -> None:
    compute = arrow_module("compute")
    for name in ("id", "document"):
        empty = _mask(compute.equal(source.column(name), "").fill_null(True))
        _refuse(source, name, empty, "is empty")
    # Five times as fast as an expression: 64 bytes of which trimming hex digits leaves none.
    texts = source.column("input_sha256")
    long = compute.equal(compute.binary_length(texts), 64)
    hex_only = compute.equal(compute.ascii_trim(texts, "0123456789abcdef"), "")
    bad = ~(_mask(long) & _mask(hex_only))
    _refuse(source, "input_sha256", bad, "must be a lower-case hex sha256")


def _check_status(source: ArrowSource, tier: str) -> None:
    """Every outcome has a status, and one that failed has neither an answer nor a grade."""
    compute = arrow_module("compute")
    status = outcome_column(tier, "status")
    others = [
        name
        for name in source.schema.names
        # Lists may be large: they are looked at when they are read.
        if name.startswith(outcome_column(tier, "")) and name.rpartition(".")[2] not in LISTS
    ]
    others = [name for name in others if name != status]
    if status not in source.schema.names:
        if others:
            raise InvalidInput(f"{source.name}: column {status}", f"is missing; {others[0]} is not")
        return
    column = source.column(status)
    # A few texts many times over: look at each of them once.
    different = compute.unique(column).drop_null()
    unnamed = different.filter(compute.invert(compute.match_substring_regex(different, STATUS)))
    unknown = _mask(compute.is_in(column, unnamed))
    _refuse(source, status, unknown, "must be OK or the name of a gRPC status")
    missing = _mask(compute.is_null(column))
    failed = ~missing & ~source.equal(status, OK)
    for name in others:
        there = _mask(compute.is_valid(source.column(name)))
        _refuse(source, status, there & missing, f"is null, {name} is not")
        if name.rpartition(".")[2] in ("answer", "answer_sha256", "correct"):
            _refuse(source, name, there & failed, "must be null where the tier failed")


def _mask(column: pa.ChunkedArray) -> Bools:
    """Bools of a column; null counts as false."""
    mask: Bools = column.fill_null(False).to_numpy().astype(np.bool_)
    return mask


def _refuse(source: ArrowSource, name: str, bad: Bools, problem: str) -> None:
    if bad.any():
        place = int(np.argmax(bad))
        raise InvalidInput(f"{source.name} record {place + 1}: column {name}", problem)


def _check_together(source: ArrowSource, tier: str) -> None:
    for fields in TOGETHER:
        names = [outcome_column(tier, name) for name in fields]
        there = [name for name in names if name in source.schema.names]
        for name in names:
            if there and name not in there:
                raise InvalidInput(
                    f"{source.name}: column {name}", f"is missing, but {there[0]} is there"
                )


def column_type(name: str, header: Header, where: str) -> pa.DataType:
    """The type that a column must have."""
    types = arrow_module()
    kind, _, rest = name.partition(".")
    if name in (*REQUIRED, "text", "reference") or (kind == "group" and rest):
        return types.string()
    if name == "options":
        return types.list_(types.string())
    if kind == "feature" and rest:
        return types.float64()
    tier, _, field = rest.partition(".")
    if kind == "tier" and tier in header.tier_names:
        if field in NUMBERS:
            return types.float64()
        if field in COUNTS:
            return types.int64()
        if field in TEXTS:
            return types.string()
        if field in LISTS:
            return types.list_(types.float32())
    raise InvalidInput(f"{where}: column {name}", "is not a known column; remove it")


def _range(name: str) -> tuple[float, float]:
    field = name.rpartition(".")[2]
    if name.startswith("tier."):
        return NUMBERS.get(field, (0.0, np.inf))
    return -np.inf, np.inf


def _same(one: pa.DataType, two: pa.DataType) -> bool:
    """Whether two types are lists of the same, whatever their items are called."""
    types = arrow_module("types")
    return bool(types.is_list(one) and types.is_list(two) and one.value_type == two.value_type)


def _nested(flat: Mapping[str, object]) -> dict[str, object]:
    """The JSON object of a row; nulls are left out."""
    content: dict[str, object] = {}
    inner: dict[str, dict[str, object]] = {name: {} for name in NESTED.values()}
    outcomes: dict[str, dict[str, object]] = {}
    for name, value in flat.items():
        if value is None:
            continue
        kind, _, rest = name.partition(".")
        if kind == "tier":
            tier, _, field = rest.partition(".")
            outcomes.setdefault(tier, {})[field] = value
        elif rest:
            inner[kind][rest] = value
        else:
            content[name] = value
    content |= {name: inner[kind] for name, kind in NESTED.items()}
    return content | {"outcomes": outcomes}


def arrow_module(part: str = "") -> ModuleType:
    """pyarrow, or a part of it.

    Raises:
        CascadeError: it is not installed.
    """
    try:
        import pyarrow as package
        import pyarrow.compute
        import pyarrow.parquet
        import pyarrow.types
    except ImportError:
        raise CascadeError(
            "Parquet files need pyarrow: pip install 'edge-cloud-cascade[tune]'"
        ) from None
    module: ModuleType = getattr(package, part) if part else package
    return module
