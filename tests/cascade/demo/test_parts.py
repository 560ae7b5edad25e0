"""The three parts: disjoint by document and text, balanced, and the same everywhere."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace

import pytest

from cascade.cli.demo.data import Domain, Sentence
from cascade.cli.demo.parts import Balance, Parts, Sizes, balance, largest_sizes, split
from cascade.errors import InvalidInput
from cascade.records import text_key

SIZES = Sizes(develop=80, certify=1000, test=80)


def sentence(domain: Domain, document: int, row: int, text: str, rating: float = 2.0) -> Sentence:
    name = domain.name.lower()
    return Sentence(
        id=f"{name}/{document}_{row}",
        domain=domain,
        document=f"{name}/{document}",
        text=text,
        rating=rating,
        label="positive" if rating > 0 else "negative",
    )


@pytest.fixture(scope="module")
def sentences() -> list[Sentence]:
    """1,000 rows a domain in documents of up to ten; every 20th text repeats across documents."""
    rng = random.Random(3)
    rows = []
    for domain in Domain:
        for i in range(1000):
            text = f"Common text {i % 60}!" if i % 20 == 0 else f"{domain} number {i}"
            documents_of = 10 if domain in (Domain.PRODUCT, Domain.EDITORIAL) else 1
            rows.append(sentence(domain, i // documents_of, i, text, rng.choice([-2.0, 2.0])))
    return rows


@pytest.fixture(scope="module")
def parts(sentences: list[Sentence]) -> Parts:
    return split(sentences, SIZES)


def each(parts: Parts) -> tuple[tuple[Sentence, ...], ...]:
    return parts.develop, parts.certify, parts.test


def test_parts_have_the_sizes_asked_for_with_equally_many_of_each_domain(parts: Parts) -> None:
    for part, size in zip(each(parts), (80, 1000, 80), strict=True):
        assert Counter(row.domain for row in part) == dict.fromkeys(Domain, size // 4)


def test_no_document_is_in_two_parts(parts: Parts) -> None:
    develop, certify, test = ({row.document for row in part} for part in each(parts))
    assert not develop & certify
    assert not develop & test
    assert not certify & test


def test_no_text_is_in_two_parts_nor_twice_in_one(parts: Parts) -> None:
    keys = Counter(text_key(row.text) for part in each(parts) for row in part)
    assert max(keys.values()) == 1


def test_documents_chained_by_shared_texts_stay_together(sentences: list[Sentence]) -> None:
    """1-2 share one text, 2-3 another: all three go where one goes."""
    chain = [
        sentence(Domain.MOVIE, 9001, 0, "linked once"),
        sentence(Domain.TWEET, 9002, 0, "Linked, once!"),
        sentence(Domain.TWEET, 9002, 1, "linked again"),
        sentence(Domain.MOVIE, 9003, 0, "LINKED   again"),
    ]
    whole = split([*sentences, *chain], largest_sizes([*sentences, *chain]))
    homes = {
        name
        for name, part in zip(("develop", "certify", "test"), each(whole), strict=True)
        for row in part
        if row.document in {"movie/9001", "tweet/9002", "movie/9003"}
    }
    assert len(homes) == 1


def test_the_order_of_the_sentences_does_not_matter(
    sentences: list[Sentence], parts: Parts
) -> None:
    shuffled = list(sentences)
    random.Random(1).shuffle(shuffled)
    assert split(shuffled, SIZES) == parts


def test_a_seed_of_another_name_gives_other_parts(sentences: list[Sentence], parts: Parts) -> None:
    assert split(sentences, SIZES, seed="other").test != parts.test


def test_growing_one_part_moves_no_row(sentences: list[Sentence], parts: Parts) -> None:
    grown = split(sentences, Sizes(develop=80, certify=1200, test=120))
    assert grown.develop == parts.develop
    assert grown.certify[:1000] == parts.certify
    assert grown.test[:80] == parts.test


def test_domains_take_turns(parts: Parts) -> None:
    assert [row.domain for row in parts.test[:8]] == [*Domain, *Domain]


def test_documents_take_turns(parts: Parts) -> None:
    """20 rows of a domain come from 20 documents where there are as many, else from all."""
    documents = Counter(row.document for row in parts.certify if row.domain is Domain.PRODUCT)
    assert max(documents.values()) - min(documents.values()) <= 1


def test_the_split_of_known_sentences_is_fixed_for_good() -> None:
    """A changed hash would silently turn yesterday's test rows into today's certify rows."""
    rows = [sentence(domain, i, 0, f"{domain} {i}") for domain in Domain for i in range(600)]
    first = [part[0].id for part in each(split(rows, SIZES))]
    assert first == ["product/201_0", "product/273_0", "product/266_0"]


def test_more_rows_than_there_are_is_refused_with_the_most(sentences: list[Sentence]) -> None:
    most = largest_sizes(sentences)
    with pytest.raises(InvalidInput, match=f"test: .* at most {most.test}$"):
        split(sentences, Sizes(develop=80, certify=1000, test=most.test + 4))
    assert len(split(sentences, most).test) == most.test


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        (replace(SIZES, certify=996), "certify: 996 is below 1000"),
        (replace(SIZES, test=161), "test: 161 is not a positive multiple of 4"),
        (replace(SIZES, develop=0), "develop: 0 is not"),
    ],
)
def test_sizes_that_cannot_be_used_are_refused(sizes: Sizes, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        split([], sizes)


def test_sentences_with_one_id_are_refused() -> None:
    row = sentence(Domain.TWEET, 1, 1, "a")
    with pytest.raises(InvalidInput, match="same id"):
        split([row, row], SIZES)


def test_balance_counts_labels_and_documents() -> None:
    rows = [
        sentence(Domain.TWEET, 1, 1, "a"),
        sentence(Domain.TWEET, 1, 2, "b", -1.0),
        sentence(Domain.MOVIE, 2, 1, "c", -1.0),
    ]
    assert balance(rows) == (
        Balance(Domain.PRODUCT, 0, 0, 0),
        Balance(Domain.MOVIE, 1, 0, 1),
        Balance(Domain.EDITORIAL, 0, 0, 0),
        Balance(Domain.TWEET, 2, 1, 1),
    )


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("Great product!", "great   PRODUCT", True),
        ("Café ﬁne", "café fine", True),
        (":)", ":(", False),
        ("not good", "good", False),
    ],
)
def test_texts_are_the_same_by_their_words(one: str, other: str, same: bool) -> None:
    assert (text_key(one) == text_key(other)) is same
