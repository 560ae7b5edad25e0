"""Transactions on SQLite or PostgreSQL: one thread, one connection, many steps a commit.

A step is a plain function of a ``Transaction``. Steps that arrive while one commit is under way
share the next: each in a savepoint of its own, so that one that fails takes no other with it, and
none is told that it is done before all of them are on disk. Between processes, writers take turns.
SQL is written once: parameters are ``?``, and types are those that both know.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import sqlite3
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar

from cascade.errors import InvalidInput, RemoteError

_log = logging.getLogger(__name__)

T = TypeVar("T")
Row = Sequence[Any]
Step = Callable[["Transaction"], T]

_MOST_STEPS: Final = 256
_BUSY_S: Final = 10.0
_RETRY_AFTER_S: Final = 2.0
_POSTGRESQL: Final = ("postgresql://", "postgres://")
# Any number that nobody else locks: the first eight bytes of sha256("edge-cloud-cascade").
_ADVISORY_LOCK: Final = 0x3A1D5E0C7B42F961


class Transaction(Protocol):
    """What a step may do."""

    def all(self, sql: str, *values: object) -> list[Row]:
        """The rows of a query."""
        ...

    def one(self, sql: str, *values: object) -> Row | None:
        """The first row, if there is one."""
        ...

    def run(self, sql: str, *values: object) -> int:
        """Change rows; returns how many."""
        ...


class Database:
    """A store of federated rounds.

    Arguments:
        url: ``postgresql://…``, or the path of a SQLite file, which is made where it is missing.

    Raises:
        InvalidInput: PostgreSQL is asked for and its driver is not installed.
    """

    def __init__(self, url: str | Path) -> None:
        self.url = str(url)
        self._backend: _Backend = (
            _PostgreSql(self.url)
            if self.url.startswith(_POSTGRESQL)
            else _Sqlite(Path(self.url).expanduser())
        )
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="federation-store", daemon=True)
        self._thread.start()

    async def do(self, step: Step[T]) -> T:
        """Carry out a step; it is on disk when this returns.

        Raises:
            RemoteError: UNAVAILABLE, the store cannot be reached; whether the step was carried out
                may then be unknown, so steps are written to be asked again.
        """
        return await asyncio.wrap_future(self._put(step))

    def do_now(self, step: Step[T]) -> T:
        """The same, for callers without an event loop."""
        return self._put(step).result()

    def close(self) -> None:
        """Finish what was begun, and close the connection. May be called again."""
        if not self._closed:
            self._closed = True
            self._jobs.put(None)
            self._thread.join()

    def _put(self, step: Step[T]) -> Future[T]:
        if self._closed:
            raise _unavailable("is closed")
        job = _Job(step)
        self._jobs.put(job)
        return job.done

    def _work(self) -> None:
        while True:
            jobs: list[_Job] = []
            last = self._jobs.get()
            while last is not None:
                jobs.append(last)
                if len(jobs) == _MOST_STEPS or self._jobs.empty():
                    break
                last = self._jobs.get()
            # A caller that went away before its step began has nothing carried out.
            jobs = [job for job in jobs if job.done.set_running_or_notify_cancel()]
            if jobs:
                self._commit(jobs)
            if last is None:
                self._backend.close()
                return

    def _commit(self, jobs: Sequence[_Job]) -> None:
        outcomes: list[tuple[_Job, object, Exception | None]] = []
        try:
            self._backend.begin()
            for job in jobs:
                self._backend.execute("SAVEPOINT step", ())
                result: object = None
                failed: Exception | None = None
                try:
                    result = job.step(self._backend)
                except self._backend.errors:
                    raise
                except Exception as problem:
                    failed = problem
                    if not isinstance(problem, Kept):
                        self._backend.execute("ROLLBACK TO SAVEPOINT step", ())
                self._backend.execute("RELEASE SAVEPOINT step", ())
                outcomes.append((job, result, failed))
            self._backend.commit()
        except self._backend.errors as problem:
            _log.warning("the store of federated rounds failed: %s", problem)
            self._backend.close()
            for job in jobs:
                job.done.set_exception(_unavailable("cannot be used now"))
            return
        for job, result, refused in outcomes:
            if refused is None:
                job.done.set_result(result)
            else:
                job.done.set_exception(refused)


class Kept(RemoteError):
    """A refusal whose step is carried out all the same, e.g. because it was counted."""


class _Job:
    def __init__(self, step: Step[Any]) -> None:
        self.step = step
        self.done: Future[Any] = Future()


class _Backend(Transaction, Protocol):
    errors: tuple[type[Exception], ...]

    def begin(self) -> None: ...

    def commit(self) -> None: ...

    def execute(self, sql: str, values: Sequence[object]) -> Any: ...

    def close(self) -> None: ...


class _Sqlite:
    errors: tuple[type[Exception], ...] = (sqlite3.Error, OSError)

    def __init__(self, path: Path) -> None:
        self._path = path
        self._connection: sqlite3.Connection | None = None

    def begin(self) -> None:
        if self._connection is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            connection = sqlite3.connect(
                self._path, timeout=_BUSY_S, isolation_level=None, check_same_thread=False
            )
            connection.execute("PRAGMA journal_mode = WAL")
            # A receipt is a promise: it outlives a power cut, too.
            connection.execute("PRAGMA synchronous = FULL")
            self._connection = connection
        self._connection.execute("BEGIN IMMEDIATE")

    def commit(self) -> None:
        self._open.execute("COMMIT")

    def execute(self, sql: str, values: Sequence[object]) -> sqlite3.Cursor:
        return self._open.execute(sql, tuple(values))

    def all(self, sql: str, *values: object) -> list[Row]:
        return self._open.execute(sql, values).fetchall()

    def one(self, sql: str, *values: object) -> Row | None:
        found: Row | None = self._open.execute(sql, values).fetchone()
        return found

    def run(self, sql: str, *values: object) -> int:
        return self._open.execute(sql, values).rowcount

    def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(sqlite3.Error):
                connection.close()

    @property
    def _open(self) -> sqlite3.Connection:
        if self._connection is None:
            raise sqlite3.OperationalError("no connection")
        return self._connection


class _PostgreSql:
    def __init__(self, url: str) -> None:
        try:
            import psycopg
        except ImportError:
            raise InvalidInput(
                "store", "PostgreSQL needs its driver: pip install 'edge-cloud-cascade[postgresql]'"
            ) from None
        self._psycopg = psycopg
        self.errors: tuple[type[Exception], ...] = (psycopg.Error, OSError)
        self._url = url
        self._connection: psycopg.Connection[Any] | None = None

    def begin(self) -> None:
        if self._connection is None or self._connection.closed:
            self._connection = self._psycopg.connect(
                self._url, autocommit=True, connect_timeout=int(_BUSY_S)
            )
        self._connection.execute("BEGIN")
        # Writers take turns, as with SQLite: no step then has to think of another.
        self._connection.execute("SELECT pg_advisory_xact_lock(%s)", (_ADVISORY_LOCK,))

    def commit(self) -> None:
        self._open.execute("COMMIT")

    def execute(self, sql: str, values: Sequence[object]) -> Any:
        # The statements are this package's own; only values come from elsewhere.
        return self._open.execute(_dollars(sql), values or None)

    def all(self, sql: str, *values: object) -> list[Row]:
        return list(self.execute(sql, values).fetchall())

    def one(self, sql: str, *values: object) -> Row | None:
        found: Row | None = self.execute(sql, values).fetchone()
        return found

    def run(self, sql: str, *values: object) -> int:
        return int(self.execute(sql, values).rowcount)

    def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(self._psycopg.Error):
                connection.close()

    @property
    def _open(self) -> Any:
        if self._connection is None:
            raise self._psycopg.OperationalError("no connection")
        return self._connection


def _dollars(sql: str) -> str:
    return sql.replace("?", "%s")


def _unavailable(what: str) -> RemoteError:
    return RemoteError(
        "UNAVAILABLE", f"the store of federated rounds {what}; try again", _RETRY_AFTER_S
    )
