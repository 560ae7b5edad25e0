"""Splits: no document and no input in two parts, always alike; and a leaky split is caught."""

from __future__ import annotations

import random
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cascade.errors import InvalidInput, NotFound
from cascade.records import Record, RecordSet, check_disjoint, input_sha256, split
from cascade.records.split import connected
from tests.cascade.records import drawn

SHARES = {"develop": 0.3, "certify": 0.5, "test": 0.2}


def record(name: str, document: str, text: str, domain: str = "shop") -> Record:
    return Record(name, document, input_sha256(text), {}, groups={"domain": domain})


@pytest.fixture(scope="module")
def records() -> RecordSet:
    """2,000 records in 500 documents; every tenth input repeats across documents."""
    return RecordSet.of(
        drawn.header(),
        [
            record(
                f"r{i}",
                f"d{i // 4}",
                f"Common {i % 70}!" if i % 10 == 0 else f"input {i}",
                "shop" if i % 3 else "film",
            )
            for i in range(2000)
        ],
    )


@pytest.fixture(scope="module")
def parts(records: RecordSet) -> dict[str, RecordSet]:
    return split(records, SHARES, seed="1")


def test_no_document_and_no_input_is_in_two_parts(parts: dict[str, RecordSet]) -> None:
    check_disjoint(parts)
    for kind in ("documents", "inputs"):
        sets = [set(getattr(part, kind)) for part in parts.values()]
        assert len(set().union(*sets)) == sum(map(len, sets))


def test_every_record_is_in_one_part_about_as_often_as_asked(
    records: RecordSet, parts: dict[str, RecordSet]
) -> None:
    assert sorted(name for part in parts.values() for name in part.ids) == sorted(records.ids)
    # Connected documents go together, so that shares of the records are rough.
    for name, share in SHARES.items():
        assert abs(len(parts[name]) / len(records) - share) < 0.15


def test_shares_below_one_leave_something_over(records: RecordSet) -> None:
    some = split(records, {"develop": 0.2, "test": 0.3}, seed="1")
    assert 0 < sum(map(len, some.values())) < len(records)
    check_disjoint(some)


def test_a_split_is_the_same_whatever_the_order_and_the_rest(
    records: RecordSet, parts: dict[str, RecordSet]
) -> None:
    order = random.Random(1).sample(range(len(records)), len(records))
    shuffled = split(records.take(order), SHARES, seed="1")
    more = split(
        RecordSet.of(drawn.header(), [*records, record("new", "new", "never seen")]),
        SHARES,
        seed="1",
    )
    for name, part in parts.items():
        assert set(shuffled[name].ids) == set(part.ids)
        assert set(more[name].ids) - {"new"} == set(part.ids)


def test_another_seed_is_another_split(records: RecordSet, parts: dict[str, RecordSet]) -> None:
    assert split(records, SHARES, seed="2")["test"].ids != parts["test"].ids


def test_the_split_of_known_records_is_fixed_for_good() -> None:
    """A changed hash would silently turn yesterday's test records into today's certify records."""
    known = RecordSet.of(drawn.header(), [record(f"{i}", f"d{i}", f"input {i}") for i in range(12)])
    assert {name: part.ids for name, part in split(known, SHARES, seed="1").items()} == {
        "develop": ["0", "4", "6", "7", "9"],
        "certify": ["1", "2", "10", "11"],
        "test": ["3", "5", "8"],
    }


def test_balanced_parts_have_as_many_of_each_kind_in_turn(records: RecordSet) -> None:
    balanced = split(records, SHARES, seed="1", balance="domain")
    check_disjoint(balanced)
    for part in balanced.values():
        counts = Counter(part.group("domain"))
        assert counts["shop"] == counts["film"] > 0
        assert part.group("domain")[:4] == ["film", "shop", "film", "shop"]
        assert max(Counter(part.inputs).values()) == 1
    with pytest.raises(NotFound, match="no group 'colour'; there are domain"):
        split(records, SHARES, seed="1", balance="colour")


def test_documents_chained_by_shared_inputs_stay_together() -> None:
    assert connected(["b", "c", "c", "d", "e"], ["x", "x", "y", "y", "z"]) == [*"bbbb", "e"]


@settings(max_examples=80)
@given(
    st.lists(
        st.tuples(st.sampled_from("abcdefg"), st.sampled_from("tuvwxyz")), min_size=1, max_size=20
    )
)
def test_connected_documents_are_exactly_those_that_share_inputs(
    rows: list[tuple[str, str]],
) -> None:
    documents, inputs = [row[0] for row in rows], [row[1] for row in rows]
    # The same by matrices: who is reached over rows that share a document or an input.
    reached = np.array([[a == b or x == y for b, y in rows] for a, x in rows])
    for _ in range(5):  # 2⁵ steps are more than there are rows
        reached = reached @ reached
    lowest = [min(d for d, there in zip(documents, row, strict=True) if there) for row in reached]
    assert connected(documents, inputs) == lowest


@pytest.mark.parametrize(
    ("shares", "message"),
    [
        ({}, "shares: names no part"),
        ({"test": 0.0}, "shares.test: 0.0 is not above 0"),
        ({"test": float("nan")}, "shares.test: nan is not above 0"),
        ({"a": 0.6, "b": 0.6}, "shares: add up to 1.2"),
    ],
)
def test_shares_that_cannot_be_given_are_refused(
    records: RecordSet, shares: dict[str, float], message: str
) -> None:
    with pytest.raises(InvalidInput, match=message):
        split(records, shares, seed="1")


def test_an_empty_part_is_refused() -> None:
    one = RecordSet.of(drawn.header(), [record("a", "d", "text")])
    with pytest.raises(InvalidInput, match="no record falls into it"):
        split(one, SHARES, seed="1")


def test_a_leaky_split_is_caught(records: RecordSet) -> None:
    """By rows at random, as most notebooks do it: documents and inputs are in both parts."""
    rows = np.random.default_rng(0).permutation(len(records))
    leaky = {"certify": records.take(rows[:1000]), "test": records.take(rows[1000:])}
    with pytest.raises(
        InvalidInput, match=r"parts: certify and test share .* of their inputs"
    ) as e:
        check_disjoint(leaky)
    assert "split them by document" in str(e.value)
    with pytest.raises(InvalidInput, match=r"share .* of their documents"):
        check_disjoint(leaky, allow=("inputs",))
    check_disjoint(leaky, allow=("inputs", "documents"))


def test_one_prompt_with_other_punctuation_in_two_parts_is_leakage() -> None:
    first = RecordSet.of(drawn.header(), [record("a", "d1", "Great product!")])
    second = RecordSet.of(drawn.header(), [record("b", "d2", "great  PRODUCT")])
    with pytest.raises(InvalidInput, match=r"share 1 of their inputs, e.g. in records 'a' and 'b'"):
        check_disjoint({"one": first, "two": second})
