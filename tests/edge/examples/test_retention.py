"""Which examples go first."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cascade.errors import InvalidInput
from edge.examples import Retention
from edge.examples.retention import Kept, Totals


def test_the_old_ones_go():
    rows = [Kept(1, 0, 1, 2), Kept(2, 50, 1, 2), Kept(3, 0, 1, 0), Kept(4, 80, 1, 0)]
    retention = Retention(age_s=60, waiting_age_s=30)
    assert sorted(retention.outgoing(rows, 100)) == [1, 3]


def test_a_clock_set_back_lets_none_go():
    assert Retention(age_s=60).outgoing([Kept(1, 1000, 1, 2)], 0) == []


def test_the_least_useful_go_and_of_those_the_oldest():
    rows = [
        Kept(1, 10, 1, 4),  # correction
        Kept(2, 11, 1, 2),  # cloud, old
        Kept(3, 12, 1, 2),  # cloud, newer
        Kept(4, 13, 1, 3),  # confirmed
        Kept(5, 14, 1, 1),  # rejected
    ]
    out = [Retention(count=count).outgoing(rows, 20) for count in (5, 4, 3, 2, 1)]
    assert out == [[], [5], [5, 2], [5, 2, 3], [5, 2, 3, 4]]


def test_one_that_is_too_large_by_itself_goes_before_all_others():
    rows = [Kept(1, 10, 101, 4), *(Kept(n, n, 1, 2) for n in range(2, 90)), Kept(90, 90, 99, 0)]
    assert sorted(Retention(size=100).outgoing(rows, 100)) == [1, 90]


def test_those_that_wait_have_room_of_their_own():
    rows = [Kept(n, n, 1, 2) for n in range(10)] + [Kept(n, n, 1, 0) for n in range(10, 16)]
    assert Retention(count=10, waiting_count=4).outgoing(rows, 20) == [10, 11]


def totals(rows: list[Kept]) -> Totals:
    if not rows:
        return Totals()
    return Totals(len(rows), sum(row.size for row in rows), min(row.at_s for row in rows))


@given(
    st.lists(st.tuples(st.floats(0, 100), st.integers(0, 50), st.integers(0, 4)), max_size=30).map(
        lambda rows: [Kept(n, *row) for n, row in enumerate(rows)]
    ),
    st.integers(1, 20),
    st.integers(4, 200),
)
def test_what_stays_keeps_every_limit_and_nothing_useful_goes_before_the_useless(rows, count, size):
    retention = Retention(age_s=80, count=count, size=size, waiting_age_s=40, waiting_count=5)
    out = set(retention.outgoing(rows, 100))
    labelled = [row for row in rows if row.worth and row.number not in out]
    waiting = [row for row in rows if not row.worth and row.number not in out]
    assert len(labelled) <= count
    assert sum(row.size for row in labelled) <= size
    assert len(waiting) <= 5
    assert all(100 - row.at_s <= 80 for row in labelled)
    assert retention.keeps(totals(waiting), totals(labelled), 100)
    assert retention.keeps(
        totals([row for row in rows if not row.worth]),
        totals([row for row in rows if row.worth]),
        100,
    ) == (not out)
    young = [row for row in rows if row.worth and row.number in out and 100 - row.at_s <= 80]
    for gone in young:
        if gone.size > size - size // 50:
            continue  # it would fill the store alone
        assert all((gone.worth, gone.at_s) <= (row.worth, row.at_s) for row in labelled)


@pytest.mark.parametrize(
    "limits",
    [{"age_s": 0}, {"age_s": float("nan")}, {"count": 0}, {"size": 0}, {"waiting_count": 0}],
)
def test_impossible_limits_are_refused(limits):
    with pytest.raises(InvalidInput, match=next(iter(limits))):
        Retention(**limits)
