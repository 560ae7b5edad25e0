"""A device's side of a masked round: four messages out, three in, and then its secrets are gone.

``to_bytes`` lets it outlive its process. Who stores that stores secrets: they belong in a file of
the device's own, written before the message that they stand behind is sent, and removed after the
last. A member that is read back from before a message could answer twice.
"""

from __future__ import annotations

import json
import secrets
from typing import Final, Self

import numpy as np

from cascade.errors import InvalidInput
from cascade.federation.masking import keys, shamir
from cascade.federation.masking.fixed_point import FixedPoint, Words
from cascade.federation.masking.messages import (
    MAX_COHORT,
    SEALED_BYTES,
    Dealt,
    Delivered,
    Keys,
    Parcel,
    Revealed,
    Roster,
    Survivors,
)
from cascade.federation.tensors import Doubles
from cascade.strict import Fields

MASK_KEY: Final = b"share of a mask key"
SEED: Final = b"share of a seed"
SEED_ITSELF: Final = b"seed"


def self_mask(seed: bytes, roster: Roster, fixed: FixedPoint, elements: int) -> Words:
    """What hides a device's vector even from one who knows all of its pair masks."""
    return keys.mask(keys.derive(seed, b"self mask", roster.session), fixed, elements)


def pair_mask(
    private: bytes, pair: tuple[int, int], roster: Roster, fixed: FixedPoint, elements: int
) -> Words:
    """What the first of a pair adds for it: one of the two adds what the other takes away.

    Arguments:
        private: the first one's mask key.
    """
    number, other = pair
    shared = keys.agree(private, roster.members[other].mask, f"roster.{other}.mask")
    words = keys.mask(keys.derive(shared, b"pair mask", roster.session), fixed, elements)
    return words if number < other else np.negative(words)


class Member:
    """One device in one round. Call ``keys``, ``deal``, ``masked``, ``reveal``, each once.

    All of its state is of this round.

    Arguments:
        least: smallest cohort whose sum this device is willing to be part of, ≥ 2. The device's
            own floor: it does not take the server's word for what is private enough.
    """

    def __init__(self, least: int = 3) -> None:
        if least < 2:
            raise InvalidInput("least", "a sum over one device is that device's update")
        self._least = least
        self._cipher, self._mask = secrets.token_bytes(32), secrets.token_bytes(32)
        self._seed = secrets.token_bytes(32)
        self._number = 0
        self._roster: Roster | None = None
        self._held: dict[int, tuple[bytes, bytes]] = {}
        self._sent = False
        self._revealed = False

    def to_bytes(self) -> bytes:
        """All of its state, secrets included: JSON."""
        held = {str(dealer): [share.hex() for share in both] for dealer, both in self._held.items()}
        value = {
            "least": self._least,
            "cipher": self._cipher.hex(),
            "mask": self._mask.hex(),
            "seed": self._seed.hex(),
            "roster": None if self._roster is None else self._roster.to_bytes().hex(),
            "number": self._number,
            "held": held,
            "sent": self._sent,
            "revealed": self._revealed,
        }
        return json.dumps(value).encode()

    @classmethod
    def from_bytes(cls, data: bytes, where: str = "member") -> Self:
        """Read what ``to_bytes`` wrote.

        Raises:
            InvalidInput: a field is missing, unknown or unusable.
        """
        fields = Fields.from_bytes(data, where)
        member = cls(fields.integer("least", 2, MAX_COHORT))
        member._cipher = _hex(fields, "cipher", keys.KEY_BYTES)
        member._mask = _hex(fields, "mask", keys.KEY_BYTES)
        member._seed = _hex(fields, "seed", keys.KEY_BYTES)
        if fields.given("roster"):
            member._roster = Roster.from_bytes(_hex(fields, "roster"))
        member._number = fields.integer("number", 0, MAX_COHORT)
        held = Fields(fields.take("held"), fields.path("held"))
        for dealer in range(1, MAX_COHORT + 1):
            if held.given(str(dealer)):
                member._held[dealer] = _shares(held, str(dealer))
        held.end()
        member._sent = fields.boolean("sent")
        member._revealed = fields.boolean("revealed")
        fields.end()
        return member

    def keys(self) -> Keys:
        """Message 1: this round's public keys."""
        return Keys(keys.public_of(self._cipher), keys.public_of(self._mask))

    def deal(self, roster: Roster) -> Dealt:
        """Message 2: a share of both secrets for every member, this one included.

        Raises:
            InvalidInput: the roster is too small, or lacks this device's keys.
        """
        if self._roster is not None:
            raise InvalidInput("roster", "was dealt for already; a second one may be a trick")
        if len(roster.members) < self._least or roster.threshold < self._least:
            raise InvalidInput("roster", f"lets fewer than {self._least} devices be summed")
        keys_sent = self.keys()
        own = [number for number, found in roster.members.items() if found == keys_sent]
        if len(own) != 1:
            raise InvalidInput("roster", "does not have this device's keys")
        self._roster, self._number = roster, own[0]
        holders = sorted(roster.members)
        of_mask_key = shamir.split(self._mask, roster.threshold, holders)
        of_seed = shamir.split(self._seed, roster.threshold, holders)
        parcels = {}
        for holder in holders:
            sealed = keys.seal(
                self._parcel_key(self._number, holder),
                of_mask_key[holder] + of_seed[holder],
                _way(self._number, holder),
            )
            parcels[holder] = Parcel(
                sealed,
                keys.commitment(MASK_KEY, roster.session, of_mask_key[holder]),
                keys.commitment(SEED, roster.session, of_seed[holder]),
            )
        return Dealt(keys.commitment(SEED_ITSELF, roster.session, self._seed), parcels)

    def masked(
        self, delivered: Delivered, values: Doubles, fixed: FixedPoint, rng: np.random.Generator
    ) -> bytes:
        """Message 3: the vector, masked; uniformly random words to whoever lacks the keys.

        Arguments:
            delivered: from all members who dealt; with each of them a mask is agreed.
            values: float64, one axis, the same length on all devices.
            fixed: the round's; its ``cohort`` must cover the roster.
            rng: of the rounding, not of the masks.

        Raises:
            InvalidInput: a parcel is not for this device, holds a wrong share, or is of a stranger;
                too few have dealt; or this was called before.
        """
        roster = self._need_roster()
        if self._sent:
            raise InvalidInput("delivered", "was answered already; two vectors give one away")
        if len(roster.members) > fixed.cohort:
            raise InvalidInput("fixed", f"holds sums of {fixed.cohort}, not {len(roster.members)}")
        dealers = set(delivered.parcels)
        if not dealers <= set(roster.members) or self._number not in dealers:
            raise InvalidInput("delivered", "is not from members of the roster, this one included")
        if len(dealers) < max(roster.threshold, self._least):
            raise InvalidInput("delivered", f"is from {len(dealers)} members; that is too few")
        self._held = {
            dealer: self._unpack(dealer, parcel) for dealer, parcel in delivered.parcels.items()
        }
        words = fixed.encode(values, rng)
        words += self_mask(self._seed, roster, fixed, values.size)
        for other in sorted(dealers - {self._number}):
            words += pair_mask(self._mask, (self._number, other), roster, fixed, values.size)
        self._sent = True
        return fixed.to_bytes(words)

    def reveal(self, survivors: Survivors) -> Revealed:
        """Message 4: the shares that unmask the sum: seeds of those in it, mask keys of others.

        Raises:
            InvalidInput: the sum is of too few or of strangers, this device is not in it, or it was
                asked before: another list of survivors would give away both shares of someone.
        """
        roster = self._need_roster()
        alive, dealers = set(survivors.numbers), set(self._held)
        if not self._sent or self._revealed:
            raise InvalidInput("survivors", "may be asked for once, after the masked vector")
        if not alive <= dealers or self._number not in alive:
            raise InvalidInput("survivors", "are not the senders of shares, this device included")
        if len(alive) < max(roster.threshold, self._least):
            raise InvalidInput("survivors", f"are {len(alive)}; that is too few")
        self._revealed = True
        seeds = {number: self._held[number][1] for number in sorted(alive)}
        mask_keys = {number: self._held[number][0] for number in sorted(dealers - alive)}
        self._held = {}
        return Revealed(seeds, mask_keys)

    def _unpack(self, dealer: int, parcel: Parcel) -> tuple[bytes, bytes]:
        session = self._need_roster().session
        field = f"delivered.{dealer}"
        if len(parcel.sealed) != SEALED_BYTES:
            raise InvalidInput(field, f"has {len(parcel.sealed)} bytes, not {SEALED_BYTES}")
        text = keys.unseal(
            self._parcel_key(dealer, self._number),
            parcel.sealed,
            _way(dealer, self._number),
            field,
        )
        of_mask_key, of_seed = text[: shamir.SHARE_BYTES], text[shamir.SHARE_BYTES :]
        if (
            keys.commitment(MASK_KEY, session, of_mask_key) != parcel.mask_key
            or keys.commitment(SEED, session, of_seed) != parcel.seed
        ):
            raise InvalidInput(field, "holds other shares than its dealer committed to")
        return of_mask_key, of_seed

    def _parcel_key(self, dealer: int, holder: int) -> bytes:
        """Agreed with the other of the two; another one in each direction."""
        roster = self._need_roster()
        other = holder if dealer == self._number else dealer
        shared = keys.agree(self._cipher, roster.members[other].cipher, f"roster.{other}.cipher")
        return keys.derive(shared, b"parcel" + _way(dealer, holder), roster.session)

    def _need_roster(self) -> Roster:
        if self._roster is None:
            raise InvalidInput("roster", "comes first: call deal")
        return self._roster


def _shares(fields: Fields, name: str) -> tuple[bytes, bytes]:
    try:
        of_mask_key, of_seed = map(bytes.fromhex, fields.texts(name))
    except ValueError:
        raise InvalidInput(fields.path(name), "must be two shares in hex") from None
    if {len(of_mask_key), len(of_seed)} != {shamir.SHARE_BYTES}:
        raise InvalidInput(fields.path(name), f"must be shares of {shamir.SHARE_BYTES} bytes")
    return of_mask_key, of_seed


def _hex(fields: Fields, name: str, size: int | None = None) -> bytes:
    try:
        value = bytes.fromhex(fields.text(name))
    except ValueError:
        raise InvalidInput(fields.path(name), "is not hex") from None
    if size is not None and len(value) != size:
        raise InvalidInput(fields.path(name), f"has {len(value)} bytes, not {size}")
    return value


def _way(dealer: int, holder: int) -> bytes:
    return dealer.to_bytes(2, "little") + holder.to_bytes(2, "little")
