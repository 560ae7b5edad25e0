"""Data sets to be recorded: CSV or JSON lines, one input a row, read strictly.

| column | what it is |
|---|---|
| ``prompt`` | the input; needed |
| ``id`` | unique; by default the number of the row, from 1 |
| ``document`` | what the row is a part of; by default its id |
| ``reference`` | the right answer, or what a grader takes for it |
| ``options`` | the row's closed set: a list in JSON, parted by ``|`` in CSV |

Further columns are used where they are named as groups or features, and listed as unused otherwise.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cascade.errors import InvalidInput, NotFound
from cascade.files import sha256_bytes
from cascade.request import check_options, is_unicode

_COLUMNS: Final = ("id", "prompt", "options", "reference", "document")
_MOST_CHARS: Final = 10_000_000  # of one field of a CSV file


@dataclass(frozen=True, slots=True)
class Item:
    """One input; see the table above."""

    id: str
    prompt: str
    document: str
    options: tuple[str, ...]
    reference: str | None
    groups: dict[str, str]
    features: dict[str, float]
    where: str
    """How the row is called in messages."""


@dataclass(frozen=True, slots=True)
class Dataset:
    """The rows of a file.

    Arguments:
        sha256: of the file's bytes.
        unused: columns that nobody asked for, sorted.
    """

    items: tuple[Item, ...]
    sha256: str
    unused: tuple[str, ...]


def read_dataset(
    path: Path,
    *,
    groups: Sequence[str] = (),
    features: Sequence[str] = (),
    prompt: str = "prompt",
) -> Dataset:
    """The rows of a CSV or JSONL file, in order.

    Arguments:
        groups, features: names of columns to be kept as texts and as numbers.
        prompt: the column that holds the inputs.

    Raises:
        NotFound: there is no such file.
        InvalidInput: it is empty, or a field is missing, unusable or repeated; row and column are
            named.
    """
    for name in (*groups, *features):
        if name in ("prompt", "reference", "options"):
            raise InvalidInput("groups", f"{name} cannot be a group or a feature")
    try:
        content = path.read_bytes()
    except (FileNotFoundError, IsADirectoryError):
        raise NotFound(f"there is no file {path}") from None
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as problem:
        raise InvalidInput(path.name, f"is not UTF-8 text (byte {problem.start})") from None
    readers = {".csv": _csv_rows, ".jsonl": _json_rows}
    if path.suffix not in readers:
        raise InvalidInput("dataset", f"{path.name} does not end with .csv or .jsonl")
    items: list[Item] = []
    seen: dict[str, str] = {}
    columns: set[str] = set()
    for number, (where, row) in enumerate(readers[path.suffix](text, path.name, prompt), start=1):
        columns |= set(row)
        item = _item(row, str(number), where, (prompt, groups, features))
        if item.id in seen:
            raise InvalidInput(f"{where}: id", f"{item.id!r} is also that of {seen[item.id]}")
        seen[item.id] = where
        items.append(item)
    if not items:
        raise InvalidInput(path.name, "has no rows")
    for name in (*groups, *features):
        if name not in columns:
            raise InvalidInput("groups" if name in groups else "features", f"no column {name!r}")
    unused = columns - {*_COLUMNS, prompt, *groups, *features}
    return Dataset(tuple(items), sha256_bytes(content), tuple(sorted(unused)))


def _csv_rows(text: str, name: str, prompt: str) -> Iterator[tuple[str, dict[str, object]]]:
    """Rows by their columns; an empty cell counts as absent."""
    before = csv.field_size_limit(_MOST_CHARS)
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        header = next(reader, [])
        if prompt not in header:
            raise InvalidInput(f"{name} line 1", f"names no column {prompt}")
        if len(set(header)) < len(header):
            raise InvalidInput(f"{name} line 1", "names a column twice")
        for cells in reader:
            where = f"{name} line {reader.line_num}"
            if not cells:
                continue
            if len(cells) != len(header):
                raise InvalidInput(where, f"has {len(cells)} fields for {len(header)} columns")
            row: dict[str, object] = {
                key: cell for key, cell in zip(header, cells, strict=True) if cell
            }
            if "options" in row:
                row["options"] = [option.strip() for option in str(row["options"]).split("|")]
            yield where, row
    except csv.Error as problem:
        raise InvalidInput(f"{name} line {reader.line_num}", f"is no CSV ({problem})") from None
    finally:
        csv.field_size_limit(before)


def _json_rows(text: str, name: str, prompt: str) -> Iterator[tuple[str, dict[str, object]]]:
    """Rows by their columns; null counts as absent, numbers as their text."""
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{name} line {number}"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if not isinstance(row, dict):
            raise InvalidInput(where, "is no JSON object")
        yield where, {key: value for key, value in row.items() if value is not None}


def _item(
    row: dict[str, object],
    number: str,
    where: str,
    columns: tuple[str, Sequence[str], Sequence[str]],
) -> Item:
    column, groups, features = columns
    prompt = _text(row, column, where)
    if prompt is None or not prompt.strip():
        raise InvalidInput(f"{where}: {column}", "is missing or empty")
    name = _text(row, "id", where) or number
    return Item(
        id=name,
        prompt=prompt,
        document=_text(row, "document", where) or name,
        options=_options(row.get("options"), where),
        reference=_text(row, "reference", where),
        groups={key: value for key in groups if (value := _text(row, key, where)) is not None},
        features={key: _number(row[key], f"{where}: {key}") for key in features if key in row},
        where=where,
    )


def _text(row: dict[str, object], name: str, where: str) -> str | None:
    """A text; numbers as JSON writes them, so that a reference may be 42."""
    value = row.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise InvalidInput(f"{where}: {name}", "must be a text or a number")
    text = str(value)
    if not is_unicode(text):
        raise InvalidInput(f"{where}: {name}", "is not valid Unicode (lone surrogate)")
    return text


def _number(value: object, where: str) -> float:
    try:
        number = math.nan if isinstance(value, bool) else float(str(value))
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise InvalidInput(where, f"{value!r} is no finite number")
    return number


def _options(value: object, where: str) -> tuple[str, ...]:
    if value is None:
        return ()
    if not isinstance(value, list) or not all(isinstance(option, str) for option in value):
        raise InvalidInput(f"{where}: options", "must be a list of texts")
    options = tuple(value)
    try:
        check_options(options)
    except InvalidInput as problem:
        raise InvalidInput(f"{where}: options", problem.problem) from None
    return options
