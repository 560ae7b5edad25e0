"""Which tasks are compared, and where their rows, texts and answers come from."""

from __future__ import annotations

from benchmarks.decision import datasets, shipped
from benchmarks.decision.answers import device_answers, free_answers
from benchmarks.decision.peers.parts import Parts, parts_of

# Fixed before any peer was run: all data sets whose records are shipped, which were chosen before
# any answer was looked at; closed sets of two, fifteen and five options, and free text. All are
# reported, whatever comes out.
TASKS = ("sentiment", "commands", "commonsense", "questions")


def parts_of_task(name: str) -> Parts:
    """The parts of a shipped record set.

    Raises:
        DownloadError: the texts could not be fetched.
        InvalidInput: texts or answers are not those that were recorded.
    """
    records, rows = shipped.records(name), {row.id: row for row in datasets.dataset(name).rows()}
    texts = datasets.matched(records, rows)
    free = free_answers(shipped.FOLDER / f"{name}.answers.json")
    return parts_of(name, records, texts, device_answers(records, free))
