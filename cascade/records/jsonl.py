"""Records as JSON lines: the header on the first line, one record on each that follows.

UTF-8, each line ends with a line feed. Reading is strict: what is wrong is named by line and field.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from cascade.errors import InvalidInput, NotFound
from cascade.files import write_whole
from cascade.records.record import Header, Record
from cascade.records.record_set import InMemory, RecordSet


def read_jsonl(path: Path) -> RecordSet:
    """The records of a file.

    Raises:
        NotFound: there is no such file.
        InvalidInput: it is empty, a line is no JSON, or a field is missing, unknown, unusable or
            repeated; line and field are named.
    """
    lines = read_lines(path)
    header, records = parse(lines, path.name)
    if not records:
        raise InvalidInput(path.name, "holds no records, only a header")
    return RecordSet(header, InMemory(records))


def write_jsonl(path: Path, records: RecordSet) -> None:
    """Write a file, whole or not at all."""
    lines = [header_line(records.header), *map(record_line, records)]
    write_whole(path, "".join(lines).encode())


def header_line(header: Header) -> str:
    """The first line of a file."""
    return _line(header.to_json())


def record_line(record: Record) -> str:
    """The line of one record."""
    return _line(record.to_json())


def read_lines(path: Path) -> list[bytes]:
    """The lines of a file, without their ends.

    Raises:
        NotFound: there is no such file.
    """
    try:
        content = path.read_bytes()
    except (FileNotFoundError, IsADirectoryError):
        raise NotFound(f"there is no file {path}") from None
    return content.removesuffix(b"\n").split(b"\n")


def parse(
    lines: list[bytes], name: str, *, repeated: bool = False
) -> tuple[Header, tuple[Record, ...]]:
    """Header and records of a file's lines; there may be no records.

    Arguments:
        name: how the file is called in messages.
        repeated: whether an id may come again.

    Raises:
        InvalidInput: see ``read_jsonl``.
    """
    if lines == [b""]:
        raise InvalidInput(name, "is empty")
    header = Header.from_json(_value(lines[0], f"{name} line 1"), f"{name} line 1: header")
    return header, tuple(_records(lines, header, name, repeated))


def _records(lines: list[bytes], header: Header, name: str, repeated: bool) -> Iterator[Record]:
    first: dict[str, int] = {}
    for number, line in enumerate(lines[1:], start=2):
        where = f"{name} line {number}: record"
        record = Record.from_json(_value(line, f"{name} line {number}"), header, where)
        if record.id in first and not repeated:
            raise InvalidInput(
                f"{where}.id", f"{record.id!r} is also that of line {first[record.id]}"
            )
        first[record.id] = number
        yield record


def _value(line: bytes, where: str) -> object:
    try:
        value: object = json.loads(line, object_pairs_hook=_object)
    except _Repeated as problem:
        raise InvalidInput(where, f"has the field {problem} twice") from None
    except (ValueError, RecursionError):  # UnicodeDecodeError is a ValueError
        raise InvalidInput(where, "is no JSON object in UTF-8") from None
    return value


class _Repeated(Exception):
    """A JSON object has a name twice; Python would keep the last."""


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    content = dict(pairs)
    if len(content) < len(pairs):
        names = [name for name, _ in pairs]
        raise _Repeated(next(name for name in names if names.count(name) > 1))
    return content


def _line(content: dict[str, object]) -> str:
    return json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":")) + "\n"
