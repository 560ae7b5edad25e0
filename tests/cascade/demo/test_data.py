"""Reading the sentences: nothing is run, nothing is lost silently, and bad archives are refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from cascade.cli.demo.data import Domain, DomainCount, load_sentences
from cascade.errors import InvalidInput
from tests.cascade.demo.conftest import archive

MakeSdist = Callable[[dict[Domain, bytes]], Path]

CONTENT = {
    Domain.PRODUCT: b"1_1\t-2.5\tit broke\r\n1_2\t0.9\tit is a box\r\n2_1\t1.0\tworks",
    Domain.MOVIE: "1\t2.0\tA cliché, and yet\r\n".encode(),
    Domain.EDITORIAL: b"1_1\t-1.0\tHirschl &amp;amp; Adler &lt;3\r\n",
    Domain.TWEET: b"1\t3.1\tyay &amp; yay\r\n\r\n",
}


def test_every_row_becomes_a_sentence_with_domain_document_and_label(make_sdist: MakeSdist) -> None:
    corpus = load_sentences(make_sdist(CONTENT))
    assert [(row.id, row.document, row.label) for row in corpus.sentences] == [
        ("product/1_1", "product/1", "negative"),
        ("product/2_1", "product/2", "positive"),
        ("movie/1", "movie/1", "positive"),
        ("editorial/1_1", "editorial/1", "negative"),
        ("tweet/1", "tweet/1", "positive"),
    ]
    assert corpus.sentences[0].rating == -2.5


def test_text_is_utf8_and_entities_are_unescaped(make_sdist: MakeSdist) -> None:
    texts = [row.text for row in load_sentences(make_sdist(CONTENT)).sentences]
    assert texts[2:] == ["A cliché, and yet", "Hirschl & Adler <3", "yay & yay"]


def test_ratings_near_zero_are_dropped_and_counted(make_sdist: MakeSdist) -> None:
    corpus = load_sentences(make_sdist(CONTENT))
    assert corpus.counts[0] == DomainCount(Domain.PRODUCT, rows=3, kept=2, neutral=1, unreadable=0)
    assert (corpus.neutral, corpus.unreadable) == (1, 0)


@pytest.mark.parametrize(
    "line",
    [
        b"9\t2.0\tcaf\xe9",
        b"9\t2.0",
        b"9\tgood\ttext",
        b"9\t2.0\t  ",
        b"9\tnan\ttext",
        b"9\t7\ttext",
    ],
    ids=["not UTF-8", "two fields", "no rating", "no text", "NaN", "out of range"],
)
def test_rows_that_cannot_be_read_are_counted(make_sdist: MakeSdist, line: bytes) -> None:
    corpus = load_sentences(make_sdist(CONTENT | {Domain.TWEET: line + b"\r\n1\t3.1\tyay\r\n"}))
    assert corpus.counts[3] == DomainCount(Domain.TWEET, rows=2, kept=1, neutral=0, unreadable=1)


def test_two_rows_with_one_id_are_refused(make_sdist: MakeSdist) -> None:
    twice = CONTENT | {Domain.TWEET: b"1\t2.0\ta\r\n1\t2.0\tb\r\n"}
    with pytest.raises(InvalidInput, match="same id"):
        load_sentences(make_sdist(twice))


def test_an_archive_without_rated_sentences_is_refused(make_sdist: MakeSdist) -> None:
    with pytest.raises(InvalidInput, match="holds no rated sentences"):
        load_sentences(make_sdist(dict.fromkeys(Domain, b"1\t0.0\tmeh\r\n")))


def test_a_missing_file_is_named(make_sdist: MakeSdist) -> None:
    without = {domain: data for domain, data in CONTENT.items() if domain is not Domain.TWEET}
    with pytest.raises(InvalidInput, match="does not contain tweets_GroundTruth"):
        load_sentences(make_sdist(without))


@pytest.mark.parametrize("damage", ["cut", "noise", "other"])
def test_a_file_that_is_no_such_archive_is_refused(make_sdist: MakeSdist, damage: str) -> None:
    path = make_sdist(CONTENT)
    whole = path.read_bytes()
    path.write_bytes(
        {
            "cut": whole[: len(whole) // 2],
            "noise": b"\x00" * 64,
            "other": archive({"README": b"nothing"}),
        }[damage]
    )
    with pytest.raises(InvalidInput, match=r"sdist: .*(not a readable|does not contain)"):
        load_sentences(path)


def test_an_absent_archive_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="there is no file"):
        load_sentences(tmp_path / "absent.tar.gz")
