"""The server's side of a masked round: it relays, sums words that say nothing, unmasks the sum.

Four phases, each closed by the server when its time is up: whoever is late has dropped out. Nothing
is random here once the session is drawn, and nothing depends on time, so a server that was killed
makes another ``Collector`` of the same session and gives it the same messages.
"""

from __future__ import annotations

import secrets
from enum import IntEnum
from typing import TypeVar

import numpy as np

from cascade.errors import InvalidInput
from cascade.federation.masking import keys, shamir
from cascade.federation.masking.fixed_point import FixedPoint, Words
from cascade.federation.masking.member import MASK_KEY, SEED, SEED_ITSELF, pair_mask, self_mask
from cascade.federation.masking.messages import (
    MAX_COHORT,
    SESSION_BYTES,
    Dealt,
    Delivered,
    Keys,
    Revealed,
    Roster,
    Survivors,
)

MessageT = TypeVar("MessageT")


class Phase(IntEnum):
    """What the collector is waiting for."""

    KEYS = 1
    SHARES = 2
    VECTORS = 3
    REVEALS = 4


class Collector:
    """One round. ``add_…`` takes a device's message; the methods between them close a phase.

    Arguments:
        threshold: devices that must stay to the end; more than half of those who sent keys.
        elements: length of each vector.
        session: 32 bytes that no other round has; drawn if not given.
    """

    def __init__(
        self, threshold: int, fixed: FixedPoint, elements: int, session: bytes | None = None
    ) -> None:
        self._threshold, self._fixed, self._elements = threshold, fixed, elements
        self._session = session or secrets.token_bytes(SESSION_BYTES)
        self._phase = Phase.KEYS
        self._keys: dict[int, Keys] = {}
        self._roster: Roster | None = None
        self._dealt: dict[int, Dealt] = {}
        self._summed: set[int] = set()
        self._sum: Words = np.zeros(elements, fixed.dtype)
        self._revealed: dict[int, Revealed] = {}

    @property
    def session(self) -> bytes:
        """Keep it with the messages: a collector made again needs it."""
        return self._session

    @property
    def phase(self) -> Phase:
        """What may be added now."""
        return self._phase

    def add_keys(self, number: int, message: Keys) -> None:
        """Message 1 of the device that the server calls ``number`` in this round, 1 or more."""
        self._expect(Phase.KEYS)
        _put(self._keys, number, message, "keys")

    def roster(self) -> Roster:
        """Close phase 1.

        Raises:
            InvalidInput: too few or too many for the threshold or the fixed-point format, or two
                devices sent the same key.
        """
        if self._roster is None:
            if len(self._keys) > self._fixed.cohort:
                raise InvalidInput("keys", f"are of more than {self._fixed.cohort} devices")
            self._roster = Roster(self._session, self._threshold, dict(sorted(self._keys.items())))
            self._phase = Phase.SHARES
        return self._roster

    def add_shares(self, number: int, message: Dealt) -> None:
        """Message 2 of a member."""
        self._expect(Phase.SHARES)
        members = self.roster().members
        if number not in members or set(message.parcels) != set(members):
            raise InvalidInput(f"dealt.{number}", "is not one member's parcels for all members")
        _put(self._dealt, number, message, "dealt")

    def delivered(self, holder: int) -> Delivered:
        """Close phase 2, and give one of its members what it is to hold.

        Raises:
            InvalidInput: fewer than the threshold have dealt, or this one has not.
        """
        if self._phase <= Phase.SHARES:
            self._expect(Phase.SHARES)
            self._enough(len(self._dealt), "dealt")
            self._phase = Phase.VECTORS
        if holder not in self._dealt:
            raise InvalidInput(f"delivered.{holder}", "has not dealt and is out of this round")
        return Delivered(
            {dealer: dealt.parcels[holder] for dealer, dealt in sorted(self._dealt.items())}
        )

    def add_vector(self, number: int, masked: bytes) -> None:
        """Message 3 of a member: added to the sum, and not kept."""
        self._expect(Phase.VECTORS)
        if number not in self._dealt:
            raise InvalidInput(f"masked.{number}", "has not dealt and is out of this round")
        if number in self._summed:
            raise InvalidInput(f"masked.{number}", "was counted already")
        self._sum = self._sum + self._fixed.from_bytes(masked, self._elements)
        self._summed.add(number)

    def survivors(self) -> Survivors:
        """Close phase 3: later vectors are refused, for their mask keys are about to be known.

        Raises:
            InvalidInput: fewer than the threshold have sent a vector.
        """
        if self._phase <= Phase.VECTORS:
            self._expect(Phase.VECTORS)
            self._enough(len(self._summed), "masked")
            self._phase = Phase.REVEALS
        return Survivors(tuple(sorted(self._summed)))

    def add_reveal(self, number: int, message: Revealed) -> None:
        """Message 4 of a survivor: its shares of the survivors' seeds and the others' mask keys.

        This is where nobody is unmasked: a share of any other kind than the one that the list of
        survivors calls for is refused with all that came with it, whoever asked for it and why.

        Raises:
            InvalidInput: shares of the wrong kind, or missing, or other than the dealer committed
                to; the dealer is named.
        """
        self._expect(Phase.REVEALS)
        if number not in self._summed:
            raise InvalidInput(f"revealed.{number}", "is not from a survivor")
        dropped = self._dealt.keys() - self._summed
        if set(message.seeds) != self._summed or set(message.mask_keys) != dropped:
            raise InvalidInput(
                f"revealed.{number}",
                "must have seeds' shares of the survivors and mask keys' shares of the others, "
                "and nothing else",
            )
        for dealer, share in message.seeds.items():
            promised = self._dealt[dealer].parcels[number].seed
            self._check_share(SEED, dealer, number, share, promised)
        for dealer, share in message.mask_keys.items():
            promised = self._dealt[dealer].parcels[number].mask_key
            self._check_share(MASK_KEY, dealer, number, share, promised)
        _put(self._revealed, number, message, "revealed")

    @property
    def reveals_missing(self) -> int:
        """How many more reveals the sum needs."""
        return max(0, self._threshold - len(self._revealed))

    def total(self) -> Words:
        """The survivors' sum in words; ``fixed.decode`` makes numbers of it.

        Raises:
            InvalidInput: fewer than the threshold have revealed, or a dealer's shares do not give
                what it committed to: then nobody can unmask this round.
        """
        self._expect(Phase.REVEALS)
        self._enough(len(self._revealed), "revealed")
        roster, total = self.roster(), self._sum.copy()
        for dealer in self._summed:
            shares = {holder: found.seeds[dealer] for holder, found in self._revealed.items()}
            seed = shamir.join(shares, self._threshold)
            promised = self._dealt[dealer].seed
            if keys.commitment(SEED_ITSELF, self._session, seed) != promised:
                raise InvalidInput(f"dealt.{dealer}", "has shares that are not of its seed")
            total -= self_mask(seed, roster, self._fixed, self._elements)
        for dealer in self._dealt.keys() - self._summed:
            shares = {holder: found.mask_keys[dealer] for holder, found in self._revealed.items()}
            private = shamir.join(shares, self._threshold)
            if keys.public_of(private) != roster.members[dealer].mask:
                raise InvalidInput(f"dealt.{dealer}", "has shares that are not of its mask key")
            for other in self._summed:
                # The survivors' halves of its pairs are left over: its own halves take them away.
                total += pair_mask(private, (dealer, other), roster, self._fixed, self._elements)
        return total

    def _check_share(
        self, kind: bytes, dealer: int, holder: int, share: bytes, promised: bytes
    ) -> None:
        if keys.commitment(kind, self._session, share) != promised:
            raise InvalidInput(
                f"revealed.{holder}", f"has a wrong {kind.decode()} of member {dealer}"
            )

    def _expect(self, phase: Phase) -> None:
        if self._phase != phase:
            raise InvalidInput(
                "phase", f"is {self._phase.name.lower()}; this belongs to {phase.name.lower()}"
            )

    def _enough(self, count: int, field: str) -> None:
        if count < self._threshold:
            raise InvalidInput(field, f"by {count} devices; the threshold is {self._threshold}")


def _put(known: dict[int, MessageT], number: int, message: MessageT, field: str) -> None:
    """The same message again is fine (its sender may not have heard that it arrived)."""
    if not 1 <= number <= MAX_COHORT:
        raise InvalidInput(f"{field}.{number}", f"is not a number of 1 to {MAX_COHORT}")
    if known.setdefault(number, message) != message:
        raise InvalidInput(f"{field}.{number}", "differs from what was sent before")
