"""What the store does for devices: enrol, lease, pieces, commit, abort. Each function is one step
of one transaction; see ``database``. Times are seconds since 1970 by the coordinator's clock.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

from cascade.federation.terms import (
    AbortReason,
    CheckIn,
    MetricsReport,
    NoLease,
    Receipt,
    UploadHeader,
)
from cloud.federation import budget, phases
from cloud.federation.config import FederationConfig
from cloud.federation.database import Row, Transaction
from cloud.federation.refusals import Reason, Refused, count, count_all
from cloud.federation.rollout import counts
from cloud.federation.rounds import (
    Round,
    round_numbered,
    served_since,
    taking,
    uncounted,
    void_leases,
)

LeaseState = Literal["open", "used", "aborted", "expired"]

_LEASE_COLUMNS: Final = "id, device, round, adapter_version, issued_at, expires_at, state"
_HOUR_S: Final = 3600.0
_ROUNDING_S: Final = 1e-3
_MOST_COUNTED: Final = 2**53
"""Where a count of the fleet's stays: no report overflows the store's integers."""
_MOST_REPORTED: Final = 20_000
"""Names and buckets of the fleet's counts: no device fills the store with names of its own."""
_BUFFERED_GOALS: Final = 4
"""Updates that wait uncounted, in goals of a round, before no more are taken."""
# From the device's leases on, of which there are few: a store may choose all updates else.
_UPDATES_OF_DEVICE: Final = (
    "FROM leases CROSS JOIN updates WHERE leases.device = ? AND updates.lease = leases.id"
)


@dataclass(frozen=True, slots=True)
class StoredLease:
    """A lease as the store has it."""

    lease_id: str
    device: str
    round: int
    adapter_version: int
    issued_at: float
    expires_at: float
    state: LeaseState


@dataclass(frozen=True, slots=True)
class Granted:
    """A lease with the round that it is for."""

    lease: StoredLease
    round: Round


@dataclass(frozen=True, slots=True)
class NotNow:
    """No lease, why, and for how many seconds there will be none."""

    reason: NoLease
    wait_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Partial:
    """Pieces of an upload that are kept: how many bytes, of which payload."""

    offset: int = 0
    sha256: str = ""


def enrol(
    tx: Transaction,
    device_id: str,
    key: bytes,
    attested: str,
    now: float,
    *,
    caller: str = "",
    per_hour: int | None = None,
) -> None:
    """Make a device known; one that is known stays as it is, and costs its caller nothing.

    Arguments:
        caller: whose API key, token or certificate brought it.
        per_hour: devices that a caller may bring, at once or one after the other.

    Raises:
        Refused: it has brought too many; ``retry_after_s`` says when the next one may come.
    """
    if per_hour is not None and public_key(tx, device_id) is None:
        _spend(tx, caller, per_hour, now)
    added = tx.run(
        "INSERT INTO devices VALUES (?, ?, ?, ?, NULL) ON CONFLICT (id) DO NOTHING",
        device_id,
        key,
        attested,
        now,
    )
    if added:
        count(tx, "enrolled")


def enrolled(tx: Transaction) -> int:
    """How many devices are known."""
    row = tx.one("SELECT COUNT(*) FROM devices")
    return 0 if row is None else int(row[0])


def public_key(tx: Transaction, device_id: str) -> bytes | None:
    """The key that a device enrolled with."""
    row = tx.one("SELECT public_key FROM devices WHERE id = ?", device_id)
    return None if row is None else bytes(row[0])


def check_in(
    tx: Transaction, asked: CheckIn, config: FederationConfig, coordinator_id: str, now: float
) -> Granted | NotNow:
    """Give a device a lease where one is to be had. The same request gets the same lease, and a
    device has one open lease at the most."""
    request = asked.request_id.hex()
    current = taking(
        tx,
        synchronous=config.mode == "synchronous",
        unapproved=config.start_from == "candidate",
    )
    # Whether it is open is looked at here: asked for it, a store reads all that are open.
    mine = tx.all(
        f"SELECT {_LEASE_COLUMNS}, request FROM leases WHERE device = ? "
        "AND (expires_at > ? OR request = ? OR round = ? OR state = 'open') "
        "ORDER BY issued_at DESC",
        asked.device_id,
        now,
        request,
        current.number if current is not None else -1,
    )
    had = [_lease(row) for row in mine]
    open_ones = [each for each in had if each.state == "open"]
    lease = next((each for each in open_ones if each.expires_at > now), None)
    if lease is not None:
        for_round = round_numbered(tx, lease.round)
        if for_round is not None and _still_good(tx, lease, current, config):
            return Granted(lease, for_round)
    for each in open_ones:
        # Its update would not be taken any more, or its time is up: here, and perhaps not yet by
        # another gateway's clock.
        void_leases(tx, "id = ?", each.lease_id)
    if current is None:
        if budget.standing_still(tx) is not None:
            return NotNow("budget_spent", _HOUR_S)
        return NotNow("no_round")
    if current.closes_at is not None and current.closes_at <= now:
        return NotNow("no_round")  # its coordinator has not ended it yet
    if asked.base_digest != current.base_digest:
        return NotNow("other_base")
    if (not_now := _not_now(tx, asked.device_id, had, current, config=config, now=now)) is not None:
        return not_now
    if any(row[-1] == request for row in mine):
        return NotNow("too_soon")  # its lease is used or void: a new try needs a new request
    expires_at = now + config.lease_s
    if current.closes_at is not None:
        expires_at = min(expires_at, current.closes_at)
    lease = StoredLease(
        f"{coordinator_id}.{secrets.token_hex(16)}",
        asked.device_id,
        current.number,
        current.adapter_version,
        now,
        expires_at,
        "open",
    )
    tx.run(
        "INSERT INTO leases VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        lease.lease_id,
        lease.device,
        request,
        lease.round,
        lease.adapter_version,
        lease.issued_at,
        lease.expires_at,
        lease.state,
    )
    count(tx, "leased")
    return Granted(lease, current)


def lease(tx: Transaction, lease_id: str) -> StoredLease | None:
    """A lease."""
    row = tx.one(f"SELECT {_LEASE_COLUMNS} FROM leases WHERE id = ?", lease_id)
    return None if row is None else _lease(row)


def usable(tx: Transaction, lease_id: str, device_id: str, sha256: str, now: float) -> StoredLease:
    """A lease that an update may be sent for.

    Raises:
        Refused: it is not, and why.
    """
    found = lease(tx, lease_id)
    if found is None:
        raise _refused(tx, Reason.UNKNOWN_LEASE)
    if found.device != device_id:
        raise _refused(tx, Reason.OTHER_DEVICE)
    if found.state == "used":
        taken = receipt(tx, lease_id)
        same = taken is not None and taken.payload_sha256 == sha256
        raise _refused(tx, Reason.REPLAYED if same else Reason.USED_LEASE)
    if found.state == "aborted":
        raise _refused(tx, Reason.ABORTED_LEASE)
    if found.state == "expired" or found.expires_at <= now:
        closed = round_numbered(tx, found.round)
        # A synchronous round's leases end with it: late then says more than expired.
        late = closed is not None and closed.closes_at is not None and closed.closes_at <= now
        raise _refused(tx, Reason.LATE if late else Reason.EXPIRED_LEASE)
    return found


def commit(
    tx: Transaction, header: UploadHeader, payload: bytes, config: FederationConfig, now: float
) -> Receipt:
    """Keep an update and use up its lease, in one step.

    Raises:
        Refused: it does not count, and why.
    """
    found = usable(tx, header.lease_id, header.device_id, header.payload_sha256, now)
    if config.mode == "synchronous":
        of = round_numbered(tx, found.round)
        if of is None or of.state != "collecting":
            raise _refused(tx, Reason.LATE)
        _in_its_phase(tx, found, now)
        if _has(tx, header.device_id, "updates.round = ?", found.round):
            raise _refused(tx, Reason.USED_LEASE)
        if _uncounted(tx, found.round) >= config.goal:
            raise _refused(tx, Reason.GOAL_MET)
    else:
        if served_since(tx, found.round, found.adapter_version) > config.max_gap:
            raise _refused(tx, Reason.STALE)
        if _has(tx, header.device_id, "updates.counted_in IS NULL"):
            raise _refused(tx, Reason.USED_LEASE)
        if uncounted(tx) >= _BUFFERED_GOALS * config.goal:
            raise _refused(tx, Reason.GOAL_MET)
    tx.run(
        "INSERT INTO updates VALUES (?, (SELECT COALESCE(MAX(place), 0) + 1 FROM updates), "
        "?, ?, ?, ?, ?, ?, ?, NULL, ?)",
        header.lease_id,
        header.device_id,
        found.round,
        found.adapter_version,
        header.examples,
        header.payload_sha256,
        len(payload),
        now,
        payload,
    )
    tx.run("UPDATE leases SET state = 'used' WHERE id = ?", header.lease_id)
    tx.run("UPDATE devices SET last_commit = ? WHERE id = ?", now, header.device_id)
    tx.run("DELETE FROM pieces WHERE lease = ?", header.lease_id)
    count_all(tx, {"committed": 1, "committed_bytes": len(payload)})
    return Receipt(header.lease_id, found.round, header.payload_sha256, now)


def _in_its_phase(tx: Transaction, lease: StoredLease, now: float) -> None:
    """Of a round under masks: only those who dealt shares send a vector, and only while nothing is
    unmasked. Raises ``Refused``."""
    at = phases.standing(tx, lease.round)
    if at is None:
        return
    if at.before("vectors"):
        raise _refused(tx, Reason.WRONG_PHASE)
    if at.beyond("vectors") or now >= at.closes_at:
        raise _refused(tx, Reason.LATE)
    if not phases.spoke(tx, lease.round, "share_keys", lease.device):
        raise _refused(tx, Reason.DROPPED_OUT)


def receipt(tx: Transaction, lease_id: str) -> Receipt | None:
    """The receipt of a lease that was used."""
    row = tx.one("SELECT round, sha256, committed_at FROM updates WHERE lease = ?", lease_id)
    return None if row is None else Receipt(lease_id, int(row[0]), str(row[1]), float(row[2]))


def keep(
    tx: Transaction, lease_id: str, *, sha256: str, start: int, data: bytes, now: float
) -> bool:
    """Keep a piece of an upload that goes on where the kept ones end, while its lease is open; a
    piece of another payload replaces those before it. Returns whether it was kept."""
    found = lease(tx, lease_id)
    if found is None or found.state != "open" or found.expires_at <= now:
        return False
    have = kept(tx, lease_id)
    if have.sha256 not in ("", sha256) and start == 0:
        tx.run("DELETE FROM pieces WHERE lease = ?", lease_id)
        have = Partial()
    if start != have.offset or have.sha256 not in ("", sha256):
        return False  # another stream of the same lease was faster
    tx.run("INSERT INTO pieces VALUES (?, ?, ?, ?)", lease_id, start, sha256, data)
    return True


def kept(tx: Transaction, lease_id: str) -> Partial:
    """How much of an upload is kept."""
    row = tx.one(
        "SELECT SUM(LENGTH(data)), MAX(sha256) FROM pieces WHERE lease = ?",
        lease_id,
    )
    if row is None or row[0] is None:
        return Partial()
    return Partial(int(row[0]), str(row[1]))


def pieces(tx: Transaction, lease_id: str) -> bytes:
    """The bytes that are kept."""
    rows = tx.all("SELECT data FROM pieces WHERE lease = ? ORDER BY start", lease_id)
    return b"".join(bytes(row[0]) for row in rows)


def discard(tx: Transaction, lease_id: str) -> None:
    """Keep nothing of an upload."""
    tx.run("DELETE FROM pieces WHERE lease = ?", lease_id)


def abort(tx: Transaction, device_id: str, lease_id: str, reason: AbortReason, now: float) -> None:
    """Take a lease back; one that was taken back already stays so.

    Raises:
        Refused: it cannot be, and why.
    """
    found = lease(tx, lease_id)
    if found is not None and found.device == device_id and found.state == "aborted":
        return
    usable(tx, lease_id, device_id, "", now)
    tx.run("UPDATE leases SET state = 'aborted' WHERE id = ?", lease_id)
    discard(tx, lease_id)
    count(tx, f"aborted.{reason}")


def expire(tx: Transaction, now: float) -> int:
    """Void the leases whose time is up, with what was uploaded for them. Returns how many."""
    return void_leases(tx, "expires_at <= ?", now)


def forget(tx: Transaction, before: float) -> None:
    """Forget leases that ended before a moment, with the updates that they were used for, messages
    between devices, and which reports have been added up. A lease that is forgotten is unknown:
    nothing can be sent for it either."""
    tx.run(
        "DELETE FROM updates WHERE counted_in IS NOT NULL AND payload IS NULL AND lease IN "
        "(SELECT id FROM leases WHERE state <> 'open' AND expires_at < ?)",
        before,
    )
    tx.run(
        "DELETE FROM leases WHERE state <> 'open' AND expires_at < ? "
        "AND id NOT IN (SELECT lease FROM updates)",
        before,
    )
    tx.run("DELETE FROM reports WHERE at < ?", before)
    for table in ("exchanges", "masked_rounds"):
        tx.run(
            f"DELETE FROM {table} WHERE round IN (SELECT number FROM rounds WHERE closed_at < ?)",
            before,
        )
    tx.run("DELETE FROM enrolments WHERE free_at < ?", before)


def add_report(tx: Transaction, report: MetricsReport, now: float) -> None:
    """Add a device's counts to the fleet's, once. New names are taken while there are fewer than
    ``_MOST_REPORTED`` counts in all: they are the devices' own."""
    report_id = f"{report.device_id}.{report.report_id.hex()}"
    if not tx.run("INSERT INTO reports VALUES (?, ?) ON CONFLICT (id) DO NOTHING", report_id, now):
        return
    counts.add(tx, report)
    sums = [(name, "", value) for name, value in report.counters]
    for name, each in report.histograms:
        bounds = [f"{bound:g}" for bound in each.bounds] + ["inf"]
        sums += [(name, bound, value) for bound, value in zip(bounds, each.counts, strict=True)]
    room: int | None = None
    for name, bucket, given in sums:
        value = min(given, _MOST_COUNTED)
        known = tx.run(
            "UPDATE reported SET value = CASE WHEN value > ? THEN ? ELSE value + ? END "
            "WHERE name = ? AND bucket = ?",
            _MOST_COUNTED - value,
            _MOST_COUNTED,
            value,
            name,
            bucket,
        )
        if known:
            continue
        if room is None:
            (there,) = tx.one("SELECT COUNT(*) FROM reported") or (0,)
            room = _MOST_REPORTED - int(there)
        if room > 0:
            tx.run("INSERT INTO reported VALUES (?, ?, ?)", name, bucket, value)
            room -= 1


def reported(tx: Transaction) -> dict[str, dict[str, int]]:
    """The fleet's counts: by name, by upper bound of the bucket, which a counter has none of."""
    found: dict[str, dict[str, int]] = {}
    for name, bucket, value in tx.all("SELECT name, bucket, value FROM reported ORDER BY name"):
        found.setdefault(str(name), {})[str(bucket)] = int(value)
    return found


def _spend(tx: Transaction, caller: str, per_hour: int, now: float) -> None:
    """Take a place of a caller's hour. Each place is free again an hour's share later (a leaky
    bucket, as the time at which it will be empty)."""
    row = tx.one("SELECT free_at FROM enrolments WHERE caller = ?", caller)
    # A clock that was set back must not lock anybody out for longer than an hour.
    free_at = min(max(float(row[0]), now), now + _HOUR_S) if row else now
    free_at += _HOUR_S / per_hour
    wait_s = free_at - now - _HOUR_S
    if wait_s > _ROUNDING_S:
        refused = _refused(tx, Reason.TOO_MANY_ENROLMENTS)
        refused.retry_after_s = wait_s
        raise refused
    tx.run(
        "INSERT INTO enrolments VALUES (?, ?) "
        "ON CONFLICT (caller) DO UPDATE SET free_at = excluded.free_at",
        caller,
        free_at,
    )


def _still_good(
    tx: Transaction, lease: StoredLease, current: Round | None, config: FederationConfig
) -> bool:
    """Whether an update for an open lease would be taken."""
    if config.mode == "synchronous":
        return current is not None and lease.round == current.number
    return served_since(tx, lease.round, lease.adapter_version) <= config.max_gap


def _not_now(
    tx: Transaction,
    device_id: str,
    had: Sequence[StoredLease],
    current: Round,
    *,
    config: FederationConfig,
    now: float,
) -> NotNow | None:
    """Why a device gets no lease of the round that is open, if it gets none."""
    last_commit, taken, masked, waits = _before(tx, device_id, current, config, now)
    again_at = 0.0 if last_commit is None else last_commit + config.min_separation_s
    if current.closes_at is not None and any(
        each.state == "used" and each.round == current.number for each in had
    ):
        # The cohort, the noise and what ε says of it count devices: one update of each.
        again_at = max(again_at, current.closes_at)
    if again_at > now:
        return NotNow("too_soon", again_at - now)
    if waits:
        return NotNow("too_soon")  # goal and minimum count devices, in asynchronous rounds, too
    if masked:
        at = phases.standing(tx, current.number)
        if at is not None and at.beyond("keys"):
            return NotNow("cohort_full")
    return NotNow("cohort_full") if taken >= config.leases else None


def _before(
    tx: Transaction, device_id: str, current: Round, config: FederationConfig, now: float
) -> tuple[float | None, int, bool, bool]:
    """When a device's last update was kept, how many places of the round are taken, whether it is
    under masks, and whether an update of the device waits to be counted."""
    if config.mode == "synchronous":
        taken = "round = ? AND (state = 'used' OR (state = 'open' AND expires_at > ?))"
        values: tuple[float, ...] = (current.number, now)
    else:
        taken, values = "state = 'open' AND expires_at > ?", (now,)
    row = tx.one(
        "SELECT (SELECT last_commit FROM devices WHERE id = ?), "
        f"(SELECT COUNT(*) FROM leases WHERE {taken}), "
        "(SELECT COUNT(*) FROM masked_rounds WHERE round = ?), "
        f"(SELECT COUNT(*) {_UPDATES_OF_DEVICE} AND updates.counted_in IS NULL)",
        device_id,
        *values,
        current.number,
        device_id,
    )
    last, places, masked, waits = row or (None, 0, 0, 0)
    return None if last is None else float(last), int(places), bool(masked), bool(waits)


def _has(tx: Transaction, device_id: str, update: str, *values: int) -> bool:
    """Whether a device has such an update: goal, minimum and noise count devices."""
    found = tx.one(f"SELECT 1 {_UPDATES_OF_DEVICE} AND {update} LIMIT 1", device_id, *values)
    return found is not None


def _uncounted(tx: Transaction, round_number: int) -> int:
    row = tx.one(
        "SELECT COUNT(*) FROM updates WHERE counted_in IS NULL AND round = ?", round_number
    )
    return int(row[0]) if row else 0


def _refused(tx: Transaction, reason: Reason) -> Refused:
    count(tx, f"refused.{reason}")
    return Refused(reason)


def _lease(row: Row) -> StoredLease:
    return StoredLease(
        str(row[0]), str(row[1]), int(row[2]), int(row[3]), float(row[4]), float(row[5]), row[6]
    )
