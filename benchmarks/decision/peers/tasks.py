"""Which tasks are compared, and where their rows, texts and answers come from."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from benchmarks.decision import datasets, shipped
from benchmarks.decision.datasets.dataset import Row
from benchmarks.decision.peers.parts import Parts, parts_of
from cascade.errors import InvalidInput
from cascade.files import sha256_bytes
from cascade.records import RecordSet

# Fixed before any peer was run: all data sets whose records are shipped, which were themselves
# chosen before any answer was looked at. A shared closed set, two options and fifteen; a closed set
# of each row's own; free text. All are reported, whatever comes out.
TASKS = ("sentiment", "commands", "commonsense", "questions")


def parts_of_task(name: str) -> Parts:
    """The parts of a shipped record set.

    Raises:
        DownloadError: the texts could not be fetched.
        InvalidInput: texts or answers are not those that were recorded.
    """
    records, rows = shipped.records(name), {row.id: row for row in datasets.dataset(name).rows()}
    return parts_of(
        name,
        records,
        datasets.matched(records, rows),
        device_answers(records, rows),
        {each: rows[each].options for each in records.ids},
    )


def device_answers(records: RecordSet, rows: Mapping[str, Row]) -> dict[str, str]:
    """What the device answered, by id: as kept, or else the most probable of the row's options.

    Raises:
        InvalidInput: an answer is neither kept nor of the row's options.
    """
    device = records.tiers[0]
    kept, hashes = records.texts(device, "answer"), records.texts(device, "answer_sha256")
    probabilities = records.lists(device, "option_probabilities")
    answers = {}
    for place, name in enumerate(records.ids):
        options, share = rows[name].options, probabilities[place]
        answer = kept[place]
        if not answer and len(options) == len(share) > 0:
            answer = options[int(np.argmax(share))]
            if sha256_bytes(answer.encode()) != hashes[place]:
                raise InvalidInput(f"record {name!r}", "has an answer that is none of its options")
        answers[name] = answer
    return answers
