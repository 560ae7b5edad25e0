"""Where a round under masks stands, and what its devices have said so far: reads of the store.

    keys → shares → vectors → reveals

A round of which nothing is here is one in the clear. In ``keys`` devices train, and say when they
are ready; the order of their names then is their number, from 1. What each phase was closed with is
what the next one goes by: nothing is added to a phase that is over.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

from cascade.federation.terms import Phase
from cloud.federation.database import Transaction

MaskedPhase = Literal["keys", "shares", "vectors", "reveals"]
ORDER: Final[tuple[MaskedPhase, ...]] = ("keys", "shares", "vectors", "reveals")

BELONGS: Final[Mapping[Phase, MaskedPhase]] = {
    "advertise_keys": "keys",
    "share_keys": "shares",
    "survivors": "vectors",
    "unmask": "reveals",
}
"""The phase that a device's message belongs to."""


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a round is.

    Arguments:
        session: 32 bytes that name the round to its devices.
        closes_at: when the phase ends, whoever is missing.
    """

    round: int
    session: bytes
    phase: MaskedPhase
    closes_at: float

    def beyond(self, phase: MaskedPhase) -> bool:
        """Whether a phase is over."""
        return ORDER.index(self.phase) > ORDER.index(phase)

    def before(self, phase: MaskedPhase) -> bool:
        """Whether a phase is still to come."""
        return ORDER.index(self.phase) < ORDER.index(phase)


def standing(tx: Transaction, number: int) -> Standing | None:
    """Where a round is; ``None`` for one without masks."""
    row = tx.one("SELECT session, phase, closes_at FROM masked_rounds WHERE round = ?", number)
    if row is None:
        return None
    return Standing(number, bytes.fromhex(str(row[0])), row[1], float(row[2]))


def said(tx: Transaction, number: int, phase: Phase) -> dict[str, bytes]:
    """What devices have said in a phase, by device, in the order of their names."""
    rows = tx.all(
        "SELECT device, payload FROM exchanges WHERE round = ? AND phase = ? ORDER BY device",
        number,
        phase,
    )
    return {str(device): bytes(payload) for device, payload in rows}


def speakers(tx: Transaction, number: int, phase: Phase) -> list[str]:
    """Who has spoken in a phase, by name."""
    rows = tx.all(
        "SELECT device FROM exchanges WHERE round = ? AND phase = ? ORDER BY device", number, phase
    )
    return [str(row[0]) for row in rows]


def spoke(tx: Transaction, number: int, phase: Phase, device: str) -> bool:
    """Whether a device has spoken in a phase."""
    found = tx.one(
        "SELECT 1 FROM exchanges WHERE round = ? AND phase = ? AND device = ?",
        number,
        phase,
        device,
    )
    return found is not None


def senders(tx: Transaction, number: int) -> list[str]:
    """Whose masked update is there, by name."""
    rows = tx.all("SELECT device FROM updates WHERE round = ? ORDER BY device", number)
    return [str(row[0]) for row in rows]
