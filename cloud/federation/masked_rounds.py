"""What the store does for rounds under masks: take devices' messages, close phases, claim the sum.
Each function is one step of one transaction; see ``database``.

A phase is closed when everybody has spoken that can, or when its time is up; with fewer than the
threshold the round is abandoned, and what was said in it is deleted. Nothing here depends on who
asks: whichever gateway or coordinator comes first closes what is over.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass

from cascade.federation.masked_plan import MaskedPlan
from cascade.federation.masking import SESSION_BYTES, Dealt, Keys
from cascade.federation.plan import RoundPlan
from cascade.federation.terms import PhaseMessage
from cloud.federation import leases, rounds
from cloud.federation.database import Transaction
from cloud.federation.phases import (
    BELONGS,
    ORDER,
    Standing,
    said,
    senders,
    speakers,
    spoke,
    standing,
)
from cloud.federation.refusals import Reason, Refused, count
from cloud.federation.rounds import Round


@dataclass(frozen=True, slots=True)
class Heard:
    """A message that was taken.

    Arguments:
        complete: its phase is closed.
        expires_at: of the device's lease.
    """

    round: Round
    complete: bool
    expires_at: float


@dataclass(frozen=True, slots=True)
class Said:
    """All that devices have said in a round, by device: what the sum is unmasked with.

    Arguments:
        senders: whose masked update is there.
    """

    session: bytes
    keys: dict[str, bytes]
    dealt: dict[str, bytes]
    senders: list[str]
    revealed: dict[str, bytes]


def begin(tx: Transaction, opened: Round) -> None:
    """Make the first phase of a round that was just opened, if its plan asks for masks."""
    if _plan(opened) is None or opened.closes_at is None:
        return
    tx.run(
        "INSERT INTO masked_rounds VALUES (?, ?, ?, ?)",
        opened.number,
        secrets.token_hex(SESSION_BYTES),
        ORDER[0],
        opened.closes_at,
    )


def put(tx: Transaction, message: PhaseMessage, now: float, *, checked: bool) -> Heard:
    """Take a device's message, whose form was looked at before. The same one again is the same.

    Arguments:
        checked: of shares that are revealed: against the phases before, which were closed by then.

    Raises:
        Refused: it does not belong there, and why.
    """
    lease = leases.lease(tx, message.lease_id)
    if lease is None:
        raise _refused(tx, Reason.UNKNOWN_LEASE)
    if lease.device != message.device_id:
        raise _refused(tx, Reason.OTHER_DEVICE)
    if lease.state == "aborted":
        raise _refused(tx, Reason.ABORTED_LEASE)
    of = rounds.round_numbered(tx, lease.round)
    if of is None:
        raise _refused(tx, Reason.UNKNOWN_LEASE)
    at, plan = standing(tx, of.number), _plan(of)
    if at is None or plan is None:
        raise _refused(tx, Reason.NOT_MASKED)
    if (at := advance(tx, of, now)) is None:
        # Others were enough to unmask the sum that its update is in.
        late = rounds.round_numbered(tx, of.number)
        counted = lease.state == "used" and late is not None and late.state != "abandoned"
        if late is not None and counted and message.phase in ("survivors", "unmask"):
            return Heard(late, True, lease.expires_at)
        raise _refused(tx, Reason.LATE)
    if message.phase == "unmask" and not checked:
        raise _refused(tx, Reason.WRONG_PHASE)
    row = tx.one(
        "SELECT payload FROM exchanges WHERE round = ? AND phase = ? AND device = ?",
        of.number,
        message.phase,
        message.device_id,
    )
    if row is not None and bytes(row[0]) != message.payload:
        raise _refused(tx, Reason.SAID_OTHERWISE)
    if row is None:
        _admit(tx, message, at, lease, now)
        if message.phase != "survivors":  # which says nothing
            tx.run(
                "INSERT INTO exchanges VALUES (?, ?, ?, ?)",
                of.number,
                message.phase,
                message.device_id,
                message.payload,
            )
        if message.phase == "advertise_keys":
            _keep_leases(tx, at, plan)
        at = advance(tx, of, now) or at
    now_is = leases.lease(tx, message.lease_id) or lease
    complete = message.phase == "unmask" or at.beyond(BELONGS[message.phase])
    return Heard(of, complete, now_is.expires_at)


def advance(tx: Transaction, of: Round, now: float) -> Standing | None:
    """Close every phase that is over. ``None`` where the round does not collect any more.

    The last phase is closed by ``claim``.
    """
    plan = _plan(of)
    while True:
        at, present = standing(tx, of.number), rounds.round_numbered(tx, of.number)
        if at is None or plan is None or present is None or present.state != "collecting":
            return None
        there, missing = _spoken(tx, at, plan, now)
        if at.phase == "reveals":
            if there >= plan.threshold or now < at.closes_at:
                return at
        elif missing and now < at.closes_at:
            return at
        if there < plan.threshold:
            why = f"{there} devices in the phase of {at.phase}, {plan.threshold} are needed"
            rounds.abandon(tx, of.number, f"{why}; nothing was unmasked", now)
            return None
        phase, closes_at = ORDER[ORDER.index(at.phase) + 1], now + plan.phase_s
        _set(tx, Standing(of.number, at.session, phase, closes_at), plan)


def prolong(tx: Transaction, now: float) -> None:
    """Let the phase of the round that collects wait once more, in full: while nobody was there to
    take messages, no device could be late."""
    current = rounds.collecting(tx)
    if current is None or (plan := _plan(current)) is None:
        return
    at = standing(tx, current.number)
    if at is not None and at.phase != "keys":
        closes_at = max(at.closes_at, now + plan.phase_s)
        _set(tx, Standing(at.round, at.session, at.phase, closes_at), plan)


def claim(tx: Transaction, of: Round, *, token: str, now: float, claim_s: float) -> Round | None:
    """Take a round for aggregation once enough is revealed to unmask its sum."""
    at, plan = advance(tx, of, now), _plan(of)
    if at is None or plan is None or at.phase != "reveals":
        return None
    if len(speakers(tx, of.number, "unmask")) < plan.threshold:
        return None
    updates = tx.run(
        "UPDATE updates SET counted_in = ? WHERE round = ? AND counted_in IS NULL",
        of.number,
        of.number,
    )
    return rounds.begin_aggregation(tx, of.number, updates, token=token, now=now, claim_s=claim_s)


def everything(tx: Transaction, number: int) -> Said | None:
    """All that was said in a round; ``None`` for one without masks."""
    at = standing(tx, number)
    if at is None:
        return None
    return Said(
        at.session,
        said(tx, number, "advertise_keys"),
        said(tx, number, "share_keys"),
        senders(tx, number),
        said(tx, number, "unmask"),
    )


def _admit(
    tx: Transaction, message: PhaseMessage, at: Standing, lease: leases.StoredLease, now: float
) -> None:
    """Whether a device may say something new in the phase of its message."""
    phase = BELONGS[message.phase]
    if at.before(phase):
        raise _refused(tx, Reason.WRONG_PHASE)
    number, device = at.round, message.device_id
    match phase:
        case "keys":
            open_still = lease.state == "open" and lease.expires_at > now
            if not at.beyond(phase) and not open_still:
                raise _refused(tx, Reason.EXPIRED_LEASE)
            mine = _both(message.payload)
            others = said(tx, number, "advertise_keys").values()
            if any(mine & _both(each) for each in others):
                raise _refused(tx, Reason.MALFORMED)
            there = True
        case "shares":
            there = spoke(tx, number, "advertise_keys", device)
            members = len(speakers(tx, number, "advertise_keys"))
            if set(Dealt.from_bytes(message.payload).parcels) != set(range(1, members + 1)):
                raise _refused(tx, Reason.MALFORMED)
        case "vectors":
            there = spoke(tx, number, "share_keys", device)
            if there and at.beyond(phase):
                there = device in senders(tx, number)
        case "reveals":
            there = device in senders(tx, number)
    # A question may come after its phase; anything else would change what was closed.
    if not there or (phase != "vectors" and at.beyond(phase)):
        raise _refused(tx, Reason.DROPPED_OUT)


def _set(tx: Transaction, at: Standing, plan: MaskedPlan) -> None:
    tx.run(
        "UPDATE masked_rounds SET phase = ?, closes_at = ? WHERE round = ?",
        at.phase,
        at.closes_at,
        at.round,
    )
    _keep_leases(tx, at, plan)


def _keep_leases(tx: Transaction, at: Standing, plan: MaskedPlan) -> None:
    """Make the leases of those who take part last as long as the phases may."""
    left = len(ORDER) - 1 - ORDER.index(at.phase)
    expires_at = at.closes_at + left * plan.phase_s
    tx.run(
        "UPDATE leases SET expires_at = ? WHERE round = ? AND state = 'open' AND expires_at < ? "
        "AND device IN (SELECT device FROM exchanges WHERE round = ? AND phase = ?)",
        expires_at,
        at.round,
        expires_at,
        at.round,
        "advertise_keys",
    )


def _spoken(tx: Transaction, at: Standing, plan: MaskedPlan, now: float) -> tuple[int, bool]:
    """How many have spoken in the phase, and whether it waits for somebody."""
    match at.phase:
        case "keys":
            there = len(speakers(tx, at.round, "advertise_keys"))
            return there, there < plan.cohort
        case "shares":
            ready, spoken = "advertise_keys", speakers(tx, at.round, "share_keys")
        case "vectors":
            ready, spoken = "share_keys", senders(tx, at.round)
        case "reveals":
            return len(speakers(tx, at.round, "unmask")), True
    rows = tx.all(
        "SELECT device FROM leases WHERE round = ? AND state = 'open' AND expires_at > ? "
        "AND device IN (SELECT device FROM exchanges WHERE round = ? AND phase = ?)",
        at.round,
        now,
        at.round,
        ready,
    )
    return len(spoken), bool({str(row[0]) for row in rows} - set(spoken))


def _both(payload: bytes) -> set[bytes]:
    keys = Keys.from_bytes(payload)
    return {keys.cipher, keys.mask}


def _plan(of: Round) -> MaskedPlan | None:
    return RoundPlan.from_bytes(of.plan.encode()).masked


def _refused(tx: Transaction, reason: Reason) -> Refused:
    count(tx, f"refused.{reason}")
    return Refused(reason)
