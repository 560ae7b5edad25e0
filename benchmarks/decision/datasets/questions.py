"""Short questions answered freely, written by ``benchmarks.decision.questions``: all text is ours.

Questions after the same capital are one document: who knows it knows it in every wording.
"""

from __future__ import annotations

from benchmarks.decision.datasets.dataset import Dataset, Row, fairly_ordered
from benchmarks.decision.questions import questions

_COUNT = 1000
_BOUNDARY = r"\b"  # on both sides of an answer in its regular expression


def rows() -> list[Row]:
    """The four kinds in turn, and the documents of each in turn."""
    read = []
    for number, each in enumerate(questions(_COUNT), start=1):
        name = f"{each['kind']}/{number}"
        read.append(
            Row(
                id=name,
                document=_document(name, each["kind"], each["reference"]),
                prompt=each["prompt"],
                reference=each["reference"],
                groups={"kind": each["kind"]},
            )
        )
    return fairly_ordered(read, balance="kind")


def _document(name: str, kind: str, reference: str) -> str:
    return f"{kind}/{reference.split(_BOUNDARY)[1]}" if kind == "capitals" else name


QUESTIONS = Dataset(
    name="questions",
    description="short questions by templates: reading, capitals, sums, orders of words",
    licence="this project's own",
    group="kind",
    wording=None,
    grader="regex",
    max_tokens=48,
    rows=rows,
)
