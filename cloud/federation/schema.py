"""The tables of the store, and how an older store becomes a newer one.

Each migration is run once, in the transaction that notes it. A store that a newer version of this
project has changed is refused, not guessed at.
"""

from __future__ import annotations

import secrets
from typing import Final

from cascade.errors import CascadeError
from cloud.federation.database import Transaction

# Types are those that SQLite and PostgreSQL both take: BIGINT, TEXT, BYTEA (which SQLite stores as
# it is given) and DOUBLE PRECISION. Times are seconds since 1970.
_MIGRATIONS: Final[tuple[tuple[str, ...], ...]] = (
    (
        "CREATE TABLE facts (name TEXT PRIMARY KEY, value TEXT NOT NULL)",
        """CREATE TABLE devices (
          id TEXT PRIMARY KEY, public_key BYTEA NOT NULL, attested TEXT NOT NULL,
          enrolled_at DOUBLE PRECISION NOT NULL, last_commit DOUBLE PRECISION)""",
        """CREATE TABLE rounds (
          number BIGINT PRIMARY KEY, state TEXT NOT NULL, base_digest TEXT NOT NULL,
          adapter_digest TEXT NOT NULL, adapter_version BIGINT NOT NULL, plan TEXT NOT NULL,
          opened_at DOUBLE PRECISION NOT NULL, closes_at DOUBLE PRECISION,
          closed_at DOUBLE PRECISION, claim TEXT, claimed_until DOUBLE PRECISION,
          counted BIGINT NOT NULL DEFAULT 0, candidate_digest TEXT, candidate_version BIGINT,
          aggregation_error DOUBLE PRECISION, note TEXT NOT NULL DEFAULT '', optimiser BYTEA)""",
        """CREATE TABLE leases (
          id TEXT PRIMARY KEY, device TEXT NOT NULL, request TEXT NOT NULL, round BIGINT NOT NULL,
          adapter_version BIGINT NOT NULL, issued_at DOUBLE PRECISION NOT NULL,
          expires_at DOUBLE PRECISION NOT NULL, state TEXT NOT NULL, UNIQUE (device, request))""",
        "CREATE INDEX leases_open ON leases (state, expires_at)",
        "CREATE INDEX leases_round ON leases (round, state)",
        # One row a used lease: the primary key is what makes an update count once.
        """CREATE TABLE updates (
          lease TEXT PRIMARY KEY, place BIGINT NOT NULL, device TEXT NOT NULL,
          round BIGINT NOT NULL, adapter_version BIGINT NOT NULL, examples BIGINT NOT NULL,
          sha256 TEXT NOT NULL, bytes BIGINT NOT NULL, committed_at DOUBLE PRECISION NOT NULL,
          counted_in BIGINT, payload BYTEA)""",
        "CREATE INDEX updates_counted ON updates (counted_in, place)",
        "CREATE INDEX updates_place ON updates (place)",
        """CREATE TABLE pieces (
          lease TEXT NOT NULL, start BIGINT NOT NULL, sha256 TEXT NOT NULL, data BYTEA NOT NULL,
          PRIMARY KEY (lease, start))""",
        "CREATE TABLE counters (name TEXT PRIMARY KEY, value BIGINT NOT NULL)",
        "CREATE TABLE reports (id TEXT PRIMARY KEY, at DOUBLE PRECISION NOT NULL)",
        """CREATE TABLE reported (
          name TEXT NOT NULL, bucket TEXT NOT NULL, value BIGINT NOT NULL,
          PRIMARY KEY (name, bucket))""",
        """CREATE TABLE exchanges (
          round BIGINT NOT NULL, phase TEXT NOT NULL, device TEXT NOT NULL, payload BYTEA NOT NULL,
          PRIMARY KEY (round, phase, device))""",
    ),
    # Candidates judged and rolled out; what devices report by the adapter that they run.
    (
        """CREATE TABLE judgements (
          candidate_digest TEXT PRIMARY KEY, round BIGINT NOT NULL, verdict TEXT NOT NULL,
          policies TEXT NOT NULL, findings TEXT NOT NULL)""",
        """CREATE TABLE rollouts (
          round BIGINT PRIMARY KEY, state TEXT NOT NULL, channel TEXT NOT NULL,
          candidate_digest TEXT NOT NULL, parent_digest TEXT NOT NULL, policies TEXT NOT NULL,
          percent BIGINT NOT NULL, started_at DOUBLE PRECISION NOT NULL,
          ended_at DOUBLE PRECISION, revision BIGINT, note TEXT NOT NULL DEFAULT '')""",
        """CREATE TABLE adapter_counts (
          adapter TEXT NOT NULL, device TEXT NOT NULL, measure TEXT NOT NULL,
          trials BIGINT NOT NULL, events BIGINT NOT NULL,
          PRIMARY KEY (adapter, device, measure))""",
    ),
    # Rounds under masks: where each of them is. What devices said in them is in `exchanges`.
    (
        """CREATE TABLE masked_rounds (
          round BIGINT PRIMARY KEY, session TEXT NOT NULL, phase TEXT NOT NULL,
          closes_at DOUBLE PRECISION NOT NULL)""",
    ),
    # What noise a round has, and what it makes of the fleet's ε.
    (
        "ALTER TABLE rounds ADD COLUMN noise_multiplier DOUBLE PRECISION",
        "ALTER TABLE rounds ADD COLUMN delta DOUBLE PRECISION",
        "ALTER TABLE rounds ADD COLUMN epsilon_before DOUBLE PRECISION",
        "ALTER TABLE rounds ADD COLUMN epsilon_after DOUBLE PRECISION",
    ),
    # How fast each caller enrols devices.
    (
        """CREATE TABLE enrolments (
          caller TEXT PRIMARY KEY, free_at DOUBLE PRECISION NOT NULL)""",
    ),
    # What a round's noise is drawn from, until it has ended.
    ("ALTER TABLE rounds ADD COLUMN noise_seed TEXT NOT NULL DEFAULT ''",),
    # How many updates end a round, for who asks why it does not.
    ("ALTER TABLE rounds ADD COLUMN goal BIGINT",),
)
VERSION: Final = len(_MIGRATIONS)


def migrate(tx: Transaction) -> None:
    """Bring the store to ``VERSION``; a new one is filled.

    Raises:
        CascadeError: it is newer than this version of the project.
    """
    tx.run("CREATE TABLE IF NOT EXISTS schema_version (version BIGINT NOT NULL)")
    row = tx.one("SELECT MAX(version) FROM schema_version")
    present = 0 if row is None or row[0] is None else int(row[0])
    if present > VERSION:
        raise CascadeError(
            f"the store of federated rounds has format {present}, and this version of cascade "
            f"knows {VERSION}; upgrade cascade"
        )
    for number in range(present, VERSION):
        for statement in _MIGRATIONS[number]:
            tx.run(statement)
        tx.run("INSERT INTO schema_version VALUES (?)", number + 1)


def identity(tx: Transaction) -> tuple[str, bytes]:
    """This coordinator's id, 16 hex digits, and the secret of its challenges; made once."""
    found = []
    for name, size in (("coordinator_id", 8), ("challenge_secret", 32)):
        row = tx.one("SELECT value FROM facts WHERE name = ?", name)
        if row is None:
            value = secrets.token_hex(size)
            tx.run("INSERT INTO facts VALUES (?, ?)", name, value)
        else:
            value = str(row[0])
        found.append(value)
    return found[0], bytes.fromhex(found[1])
