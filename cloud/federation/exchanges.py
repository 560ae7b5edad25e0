"""Messages of secure aggregation, carried between the devices of a synchronous round. What they
hold is opaque here; each function is one step of one transaction, see ``database``.

Every device of the round tells every other the same bytes: a share that is meant for one device
alone is sealed for it inside of them. A phase is complete once the cohort is full, at least
``minimum`` devices have spoken, and nobody with a good lease is still to speak.
"""

from __future__ import annotations

from cascade.errors import InvalidInput
from cascade.federation.terms import PhaseMessage
from cloud.federation import leases
from cloud.federation.config import FederationConfig
from cloud.federation.database import Transaction
from cloud.federation.refusals import Reason, Refused, count


def put(
    tx: Transaction, message: PhaseMessage, config: FederationConfig, now: float
) -> tuple[tuple[str, bytes], ...] | None:
    """Keep a device's message; the messages of all once the phase is complete, else ``None``.

    Raises:
        InvalidInput: the rounds here are not synchronous, or the device said something else before.
        Refused: the lease is not good.
    """
    if config.mode != "synchronous":
        raise InvalidInput("phase", "belongs to synchronous rounds; those here are not")
    found = leases.lease(tx, message.lease_id)
    # A used lease is fine: unmasking follows the upload.
    if found is None or found.device != message.device_id or found.state == "aborted":
        count(tx, f"refused.{Reason.UNKNOWN_LEASE}")
        raise Refused(Reason.UNKNOWN_LEASE)
    place = (found.round, message.phase, message.device_id)
    row = tx.one(
        "SELECT payload FROM exchanges WHERE round = ? AND phase = ? AND device = ?", *place
    )
    if row is None:
        tx.run("INSERT INTO exchanges VALUES (?, ?, ?, ?)", *place, message.payload)
    elif bytes(row[0]) != message.payload:
        raise InvalidInput("payload", "differs from what this device said in the phase before")
    said = tx.all(
        "SELECT device, payload FROM exchanges WHERE round = ? AND phase = ? ORDER BY device",
        found.round,
        message.phase,
    )
    states = "('used')" if message.phase == "unmask" else "('open', 'used')"
    waited = tx.one(
        f"SELECT COUNT(*) FROM leases WHERE round = ? AND state IN {states} AND expires_at > ? "
        "AND device NOT IN (SELECT device FROM exchanges WHERE round = ? AND phase = ?)",
        found.round,
        now,
        found.round,
        message.phase,
    )
    given = tx.one("SELECT COUNT(*) FROM leases WHERE round = ?", found.round)
    full = given is not None and int(given[0]) >= config.leases
    complete = full and len(said) >= config.minimum and (waited is None or int(waited[0]) == 0)
    return tuple((str(each[0]), bytes(each[1])) for each in said) if complete else None
