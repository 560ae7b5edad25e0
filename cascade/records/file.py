"""Files of records, JSONL or Parquet by their names."""

from __future__ import annotations

from pathlib import Path

from cascade.errors import InvalidInput
from cascade.records.jsonl import read_jsonl, write_jsonl
from cascade.records.parquet import read_parquet, write_parquet
from cascade.records.record_set import RecordSet

SUFFIXES = (".jsonl", ".parquet")


def load(path: Path) -> RecordSet:
    """The records of a file.

    Raises:
        NotFound: there is no such file.
        InvalidInput: its name or content is not that of a file of records; what is wrong is named.
        CascadeError: it is a Parquet file, and pyarrow is not installed.
    """
    return read_jsonl(path) if suffix(path) == ".jsonl" else read_parquet(path)


def save(path: Path, records: RecordSet) -> None:
    """Write a file, whole or not at all.

    Raises:
        InvalidInput: the name does not end with .jsonl or .parquet.
        CascadeError: it is a Parquet file, and pyarrow is not installed.
    """
    if suffix(path) == ".jsonl":
        write_jsonl(path, records)
    else:
        write_parquet(path, records)


def suffix(path: Path) -> str:
    """The kind of a file of records by its name.

    Raises:
        InvalidInput: the name does not end with .jsonl or .parquet.
    """
    if path.suffix not in SUFFIXES:
        raise InvalidInput("file", f"{path.name} does not end with .jsonl or .parquet")
    return path.suffix
