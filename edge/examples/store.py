"""Where examples are kept: one SQLite file on the device, shared by its processes.

Every write goes through ``_write``, which asks the standing consent first: what may not be kept is
never in the file. Deleted texts are overwritten, and ``forget`` writes the file anew, so that their
bytes are gone from it; what a flash chip keeps of old blocks is beyond its reach.
"""

from __future__ import annotations

import dataclasses
import hashlib
import secrets
import shutil
import sqlite3
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from cascade import home
from cascade.errors import InvalidInput, NotFound
from cascade.request import is_unicode
from cascade.strict import Fields
from edge.examples.cipher import Cipher, Clear
from edge.examples.consent import Consent, ConsentEntry
from edge.examples.example import Example, Source
from edge.examples.file import DamagedStore, ExampleFile
from edge.examples.retention import WAITING, Kept, Retention, Totals
from edge.examples.row import COLUMNS, TIMES, example_of, row_of

_CLOCK_SET_S: Final = 1_735_689_600.0
"""2025. A clock that shows less was not set since the device started, and tells nothing of what is
still to come."""


class ExampleStore:
    """The examples of a device. Nothing is created before something is written. Safe to use from
    any thread, and by several processes at once.

    Arguments:
        path: the file; by default the one under ``CASCADE_HOME``.
        retention: how long examples stay, for all who open the file from the first write on; by
            default what it was last opened with, at first the usual.
        cipher: how texts lie in it; by default in clear.
        clock: seconds since 1970.

    Raises:
        DamagedStore: by every method, where the file is damaged.
        NotAStore: likewise, where nothing tells that it ever was a store.
        CascadeError: likewise, where it cannot be read or written: the disk is full, or another
            process holds it for more than five seconds.
        InvalidInput: likewise, where it was written with another cipher or key, or by another
            program.
    """

    def __init__(
        self,
        path: Path | None = None,
        *,
        retention: Retention | None = None,
        cipher: Cipher | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.path = path or home.examples_path()
        self._retention = retention
        self._cipher: Cipher = cipher or Clear()
        self._clock = clock
        self._file = ExampleFile(self.path, self._cipher)

    @property
    def exists(self) -> bool:
        """Whether anything was ever written."""
        return self._file.exists

    @property
    def learning_dir(self) -> Path:
        """Where training keeps how far it is with these examples. It goes when one is forgotten."""
        return self.path.with_suffix(".learning")

    def grant(self, consent: Consent | None = None) -> Consent | None:
        """Note that examples may be kept on these terms from now on, unless that stands already.

        Arguments:
            consent: ``None`` leaves the terms as they stand, and also a withdrawal; where there was
                neither, it is all but what may not leave the device.

        Returns:
            The terms that stand now; ``None`` where consent was withdrawn.
        """
        with self._file.transaction() as file:
            (entries,) = file.execute("SELECT COUNT(*) FROM consent").fetchone()
            if consent is None and not entries:
                consent = Consent()
            if consent is not None and self._standing(file) != consent:
                self._note(file, consent.to_text())
            if not _mark_of(file):
                _mark(file)
            return self._standing(file)

    def withdraw(self) -> None:
        """Note that nothing may be kept or learned any more. What is there stays until it is
        forgotten."""
        with self._file.transaction() as file:
            if self._standing(file) is not None:
                self._note(file, None)

    def consent(self) -> Consent | None:
        """The terms that stand; ``None`` where nobody consented, or consent was withdrawn."""
        entries = self.consents()
        return entries[-1].terms if entries else None

    def consents(self) -> list[ConsentEntry]:
        """When consent was given and withdrawn, oldest first."""
        with self._file.reading() as file:
            return self._consents(file) if file else []

    def add(self, example: Example) -> str | None:
        """Keep an example, and let go what is then too old or too much.

        Returns:
            Why it is not kept, a fixed word: what consent says, ``retention`` where it is itself
            too old or too large, ``judged`` where the same request was asked before and a user has
            spoken on that answer; ``None`` where it is kept.
        """
        with self._file.transaction() as file:
            before = file.execute(
                "SELECT source, rejected FROM example WHERE request = ?", (example.request_id,)
            ).fetchone()
            users = (Source.CONFIRMATION.value, Source.CORRECTION.value)
            if before is not None and (before[0] in users or before[1]):
                return "judged"
            return self._write(file, example)

    def judge(self, request_id: str, *, correct: bool, correction: str | None = None) -> Example:
        """Keep a user's word on the answer that was given; the last one counts.

        Arguments:
            correct: it was right; a confirmed one is worth more than an unconfirmed one, and takes
                back a correction.
            correction: what would have been right. Without one, a wrong answer is only left out;
                an earlier correction stands.

        Raises:
            NotFound: nothing is kept of that request; or no more, where the terms or the limits
                have no room for what was judged.
            InvalidInput: ``correction`` is empty, none of the options, or comes with ``correct``.
        """
        _check(request_id=request_id, correction=correction or "")
        if not self.exists:
            raise _unknown(request_id)
        with self._file.transaction() as file:
            rows = self._examples(file, "WHERE request = ?", (request_id,))
            if not rows:
                raise _unknown(request_id)
            judged = rows[0].judged(correct=correct, correction=correction)
            judged = dataclasses.replace(judged, at_s=self._clock())
            refusal = self._write(file, judged)
        # Not within: where limits refuse it, the row of before the word has to go with it.
        if refusal is not None:
            raise NotFound(f"of request {request_id} nothing may be kept any more ({refusal})")
        return judged

    def examples(self, *, task: str | None = None) -> list[Example]:
        """All examples, oldest first; of one task, or of all. What is too old by now is let go."""
        _check(task=task or "")
        where, values = ("", ()) if task is None else ("WHERE task = ?", (task,))
        with self._file.reading() as file:
            if file is None:
                return []
            if not self._outgrown(file):
                return self._examples(file, where, values)
        with self._file.transaction() as file:
            self._retain(file)
            return self._examples(file, where, values)

    def size(self) -> int:
        """Bytes of all texts together, as they lie in the file."""
        with self._file.reading() as file:
            if file is None:
                return 0
            (total,) = file.execute("SELECT COALESCE(SUM(size), 0) FROM example").fetchone()
            with self._file.content():
                return int(total)

    def forget(
        self, *, request_ids: Sequence[str] = (), task: str | None = None, mentioning: str = ""
    ) -> int:
        """Remove examples for good: those named, those of a task, those with a text in them.

        Returns:
            How many there were.

        Raises:
            CascadeError: another process reads the file: the examples are removed, but bytes of
                them may be left in it. Call it again.
        """
        _check(request_id="".join(request_ids), task=task or "", mentioning=mentioning)
        if not self.exists:
            return 0
        with self._file.transaction() as file:
            gone = [(name,) for name in request_ids]
            if task is not None:
                found = file.execute("SELECT request FROM example WHERE task = ?", (task,))
                gone += found.fetchall()
            if mentioning:
                kept = self._examples(file, "", ())
                gone += [(each.request_id,) for each in kept if each.mentions(mentioning)]
            deleted = file.executemany("DELETE FROM example WHERE request = ?", gone).rowcount
            if deleted > 0:
                _mark(file)
        if deleted > 0:
            self._forget_learned()
        self._file.scrub()
        return max(0, deleted)

    def forget_all(self) -> int:
        """Remove every example for good, and the file itself where it is damaged; then consent has
        to be given again. Needs no key.

        Returns:
            How many there were, as far as one can tell.
        """
        if not self.exists:
            self._forget_learned()
            return 0
        try:
            return self._emptied()
        except DamagedStore:
            self._file.remove()
            return self._emptied()  # which leaves a mark, for the old one went with the file

    def forgotten(self) -> str:
        """A word that is another one whenever something was forgotten (not: grew too old) or the
        terms of consent changed: what was learned under one word may be sent while it stays. ""
        where nobody ever consented."""
        with self._file.reading() as file:
            if file is None:
                return ""
            consent = self._standing(file)
            terms = "" if consent is None else consent.to_text()
            mark = _mark_of(file)
        return hashlib.sha256(f"{mark} {terms}".encode()).hexdigest() if mark or terms else ""

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _emptied(self) -> int:
        with self._file.transaction(sealed=False) as file:
            deleted = file.execute("DELETE FROM example").rowcount
            file.execute("DELETE FROM seal")  # the next one to write may choose anew
            _mark(file)
            # What stays has to be of use: these look at every column.
            file.execute("SELECT cipher, proof FROM seal")
            self._examples(file, "", ())
            self._retain(file)
            self._consents(file)
            _mark_of(file)
        self._forget_learned()
        self._file.scrub()
        return deleted

    def _forget_learned(self) -> None:
        """A process that is training meanwhile finds the mark, and drops what it writes after."""
        shutil.rmtree(self.learning_dir, ignore_errors=True)

    def _write(self, file: sqlite3.Connection, example: Example) -> str | None:
        """The only way into the file. Returns why it is closed to ``example``."""
        consent = self._standing(file)
        refusal = "no_consent" if consent is None else consent.refusal(example)
        if refusal is not None:
            return refusal
        values = row_of(example, self._cipher)
        file.execute("DELETE FROM example WHERE request = ?", (example.request_id,))
        made = file.execute(
            f"INSERT INTO example ({', '.join(COLUMNS)}, worth, size) "
            f"VALUES ({', '.join('?' * len(COLUMNS))}, ?, ?)",
            (*values, _worth(example), len(values[-1])),
        )
        return "retention" if made.lastrowid in self._retain(file) else None

    def _retain(self, file: sqlite3.Connection) -> list[int]:
        """Let go what is too old or too much; the numbers of it."""
        self._note_limits(file)
        if not self._outgrown(file):
            return []
        now = self._clock()
        if now > _CLOCK_SET_S:
            # Kept under a clock that was ahead: their age counts from here.
            file.execute("UPDATE example SET at = ? WHERE at > ?", (now, now))
        rows = file.execute("SELECT number, at, size, worth FROM example").fetchall()
        with self._file.content():
            kept = [
                Kept(number, float(at), int(size), int(worth)) for number, at, size, worth in rows
            ]
        outgoing = self._limits(file).outgoing(kept, now)
        file.executemany("DELETE FROM example WHERE number = ?", [(each,) for each in outgoing])
        return outgoing

    def _outgrown(self, file: sqlite3.Connection) -> bool:
        """Whether something is too old or too much, or of a time that is still to come."""
        rows = file.execute(
            "SELECT worth = 0, COUNT(*), SUM(size), MIN(at), MAX(at) FROM example "
            "GROUP BY worth = 0"
        ).fetchall()
        now = self._clock()
        with self._file.content():
            totals = {
                waits: Totals(count, int(size), float(oldest))
                for waits, count, size, oldest, _ in rows
            }
            ahead = any(float(newest) > now > _CLOCK_SET_S for *_, newest in rows)
        waiting, others = totals.get(1, Totals()), totals.get(0, Totals())
        return ahead or not self._limits(file).keeps(waiting, others, now)

    def _limits(self, file: sqlite3.Connection) -> Retention:
        """Those of this process, or else the file's own."""
        if self._retention is not None:
            return self._retention
        limits = _single(file, "retention", "limits")
        with self._file.content():
            return Retention() if limits is None else Retention.from_text(str(limits))

    def _note_limits(self, file: sqlite3.Connection) -> None:
        """Those of this process are the file's from now on."""
        if self._retention is not None:
            text = self._retention.to_text()
            if _single(file, "retention", "limits") != text:
                file.execute("INSERT OR REPLACE INTO retention VALUES (1, ?)", (text,))

    def _examples(
        self, file: sqlite3.Connection, where: str, values: tuple[str, ...]
    ) -> list[Example]:
        rows = file.execute(
            f"SELECT {', '.join(COLUMNS)} FROM example {where} ORDER BY at, number", values
        )
        with self._file.content():
            return [example_of(row, self._cipher) for row in rows.fetchall()]

    def _consents(self, file: sqlite3.Connection) -> list[ConsentEntry]:
        rows = file.execute("SELECT at, terms FROM consent ORDER BY number").fetchall()
        with self._file.content():
            return [
                ConsentEntry(
                    Fields({"at": at}, "consent").number("at", *TIMES),
                    None if terms is None else Consent.from_text(str(terms)),
                )
                for at, terms in rows
            ]

    def _standing(self, file: sqlite3.Connection) -> Consent | None:
        row = file.execute("SELECT terms FROM consent ORDER BY number DESC LIMIT 1").fetchone()
        with self._file.content():
            return None if row is None or row[0] is None else Consent.from_text(str(row[0]))

    def _note(self, file: sqlite3.Connection, terms: str | None) -> None:
        file.execute("INSERT INTO consent (at, terms) VALUES (?, ?)", (self._clock(), terms))


def _check(**texts: str) -> None:
    for name, text in texts.items():
        if not is_unicode(text):
            raise InvalidInput(name, "is not valid Unicode (lone surrogate)")


def _mark(file: sqlite3.Connection) -> None:
    file.execute("INSERT OR REPLACE INTO forgotten VALUES (1, ?)", (secrets.token_hex(16),))


def _mark_of(file: sqlite3.Connection) -> str:
    """What ``_mark`` wrote last; "" before that."""
    return str(_single(file, "forgotten", "mark") or "")


def _single(file: sqlite3.Connection, table: str, column: str) -> object:
    """From a table of one row; ``None`` where it has none, or the file is from before it."""
    if not file.execute("SELECT 1 FROM sqlite_master WHERE name = ?", (table,)).fetchone():
        return None
    row = file.execute(f"SELECT {column} FROM {table}").fetchone()
    return None if row is None else row[0]


def _unknown(request_id: str) -> NotFound:
    return NotFound(f"nothing is kept of request {request_id} to learn from")


def _worth(example: Example) -> int:
    """For ``Retention``: 0 waits, 1 was rejected, then by source."""
    if example.rejected:
        return WAITING + 1
    return WAITING if example.source is Source.DEVICE else 1 + example.source.rank
