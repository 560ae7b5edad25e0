"""An example as a row of the store's file, its texts sealed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final, cast

from cascade.errors import InvalidInput
from cascade.request import DataClass
from cascade.strict import Fields
from edge.examples.cipher import Cipher
from edge.examples.example import Example, Source

COLUMNS: Final = (
    "request",
    "task",
    "at",
    "source",
    "rejected",
    "data_class",
    "tier",
    "model",
    "confidence",
    "weight",
    "texts",
)
TIMES: Final = (-6e10, 2.5e11)
"""Seconds since 1970 that a calendar has."""

_Row = tuple[str, str, float, str, int, str, str, str, float | None, float, bytes]


def row_of(example: Example, cipher: Cipher) -> _Row:
    """The values of ``COLUMNS``.

    Raises:
        InvalidInput: a value is out of range: nobody could read it again.
    """
    try:
        row = (
            example.request_id,
            example.task_id,
            example.at_s,
            example.source.value,
            int(example.rejected),
            example.data_class.value,
            example.tier,
            example.model,
            example.confidence,
            example.weight,
            cipher.seal(example.texts_to_bytes(), _about(example.request_id)),
        )
        example_of(row, cipher)
    except InvalidInput:
        raise
    except (ValueError, TypeError) as problem:
        raise InvalidInput("example", f"cannot be kept: {problem}") from None
    return row


def example_of(row: Sequence[object], cipher: Cipher) -> Example:
    """Read what ``row_of`` wrote.

    Raises:
        ValueError, TypeError: it is something else.
    """
    *values, texts = row
    fields = Fields(dict(zip(COLUMNS, values, strict=False)), "example")
    bare = Example(
        fields.text("request"),
        (),
        "",
        Source(fields.text("source")),
        fields.number("at", *TIMES),
        task_id=fields.text("task"),
        data_class=DataClass(fields.text("data_class")),
        rejected=bool(fields.integer("rejected", 0, 1)),
        tier=fields.text("tier"),
        model=fields.text("model"),
        confidence=fields.number_or_none("confidence", 0.0, 1.0),
        weight=fields.number("weight", math.ulp(0.0), 1.0),
    )
    opened = cipher.open(cast(bytes, texts), _about(bare.request_id))
    str(opened, "utf-8")  # strictly: json would let lone surrogates through
    return bare.with_texts(opened)


def _about(request_id: str) -> bytes:
    return f"example {request_id}".encode()
