"""A masked round gives the sum to the last bit, whoever drops out when, and nothing but the sum."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from cascade.errors import InvalidInput
from cascade.federation.masking import (
    Collector,
    Dealt,
    Delivered,
    FixedPoint,
    Keys,
    Member,
    Phase,
    Revealed,
    Roster,
    Survivors,
)

FIXED = FixedPoint.choose(8, bound=1.0)
SIZE = 40


def over_the_wire(message):
    """What the other side reads."""
    back = type(message).from_bytes(message.to_bytes())
    assert back == message
    return back


class Cohort:
    """Devices and a collector that talk in bytes."""

    def __init__(self, count, threshold, fixed=FIXED, size=SIZE, least=2):
        self.fixed, self.size = fixed, size
        self.members = {number: Member(least) for number in range(1, count + 1)}
        self.collector = Collector(threshold, fixed, size)
        rng = np.random.default_rng(count)
        self.values = {number: rng.uniform(-1.2, 1.2, size) for number in self.members}
        self.sent = {}

    def agree(self, present):
        for number in present:
            self.collector.add_keys(number, over_the_wire(self.members[number].keys()))
        self.known = over_the_wire(self.collector.roster())

    def deal(self, present):
        for number in present:
            dealt = over_the_wire(self.members[number].deal(self.known))
            self.collector.add_shares(number, dealt)

    def send(self, present):
        for number in present:
            self.sent[number] = self.masked(number)
            self.collector.add_vector(number, self.sent[number])

    def masked(self, number):
        delivered = over_the_wire(self.collector.delivered(number))
        rng = np.random.default_rng(number)
        return self.members[number].masked(delivered, self.values[number], self.fixed, rng)

    def reveal(self, present):
        survivors = over_the_wire(self.collector.survivors())
        for number in present:
            revealed = over_the_wire(self.members[number].reveal(survivors))
            self.collector.add_reveal(number, revealed)

    def plain_sum(self, numbers):
        """In the fixed-point domain, with whole numbers of any size."""
        encoded = [
            self.fixed.integers(
                self.fixed.encode(self.values[number], np.random.default_rng(number))
            ).astype(object)
            for number in numbers
        ]
        return sum(encoded)


@given(st.data())
@settings(max_examples=40, deadline=None)
def test_the_sum_is_exact_whoever_drops_out_when(data):
    count = data.draw(st.integers(2, 8))
    agreed = range(1, count + 1)
    threshold = data.draw(st.integers(count // 2 + 1, count))
    fixed = FixedPoint.choose(8, 1.0, levels=data.draw(st.sampled_from([7, 1023, 2**20, 2**50])))
    cohort = Cohort(count, threshold, fixed, size=data.draw(st.integers(1, 50)))
    stay = st.sets(st.sampled_from(agreed), min_size=threshold)
    dealt = data.draw(stay)
    sent = data.draw(st.sets(st.sampled_from(sorted(dealt)), min_size=threshold))
    revealed = data.draw(st.sets(st.sampled_from(sorted(sent)), min_size=threshold))
    cohort.agree(agreed)
    cohort.deal(dealt)
    cohort.send(sent)
    cohort.reveal(revealed)
    total = cohort.collector.total()
    np.testing.assert_array_equal(fixed.integers(total), cohort.plain_sum(sent).astype(np.int64))
    clipped = sum(np.clip(cohort.values[number], -1, 1) for number in sent)
    assert np.abs(fixed.decode(total) - clipped).max() <= len(sent) * fixed.step


def test_a_cohort_that_is_full_of_extremes_does_not_overflow():
    for levels in (1023, 2**24, 2**52 - 1):
        fixed = FixedPoint.choose(8, 1.0, levels)
        cohort = Cohort(8, 5, fixed, size=2)
        for number in cohort.members:
            cohort.values[number] = np.array([9.0, -9.0])
        cohort.agree(range(1, 9))
        cohort.deal(range(1, 9))
        cohort.send(range(1, 9))
        cohort.reveal(range(1, 9))
        np.testing.assert_allclose(fixed.decode(cohort.collector.total()), [8, -8], rtol=1e-15)


@pytest.mark.parametrize("levels", [1023, 2**24, 2**50])
def test_masked_words_look_uniform(levels):
    size = 1 << 15
    fixed = FixedPoint.choose(4, 1.0, levels)
    cohort = Cohort(4, 3, fixed, size)
    for number in cohort.members:
        cohort.values[number] = np.zeros(size)  # nothing in the vector itself is random
    cohort.agree(range(1, 5))
    cohort.deal(range(1, 5))
    cohort.send([1, 2, 3])
    for sent in cohort.sent.values():
        counts = np.bincount(np.frombuffer(sent, np.uint8), minlength=256)
        # Keys are drawn anew each time: one run in a million is rejected by chance.
        assert stats.chisquare(counts).pvalue > 1e-6
    # And two devices' vectors have nothing in common.
    first, second = (np.frombuffer(cohort.sent[n], np.uint8) for n in (1, 2))
    differences = np.bincount(first - second, minlength=256)
    assert stats.chisquare(differences).pvalue > 1e-6


def test_without_its_own_mask_a_late_vector_stays_hidden():
    """A drop-out whose pair masks were taken away may still send: its own mask holds."""
    cohort = Cohort(5, 3)
    cohort.agree(range(1, 6))
    cohort.deal(range(1, 6))
    cohort.send([1, 2, 3, 4])
    late = cohort.masked(5)
    cohort.reveal([1, 2, 3, 4])
    with pytest.raises(InvalidInput, match="phase"):
        cohort.collector.add_vector(5, late)
    total = cohort.collector.total()
    np.testing.assert_array_equal(
        FIXED.integers(total), cohort.plain_sum([1, 2, 3, 4]).astype(np.int64)
    )


def revealing(dropped=(5,)):
    """A cohort of five that is about to reveal."""
    cohort = Cohort(5, 3)
    cohort.agree(range(1, 6))
    cohort.deal(range(1, 6))
    cohort.send(sorted(set(range(1, 6)) - set(dropped)))
    return cohort


def test_both_shares_of_a_device_are_never_in_one_message():
    share = bytes(33)
    with pytest.raises(InvalidInput, match="member 5"):
        Revealed({5: share}, {5: share})
    crafted = Revealed({5: share}, {}).to_bytes()[:-2] + Revealed({}, {5: share}).to_bytes()[-37:]
    with pytest.raises(InvalidInput, match="member 5"):
        Revealed.from_bytes(crafted)


def test_a_device_does_not_answer_a_second_list_of_survivors():
    cohort = revealing()
    survivors = cohort.collector.survivors()
    member = cohort.members[1]
    told = member.reveal(survivors)
    assert set(told.seeds) == {1, 2, 3, 4}
    assert set(told.mask_keys) == {5}
    for other in (Survivors((1, 2, 3, 5)), survivors):
        with pytest.raises(InvalidInput, match="once"):
            member.reveal(other)


def test_the_server_refuses_the_other_kind_of_share():
    """Even a device that would tell everything cannot make the collector hold both kinds."""
    cohort = revealing()
    survivors = cohort.collector.survivors()
    told = cohort.members[1].reveal(survivors)
    held = cohort.members[2]._held
    worse = [
        Revealed(told.seeds, told.mask_keys | {6: told.mask_keys[5]}),
        Revealed(told.seeds, {}),
        # A survivor's mask key in the place of its seed: with its vector that would unmask it.
        Revealed({n: s for n, s in told.seeds.items() if n != 2}, told.mask_keys | {2: held[2][0]}),
        Revealed(told.seeds | {5: held[5][1]}, {}),
    ]
    for message in worse:
        with pytest.raises(InvalidInput, match="nothing else"):
            cohort.collector.add_reveal(1, message)
    assert cohort.collector.reveals_missing == 3
    cohort.collector.add_reveal(1, told)
    assert cohort.collector.reveals_missing == 2


def test_a_wrong_share_is_found_and_its_holder_named():
    cohort = revealing()
    survivors = cohort.collector.survivors()
    told = cohort.members[1].reveal(survivors)
    other = cohort.members[2].reveal(survivors)
    for kind in ("seeds", "mask_keys"):
        for dealer in getattr(told, kind):
            swapped = {**getattr(told, kind), dealer: getattr(other, kind)[dealer]}
            wrong = {"seeds": told.seeds, "mask_keys": told.mask_keys} | {kind: swapped}
            with pytest.raises(InvalidInput, match=rf"revealed\.1: .* of member {dealer}"):
                cohort.collector.add_reveal(1, Revealed(**wrong))
    cohort.collector.add_reveal(1, told)


def test_an_altered_or_misdirected_parcel_is_refused():
    for change in ("altered", "swapped", "commitment"):
        cohort = Cohort(4, 3)
        cohort.agree(range(1, 5))
        cohort.deal(range(1, 5))
        parcels = dict(cohort.collector.delivered(1).parcels)
        parcel = parcels[2]
        if change == "altered":
            sealed = bytes([parcel.sealed[0] ^ 1]) + parcel.sealed[1:]
            parcels[2] = type(parcel)(sealed, parcel.mask_key, parcel.seed)
        elif change == "swapped":
            parcels[2] = cohort.collector.delivered(3).parcels[2]
        else:
            parcels[2] = type(parcel)(parcel.sealed, parcel.seed, parcel.mask_key)
        with pytest.raises(InvalidInput, match=r"delivered\.2"):
            cohort.members[1].masked(
                Delivered(parcels), np.zeros(SIZE), FIXED, np.random.default_rng()
            )


def test_too_few_give_no_sum():
    cohort = Cohort(5, 4)
    cohort.agree(range(1, 6))
    cohort.deal([1, 2, 3])
    with pytest.raises(InvalidInput, match="dealt: by 3 devices; the threshold is 4"):
        cohort.collector.delivered(1)
    cohort.deal([4, 5])
    cohort.send([1, 2, 3])
    with pytest.raises(InvalidInput, match="masked: by 3 devices"):
        cohort.collector.survivors()
    cohort.send([4, 5])
    cohort.reveal([1, 2, 3])
    with pytest.raises(InvalidInput, match="revealed: by 3 devices"):
        cohort.collector.total()
    assert cohort.collector.phase is Phase.REVEALS


def test_a_device_has_a_floor_of_its_own():
    cohort = Cohort(5, 3, least=4)
    cohort.agree(range(1, 6))
    with pytest.raises(InvalidInput, match="fewer than 4"):
        cohort.members[1].deal(cohort.known)
    with pytest.raises(InvalidInput, match="that device's update"):
        Member(least=1)
    cohort = revealing()
    for numbers, problem in [((1, 2), "too few"), ((2, 3, 4), "this device"), ((1, 2, 9), "send")]:
        with pytest.raises(InvalidInput, match=problem):
            cohort.members[1].reveal(Survivors(numbers))
    cohort.members[1].reveal(cohort.collector.survivors())  # a refusal costs nothing


def test_half_of_the_members_is_no_threshold():
    """Two halves that are told different survivors would give away both shares of one device."""
    found = {n: Member().keys() for n in range(1, 5)}
    with pytest.raises(InvalidInput, match="more than half"):
        Roster(bytes(32), 2, found)
    Roster(bytes(32), 3, found)


def test_a_key_that_is_used_twice_or_of_low_order_is_refused():
    keys = Member().keys()
    with pytest.raises(InvalidInput, match="in common"):
        Roster(bytes(32), 2, {1: keys, 2: keys})
    cohort = Cohort(3, 2)
    zero = Keys(bytes(32), b"\1" + bytes(31))
    for number in (1, 2):
        cohort.collector.add_keys(number, cohort.members[number].keys())
    cohort.collector.add_keys(3, zero)
    with pytest.raises(InvalidInput, match=r"roster\.3"):
        cohort.members[1].deal(cohort.collector.roster())


def test_a_message_may_be_repeated_and_may_not_be_changed():
    cohort = Cohort(3, 2)
    first = cohort.members[1].keys()
    cohort.collector.add_keys(1, first)
    cohort.collector.add_keys(1, first)
    with pytest.raises(InvalidInput, match=r"keys\.1"):
        cohort.collector.add_keys(1, cohort.members[2].keys())
    cohort.agree([2, 3])
    cohort.deal([1, 2, 3])
    cohort.send([1])
    with pytest.raises(InvalidInput, match="counted already"):
        cohort.collector.add_vector(1, cohort.sent[1])
    with pytest.raises(InvalidInput, match="answered already"):
        cohort.masked(1)


def test_a_collector_made_again_from_the_messages_goes_on():
    cohort = Cohort(4, 3)
    found = {n: m.keys() for n, m in cohort.members.items()}
    cohort.agree(found)
    dealt = {n: m.deal(cohort.known) for n, m in cohort.members.items()}
    again = Collector(3, FIXED, SIZE, cohort.collector.session)
    for number, keys in found.items():
        again.add_keys(number, keys)
    assert again.roster() == cohort.known
    for number, shares in dealt.items():
        again.add_shares(number, shares)
    cohort.collector = again
    cohort.send([1, 2, 4])
    cohort.reveal([1, 2, 4])
    np.testing.assert_array_equal(
        FIXED.integers(again.total()), cohort.plain_sum([1, 2, 4]).astype(np.int64)
    )


def messages():
    cohort = revealing()
    yield cohort.members[1].keys()
    yield cohort.known
    yield cohort.collector.delivered(1)
    survivors = cohort.collector.survivors()
    yield survivors
    yield cohort.members[1].reveal(survivors)
    fresh = Cohort(3, 2)
    fresh.agree([1, 2, 3])
    yield fresh.members[1].deal(fresh.known)


@pytest.mark.parametrize("message", list(messages()), ids=lambda m: type(m).__name__)
def test_every_cut_of_a_message_is_refused(message):
    data = message.to_bytes()
    assert type(message).from_bytes(data) == message
    for size in itertools.chain(range(min(len(data), 300)), [len(data) - 1]):
        with pytest.raises(InvalidInput):
            type(message).from_bytes(data[:size])
    with pytest.raises(InvalidInput, match="behind its end"):
        type(message).from_bytes(data + b"\0")


def test_lists_that_could_be_written_in_two_ways_are_refused():
    assert Survivors.from_bytes(b"S\1\2\0\1\0\2\0").numbers == (1, 2)
    for numbers in (b"\2\0\1\0", b"\1\0\1\0", b"\0\0\1\0", b"\1\0\xff\xff"):
        with pytest.raises(InvalidInput, match="numbers"):
            Survivors.from_bytes(b"S\1\2\0" + numbers)
    with pytest.raises(InvalidInput, match="kind"):
        Dealt.from_bytes(b"S\1")


@pytest.mark.parametrize(
    ("cohort", "levels", "bits"),
    [(32, 1023, 16), (33, 1023, 32), (127, 2**24, 32), (128, 2**24, 64), (1024, 2**40, 64)],
)
def test_the_smallest_word_that_holds_the_sum_is_chosen(cohort, levels, bits):
    fixed = FixedPoint.choose(cohort, 1.0, levels)
    assert fixed.bits == bits
    assert fixed.levels >= levels
    assert fixed.cohort * fixed.levels <= fixed.top


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ((16, 1.0, 1024, 32), "levels"),
        ((16, 0.0, 1, 1), "bound"),
        ((16, float("nan"), 1, 1), "bound"),
        ((8, 1.0, 1, 1), "bits"),
        ((16, 1.0, 0, 1), "levels"),
        ((16, 1.0, 1, 0), "cohort"),
    ],
)
def test_a_format_that_could_overflow_is_refused(fields, name):
    with pytest.raises(InvalidInput) as refusal:
        FixedPoint(*fields)
    assert refusal.value.field == name


def test_fixed_point_is_right_on_average_and_its_norm_is_bounded():
    fixed = FixedPoint(16, 1.0, 10, 8)
    values = np.linspace(-1, 1, 41)
    rng = np.random.default_rng(2)
    draws = np.stack([fixed.decode(fixed.encode(values, rng)) for _ in range(4000)])
    assert np.abs(draws.mean(axis=0) - values).max() < 5 * fixed.step / 2 / np.sqrt(4000)
    worst = np.linalg.norm(draws, axis=1).max()
    assert np.linalg.norm(values) < worst <= fixed.norm_after(np.linalg.norm(values), values.size)
    with pytest.raises(InvalidInput, match="NaN"):
        fixed.encode(np.array([np.nan]), rng)
    with pytest.raises(InvalidInput, match="masked"):
        fixed.from_bytes(bytes(3), 2)
