"""Shamir's secret sharing (1979): ``threshold`` shares give the secret, fewer say nothing of it.

Exact, over the integers modulo the prime 2^256 + 297, which has room for every secret of 32 bytes.
The secret is the value at 0 of a random polynomial of degree threshold − 1, a holder's share its
value at the holder's number. Written here because the libraries for it are unmaintained, or share
bytes by a format of their own. Python's integers are not constant in time: that is bearable for
secrets that live for one round; do not use this for keys that last.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from cascade.errors import InvalidInput

PRIME: Final = (1 << 256) + 297
SECRET_BYTES: Final = 32
SHARE_BYTES: Final = 33


def split(secret: bytes, threshold: int, holders: Sequence[int]) -> dict[int, bytes]:
    """Each holder's share, 33 bytes little-endian.

    Arguments:
        secret: 32 bytes.
        threshold: ≥ 1, at most the number of holders.
        holders: distinct numbers ≥ 1.

    Raises:
        InvalidInput: an argument is out of its range.
    """
    if len(secret) != SECRET_BYTES:
        raise InvalidInput("secret", f"has {len(secret)} bytes, not {SECRET_BYTES}")
    if len(set(holders)) != len(holders) or min(holders, default=0) < 1:
        raise InvalidInput("holders", "must be distinct numbers of 1 or more")
    if not 1 <= threshold <= len(holders):
        raise InvalidInput("threshold", f"{threshold} is not in 1 … {len(holders)}")
    polynomial = [int.from_bytes(secret, "little")]
    polynomial += [secrets.randbelow(PRIME) for _ in range(threshold - 1)]
    return {
        holder: _evaluate(polynomial, holder).to_bytes(SHARE_BYTES, "little") for holder in holders
    }


def join(shares: Mapping[int, bytes], threshold: int) -> bytes:
    """The secret, from the ``threshold`` shares of the lowest holders; others are not looked at.

    Shares of different secrets give a wrong secret, mostly without notice: compare the result with
    a commitment to it.

    Raises:
        InvalidInput: too few shares, a share is no number of the field, or no secret fits them.
    """
    if len(shares) < threshold:
        raise InvalidInput("shares", f"{len(shares)} are too few; {threshold} are needed")
    holders = sorted(shares)[:threshold]
    weights = _weights_at_zero(holders)
    secret = (
        sum(
            weight * _number(shares[holder])
            for holder, weight in zip(holders, weights, strict=True)
        )
        % PRIME
    )
    if secret >> (8 * SECRET_BYTES):
        raise InvalidInput("shares", "belong to different secrets")
    return secret.to_bytes(SECRET_BYTES, "little")


def _number(share: bytes) -> int:
    value = int.from_bytes(share, "little")
    if len(share) != SHARE_BYTES or value >= PRIME:
        raise InvalidInput("shares", "hold one that is no number of the field")
    return value


def _evaluate(polynomial: Sequence[int], at: int) -> int:
    value = 0
    for coefficient in reversed(polynomial):
        value = (value * at + coefficient) % PRIME
    return value


def _weights_at_zero(holders: Iterable[int]) -> list[int]:
    """Lagrange's basis at 0: w_i = Π_{j≠i} x_j / (x_j − x_i)."""
    points = list(holders)
    weights = []
    for point in points:
        over = under = 1
        for other in points:
            if other != point:
                over = over * other % PRIME
                under = under * (other - point) % PRIME
        weights.append(over * pow(under, -1, PRIME) % PRIME)
    return weights
