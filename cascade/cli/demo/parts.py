"""Which sentence serves which purpose: three fixed parts that share no document and no text.

The sentences come from ``cascade.cli.demo.data``. Nothing here looks at a model's answer.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from cascade.cli.demo.data import Domain, Sentence
from cascade.errors import InvalidInput

SEED = "cascade-demo-1"
"""Changes every assignment. Fixed, so that the parts are the same on every machine."""

MIN_CERTIFY = 1000

PartName = Literal["develop", "certify", "test"]

# Shares of the documents. Fixed apart from the sizes: a part that grows or shrinks takes more or
# fewer of its own rows, and never one of another part.
_DEVELOP_SHARE = 0.24
_CERTIFY_SHARE = 0.64


@dataclass(frozen=True, slots=True)
class Sizes:
    """Rows of each part: multiples of four, the certify part at least ``MIN_CERTIFY``."""

    develop: int
    certify: int
    test: int

    def check(self) -> None:
        """Raise ``InvalidInput`` naming the first size that cannot be used."""
        for name, size in (
            ("develop", self.develop),
            ("certify", self.certify),
            ("test", self.test),
        ):
            if size < len(Domain) or size % len(Domain):
                raise InvalidInput(name, f"{size} is not a positive multiple of {len(Domain)}")
        if self.certify < MIN_CERTIFY:
            raise InvalidInput("certify", f"{self.certify} is below {MIN_CERTIFY}")


@dataclass(frozen=True, slots=True)
class Parts:
    """Three disjoint parts, the four domains in turn within each, so that prefixes are balanced.

    Arguments:
        develop: for the device's prompt, its prior, the calibrator and the grid of thresholds.
        certify: for choosing the threshold, and nothing else.
        test: looked at once, at the end.
    """

    develop: tuple[Sentence, ...]
    certify: tuple[Sentence, ...]
    test: tuple[Sentence, ...]


def split(sentences: Iterable[Sentence], sizes: Sizes, *, seed: str = SEED) -> Parts:
    """Three fixed parts by document, with equally many sentences of each domain.

    Documents that share a sentence (but for case, punctuation and spacing), directly or through
    others, form one group, and a group goes to one part. Which one is decided by a hash of its
    lowest document id: not by the order of the sentences, nor by the sizes. Within a part each text
    is used once, and documents take turns, so that as few sentences as possible share one.

    Arguments:
        sentences: distinct ids.
        sizes: rows of each part. A part of another size is a prefix or an extension of this one,
            domain by domain.
        seed: the hash's salt.

    Raises:
        InvalidInput: sizes that cannot be used, or more rows asked for than there are; names the
            part and the most that it can have.
    """
    sizes.check()
    pools = _pools(sentences, seed)
    return Parts(
        develop=_take("develop", pools, sizes.develop),
        certify=_take("certify", pools, sizes.certify),
        test=_take("test", pools, sizes.test),
    )


def largest_sizes(sentences: Iterable[Sentence], *, seed: str = SEED) -> Sizes:
    """The most rows that ``split`` can give to each part (unchecked against ``MIN_CERTIFY``)."""
    pools = _pools(sentences, seed)

    def most(part: PartName) -> int:
        return len(Domain) * min(len(pools[part, domain]) for domain in Domain)

    return Sizes(most("develop"), most("certify"), most("test"))


@dataclass(frozen=True, slots=True)
class Balance:
    """Sentences of one domain in a part, the positive among them, and their documents."""

    domain: Domain
    n: int
    positive: int
    documents: int


def balance(part: Iterable[Sentence]) -> tuple[Balance, ...]:
    """How a part is made up, one row for each domain."""
    rows = list(part)
    return tuple(
        Balance(
            domain,
            n=sum(row.domain is domain for row in rows),
            positive=sum(row.domain is domain and row.label == "positive" for row in rows),
            documents=len({row.document for row in rows if row.domain is domain}),
        )
        for domain in Domain
    )


_Pools = dict[tuple[PartName, Domain], list[Sentence]]


def _pools(sentences: Iterable[Sentence], seed: str) -> _Pools:
    """Every usable sentence of each part and domain, in the order in which they are taken."""
    # By id first, so that the order in which they were given leaves no trace.
    rows = sorted(sentences, key=lambda row: row.id)
    if len({row.id for row in rows}) < len(rows):
        raise InvalidInput("sentences", "two have the same id")
    group = _groups(rows)
    members: dict[PartName, list[Sentence]] = {"develop": [], "certify": [], "test": []}
    for row in rows:
        members[_part(group[row.document], seed)].append(row)
    pools: _Pools = {}
    for part, mine in members.items():
        unique = _one_of_each_text(mine, seed)
        for domain in Domain:
            pools[part, domain] = list(
                _documents_in_turn([row for row in unique if row.domain is domain], seed)
            )
    return pools


def _groups(rows: list[Sentence]) -> dict[str, str]:
    """For each document the lowest id of the documents connected with it by repeated texts."""
    parent: dict[str, str] = {row.document: row.document for row in rows}

    def root(document: str) -> str:
        while parent[document] != document:
            parent[document] = parent[parent[document]]
            document = parent[document]
        return document

    first_with: dict[str, str] = {}
    for row in rows:
        one, other = (
            root(row.document),
            root(first_with.setdefault(text_key(row.text), row.document)),
        )
        parent[max(one, other)] = min(one, other)
    return {document: root(document) for document in parent}


def text_key(text: str) -> str:
    """What makes two texts the same: their letters and digits, NFKC and case folded, by words.

    A text without any is its own key.
    """
    words = re.findall(r"[^\W_]+", unicodedata.normalize("NFKC", text).casefold())
    return " ".join(words) or text


def _part(group: str, seed: str) -> PartName:
    place = int(_rank(seed, "part", group)[:13], 16) / 16**13
    if place < _DEVELOP_SHARE:
        return "develop"
    return "certify" if place < _DEVELOP_SHARE + _CERTIFY_SHARE else "test"


def _one_of_each_text(rows: list[Sentence], seed: str) -> list[Sentence]:
    chosen: dict[str, Sentence] = {}
    for row in sorted(rows, key=lambda row: _rank(seed, "text", row.id)):
        chosen.setdefault(text_key(row.text), row)
    return sorted(chosen.values(), key=lambda row: row.id)


def _documents_in_turn(rows: list[Sentence], seed: str) -> Iterator[Sentence]:
    """One sentence of each document, then a second of each that has one, and so on."""
    documents: defaultdict[str, list[Sentence]] = defaultdict(list)
    for row in sorted(rows, key=lambda row: _rank(seed, "row", row.id)):
        documents[row.document].append(row)
    in_order = sorted(documents, key=lambda document: _rank(seed, "document", document))
    for turn in range(max(map(len, documents.values()), default=0)):
        for document in in_order:
            if turn < len(documents[document]):
                yield documents[document][turn]


def _take(part: PartName, pools: _Pools, size: int) -> tuple[Sentence, ...]:
    share = size // len(Domain)
    for domain in Domain:
        if len(pools[part, domain]) < share:
            most = len(Domain) * min(len(pools[part, each]) for each in Domain)
            raise InvalidInput(part, f"{size} rows are asked for; there are at most {most}")
    return tuple(pools[part, domain][i] for i in range(share) for domain in Domain)


def _rank(seed: str, purpose: str, key: str) -> str:
    return hashlib.sha256(f"{seed}\0{purpose}\0{key}".encode()).hexdigest()
