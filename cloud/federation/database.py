"""Transactions on SQLite or PostgreSQL: one thread, one connection, many steps a commit.

A step is a plain function of a ``Transaction``. Steps that arrive while one commit is under way
share the next. One that raises takes no other with it: they are then carried out again, each in a
savepoint of its own. Where the database itself fails, all of them fail, and may be asked again.
None is told that it is done before all of them are on disk. Between processes, writers take turns.
SQL is written once: parameters are ``?``, and types are those that both know.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol, TypeVar

from cascade.errors import InvalidInput, RemoteError

_log = logging.getLogger(__name__)

T = TypeVar("T")
Row = Sequence[Any]
Step = Callable[["Transaction"], T]

_MOST_STEPS: Final = 256
_GATHER_S: Final = 0.02
"""Longer than a commit takes: what it adds to a call is nothing beside a device's training."""
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


def located(url: str) -> str | Path:
    """Where a store is: the URL of PostgreSQL, or the path of a SQLite file.

    Raises:
        InvalidInput: it is neither.
    """
    if url.startswith(_POSTGRESQL):
        return url
    scheme, found, _ = url.partition("://")
    if found:
        raise InvalidInput(
            "federation.store",
            f"begins with {scheme}://; give postgresql://…, or the path of a SQLite file alone",
        )
    try:
        return Path(url).expanduser()
    except RuntimeError:
        raise InvalidInput(
            "federation.store", f"is {url}, and there is no such user; write the folder out"
        ) from None


class Database:
    """A store of federated rounds.

    Arguments:
        url: ``postgresql://…``, or the path of a SQLite file, which is made where it is missing.

    Raises:
        InvalidInput: it is neither, or PostgreSQL's driver is not installed.
    """

    def __init__(self, url: str | Path) -> None:
        self.url = str(url)
        where = located(self.url)
        self._backend: _Backend = _Sqlite(where) if isinstance(where, Path) else _PostgreSql(where)
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
        loop = asyncio.get_running_loop()
        waiting: asyncio.Future[T] = loop.create_future()
        self._put(_Job(step, waiting.cancelled, waiting, loop))
        return await waiting

    def do_now(self, step: Step[T]) -> T:
        """The same, for callers without an event loop."""
        waiting: Future[T] = Future()
        self._put(_Job(step, lambda: not waiting.set_running_or_notify_cancel(), waiting))
        return waiting.result()

    def close(self) -> None:
        """Finish what was begun, and close the connection. May be called again."""
        if not self._closed:
            self._closed = True
            self._jobs.put(None)
            self._thread.join()

    def _put(self, job: _Job) -> None:
        if self._closed:
            raise _unavailable("is closed")
        self._jobs.put(job)

    def _work(self) -> None:
        together = 0
        while True:
            jobs: list[_Job] = []
            last = self._jobs.get()
            if together > 1:  # many call at one time: more of them will
                time.sleep(_GATHER_S)
            while last is not None:
                jobs.append(last)
                if len(jobs) == _MOST_STEPS or self._jobs.empty():
                    break
                last = self._jobs.get()
            # A caller that went away before its step began has nothing carried out.
            jobs = [job for job in jobs if not job.given_up()]
            together = len(jobs)
            if jobs:
                _tell(self._commit(jobs))
            if last is None:
                self._backend.close()
                return

    def _commit(self, jobs: Sequence[_Job]) -> list[_Done]:
        """Carry out steps in one commit; what came of each."""
        try:
            outcomes = self._together(jobs)
            if outcomes is None:
                outcomes = self._apart(jobs)
        except self._backend.errors as problem:
            _log.warning("the store of federated rounds failed: %s", problem)
            self._backend.close()
            return [(job, None, _unavailable("cannot be used now")) for job in jobs]
        return outcomes

    def _together(self, jobs: Sequence[_Job]) -> list[_Done] | None:
        """As if all of them were one step; ``None``, and nothing done, where one has to be undone
        that is not alone. Most never are: a savepoint for each would copy what each changes."""
        outcomes: list[_Done] = []
        self._backend.begin()
        for job in jobs:
            outcomes.append(done := self._tried(job))
            if _undone(done):
                self._backend.execute("ROLLBACK", ())
                return outcomes if len(jobs) == 1 else None
        self._backend.commit()
        return outcomes

    def _apart(self, jobs: Sequence[_Job]) -> list[_Done]:
        """The same with a savepoint for each. Steps have no effect but on the store, so that they
        may be carried out again."""
        outcomes: list[_Done] = []
        self._backend.begin()
        for job in jobs:
            self._backend.execute("SAVEPOINT step", ())
            outcomes.append(done := self._tried(job))
            if _undone(done):
                self._backend.execute("ROLLBACK TO SAVEPOINT step", ())
            self._backend.execute("RELEASE SAVEPOINT step", ())
        self._backend.commit()
        return outcomes

    def _tried(self, job: _Job) -> _Done:
        try:
            return job, job.step(self._backend), None
        except self._backend.errors:
            raise
        except Exception as problem:
            return job, None, problem


class Kept(RemoteError):
    """A refusal whose step is carried out all the same, e.g. because it was counted."""


class _Job(NamedTuple):
    """A step, and who waits for it: on an event loop, or in a thread of its own."""

    step: Step[Any]
    given_up: Callable[[], bool]
    waiting: asyncio.Future[Any] | Future[Any]
    loop: asyncio.AbstractEventLoop | None = None


_Done = tuple[_Job, object, Exception | None]


def _undone(done: _Done) -> bool:
    """Whether nothing of a step may stay."""
    return done[2] is not None and not isinstance(done[2], Kept)


def _tell(outcomes: Sequence[_Done]) -> None:
    """Wake up who waits: an event loop once, however many of its steps were in the commit."""
    by_loop: dict[asyncio.AbstractEventLoop | None, list[_Done]] = {}
    for each in outcomes:
        by_loop.setdefault(each[0].loop, []).append(each)
    for loop, done in by_loop.items():
        if loop is None:
            _settle(done)
        else:
            with suppress(RuntimeError):  # the loop is closed: nobody waits any more
                loop.call_soon_threadsafe(_settle, done)


def _settle(outcomes: Sequence[_Done]) -> None:
    for job, result, failed in outcomes:
        if job.waiting.cancelled():
            continue
        if failed is None:
            job.waiting.set_result(result)
        else:
            job.waiting.set_exception(failed)


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
            # Pages of 16 MB of commits are copied into the file at once: most of them hold updates,
            # which are deleted once they are counted.
            connection.execute("PRAGMA wal_autocheckpoint = 4000")
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
