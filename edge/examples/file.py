"""The SQLite file that examples lie in: opened, locked, sealed, scrubbed, and its errors named.

What is in it is the business of ``edge.examples.store``.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from cascade import home
from cascade.errors import CascadeError, InvalidInput
from edge.examples.cipher import Cipher

_FORMAT: Final = 1
_APPLICATION: Final = 0x1CA5CADE  # no text has these bytes
_APPLICATION_AT: Final = 68  # of the file, see sqlite.org/fileformat2.html
_BUSY_S: Final = 5.0
_CHECK: Final = b"cascade examples"
_DAMAGE: Final = frozenset(
    # The first one says that a table or a column is not there.
    {sqlite3.SQLITE_ERROR, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}
)
_TABLES: Final = frozenset({"seal", "consent", "example"})
_SCHEMA: Final = f"""
BEGIN IMMEDIATE;
CREATE TABLE IF NOT EXISTS seal (cipher TEXT NOT NULL, proof BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS retention (
    one INTEGER PRIMARY KEY CHECK (one = 1), limits TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS forgotten (
    one INTEGER PRIMARY KEY CHECK (one = 1), mark TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS consent (
    number INTEGER PRIMARY KEY AUTOINCREMENT, at REAL NOT NULL, terms TEXT
);
CREATE TABLE IF NOT EXISTS example (
    number INTEGER PRIMARY KEY AUTOINCREMENT, request TEXT NOT NULL UNIQUE, task TEXT NOT NULL,
    at REAL NOT NULL, source TEXT NOT NULL, rejected INTEGER NOT NULL, data_class TEXT NOT NULL,
    tier TEXT NOT NULL, model TEXT NOT NULL, confidence REAL, weight REAL NOT NULL,
    worth INTEGER NOT NULL, size INTEGER NOT NULL, texts BLOB NOT NULL
);
PRAGMA application_id = {_APPLICATION};
PRAGMA user_version = {_FORMAT};
COMMIT;
"""


class DamagedStore(CascadeError):
    """The file is no store of examples any more. ``cascade examples forget --all`` removes it."""


class NotAStore(CascadeError):
    """The file is no store of examples, or so damaged that nothing tells that it was one. It is
    left as it is."""


class ExampleFile:
    """One file. Reading creates and changes nothing, and another program's file is left as it is.
    Safe to use from any thread; errors are those of ``ExampleStore``."""

    def __init__(self, path: Path, cipher: Cipher) -> None:
        self.path = path
        self._cipher = cipher
        self._connection: sqlite3.Connection | None = None
        self._writable = False
        self._lock = threading.RLock()

    @property
    def exists(self) -> bool:
        """Whether anything was ever written."""
        return self.path.exists()

    @contextlib.contextmanager
    def reading(self) -> Iterator[sqlite3.Connection | None]:
        """The file, if anything was written, checked to be of this cipher and key."""
        if not self.exists:
            yield None
            return
        with self._lock, self._named_errors():
            file = self._opened()
            if file is not None:
                self._check_seal(file)
            yield file

    @contextlib.contextmanager
    def transaction(self, *, sealed: bool = True) -> Iterator[sqlite3.Connection]:
        """The file, alone in it: what is done is kept as a whole, or not at all.

        Arguments:
            sealed: check that it is of this cipher and key, and make a new one so.
        """
        with self._lock, self._named_errors():
            file = self._made()
            file.execute("BEGIN IMMEDIATE")
            try:
                if sealed and not self._check_seal(file):
                    proof = self._cipher.seal(_CHECK, _CHECK)
                    file.execute("INSERT INTO seal VALUES (?, ?)", (self._cipher.name, proof))
                yield file
            except BaseException:
                if file.in_transaction:  # a full disk may have ended it already
                    file.execute("ROLLBACK")
                raise
            file.execute("COMMIT")

    @contextlib.contextmanager
    def content(self) -> Iterator[None]:
        """What is made of rows: what cannot be was damaged."""
        try:
            yield
        except (ValueError, TypeError, OverflowError) as problem:
            raise self._damaged(problem) from None

    def _check_seal(self, file: sqlite3.Connection) -> bool:
        """Whether the file has a seal, which then is this cipher's."""
        row = file.execute("SELECT cipher, proof FROM seal").fetchone()
        if row is None:
            return False
        name, proof = row
        if name != self._cipher.name:
            raise InvalidInput(
                "cipher", f"is {self._cipher.name}, but {self.path} was written with {name}"
            )
        if not isinstance(proof, bytes) or self._cipher.open(proof, _CHECK) != _CHECK:
            raise self._damaged("the proof of its cipher is gone")
        return True

    @contextlib.contextmanager
    def _named_errors(self) -> Iterator[None]:
        try:
            yield
        except UnicodeDecodeError as problem:  # a name or a message, where the schema is damaged
            raise self._damaged(problem) from None
        except sqlite3.Error as problem:
            code = getattr(problem, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF
            if code in _DAMAGE:
                raise self._damaged(problem) from None
            raise CascadeError(
                f"examples in {self.path} cannot be read or written ({problem})"
            ) from None
        except OSError as problem:
            raise CascadeError(
                f"examples in {self.path} cannot be read or written ({problem.strerror})"
            ) from None

    def _damaged(self, problem: object) -> CascadeError:
        if self._connection or self.path == home.examples_path() or _is_marked(self.path):
            return DamagedStore(
                f"{self.path} is damaged ({problem}); cascade examples forget --all removes it"
            )
        return NotAStore(
            f"{self.path} is no store of examples ({problem}); if it was one, remove it by hand"
        )

    def _opened(self) -> sqlite3.Connection | None:
        """The file; ``None`` where nothing was written into it yet.

        Raises:
            InvalidInput: it is another program's, or of a newer format.
        """
        if self._connection is None:
            connection = self._connected()
            try:
                written = _is_written(connection, self.path)
            except BaseException:
                connection.close()
                raise
            if not written:
                connection.close()
                return None
            self._connection = connection
        return self._connection

    def _made(self) -> sqlite3.Connection:
        """The file, to be written into; made if need be."""
        if self._connection is not None and self._writable:
            return self._connection
        self.path.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600))
        connection = self._opened() or self._connected()
        try:
            _make(connection)
        except BaseException:
            connection.close()
            self._connection = None
            raise
        self._connection, self._writable = connection, True
        return connection

    def _connected(self) -> sqlite3.Connection:
        return sqlite3.connect(
            f"{self.path.absolute().as_uri()}?mode=rw",  # makes none
            uri=True,
            timeout=_BUSY_S,
            isolation_level=None,
            check_same_thread=False,
        )

    def scrub(self) -> None:
        """Leave nothing of deleted rows in the file and its log of writes."""
        with self._lock, self._named_errors():
            file = self._made()
            file.execute("VACUUM")
            # The log of writes still has the old pages until it is emptied.
            (busy, _, _) = file.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        if busy:
            raise CascadeError(
                f"another process reads {self.path}: the examples are removed, but bytes of them "
                "may be left in it; forget them again"
            )

    def remove(self) -> None:
        """Delete the file and what belongs to it."""
        self.close()
        for end in ("", "-wal", "-shm"):
            self.path.with_name(self.path.name + end).unlink(missing_ok=True)

    def close(self) -> None:
        """Close it."""
        with self._lock:
            connection, self._connection, self._writable = self._connection, None, False
            if connection is not None:
                connection.close()


def _is_marked(path: Path) -> bool:
    """Whether a file says that it is a store, even where SQLite cannot read it."""
    with path.open("rb") as file:
        file.seek(_APPLICATION_AT)
        return file.read(4) == _APPLICATION.to_bytes(4)


def _is_written(connection: sqlite3.Connection, path: Path) -> bool:
    """Whether a database has a store in it; not where it is empty."""
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master")}
    # Those of before there was an application id are known by their tables.
    if application != _APPLICATION and not tables >= _TABLES and (application or tables):
        raise InvalidInput(f"{path}", "is the database of another program; choose another file")
    (written,) = connection.execute("PRAGMA user_version").fetchone()
    if written > _FORMAT:
        raise InvalidInput(f"{path}", f"has format {written}; this SDK reads {_FORMAT}; upgrade it")
    return bool(tables)


def _make(connection: sqlite3.Connection) -> None:
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (marks,) = connection.execute(
        "SELECT COUNT(*) FROM sqlite_master WHERE name = 'forgotten'"  # which came later
    ).fetchone()
    if application != _APPLICATION or not marks:
        connection.executescript(_SCHEMA)
    # Written through by the system's own time: a killed process loses nothing, a power cut the last
    # moments, and neither leaves half a transaction.
    _switch_to_wal(connection)
    connection.execute("PRAGMA synchronous = NORMAL")
    connection.execute("PRAGMA secure_delete = ON")
    connection.execute("PRAGMA temp_store = MEMORY")  # VACUUM would write texts elsewhere


def _switch_to_wal(connection: sqlite3.Connection) -> None:
    """Unlike every other statement, this one does not wait where two processes make the file."""
    until = time.monotonic() + _BUSY_S
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as problem:
            if problem.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > until:
                raise
        time.sleep(0.02)
