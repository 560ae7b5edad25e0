"""Which sentence serves which purpose: three fixed parts that share no document and no text.

The sentences come from ``cascade.cli.demo.data``. Nothing here looks at a model's answer.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Literal

from cascade.cli.demo.data import Domain, Sentence
from cascade.errors import InvalidInput
from cascade.records import text_key
from cascade.records.split import RowKey, assign, documents_in_turn, one_of_each_input

SEED = "cascade-demo-1"
"""Changes every assignment. Fixed, so that the parts are the same on every machine."""

MIN_CERTIFY = 1000

PartName = Literal["develop", "certify", "test"]

_PARTS: Final[tuple[PartName, ...]] = ("develop", "certify", "test")
# Shares of the documents. Fixed apart from the sizes: a part that grows or shrinks takes more or
# fewer of its own rows, and never one of another part.
_SHARES: Final = {"develop": 0.24, "certify": 0.64, "test": 0.12}


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
    keys = [RowKey(row.id, row.document, text_key(row.text), row.domain) for row in rows]
    of_id = {row.id: row for row in rows}
    parts = assign([key.document for key in keys], [key.input for key in keys], _SHARES, seed)
    pools: _Pools = {}
    for part in _PARTS:
        mine = [key for key, given in zip(keys, parts, strict=True) if given == part]
        unique = one_of_each_input(mine, seed)
        for domain in Domain:
            in_turn = documents_in_turn([key for key in unique if key.group == domain], seed)
            pools[part, domain] = [of_id[key.id] for key in in_turn]
    return pools


def _take(part: PartName, pools: _Pools, size: int) -> tuple[Sentence, ...]:
    share = size // len(Domain)
    for domain in Domain:
        if len(pools[part, domain]) < share:
            most = len(Domain) * min(len(pools[part, each]) for each in Domain)
            raise InvalidInput(part, f"{size} rows are asked for; there are at most {most}")
    return tuple(pools[part, domain][i] for i in range(share) for domain in Domain)
