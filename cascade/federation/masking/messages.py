"""What devices and server say to each other in a masked round, as values and as bytes.

A member of the cohort goes by its number, 1 to ``MAX_COHORT``; lists are in rising order of it, so
that each message has one encoding. Reading refuses, by field, whatever is not exactly one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final, Self

from cascade.errors import InvalidInput
from cascade.federation.masking.keys import KEY_BYTES, TAG_BYTES
from cascade.federation.masking.shamir import SHARE_BYTES
from cascade.federation.octets import Octets

MAX_COHORT: Final = 1024
"""Each device deals to, and agrees on keys with, each other: work grows with the square. About 64
are comfortable (README.md); anything above this is a mistake."""

SESSION_BYTES: Final = 32
SEALED_BYTES: Final = 2 * SHARE_BYTES + TAG_BYTES
_VERSION: Final = 1


@dataclass(frozen=True, slots=True)
class Keys:
    """1 · device → server: two X25519 public keys, made for this round.

    Arguments:
        cipher: under which others seal shares for this device.
        mask: from which each pair agrees on its mask.
    """

    cipher: bytes
    mask: bytes

    def to_bytes(self) -> bytes:
        """65 bytes."""
        return _head("K") + self.cipher + self.mask

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Strictly."""
        octets = _open(data, "keys", "K")
        keys = cls(octets.take(KEY_BYTES, "cipher"), octets.take(KEY_BYTES, "mask"))
        octets.end()
        return keys


@dataclass(frozen=True, slots=True)
class Roster:
    """1 · server → devices: who takes part, with which keys.

    Arguments:
        session: 32 random bytes that name the round.
        threshold: how many devices must answer at the end; more than half of the members.
        members: keys by number.
    """

    session: bytes
    threshold: int
    members: Mapping[int, Keys]

    def __post_init__(self) -> None:
        if len(self.session) != SESSION_BYTES:
            raise InvalidInput("roster.session", f"must be of {SESSION_BYTES} bytes")
        if not 2 <= len(self.members) <= MAX_COHORT:
            raise InvalidInput(
                "roster.members", f"are {len(self.members)}; 2 to {MAX_COHORT} can be masked"
            )
        # With more than half, no two groups of devices can be told different things about who
        # dropped out and so give away both kinds of share of one device.
        if not len(self.members) // 2 < self.threshold <= len(self.members):
            raise InvalidInput(
                "roster.threshold",
                f"{self.threshold} is not more than half of {len(self.members)} members, "
                "and at most all",
            )
        used = [key for keys in self.members.values() for key in (keys.cipher, keys.mask)]
        if len(set(used)) != len(used):
            raise InvalidInput("roster.members", "have a key in common")

    def to_bytes(self) -> bytes:
        """66 bytes a member."""
        parts = [_head("R"), self.session, _u16(self.threshold), _u16(len(self.members))]
        for number, keys in sorted(self.members.items()):
            parts += [_u16(number), keys.cipher, keys.mask]
        return b"".join(parts)

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Strictly."""
        octets = _open(data, "roster", "R")
        session = octets.take(SESSION_BYTES, "session")
        threshold = octets.whole(2, "threshold", 1, MAX_COHORT)
        members = {
            number: Keys(octets.take(KEY_BYTES, "cipher"), octets.take(KEY_BYTES, "mask"))
            for number in _numbered(octets, "members")
        }
        octets.end()
        return cls(session, threshold, members)


@dataclass(frozen=True, slots=True)
class Parcel:
    """One member's shares of another's two secrets, sealed for the holder.

    Arguments:
        sealed: share of the dealer's mask key, then of its seed.
        mask_key: commitment to the first; lets holder and server tell a wrong share.
        seed: commitment to the second.
    """

    sealed: bytes
    mask_key: bytes
    seed: bytes


@dataclass(frozen=True, slots=True)
class Dealt:
    """2 · device → server: a parcel for each other member, its own included, by holder.

    Arguments:
        seed: commitment to the dealer's seed.
    """

    seed: bytes
    parcels: Mapping[int, Parcel]

    def to_bytes(self) -> bytes:
        """148 bytes a parcel."""
        return _head("D") + self.seed + _parcels(self.parcels)

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Strictly."""
        octets = _open(data, "dealt", "D")
        dealt = cls(octets.take(KEY_BYTES, "seed"), _read_parcels(octets))
        octets.end()
        return dealt


@dataclass(frozen=True, slots=True)
class Delivered:
    """2 · server → device: the parcels that it is to hold, by dealer. The dealers go on."""

    parcels: Mapping[int, Parcel]

    def to_bytes(self) -> bytes:
        """148 bytes a parcel."""
        return _head("P") + _parcels(self.parcels)

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Strictly."""
        octets = _open(data, "delivered", "P")
        delivered = cls(_read_parcels(octets))
        octets.end()
        return delivered


@dataclass(frozen=True, slots=True)
class Survivors:
    """4 · server → devices: whose masked vector is in the sum (3 is the vector itself)."""

    numbers: tuple[int, ...]

    def to_bytes(self) -> bytes:
        """Two bytes a number."""
        return _head("S") + _u16(len(self.numbers)) + b"".join(map(_u16, self.numbers))

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Strictly."""
        octets = _open(data, "survivors", "S")
        survivors = cls(tuple(_numbered(octets, "numbers")))
        octets.end()
        return survivors


@dataclass(frozen=True, slots=True)
class Revealed:
    """4 · device → server: of each dealer one share, never both.

    Arguments:
        seeds: shares of the survivors' seeds, by dealer.
        mask_keys: shares of the drop-outs' mask keys, by dealer.
    """

    seeds: Mapping[int, bytes]
    mask_keys: Mapping[int, bytes]

    def __post_init__(self) -> None:
        if both := min(self.seeds.keys() & self.mask_keys.keys(), default=None):
            raise InvalidInput("revealed", f"has both shares of member {both}; that unmasks it")

    def to_bytes(self) -> bytes:
        """35 bytes a share."""
        parts = [_head("U")]
        for shares in (self.seeds, self.mask_keys):
            parts.append(_u16(len(shares)))
            for number, share in sorted(shares.items()):
                parts += [_u16(number), share]
        return b"".join(parts)

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Strictly."""
        octets = _open(data, "revealed", "U")
        seeds = {n: octets.take(SHARE_BYTES, "seeds") for n in _numbered(octets, "seeds")}
        keys = {n: octets.take(SHARE_BYTES, "mask_keys") for n in _numbered(octets, "mask_keys")}
        octets.end()
        return cls(seeds, keys)


def _parcels(parcels: Mapping[int, Parcel]) -> bytes:
    parts = [_u16(len(parcels))]
    for number, parcel in sorted(parcels.items()):
        parts += [_u16(number), parcel.sealed, parcel.mask_key, parcel.seed]
    return b"".join(parts)


def _read_parcels(octets: Octets) -> dict[int, Parcel]:
    return {
        number: Parcel(
            octets.take(SEALED_BYTES, "sealed"),
            octets.take(KEY_BYTES, "mask_key"),
            octets.take(KEY_BYTES, "seed"),
        )
        for number in _numbered(octets, "parcels")
    }


def _numbered(octets: Octets, name: str) -> Iterable[int]:
    """The numbers of a list, each above the last; the caller takes what follows each."""
    last = 0
    for _ in range(octets.whole(2, name, 0, MAX_COHORT)):
        last = octets.whole(2, name, last + 1, MAX_COHORT)
        yield last


def _head(kind: str) -> bytes:
    return kind.encode() + bytes([_VERSION])


def _open(data: bytes, where: str, kind: str) -> Octets:
    octets = Octets(data, where)
    octets.exactly(_head(kind), "kind")
    return octets


def _u16(value: int) -> bytes:
    return value.to_bytes(2, "little")
