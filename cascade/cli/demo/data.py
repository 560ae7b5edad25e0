"""The demo's sentences, read out of the vaderSentiment sdist.

The archive is read as data; none of its code runs. Its ``*_GroundTruth.txt`` files (Hutto and
Gilbert 2014) hold sentences of four domains with the mean of about 20 people's ratings, -4 … 4.
Which sentence serves which purpose is ``cascade.cli.demo.parts``.

The files are UTF-8 with tab-separated fields and CRLF line ends. HTML entities (``&amp;``, and
``&amp;amp;`` in the editorials) are unescaped, because a person would type the character.
"""

from __future__ import annotations

import html
import io
import tarfile
import zlib
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Literal

from cascade.errors import InvalidInput

NEUTRAL_BELOW = 1.0
"""Sentences whose mean rating is closer to zero than this are left out."""

Label = Literal["positive", "negative"]


class Domain(StrEnum):
    """Where a sentence comes from: four kinds of text, four kinds of device."""

    PRODUCT = "product review"
    MOVIE = "movie review"
    EDITORIAL = "editorial"
    TWEET = "tweet"


_FILES = {
    Domain.PRODUCT: "amazonReviewSnippets_GroundTruth.txt",
    Domain.MOVIE: "movieReviewSnippets_GroundTruth.txt",
    Domain.EDITORIAL: "nytEditorialSnippets_GroundTruth.txt",
    Domain.TWEET: "tweets_GroundTruth.txt",
}


@dataclass(frozen=True, slots=True)
class Sentence:
    """One rated sentence.

    Arguments:
        id: ``domain/row id``, unique.
        domain: where it comes from.
        document: ``domain/document id``; sentences of one review or editorial share it.
        text: the sentence, entities unescaped, outer white space removed.
        rating: mean of the raters, -4 … 4, at least ``NEUTRAL_BELOW`` from zero.
        label: the rating's sign.
    """

    id: str
    domain: Domain
    document: str
    text: str
    rating: float
    label: Label


@dataclass(frozen=True, slots=True)
class DomainCount:
    """What became of the rows of one domain: rows = kept + neutral + unreadable."""

    domain: Domain
    rows: int
    kept: int
    neutral: int
    unreadable: int


@dataclass(frozen=True, slots=True)
class Corpus:
    """Every sentence that is not neutral, in the archive's order, and what was left out."""

    sentences: tuple[Sentence, ...]
    counts: tuple[DomainCount, ...]

    @property
    def neutral(self) -> int:
        """Sentences left out because their rating is near zero."""
        return sum(count.neutral for count in self.counts)

    @property
    def unreadable(self) -> int:
        """Rows left out because they are not UTF-8, not three fields, or have no text or rating."""
        return sum(count.unreadable for count in self.counts)


def load_sentences(sdist: Path) -> Corpus:
    """Read the rated sentences.

    Arguments:
        sdist: the file ``vaderSentiment-3.3.2.tar.gz``.

    Raises:
        InvalidInput: the file is missing, is no such archive, or holds no such data.
    """
    sentences: list[Sentence] = []
    counts: list[DomainCount] = []
    for domain, lines in _ground_truth(sdist).items():
        rows = [_parse(domain, line) for line in lines if line.strip()]
        read = [row for row in rows if row is not None]
        kept = [row for row in read if abs(row.rating) >= NEUTRAL_BELOW]
        if len({row.id for row in read}) < len(read):
            raise InvalidInput("sdist", f"{_FILES[domain]} has two rows with the same id")
        sentences += kept
        counts.append(
            DomainCount(domain, len(rows), len(kept), len(read) - len(kept), len(rows) - len(read))
        )
    if not sentences:
        raise InvalidInput("sdist", f"{sdist.name} holds no rated sentences")
    return Corpus(tuple(sentences), tuple(counts))


def _ground_truth(sdist: Path) -> dict[Domain, list[bytes]]:
    """Raw lines of each domain's file."""
    try:
        with tarfile.open(sdist, "r:gz") as outer:
            inner_bytes = _member(outer, "hutto_ICWSM_2014.tar.gz", sdist)
        with tarfile.open(fileobj=io.BytesIO(inner_bytes), mode="r:gz") as inner:
            return {
                domain: _member(inner, name, sdist).split(b"\n") for domain, name in _FILES.items()
            }
    except FileNotFoundError:
        raise InvalidInput("sdist", f"there is no file {sdist}") from None
    except (tarfile.TarError, zlib.error, OSError, EOFError):
        raise InvalidInput("sdist", f"{sdist.name} is not a readable .tar.gz archive") from None


def _member(archive: tarfile.TarFile, name: str, sdist: Path) -> bytes:
    for member in archive:
        if member.isfile() and member.name.rsplit("/", 1)[-1] == name:
            file = archive.extractfile(member)
            if file is not None:
                return file.read()
    raise InvalidInput("sdist", f"{sdist.name} does not contain {name}")


def _parse(domain: Domain, line: bytes) -> Sentence | None:
    """The sentence on one line: id, rating, text. None where it cannot be read."""
    try:
        row, rating_text, text = line.decode().strip("\r\n").split("\t")
        rating = float(rating_text)
    except ValueError:  # includes UnicodeDecodeError
        return None
    text = html.unescape(html.unescape(text)).strip()
    if not text or not -4 <= rating <= 4:
        return None
    return Sentence(
        id=f"{domain.name.lower()}/{row}",
        domain=domain,
        document=f"{domain.name.lower()}/{row.split('_')[0]}",
        text=text,
        rating=rating,
        label="positive" if rating > 0 else "negative",
    )
