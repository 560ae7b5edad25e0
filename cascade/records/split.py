"""Splitting by document: parts that share no document and no input, and the check that they do not.

Documents that share an input (but for case, punctuation and spacing), directly or through others,
are *connected* and go to one part. Which one is decided by a hash of the lowest of them: not by the
order of the rows, nor by how many there are, so that a set that grows moves no row.

``cascade.cli.demo.parts`` splits its sentences with the same functions.
"""

from __future__ import annotations

import hashlib
import itertools
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from cascade.errors import InvalidInput
from cascade.records.record_set import RecordSet

Shared = Literal["documents", "inputs"]


def split(
    records: RecordSet,
    shares: Mapping[str, float],
    *,
    seed: str,
    balance: str | None = None,
) -> dict[str, RecordSet]:
    """Parts that share no document and no input.

    Arguments:
        shares: of the connected documents, by the names of the parts; each above 0, together at
            most 1. What is left over is in no part. With few documents a part may come out larger
            or smaller.
        seed: the hash's salt; another one is another split.
        balance: name of a group. Each part then has equally many records of each of its values, as
            many as there can be, in turn, so that each beginning of it is balanced too; of inputs
            that are the same one is kept, and documents take turns.

    Returns:
        The parts in the order of ``shares``, each in the order of ``records`` unless balanced.

    Raises:
        InvalidInput: a share is out of range, or a part comes out empty; it is named.
        NotFound: there is no such group.
    """
    check_shares(shares)
    documents, inputs = records.documents, records.inputs
    parts = assign(documents, inputs, shares, seed)
    members: dict[str, list[int]] = {name: [] for name in shares}
    for row, part in enumerate(parts):
        if part is not None:
            members[part].append(row)
    if balance is not None:
        ids, values = records.ids, records.group(balance)
        keys = [RowKey(*each) for each in zip(ids, documents, inputs, values, strict=True)]
        kinds = sorted(set(values))
        members = {
            name: _balanced([keys[row] for row in rows], rows, kinds, seed)
            for name, rows in members.items()
        }
    for name, rows in members.items():
        if not rows:
            raise InvalidInput(
                f"shares.{name}", "no record falls into it; give it more, or give more documents"
            )
    return {name: records.take(np.array(rows, np.int64)) for name, rows in members.items()}


def check_disjoint(parts: Mapping[str, RecordSet], *, allow: Collection[Shared] = ()) -> None:
    """Refuse parts of which two share a record, an input or a document: leakage.

    Arguments:
        parts: by the names that messages use.
        allow: what may be shared all the same; then say so beside the figures.

    Raises:
        InvalidInput: with the two parts, what they share, and an example from each.
    """
    named = list(parts.items())
    for place, (name, part) in enumerate(named):
        for other_name, other in named[place + 1 :]:
            for kind in ("inputs", "documents"):
                if kind in allow:
                    continue
                mine = part.inputs if kind == "inputs" else part.documents
                yours = other.inputs if kind == "inputs" else other.documents
                both = set(mine) & set(yours)
                if both:
                    example = min(both)
                    raise InvalidInput(
                        "parts",
                        f"{name} and {other_name} share {len(both)} of their {kind}, e.g. in "
                        f"records {part.ids[mine.index(example)]!r} and "
                        f"{other.ids[yours.index(example)]!r}; split them by document",
                    )


@dataclass(frozen=True, slots=True)
class RowKey:
    """What a split looks at in a row.

    Arguments:
        id: distinct.
        input: the same for rows with the same input.
        group: what is to be balanced.
    """

    id: str
    document: str
    input: str
    group: str = ""


def check_shares(shares: Mapping[str, float]) -> None:
    """Raise ``InvalidInput`` unless there are parts, each above 0 and together at most 1."""
    if not shares:
        raise InvalidInput("shares", "names no part, e.g. develop=0.3,certify=0.5,test=0.2")
    for name, share in shares.items():
        if not 0 < share <= 1:
            raise InvalidInput(f"shares.{name}", f"{share} is not above 0 and at most 1")
    if sum(shares.values()) > 1 + 1e-9:
        raise InvalidInput("shares", f"add up to {sum(shares.values()):g}; at most 1 can be given")


def assign(
    documents: Sequence[str], inputs: Sequence[str], shares: Mapping[str, float], seed: str
) -> list[str | None]:
    """The part of each row, or ``None`` for no part; see ``split``."""
    ends = list(itertools.accumulate(shares.values()))
    # Shares that make up a whole leave nothing over, whatever their sum is rounded to.
    names = [*shares, list(shares)[-1] if ends[-1] > 1 - 1e-9 else None]

    groups = connected(documents, inputs)
    of_group = {
        group: names[bisect_right(ends, _place(seed, group))] for group in dict.fromkeys(groups)
    }
    return [of_group[group] for group in groups]


def connected(documents: Sequence[str], inputs: Sequence[str]) -> list[str]:
    """For each row the lowest of the documents that are connected with its own."""
    parent: dict[str, str] = {document: document for document in documents}

    def root(document: str) -> str:
        while parent[document] != document:
            parent[document] = parent[parent[document]]
            document = parent[document]
        return document

    first_with: dict[str, str] = {}
    for document, key in zip(documents, inputs, strict=True):
        first = first_with.setdefault(key, document)
        if first != document:
            one, other = root(document), root(first)
            parent[max(one, other)] = min(one, other)
    # Most documents are alone: no call for those.
    return [document if parent[document] == document else root(document) for document in documents]


def one_of_each_input(rows: Sequence[RowKey], seed: str) -> list[RowKey]:
    """One row of each input, by id."""
    chosen: dict[str, RowKey] = {}
    for row in sorted(rows, key=lambda row: rank(seed, "text", row.id)):
        chosen.setdefault(row.input, row)
    return sorted(chosen.values(), key=lambda row: row.id)


def documents_in_turn(rows: Sequence[RowKey], seed: str) -> Iterator[RowKey]:
    """One row of each document, then a second of each that has one, and so on."""
    documents: defaultdict[str, list[RowKey]] = defaultdict(list)
    for row in sorted(rows, key=lambda row: rank(seed, "row", row.id)):
        documents[row.document].append(row)
    in_order = sorted(documents, key=lambda document: rank(seed, "document", document))
    for turn in range(max(map(len, documents.values()), default=0)):
        for document in in_order:
            if turn < len(documents[document]):
                yield documents[document][turn]


def rank(seed: str, purpose: str, key: str) -> str:
    """A hash, hex, that orders keys at random but always alike."""
    return _hash(seed, purpose, key).hex()


def _place(seed: str, group: str) -> float:
    """Where a group lies in [0, 1): the first 52 bits of its hash, which a float holds exactly."""
    return (int.from_bytes(_hash(seed, "part", group)[:7]) >> 4) / 2**52


def _hash(seed: str, purpose: str, key: str) -> bytes:
    return hashlib.sha256(f"{seed}\0{purpose}\0{key}".encode()).digest()


def _balanced(
    keys: Sequence[RowKey], rows: Sequence[int], kinds: Sequence[str], seed: str
) -> list[int]:
    """The rows of one part, as many of each kind, in turn."""
    place = {key.id: row for key, row in zip(keys, rows, strict=True)}
    unique = one_of_each_input(keys, seed)
    pools = [
        list(documents_in_turn([key for key in unique if key.group == kind], seed))
        for kind in kinds
    ]
    return [place[key.id] for turn in zip(*pools, strict=False) for key in turn]
