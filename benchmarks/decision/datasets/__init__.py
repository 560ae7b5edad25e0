"""The data sets of the shipped records: what they ask, without their texts.

``python -m benchmarks.decision.datasets NAME FOLDER`` writes what ``cascade record`` takes. Why
these were chosen is in ``benchmarks/decision/data/README.md``.

Example:
    >>> from benchmarks.decision.datasets import texts
    >>> texts("sentiment")["tweet/1"]  # text of the record with this id
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from benchmarks.decision.datasets.commands import COMMANDS
from benchmarks.decision.datasets.commonsense import COMMONSENSE
from benchmarks.decision.datasets.dataset import Dataset, Row
from benchmarks.decision.datasets.questions import QUESTIONS
from benchmarks.decision.datasets.sentiment import SENTIMENT
from benchmarks.decision.shipped import records
from cascade.errors import InvalidInput, NotFound
from cascade.records import RecordSet, input_sha256

DATASETS: Final[Mapping[str, Dataset]] = {
    each.name: each for each in (SENTIMENT, COMMANDS, COMMONSENSE, QUESTIONS)
}


def dataset(name: str) -> Dataset:
    """The data set of that name.

    Raises:
        NotFound: there is none; the message lists those that exist.
    """
    if name not in DATASETS:
        raise NotFound(f"no data set is called {name!r}; there are {', '.join(DATASETS)}")
    return DATASETS[name]


def texts(name: str) -> dict[str, str]:
    """The inputs of a data set's shipped records, by id, in the order of the records.

    Raises:
        NotFound: there is no such data set.
        DownloadError: its texts could not be fetched.
        InvalidInput: a record has no text, or its text has another hash than the record says.
    """
    return matched(records(name), {row.id: row for row in dataset(name).rows()})


def matched(shipped: RecordSet, rows: Mapping[str, Row]) -> dict[str, str]:
    """The text of each record, once its hash is known to be the record's.

    Raises:
        InvalidInput: a record has no text, or its text has another hash than the record says.
    """
    found = {}
    for place, (name, sha256) in enumerate(zip(shipped.ids, shipped.inputs, strict=True)):
        if name not in rows:
            raise InvalidInput(f"record {place + 1}", f"{name!r} is not in the data set")
        if input_sha256(rows[name].prompt) != sha256:
            raise InvalidInput(
                f"record {place + 1}", f"{name!r} was recorded from another text; record it anew"
            )
        found[name] = rows[name].prompt
    return found
