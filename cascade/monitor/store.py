"""Where monitors are kept: one SQLite file with their states and an append-only log.

A state and the log entries that explain it are written in one transaction, so a process that dies
leaves both or neither. Several processes may share the file; updates of one monitor wait for each
other. The log cannot be changed through SQLite: triggers refuse it.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from cascade.errors import CascadeError
from cascade.monitor.health import Health, Limits, State

_BUSY_S = 5.0
_SCHEMA = """
CREATE TABLE IF NOT EXISTS monitors (
    task TEXT NOT NULL, base TEXT NOT NULL, adapter TEXT NOT NULL, policy TEXT NOT NULL,
    state TEXT NOT NULL, generation INTEGER NOT NULL, limits TEXT NOT NULL, health TEXT NOT NULL,
    PRIMARY KEY (task, base, adapter, policy)
);
CREATE TABLE IF NOT EXISTS log (
    number INTEGER PRIMARY KEY AUTOINCREMENT, at REAL NOT NULL,
    task TEXT NOT NULL, base TEXT NOT NULL, adapter TEXT NOT NULL, policy TEXT NOT NULL,
    kind TEXT NOT NULL, state TEXT NOT NULL, note TEXT NOT NULL, evidence TEXT NOT NULL
);
CREATE TRIGGER IF NOT EXISTS log_is_not_changed BEFORE UPDATE ON log
    BEGIN SELECT RAISE(ABORT, 'the log is append-only'); END;
CREATE TRIGGER IF NOT EXISTS log_is_not_shortened BEFORE DELETE ON log
    BEGIN SELECT RAISE(ABORT, 'the log is append-only'); END;
"""
_KEY = "task = ? AND base = ? AND adapter = ? AND policy = ?"

Evidence = dict[str, float | int | str | None]
"""Numbers by name, as they are logged."""


@dataclass(frozen=True, slots=True, order=True)
class Key:
    """What is monitored: one policy on one model. Digests are hex sha256, ``adapter`` may be
    empty."""

    task: str
    base: str
    adapter: str
    policy: str


@dataclass(frozen=True, slots=True)
class Entry:
    """A line of the log.

    Arguments:
        number: rising, unique in a file; 0 before it is written.
        at: seconds since the epoch.
        kind: what happened: opened, recertified, audit, audit_lost, feedback, watch, cleared,
            demoted or reset.
        state: that of the policy afterwards.
        note: why, in a line.
        evidence: the numbers behind it.
    """

    at: float
    key: Key
    kind: str
    state: State
    note: str
    evidence: Evidence
    number: int = 0


@dataclass(frozen=True, slots=True)
class Kept:
    """A monitor as it is kept; ``limits`` are those by which it was last judged."""

    key: Key
    limits: Limits
    health: Health


class MonitorStore:
    """The file. Nothing is created before something is written. Safe to use from any thread.

    Raises:
        CascadeError: by every method, where the file cannot be read or written.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._connection: sqlite3.Connection | None = None
        self._lock = threading.Lock()
        self._written: dict[Key, tuple[str, Health]] = {}

    @property
    def exists(self) -> bool:
        """Whether anything was ever written."""
        return self._path.exists()

    def standing(self, key: Key) -> tuple[State, int] | None:
        """Where a policy stands, and its monitor's generation; ``None`` where it has none. Quicker
        than reading all of it."""
        query = f"SELECT state, generation FROM monitors WHERE {_KEY}"
        for state, generation in self._read(query, key):
            return State(state), int(generation)
        return None

    def monitors(self) -> list[Kept]:
        """All of them, in the order of their keys."""
        rows = self._read("SELECT task, base, adapter, policy, limits, health FROM monitors")
        return sorted(
            (
                Kept(
                    Key(*row[:4]),
                    Limits.from_json(json.loads(row[4])),
                    Health.from_json(json.loads(row[5])),
                )
                for row in rows
            ),
            key=lambda kept: kept.key,
        )

    def log(self, *, task: str | None = None) -> list[Entry]:
        """The log, oldest first; of one task, or of all."""
        rows = self._read("SELECT * FROM log ORDER BY number")
        entries = [
            Entry(
                at=float(row[1]),
                key=Key(*row[2:6]),
                kind=row[6],
                state=State(row[7]),
                note=row[8],
                evidence=json.loads(row[9]),
                number=int(row[0]),
            )
            for row in rows
        ]
        return [entry for entry in entries if task is None or entry.key.task == task]

    def update(
        self,
        key: Key,
        limits: Limits,
        step: Callable[[Health | None, Key | None], tuple[Health, list[Entry]]],
    ) -> Health:
        """Change one monitor, and log why, at once or not at all.

        Arguments:
            step: is given the present state, or ``None`` and the key of the monitor that last
                changed for the same task and base; returns the new state and what to log. It may be
                called while other processes wait: it should be quick.
        """
        with self._transaction() as connection:
            found = connection.execute(f"SELECT health FROM monitors WHERE {_KEY}", _words(key))
            row = found.fetchone()
            health = self._parsed(key, row[0]) if row else None
            before = None if row else _predecessor(connection, key)
            after, entries = step(health, before)
            text = json.dumps(after.to_json())
            connection.execute(
                "INSERT OR REPLACE INTO monitors VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    *_words(key),
                    after.state.value,
                    after.generation,
                    json.dumps(limits.to_json()),
                    text,
                ),
            )
            for entry in entries:
                connection.execute(
                    "INSERT INTO log VALUES (NULL, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                    (
                        entry.at,
                        *_words(entry.key),
                        entry.kind,
                        entry.state.value,
                        entry.note,
                        json.dumps(entry.evidence),
                    ),
                )
            self._written[key] = text, after
            return after

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            connection, self._connection = self._connection, None
            if connection is not None:
                connection.close()

    def _parsed(self, key: Key, text: str) -> Health:
        """The state that ``text`` tells; most often the one that was written last."""
        known = self._written.get(key)
        return known[1] if known and known[0] == text else Health.from_json(json.loads(text))

    def _read(self, query: str, key: Key | None = None) -> list[tuple[str, ...]]:
        if not self.exists:
            return []
        with self._lock, self._named_errors():
            cursor = self._opened().execute(query, _words(key) if key else ())
            rows: list[tuple[str, ...]] = cursor.fetchall()
            return rows

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._lock, self._named_errors():
            connection = self._opened()
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
            except BaseException:
                connection.execute("ROLLBACK")
                raise
            connection.execute("COMMIT")

    @contextlib.contextmanager
    def _named_errors(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as problem:
            raise CascadeError(
                f"{self._path} cannot be used ({problem}); if it is damaged, move it away"
            ) from None

    def _opened(self) -> sqlite3.Connection:
        if self._connection is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            connection = sqlite3.connect(
                self._path, timeout=_BUSY_S, isolation_level=None, check_same_thread=False
            )
            try:
                # Written through by the system's own time: a killed process loses nothing, a power
                # cut the last moments, and neither leaves half a transaction.
                connection.execute("PRAGMA journal_mode = WAL")
                connection.execute("PRAGMA synchronous = NORMAL")
                connection.executescript(_SCHEMA)
            except BaseException:
                connection.close()
                raise
            self._connection = connection
        return self._connection


def _predecessor(connection: sqlite3.Connection, key: Key) -> Key | None:
    """The monitor of the same task and base that the log mentions last."""
    row = connection.execute(
        "SELECT task, base, adapter, policy FROM log WHERE task = ? AND base = ? "
        "ORDER BY number DESC LIMIT 1",
        (key.task, key.base),
    ).fetchone()
    return Key(*row) if row else None


def _words(key: Key) -> tuple[str, ...]:
    return key.task, key.base, key.adapter, key.policy
