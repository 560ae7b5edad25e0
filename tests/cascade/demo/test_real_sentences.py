"""The real archive: how many sentences there are, and that the demo's parts keep their word."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from cascade.cli.demo.data import Corpus, Domain, DomainCount, load_sentences
from cascade.cli.demo.parts import Sizes, largest_sizes, split
from cascade.cli.demo.setting import SIZES
from cascade.records import text_key

pytestmark = pytest.mark.models


@pytest.fixture(scope="module")
def corpus(model_path: Callable[[str], Path]) -> Corpus:
    return load_sentences(model_path("vader-sentences"))


def test_every_row_is_read(corpus: Corpus) -> None:
    assert corpus.counts == (
        DomainCount(Domain.PRODUCT, rows=3708, kept=2455, neutral=1253, unreadable=0),
        DomainCount(Domain.MOVIE, rows=10605, kept=9173, neutral=1432, unreadable=0),
        DomainCount(Domain.EDITORIAL, rows=5190, kept=1554, neutral=3636, unreadable=0),
        DomainCount(Domain.TWEET, rows=4200, kept=2667, neutral=1533, unreadable=0),
    )
    assert (len(corpus.sentences), corpus.neutral) == (15_849, 7_854)


def test_the_parts_can_be_this_large(corpus: Corpus) -> None:
    assert largest_sizes(corpus.sentences) == Sizes(develop=1672, certify=3880, test=580)


def test_the_default_parts_share_nothing_and_hardly_any_document_twice(corpus: Corpus) -> None:
    parts = split(corpus.sentences, SIZES)
    documents = [{row.document for row in p} for p in (parts.develop, parts.certify, parts.test)]
    texts = [{text_key(row.text) for row in p} for p in (parts.develop, parts.certify, parts.test)]
    for disjoint in (documents, texts):
        assert len(set().union(*disjoint)) == sum(map(len, disjoint))
    assert max(Counter(row.document for row in parts.certify).values()) == 2
