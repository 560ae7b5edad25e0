"""Sentences of four domains, rated by people: the closed task that the demo shows.

The rows are the demo's certify part and what follows on it, so no wording was chosen on them. They
come from ``cascade.cli.demo.data``: sentences whose mean rating is at least 1 from neutral.
"""

from __future__ import annotations

from benchmarks.decision.datasets.dataset import Dataset, Row
from cascade.cli.demo.data import load_sentences
from cascade.cli.demo.parts import largest_sizes, split
from cascade.cli.demo.setting import SENTENCES, TASK
from cascade.download import pull


def rows() -> list[Row]:
    """Sentences, the four domains in turn, and the documents of each in turn."""
    sentences = load_sentences(pull(SENTENCES)).sentences
    sizes = largest_sizes(sentences)
    return [
        Row(each.id, each.document, each.text, each.label, groups={"domain": each.domain.value})
        for each in split(sentences, sizes).certify
    ]


SENTIMENT = Dataset(
    name="sentiment",
    description="sentences of four domains rated by people (Hutto and Gilbert 2014), "
    "mean rating at least 1 from neutral",
    licence="MIT",
    group="domain",
    wording=TASK,
    grader="choice",
    max_tokens=256,
    rows=rows,
)
