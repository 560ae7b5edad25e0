"""What the store does for rounds: open, claim, finish, decide. Each function is one step of one
transaction; see ``database``.

    collecting → aggregating → waiting → approved
                     ↓            ↘ rejected
                 abandoned (also from collecting)

A claim marks the updates that a round counts in the same step that ends its collecting, so that a
coordinator that dies while it computes leaves a round that the next one computes again, from the
same updates. Whoever's claim was taken over finishes nothing.
"""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass
from typing import Final, Literal, cast

from cascade.errors import InvalidInput, NotFound
from cascade.federation.plan import RoundPlan
from cloud.federation.database import Row, Transaction
from cloud.federation.privacy import Cost
from cloud.federation.refusals import count

RoundState = Literal["collecting", "aggregating", "waiting", "approved", "rejected", "abandoned"]

_COLUMNS: Final = (
    "number, state, base_digest, adapter_digest, adapter_version, plan, opened_at, closes_at, "
    "closed_at, claim, claimed_until, counted, candidate_digest, candidate_version, "
    "aggregation_error, note, noise_multiplier, delta, epsilon_before, epsilon_after, goal"
)


@dataclass(frozen=True, slots=True)
class Round:
    """One round.

    Arguments:
        adapter_digest, adapter_version: what devices start from.
        plan: JSON.
        closes_at: of a synchronous round: no update later.
        claim, claimed_until: who aggregates, and until when others leave it alone.
        counted: updates that it counts, known once it aggregates.
        candidate_digest, candidate_version: the adapter that came of it.
        aggregation_error: relative error of the aggregation, where the strategy knows it.
        note: of the gate or the aggregation, for people.
        noise_multiplier, delta: of differential privacy; ``None`` without noise.
        epsilon_before, epsilon_after: what the fleet had spent when the round was opened, and will
            have once it has ended; ``None`` where nobody could compute it.
        goal: updates that end it, one of each device; ``None`` where an older version opened it.
    """

    number: int
    state: RoundState
    base_digest: str
    adapter_digest: str
    adapter_version: int
    plan: str
    opened_at: float
    closes_at: float | None
    closed_at: float | None
    claim: str | None
    claimed_until: float | None
    counted: int
    candidate_digest: str | None
    candidate_version: int | None
    aggregation_error: float | None
    note: str
    noise_multiplier: float | None = None
    delta: float | None = None
    epsilon_before: float | None = None
    epsilon_after: float | None = None
    goal: int | None = None


@dataclass(frozen=True, slots=True)
class StoredUpdate:
    """An update that a round counts.

    Arguments:
        adapter_version: of the adapter that it started from.
        gap: versions served since, as ``served_since`` counts them.
    """

    lease_id: str
    device: str
    adapter_version: int
    examples: int
    payload: bytes
    gap: int = 0


@dataclass(frozen=True, slots=True)
class Start:
    """What a round starts from; ``optimiser`` is the server optimiser's state."""

    adapter_digest: str
    adapter_version: int
    optimiser: bytes


@dataclass(frozen=True, slots=True)
class Noise:
    """Of a round: its multiplier, ``None`` for none, and what it makes of ε where that is known."""

    multiplier: float | None = None
    delta: float = 1e-5
    cost: Cost | None = None


_MOMENTS: Final = 8
"""Approved rounds of which the server optimiser's state is kept: an adapter that is rolled back is
seldom further behind."""
BARE: Final = Noise()
"""Of a round without any."""


def collecting(tx: Transaction) -> Round | None:
    """The round that takes devices now."""
    return _one(tx, "state = 'collecting'")


def taking(tx: Transaction, *, synchronous: bool, unapproved: bool) -> Round | None:
    """The round that devices begin in now. An asynchronous one goes on while its updates are
    aggregated, and until the next one opens where that waits for nobody: what comes meanwhile
    counts in the next, and no device is sent away."""
    found = latest(tx)
    states: list[RoundState] = ["collecting"]
    if not synchronous:
        states += ["aggregating", "waiting"] if unapproved else ["aggregating"]
    return found if found is not None and found.state in states else None


def under_way(tx: Transaction) -> bool:
    """Whether a round collects or aggregates."""
    return _one(tx, "state IN ('collecting', 'aggregating')") is not None


def round_numbered(tx: Transaction, number: int) -> Round | None:
    """A round by its number."""
    row = tx.one(f"SELECT {_COLUMNS} FROM rounds WHERE number = ?", number)
    return None if row is None else _round(row)


def latest(tx: Transaction) -> Round | None:
    """The round that was opened last."""
    return _one(tx, "1 = 1")


def in_state(tx: Transaction, state: RoundState) -> list[Round]:
    """All rounds in a state, oldest first."""
    rows = tx.all(f"SELECT {_COLUMNS} FROM rounds WHERE state = ? ORDER BY number", state)
    return [_round(row) for row in rows]


def recent(tx: Transaction, most: int) -> list[Round]:
    """The last rounds, newest first."""
    rows = tx.all(f"SELECT {_COLUMNS} FROM rounds ORDER BY number DESC LIMIT ?", most)
    return [_round(row) for row in rows]


def uncounted(tx: Transaction) -> int:
    """Updates that have come and are in no round yet: those of the round that collects."""
    row = tx.one("SELECT COUNT(*) FROM updates WHERE counted_in IS NULL")
    return 0 if row is None else int(row[0])


def served_since(tx: Transaction, number: int, version: int) -> int:
    """How many versions devices were told to start from after the one that a round served: how far
    an update is behind. Those that were never served have numbers, and nobody moved on to them."""
    row = tx.one(
        "SELECT COUNT(DISTINCT adapter_version) FROM rounds "
        "WHERE number > ? AND adapter_version > ?",
        number,
        version,
    )
    return 0 if row is None else int(row[0])


def highest_served(tx: Transaction) -> int:
    """The highest version that devices were ever told to start from; 0 before the first round."""
    row = tx.one("SELECT MAX(adapter_version) FROM rounds")
    return 0 if row is None or row[0] is None else int(row[0])


def next_version(tx: Transaction, at_least: int) -> int:
    """A version that no adapter of this federation has had, those that were rejected included."""
    row = tx.one("SELECT MAX(adapter_version), MAX(candidate_version) FROM rounds")
    seen = [int(value) for value in row or () if value is not None]
    return max([at_least, *seen]) + 1


def start(tx: Transaction, base_digest: str, first: Start, *, unapproved: bool) -> Start | None:
    """What the next round starts from; ``None`` while the gate has not decided.

    Arguments:
        first: for a federation without rounds on this base.
        unapproved: start from candidates that wait for the gate, too.
    """
    waiting = [each for each in in_state(tx, "waiting") if each.base_digest == base_digest]
    if waiting and not unapproved:
        return None
    states = "('approved', 'waiting')" if unapproved else "('approved')"
    row = tx.one(
        "SELECT candidate_digest, candidate_version, optimiser FROM rounds "
        f"WHERE state IN {states} AND base_digest = ? ORDER BY number DESC LIMIT 1",
        base_digest,
    )
    if row is None:
        return first
    return Start(str(row[0]), int(row[1]), bytes(row[2] or b""))


def open_round(
    tx: Transaction,
    base_digest: str,
    begins: Start,
    plan: str,
    *,
    now: float,
    closes_at: float | None,
    goal: int | None = None,
    noise: Noise = BARE,
) -> Round | None:
    """Open the next round; ``None`` where one collects or aggregates already. What devices of
    another base sent, or still may, counts in no round any more."""
    if under_way(tx):
        return None
    before = latest(tx)
    if before is not None and before.base_digest != base_digest:
        foreign = "round IN (SELECT number FROM rounds WHERE base_digest <> ?)"
        _drop(tx, f"counted_in IS NULL AND {foreign}", base_digest)
        void_leases(tx, foreign, base_digest)
    number = 1 if before is None else before.number + 1
    tx.run(
        "INSERT INTO rounds (number, state, base_digest, adapter_digest, adapter_version, plan, "
        "opened_at, closes_at, goal, optimiser, noise_multiplier, delta, epsilon_before, "
        "epsilon_after) VALUES (?, 'collecting', ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        number,
        base_digest,
        begins.adapter_digest,
        begins.adapter_version,
        plan,
        now,
        closes_at,
        goal,
        begins.optimiser,
        *_told(noise),
    )
    return round_numbered(tx, number)


def abandon_others(tx: Transaction, base_digest: str, now: float) -> None:
    """Abandon the round that takes devices, if they are of another base than rounds are now, or if
    an older version opened it with a plan that this one does not carry out."""
    current = collecting(tx)
    if current is None:
        return
    if current.base_digest != base_digest:
        abandon(tx, current.number, "the federation's adapter is of another base now", now)
    try:
        RoundPlan.from_bytes(current.plan.encode())
    except InvalidInput as problem:
        abandon(tx, current.number, f"its plan is not carried out any more: {problem}", now)


def expect(tx: Transaction, goal: int) -> None:
    """Note the goal of the round that collects: a configuration may have changed it."""
    tx.run("UPDATE rounds SET goal = ? WHERE state = 'collecting'", goal)


def claim(
    tx: Transaction,
    *,
    goal: int,
    minimum: int,
    synchronous: bool,
    token: str,
    now: float,
    claim_s: float,
) -> Round | None:
    """Take the collecting round for aggregation if it is over; its updates are counted now.

    A synchronous round is over at its goal or its deadline; at the deadline with fewer updates than
    ``minimum`` it is abandoned. An asynchronous one is over at its goal.
    """
    current = collecting(tx)
    if current is None:
        return None
    mine, values = ("round = ? AND ", (current.number,)) if synchronous else ("", ())
    row = tx.one(f"SELECT COUNT(*) FROM updates WHERE {mine}counted_in IS NULL", *values)
    there = int(row[0]) if row else 0
    ended = current.closes_at is not None and now >= current.closes_at
    if there < goal and not ended:
        return None
    if there < minimum:
        abandon(tx, current.number, f"{there} updates at the deadline, {minimum} are needed", now)
        return None
    tx.run(
        "UPDATE updates SET counted_in = ? WHERE lease IN "
        f"(SELECT lease FROM updates WHERE {mine}counted_in IS NULL ORDER BY place LIMIT ?)",
        current.number,
        *values,
        goal,
    )
    return begin_aggregation(
        tx, current.number, min(there, goal), token=token, now=now, claim_s=claim_s
    )


def begin_aggregation(
    tx: Transaction, number: int, updates: int, *, token: str, now: float, claim_s: float
) -> Round | None:
    """End a round's collecting, and claim it, with so many updates that are marked as its own."""
    tx.run(
        "UPDATE rounds SET state = 'aggregating', claim = ?, claimed_until = ?, closed_at = ?, "
        "counted = ?, noise_seed = ? WHERE number = ?",
        token,
        now + claim_s,
        now,
        updates,
        secrets.token_hex(32),
        number,
    )
    return round_numbered(tx, number)


def take_over(tx: Transaction, *, token: str, now: float, claim_s: float) -> Round | None:
    """Take a round whose aggregation was begun and never finished; its updates stay the same."""
    found = _one(tx, "state = 'aggregating'")
    if found is None:
        return None
    mine = found.claim == token
    if not mine and found.claimed_until is not None and found.claimed_until > now:
        return None
    tx.run(
        "UPDATE rounds SET claim = ?, claimed_until = ? WHERE number = ?",
        token,
        now + claim_s,
        found.number,
    )
    return round_numbered(tx, found.number)


def release_claims(tx: Transaction) -> None:
    """Let go of what another coordinator had claimed: it is known to be gone."""
    tx.run("UPDATE rounds SET claimed_until = NULL WHERE state = 'aggregating'")


def counted(tx: Transaction, number: int) -> list[StoredUpdate]:
    """The updates that a round counts, in the order in which they were committed."""
    rows = tx.all(
        "SELECT lease, device, adapter_version, examples, payload, round FROM updates "
        "WHERE counted_in = ? ORDER BY place",
        number,
    )
    gaps = {of: served_since(tx, *of) for of in {(int(row[5]), int(row[2])) for row in rows}}
    return [
        StoredUpdate(
            str(row[0]),
            str(row[1]),
            int(row[2]),
            int(row[3]),
            bytes(row[4]),
            gaps[int(row[5]), int(row[2])],
        )
        for row in rows
    ]


def served(tx: Transaction) -> dict[int, str]:
    """Digest of the adapter that devices started from, by its version."""
    rows = tx.all("SELECT DISTINCT adapter_version, adapter_digest FROM rounds")
    return {int(version): str(digest) for version, digest in rows}


def optimiser_state(tx: Transaction, number: int) -> bytes:
    """The server optimiser's state that a round started with."""
    row = tx.one("SELECT optimiser FROM rounds WHERE number = ?", number)
    return b"" if row is None or row[0] is None else bytes(row[0])


def forget_moments(tx: Transaction) -> None:
    """Delete the server optimiser's state of rounds that nothing starts from any more. Where more
    than ``_MOMENTS`` approved rounds are taken back, the optimiser begins anew."""
    tx.run(
        "UPDATE rounds SET optimiser = NULL WHERE optimiser IS NOT NULL "
        "AND state IN ('rejected', 'abandoned')"
    )
    for (base,) in tx.all("SELECT DISTINCT base_digest FROM rounds"):
        last = tx.one(
            "SELECT number FROM rounds WHERE state = 'approved' AND base_digest = ? "
            f"ORDER BY number DESC LIMIT 1 OFFSET {_MOMENTS - 1}",
            base,
        )
        if last is not None:
            tx.run(
                "UPDATE rounds SET optimiser = NULL WHERE optimiser IS NOT NULL "
                "AND state = 'approved' AND base_digest = ? AND number < ?",
                base,
                last[0],
            )


def noise_seed(tx: Transaction, number: int) -> str:
    """A secret of a round that is aggregated, gone when it has ended."""
    row = tx.one("SELECT noise_seed FROM rounds WHERE number = ?", number)
    return "" if row is None else str(row[0])


def finish(
    tx: Transaction,
    number: int,
    *,
    token: str,
    candidate_digest: str,
    candidate_version: int,
    optimiser: bytes,
    aggregation_error: float | None,
    noise: Noise = BARE,
    note: str,
) -> bool:
    """End a round with its candidate. What devices sent is deleted: only the sum is kept. Returns
    whether it was still this coordinator's to end."""
    done = tx.run(
        "UPDATE rounds SET state = 'waiting', claim = NULL, claimed_until = NULL, noise_seed = '', "
        "candidate_digest = ?, candidate_version = ?, optimiser = ?, aggregation_error = ?, "
        "note = ?, noise_multiplier = ?, delta = ?, epsilon_before = ?, epsilon_after = ? "
        "WHERE number = ? AND state = 'aggregating' AND claim = ?",
        candidate_digest,
        candidate_version,
        optimiser,
        aggregation_error,
        note,
        *_told(noise),
        number,
        token,
    )
    if done:
        tx.run("UPDATE updates SET payload = NULL WHERE counted_in = ?", number)
        tx.run("DELETE FROM exchanges WHERE round = ?", number)
        count(tx, "rounds")
    return bool(done)


def abandon(tx: Transaction, number: int, why: str, now: float) -> None:
    """End a round without a candidate; its updates are dropped. One that is over stays as it is."""
    ended = tx.run(
        "UPDATE rounds SET state = 'abandoned', claim = NULL, claimed_until = NULL, "
        "noise_seed = '', closed_at = COALESCE(closed_at, ?), note = ? WHERE number = ? "
        "AND state IN ('collecting', 'aggregating')",
        now,
        why,
        number,
    )
    if not ended:
        return
    _drop(tx, "counted_in = ? OR (counted_in IS NULL AND round = ?)", number, number)
    tx.run("DELETE FROM exchanges WHERE round = ?", number)
    count(tx, "abandoned")


def drop_late(tx: Transaction) -> int:
    """Of synchronous rounds: drop what was committed beyond the goal of a round that is over.
    Returns how many."""
    return _drop(
        tx,
        "counted_in IS NULL AND round IN (SELECT number FROM rounds WHERE state <> 'collecting')",
    )


def drop_stale(tx: Transaction, max_gap: int) -> int:
    """Of asynchronous rounds: drop what waited until it was too old. Returns how many."""
    waiting = tx.all("SELECT DISTINCT round, adapter_version FROM updates WHERE counted_in IS NULL")
    return sum(
        _drop(tx, "counted_in IS NULL AND round = ?", number)
        for number, version in waiting
        if served_since(tx, number, version) > max_gap
    )


def void_leases(tx: Transaction, where: str, *values: int | float | str) -> int:
    """Let open leases be good for nothing any more, and keep nothing that was uploaded for them.
    Returns how many."""
    open_ones = f"state = 'open' AND {where}"
    tx.run(f"DELETE FROM pieces WHERE lease IN (SELECT id FROM leases WHERE {open_ones})", *values)
    voided = tx.run(f"UPDATE leases SET state = 'expired' WHERE {open_ones}", *values)
    if voided:
        count(tx, "expired", voided)
    return voided


def _drop(tx: Transaction, where: str, *values: int | str) -> int:
    """Let updates count in no round; their receipts stay. Returns how many."""
    dropped = tx.run(f"UPDATE updates SET payload = NULL, counted_in = 0 WHERE {where}", *values)
    if dropped:
        count(tx, "dropped", dropped)
    return dropped


def decide(
    tx: Transaction, number: int, *, approved: bool, note: str = "", now: float | None = None
) -> Round:
    """The gate's word on a candidate. The same word again changes nothing. With one that is
    rejected goes every round that started from it, as in ``withdraw``.

    Arguments:
        now: by default this machine's time.

    Raises:
        NotFound: there is no such round.
        InvalidInput: its candidate does not wait for one.
    """
    found = round_numbered(tx, number)
    if found is None:
        raise NotFound(f"there is no round {number}")
    state: RoundState = "approved" if approved else "rejected"
    if found.state != state:
        if found.state != "waiting":
            raise InvalidInput("round", f"{number} is {found.state}; only a waiting one is decided")
        tx.run(
            "UPDATE rounds SET state = ?, note = ? WHERE number = ?",
            state,
            note,  # not what it waited for until now
            number,
        )
        count(tx, state)
        if not approved and found.candidate_digest is not None:
            why = f"round {number}, which it goes back to, was rejected"
            _end_after(tx, found.candidate_digest, why, time.time() if now is None else now)
    return cast(Round, round_numbered(tx, number))


def withdraw(tx: Transaction, candidate_digest: str, why: str, now: float) -> None:
    """Reject a candidate that was approved, with every round that started from it or from what came
    of it: nothing goes on from there."""
    _reject(tx, candidate_digest, why)
    _end_after(tx, candidate_digest, why, now)


def _end_after(tx: Transaction, candidate_digest: str, why: str, now: float) -> None:
    """End every round that started from a candidate, or from what came of it. What devices have
    learned from it, and still learn, counts in no other."""
    gone = [candidate_digest]
    while gone:
        digest = gone.pop()
        of = "round IN (SELECT number FROM rounds WHERE adapter_digest = ?)"
        _drop(tx, f"counted_in IS NULL AND {of}", digest)
        void_leases(tx, of, digest)
        for row in tx.all(
            f"SELECT {_COLUMNS} FROM rounds WHERE adapter_digest = ? "
            "AND state NOT IN ('rejected', 'abandoned')",
            digest,
        ):
            child = _round(row)
            abandon(tx, child.number, why, now)
            if child.candidate_digest is not None:
                _reject(tx, child.candidate_digest, why)
                gone.append(child.candidate_digest)


def _reject(tx: Transaction, candidate_digest: str, why: str) -> None:
    tx.run(
        "UPDATE rounds SET state = 'rejected', note = ? WHERE candidate_digest = ? "
        "AND state IN ('approved', 'waiting')",
        why,
        candidate_digest,
    )


def remark(tx: Transaction, number: int, note: str) -> None:
    """Say why a candidate still waits, for people."""
    tx.run("UPDATE rounds SET note = ? WHERE number = ? AND state = 'waiting'", note, number)


def _told(noise: Noise) -> tuple[float | None, ...]:
    if noise.multiplier is None:
        return None, None, None, None
    if noise.cost is None:
        return noise.multiplier, noise.delta, None, None
    return noise.multiplier, noise.delta, noise.cost.before, noise.cost.after


def _one(tx: Transaction, where: str) -> Round | None:
    row = tx.one(f"SELECT {_COLUMNS} FROM rounds WHERE {where} ORDER BY number DESC LIMIT 1")
    return None if row is None else _round(row)


def _round(row: Row) -> Round:
    return Round(*row)
