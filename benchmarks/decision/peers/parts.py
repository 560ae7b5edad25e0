"""One task's records in three parts, with the texts that some peers need beside the signals."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from cascade.errors import InvalidInput
from cascade.pair import Pair, pair
from cascade.records import RecordSet, check_disjoint, split

SHARES = {"develop": 0.4, "certify": 0.3, "test": 0.3}
"""Of the documents. Develop is the largest: gates that read texts have many numbers to learn."""

_SEED = "peers 1"


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """Rows of one part; every tuple has one text a row.

    Arguments:
        rows: the device and the tier above it.
        prompts: what was asked, in the words in which a larger model is asked it.
        inputs: what the prompts are about, without instructions.
        answers: the device's.
    """

    rows: Pair
    prompts: tuple[str, ...]
    inputs: tuple[str, ...]
    answers: tuple[str, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Parts:
    """A task in parts, split by document.

    Arguments:
        develop: on which everything is fitted that is fitted.
        certify: on which thresholds are chosen, and nothing else.
        test: on which thresholds are judged.
        held: certify and test, in this order: on which rankings are judged, for of them nothing is
            chosen on certify.
    """

    name: str
    develop: Part
    certify: Part
    test: Part
    held: Part


def parts_of(
    name: str,
    records: RecordSet,
    texts: Mapping[str, str],
    answers: Mapping[str, str],
) -> Parts:
    """The parts of a record set, split by document.

    Arguments:
        texts: the input of each record, by id.
        answers: the device's answer to each record, by id.

    Raises:
        InvalidInput: a text or answer is missing, or the records have no tier above the device.
    """
    divided = split(records, SHARES, seed=_SEED)
    check_disjoint(divided)
    place = {each: row for row, each in enumerate(records.ids)}
    held = [place[each] for part in ("certify", "test") for each in divided[part].ids]
    parts = (*(divided[part] for part in SHARES), records.take(held))
    return Parts(name, *(_part(part, texts, answers) for part in parts))


def _part(
    records: RecordSet,
    texts: Mapping[str, str],
    answers: Mapping[str, str],
) -> Part:
    rows = pair(records)
    if rows.cloud is None:
        raise InvalidInput("records", "have no tier above the device")
    ids = rows.records.ids
    for what, given in (("text", texts), ("answer", answers)):
        if missing := [each for each in ids if each not in given]:
            raise InvalidInput(what, f"is missing for {len(missing)} records, e.g. {missing[0]!r}")
    wording = records.header.wording
    inputs = tuple(texts[each] for each in ids)
    return Part(
        rows,
        # The user's message; earlier turns of a wording are examples and no part of the question.
        prompts=inputs
        if wording is None
        else tuple(wording.for_cloud(text)[-1].content for text in inputs),
        inputs=inputs,
        answers=tuple(answers[each] for each in ids),
    )
