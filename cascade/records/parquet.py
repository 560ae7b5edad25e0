"""Records as Parquet: the same fields as in JSONL, one column each, the header in the metadata.

Columns are ``id``, ``document``, ``input_sha256``, ``options``, ``text``, ``reference``,
``group.NAME``, ``feature.NAME`` and ``tier.NAME.FIELD``; a column in which nothing was measured may
be left out. They are read when they are asked for. pyarrow comes with the extra ``tune`` and is
imported on the first use.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from cascade.errors import CascadeError, InvalidInput, NotFound
from cascade.files import write_whole
from cascade.records.outcome import COUNTS, LISTS, NUMBERS, TEXTS, TOGETHER
from cascade.records.record import FORMAT, Header, Record
from cascade.records.record_set import (
    Lists,
    RecordSet,
    Rows,
    check_ids,
    feature_column,
    group_column,
    outcome_column,
)
from cascade.rows import Bools, Floats

if TYPE_CHECKING:
    import pyarrow as pa

_KEY: Final = FORMAT.encode()  # of the header in the file's metadata
_REQUIRED: Final = ("id", "document", "input_sha256")
_BATCH: Final = 4096


def read_parquet(path: Path) -> RecordSet:
    """The records of a file. Columns of numbers are checked now, the rest when they are read.

    Raises:
        NotFound: there is no such file.
        InvalidInput: it is no Parquet file of records, it is empty, or a column is missing, unknown
            or unusable; it is named.
        CascadeError: pyarrow is not installed.
    """
    pyarrow, parquet = _pyarrow(), _pyarrow("parquet")
    if not path.is_file():
        raise NotFound(f"there is no file {path}")
    try:
        file = parquet.ParquetFile(path, pre_buffer=True)
        metadata = file.schema_arrow.metadata or {}
    except pyarrow.ArrowInvalid:
        raise InvalidInput(path.name, "is no Parquet file") from None
    if _KEY not in metadata:
        raise InvalidInput(path.name, "holds no records: its metadata has no header of them")
    header = Header.from_json(json.loads(metadata[_KEY]), f"{path.name}: header")
    return _checked(header, _Arrow(header, file, file.schema_arrow, path.name))


def write_parquet(path: Path, records: RecordSet) -> None:
    """Write a file, whole or not at all.

    Raises:
        CascadeError: pyarrow is not installed.
    """
    parquet = _pyarrow("parquet")
    source = records.source
    table = source.table().take(records.places) if isinstance(source, _Arrow) else _table(records)
    metadata = {_KEY: json.dumps(records.header.to_json(), ensure_ascii=False).encode()}
    buffer = io.BytesIO()
    parquet.write_table(table.replace_schema_metadata(metadata), buffer, compression="zstd")
    write_whole(path, buffer.getvalue())


def from_columns(
    header: Header, columns: Mapping[str, list[str] | NDArray[np.generic]]
) -> RecordSet:
    """A set of records from its columns, e.g. of a simulation; no record becomes an object.

    Arguments:
        columns: by their names in a Parquet file, e.g. ``"tier.device.raw_score"``, of one length.
            NaN stands for a number that is not there. ``document`` is ``id`` where it is left out,
            ``input_sha256`` must be given, a tier's ``status`` is ``"OK"`` where it is left out.

    Raises:
        InvalidInput: a column is missing, unknown or unusable; it is named.
        CascadeError: pyarrow is not installed.
    """
    pyarrow = _pyarrow()
    given = dict(columns)
    if "id" in given:
        given.setdefault("document", given["id"])
        for tier in header.tier_names:
            given.setdefault(outcome_column(tier, "status"), ["OK"] * len(given["id"]))
    kinds = {name: _kind(name, header, "columns") for name in given}
    try:
        arrays = {
            name: pyarrow.array(values, kinds[name], from_pandas=True)
            for name, values in given.items()
        }
        table = pyarrow.table(arrays)
    except (pyarrow.ArrowInvalid, pyarrow.ArrowTypeError) as problem:
        raise InvalidInput("columns", str(problem).splitlines()[0]) from None
    return _checked(header, _Arrow(header, table, table.schema, "columns"))


class _Arrow:
    """Records in a Parquet file or an Arrow table; a ``Source``."""

    def __init__(self, header: Header, data: pa.Table, schema: pa.Schema, name: str) -> None:
        self.name = name
        self.schema = schema
        self._header = header
        self._data = data  # a pyarrow.Table, or a ParquetFile whose columns are read on demand
        self._numbers: dict[str, Floats] = {}
        self._texts: dict[str, list[str]] = {}
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
        equal = _pyarrow("compute").equal(self.column(column), text).fill_null(False)
        result: Bools = equal.to_numpy().astype(np.bool_)
        return result

    def lists(self, column: str) -> Lists:
        """See ``Source``."""
        if column not in self.schema.names:
            return Lists.of(np.zeros(0, np.float32), np.zeros(len(self), np.int64))
        compute = _pyarrow("compute")
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
        # A group called "a.b" has a column that looks nested in that of "a": pick by name again.
        return self._data.read(columns=[name])[name]

    def _is_table(self) -> bool:
        return isinstance(self._data, _pyarrow().Table)


def _checked(header: Header, source: _Arrow) -> RecordSet:
    """The set, once names, types and numbers are known to be good."""
    compute = _pyarrow("compute")
    names = source.schema.names
    for name in _REQUIRED:
        if name not in names:
            raise InvalidInput(f"{source.name}: column {name}", "is missing")
    for field in source.schema:
        where = f"{source.name}: column {field.name}"
        if names.count(field.name) > 1:
            raise InvalidInput(where, "is there twice")
        expected = _kind(field.name, header, source.name)
        if not (field.type == expected or _same(field.type, expected)):
            raise InvalidInput(where, f"has the type {field.type}, not {expected}")
        low, high = _range(field.name)
        if field.name in _REQUIRED and source.column(field.name).null_count:
            raise InvalidInput(where, "has a null")
        if str(expected) in ("double", "int64"):
            column = source.column(field.name)
            values = source.numbers(field.name)
            # Null is NaN in ``values``; a NaN of the file itself is not.
            bad = np.isinf(values) | (values < low) | (values > high)
            if str(expected) == "double":
                bad |= compute.is_nan(column).fill_null(False).to_numpy()
            if bad.any():
                place = int(np.argmax(bad))
                raise InvalidInput(
                    f"{source.name} record {place + 1}: column {field.name}",
                    f"{values[place]} is not a finite number in {low:g} … {high:g}",
                )
    _check_together(header, source)
    check_ids(source.texts("id"), f"{source.name}: ")
    return RecordSet(header, source)


def _check_together(header: Header, source: _Arrow) -> None:
    for tier in header.tier_names:
        for fields in TOGETHER:
            names = [outcome_column(tier, name) for name in fields]
            there = [name for name in names if name in source.schema.names]
            for name in names:
                if there and name not in there:
                    raise InvalidInput(
                        f"{source.name}: column {name}", f"is missing, but {there[0]} is there"
                    )


def _kind(name: str, header: Header, where: str) -> pa.DataType:
    """The type that a column must have."""
    pyarrow = _pyarrow()
    kind, _, rest = name.partition(".")
    if name in (*_REQUIRED, "text", "reference") or (kind == "group" and rest):
        return pyarrow.string()
    if name == "options":
        return pyarrow.list_(pyarrow.string())
    if kind == "feature" and rest:
        return pyarrow.float64()
    tier, _, field = rest.partition(".")
    if kind == "tier" and tier in header.tier_names:
        if field in NUMBERS:
            return pyarrow.float64()
        if field in COUNTS:
            return pyarrow.int64()
        if field in TEXTS:
            return pyarrow.string()
        if field in LISTS:
            return pyarrow.list_(pyarrow.float32())
    raise InvalidInput(f"{where}: column {name}", "is not a known column; remove it")


def _range(name: str) -> tuple[float, float]:
    field = name.rpartition(".")[2]
    if name.startswith("tier."):
        return NUMBERS.get(field, (0.0, np.inf))
    return -np.inf, np.inf


def _same(one: pa.DataType, two: pa.DataType) -> bool:
    """Whether two types are lists of the same, whatever their items are called."""
    types = _pyarrow("types")
    return bool(types.is_list(one) and types.is_list(two) and one.value_type == two.value_type)


def _table(records: RecordSet) -> pa.Table:
    """The columns of records in memory; those that hold nothing are left out."""
    pyarrow = _pyarrow()
    columns: dict[str, list[object]] = {name: [] for name in _REQUIRED}
    for place, record in enumerate(records):
        for name, value in _flat(record).items():
            column = columns.setdefault(name, [])
            column.extend([None] * (place - len(column)))
            column.append(value)
    for column in columns.values():
        column.extend([None] * (len(records) - len(column)))
    return pyarrow.table(
        {
            name: pyarrow.array(columns[name], _kind(name, records.header, "records"))
            for name in _ordered(columns, records.header)
        }
    )


def _ordered(columns: Mapping[str, object], header: Header) -> list[str]:
    tiers = [outcome_column(tier, "") for tier in header.tier_names]

    def rank(name: str) -> int:
        return next((i for i, tier in enumerate(tiers) if name.startswith(tier)), -1)

    return sorted(columns, key=rank)


def _flat(record: Record) -> dict[str, object]:
    content = record.to_json()
    flat = {name: content[name] for name in content if name not in _NESTED}
    flat |= {group_column(name): value for name, value in record.groups.items()}
    flat |= {feature_column(name): value for name, value in record.features.items()}
    for tier, outcome in record.outcomes.items():
        flat |= {outcome_column(tier, name): value for name, value in outcome.to_json().items()}
    return flat


def _nested(flat: Mapping[str, object]) -> dict[str, object]:
    """The JSON object of a row; nulls are left out."""
    content: dict[str, object] = {}
    inner: dict[str, dict[str, object]] = {name: {} for name in _NESTED.values()}
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
    content |= {name: inner[kind] for name, kind in _NESTED.items()}
    return content | {"outcomes": outcomes}


_NESTED: Final = {"groups": "group", "features": "feature", "outcomes": "tier"}


def _pyarrow(part: str = "") -> ModuleType:
    try:
        import pyarrow
        import pyarrow.compute
        import pyarrow.parquet
    except ImportError:
        raise CascadeError(
            "Parquet files need pyarrow: pip install 'edge-cloud-cascade[tune]'"
        ) from None
    module: ModuleType = getattr(pyarrow, part) if part else pyarrow
    return module
