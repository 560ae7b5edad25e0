"""Shares give the secret from any enough of them, and nothing from fewer."""

from __future__ import annotations

import contextlib
import itertools
import secrets

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from cascade.errors import InvalidInput
from cascade.federation.masking import shamir


def test_the_modulus_is_prime_and_holds_every_secret():
    for base in (
        2,
        3,
        5,
        7,
        11,
        13,
        17,
        19,
        23,
        29,
        31,
        37,
    ):  # Fermat; no Carmichael number by luck
        assert pow(base, shamir.PRIME - 1, shamir.PRIME) == 1
    assert shamir.PRIME > 1 << 256


@given(st.binary(min_size=32, max_size=32), st.data())
@settings(deadline=None)
def test_any_threshold_of_shares_gives_the_secret(secret, data):
    holders = data.draw(st.lists(st.integers(1, 1024), min_size=1, max_size=9, unique=True))
    threshold = data.draw(st.integers(1, len(holders)))
    shares = shamir.split(secret, threshold, holders)
    chosen = data.draw(st.permutations(holders))[:threshold]
    assert shamir.join({h: shares[h] for h in chosen}, threshold) == secret
    assert shamir.join(shares, threshold) == secret


def test_every_choice_of_three_of_five():
    secret = b"\xff" * 32
    shares = shamir.split(secret, 3, range(1, 6))
    for chosen in itertools.combinations(shares, 3):
        assert shamir.join({h: shares[h] for h in chosen}, 3) == secret


def test_fewer_shares_fit_every_secret():
    """Two shares of a threshold of three: each candidate secret has exactly one polynomial."""
    shares = shamir.split(bytes(32), 3, [1, 2, 3])
    with pytest.raises(InvalidInput, match="too few"):
        shamir.join({h: shares[h] for h in (1, 2)}, 3)
    # A share by itself is uniform, whatever the secret: its top byte below the carry, over draws.
    tops = [shamir.split(bytes(32), 2, [1, 2])[1][31] for _ in range(4096)]
    assert stats.chisquare(np.bincount(tops, minlength=256)).pvalue > 1e-6


@given(st.integers(0, 31), st.integers(1, 255))
def test_a_wrong_share_gives_another_secret_or_none(at, change):
    secret = secrets.token_bytes(32)
    shares = shamir.split(secret, 2, [1, 2])
    broken = bytearray(shares[1])
    broken[at] ^= change
    with contextlib.suppress(InvalidInput):  # no number of the field, or no secret: as well
        assert shamir.join({1: bytes(broken), 2: shares[2]}, 2) != secret


@pytest.mark.parametrize("share", [b"", bytes(32), bytes(34), b"\xff" * 33])
def test_what_is_no_share_is_refused(share):
    with pytest.raises(InvalidInput, match="number of the field"):
        shamir.join({1: share, 2: bytes(33)}, 2)


@pytest.mark.parametrize(
    ("secret", "threshold", "holders", "field"),
    [
        (bytes(31), 1, [1], "secret"),
        (bytes(32), 0, [1], "threshold"),
        (bytes(32), 3, [1, 2], "threshold"),
        (bytes(32), 1, [1, 1], "holders"),
        (bytes(32), 1, [0, 1], "holders"),
        (bytes(32), 1, [], "holders"),
    ],
)
def test_a_split_that_makes_no_sense_is_refused(secret, threshold, holders, field):
    with pytest.raises(InvalidInput) as refusal:
        shamir.split(secret, threshold, holders)
    assert refusal.value.field == field
