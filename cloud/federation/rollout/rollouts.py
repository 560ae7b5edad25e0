"""What the store does for rollouts. Each function is one step of one transaction.

    starting → canary → promoting → promoted
        ↓         ↓  ↘               ↓ (an operator)
      failed      ↓   returning → rolled_back
              superseded

The word comes first, the channel is changed after it, and then it is noted that this was done: a
coordinator that dies in between finds the word, and the channel says whether it was done.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Final, Literal, cast

from cascade.errors import InvalidInput, NotFound
from cloud.federation.database import Row, Transaction
from cloud.federation.gate import judgements
from cloud.federation.refusals import count
from cloud.federation.rollout import counts

RolloutState = Literal[
    "starting",
    "canary",
    "promoting",
    "promoted",
    "returning",
    "rolled_back",
    "failed",
    "superseded",
    "skipped",
]
ACTIVE: Final = ("starting", "canary", "promoting", "returning")

_COLUMNS: Final = (
    "round, state, channel, candidate_digest, parent_digest, policies, percent, started_at, "
    "ended_at, revision, note"
)


@dataclass(frozen=True, slots=True)
class StoredRollout:
    """One rollout.

    Arguments:
        round: whose candidate it is.
        parent_digest: of the adapter that the channel served before; "" for none.
        policies: digests of those that were certified for the candidate.
        percent: of the channel's devices that get it first.
        started_at, ended_at: seconds since 1970.
        revision: of the channel, after its last change for this rollout.
        note: why it stands as it does, in a line.
    """

    round: int
    state: RolloutState
    channel: str
    candidate_digest: str
    parent_digest: str
    policies: tuple[str, ...]
    percent: int
    started_at: float
    ended_at: float | None
    revision: int | None
    note: str


def active(tx: Transaction) -> StoredRollout | None:
    """The rollout under way."""
    places = ", ".join("?" for _ in ACTIVE)
    row = tx.one(
        f"SELECT {_COLUMNS} FROM rollouts WHERE state IN ({places}) ORDER BY round LIMIT 1", *ACTIVE
    )
    return None if row is None else _rollout(row)


def of_round(tx: Transaction, number: int) -> StoredRollout | None:
    """The rollout of a round's candidate."""
    row = tx.one(f"SELECT {_COLUMNS} FROM rollouts WHERE round = ?", number)
    return None if row is None else _rollout(row)


def latest(tx: Transaction) -> StoredRollout | None:
    """The last one that was not skipped."""
    row = tx.one(
        f"SELECT {_COLUMNS} FROM rollouts WHERE state <> 'skipped' ORDER BY round DESC LIMIT 1"
    )
    return None if row is None else _rollout(row)


def begin(
    tx: Transaction, *, channel: str, parent_digest: str, percent: int, now: float
) -> StoredRollout | None:
    """Begin with the newest approved candidate that was not rolled out yet; older ones are skipped.
    ``None`` where there is none, or one is under way."""
    if active(tx) is not None:
        return None
    rows = tx.all(
        "SELECT number, candidate_digest FROM rounds WHERE state = 'approved' "
        "AND number > COALESCE((SELECT MAX(round) FROM rollouts), 0) ORDER BY number"
    )
    if not rows:
        return None
    counts.clear(tx)
    for row in rows:
        number, candidate = int(row[0]), str(row[1])
        judged = judgements.of(tx, candidate)
        _insert(
            tx,
            number,
            "starting" if row is rows[-1] else "skipped",
            candidate,
            channel=channel,
            parent=parent_digest,
            policies=() if judged is None else judged.policies,
            percent=percent,
            now=now,
        )
    return active(tx)


def move(
    tx: Transaction,
    number: int,
    state: RolloutState,
    *,
    note: str,
    now: float,
    revision: int | None = None,
) -> None:
    """Note where a rollout stands now."""
    ended = state not in ACTIVE
    tx.run(
        "UPDATE rollouts SET state = ?, note = ?, ended_at = ?, "
        "revision = COALESCE(?, revision) WHERE round = ?",
        state,
        note,
        now if ended else None,
        revision,
        number,
    )
    if ended:
        count(tx, f"rollouts.{state}")


def remark(tx: Transaction, number: int, note: str) -> None:
    """Say what it waits for, for people."""
    tx.run("UPDATE rollouts SET note = ? WHERE round = ? AND state = 'canary'", note, number)


def order(tx: Transaction, *, promote: bool, note: str, now: float) -> StoredRollout:
    """An operator's word on the last rollout; the coordinator does it. The same word again changes
    nothing.

    Raises:
        NotFound: there was no rollout.
        InvalidInput: it stands where this cannot be done.
    """
    found = latest(tx)
    if found is None:
        raise NotFound("there was no rollout; `cascade federation rounds` lists what is approved")
    asked: RolloutState = "promoting" if promote else "returning"
    done: RolloutState = "promoted" if promote else "rolled_back"
    if found.state not in (asked, done):
        allowed = ("canary",) if promote else ("canary", "promoted")
        if found.state not in allowed:
            raise InvalidInput(
                "rollout", f"of round {found.round} is {found.state}, not {' or '.join(allowed)}"
            )
        move(tx, found.round, asked, note=note or "an operator's word", now=now)
    return cast(StoredRollout, of_round(tx, found.round))


def _insert(
    tx: Transaction,
    number: int,
    state: RolloutState,
    candidate: str,
    *,
    channel: str,
    parent: str,
    policies: tuple[str, ...],
    percent: int,
    now: float,
) -> None:
    tx.run(
        "INSERT INTO rollouts (round, state, channel, candidate_digest, parent_digest, policies, "
        "percent, started_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        number,
        state,
        channel,
        candidate,
        parent,
        json.dumps(policies),
        percent,
        now,
    )


def _rollout(row: Row) -> StoredRollout:
    values = list(row)
    values[5] = tuple(json.loads(values[5]))
    return StoredRollout(*values)
