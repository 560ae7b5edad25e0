"""The record sets in ``benchmarks/decision/data``, by name. What they ask is ``datasets``'s."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from cascade.errors import NotFound
from cascade.records import RecordSet, load

FOLDER: Final = Path(__file__).with_name("data")

NAMES: Final = ("sentiment", "commands", "commonsense", "questions")
"""Fixed before any answer was looked at; the folder's README gives the reasons."""


def records(name: str) -> RecordSet:
    """The shipped records of a data set.

    Raises:
        NotFound: there are none of that name; the message lists those that exist.
    """
    if name not in NAMES:
        raise NotFound(f"no record set is called {name!r}; there are {', '.join(NAMES)}")
    return load(FOLDER / f"{name}.parquet")
