"""Records as Parquet: the same fields as in JSONL, one column each, the header in the metadata.

Columns are ``id``, ``document``, ``input_sha256``, ``options``, ``text``, ``reference``,
``group.NAME``, ``feature.NAME`` and ``tier.NAME.FIELD``; a column in which nothing was measured may
be left out. They are read when they are asked for. pyarrow comes with the extra ``tune`` and is
imported on the first use.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from cascade.errors import InvalidInput, NotFound
from cascade.files import write_whole
from cascade.records.arrow import (
    NESTED,
    REQUIRED,
    ArrowSource,
    arrow_module,
    checked,
    column_type,
)
from cascade.records.record import FORMAT, Header, Record
from cascade.records.record_set import (
    RecordSet,
    feature_column,
    group_column,
    outcome_column,
)

if TYPE_CHECKING:
    import pyarrow as pa

_KEY: Final = FORMAT.encode()  # of the header in the file's metadata


def read_parquet(path: Path) -> RecordSet:
    """The records of a file. All but the lists is checked now, those when they are read.

    Raises:
        NotFound: there is no such file.
        InvalidInput: it is no Parquet file of records, it is empty, or a column is missing, unknown
            or unusable; it is named.
        CascadeError: pyarrow is not installed.
    """
    pyarrow, parquet = arrow_module(), arrow_module("parquet")
    if not path.is_file():
        raise NotFound(f"there is no file {path}")
    try:
        file = parquet.ParquetFile(path, pre_buffer=True)
        metadata = file.schema_arrow.metadata or {}
    except pyarrow.ArrowInvalid:
        raise InvalidInput(path.name, "is no Parquet file") from None
    if _KEY not in metadata:
        raise InvalidInput(path.name, "holds no records: its metadata has no header of them")
    try:
        content = json.loads(metadata[_KEY])
    except (ValueError, RecursionError):
        raise InvalidInput(f"{path.name}: header", "is no JSON object") from None
    header = Header.from_json(content, f"{path.name}: header")
    return checked(header, ArrowSource(header, file, file.schema_arrow, path.name))


def write_parquet(path: Path, records: RecordSet) -> None:
    """Write a file, whole or not at all.

    Raises:
        CascadeError: pyarrow is not installed.
    """
    parquet = arrow_module("parquet")
    source = records.source
    table = (
        source.table().take(records.places) if isinstance(source, ArrowSource) else _table(records)
    )
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
    pyarrow = arrow_module()
    given = dict(columns)
    if "id" in given:
        given.setdefault("document", given["id"])
        for tier in header.tier_names:
            given.setdefault(outcome_column(tier, "status"), ["OK"] * len(given["id"]))
    kinds = {name: column_type(name, header, "columns") for name in given}
    try:
        arrays = {
            name: pyarrow.array(values, kinds[name], from_pandas=True)
            for name, values in given.items()
        }
        table = pyarrow.table(arrays)
    except (pyarrow.ArrowInvalid, pyarrow.ArrowTypeError) as problem:
        raise InvalidInput("columns", str(problem).splitlines()[0]) from None
    return checked(header, ArrowSource(header, table, table.schema, "columns"))


def _table(records: RecordSet) -> pa.Table:
    """The columns of records in memory; those that hold nothing are left out."""
    pyarrow = arrow_module()
    columns: dict[str, list[object]] = {name: [] for name in REQUIRED}
    for place, record in enumerate(records):
        for name, value in _flat(record).items():
            column = columns.setdefault(name, [])
            column.extend([None] * (place - len(column)))
            column.append(value)
    for column in columns.values():
        column.extend([None] * (len(records) - len(column)))
    return pyarrow.table(
        {
            name: pyarrow.array(columns[name], column_type(name, records.header, "records"))
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
    flat = {name: content[name] for name in content if name not in NESTED}
    flat |= {group_column(name): value for name, value in record.groups.items()}
    flat |= {feature_column(name): value for name, value in record.features.items()}
    for tier, outcome in record.outcomes.items():
        flat |= {outcome_column(tier, name): value for name, value in outcome.to_json().items()}
    return flat
