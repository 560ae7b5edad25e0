"""The file that a run writes: whole at every moment, and to be gone on with after any end.

Rows are appended to a journal beside the file, each forced to the disk; at the end, and after an
interrupt, the file is written whole in the order of the data set and the journal removed. After a
crash the journal is still there, at worst with half a line at its end, which is dropped. Its header
comes again once it is known which models answer; the last one counts.
"""

from __future__ import annotations

import dataclasses
import fcntl
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

from cascade.errors import CascadeError, InvalidInput
from cascade.records.file import load, save, suffix
from cascade.records.jsonl import header_line, parse, record_line
from cascade.records.record import Header, Record
from cascade.records.record_set import RecordSet

_HEADER = b'{"format":'  # how the line of a header begins, and no record's


class Journal:
    """What is known of a run's records. Use it as a context manager.

    Arguments:
        path: the file to be written, .jsonl or .parquet.
        header: of this run; what an earlier one left must have the same.

    Raises:
        InvalidInput: the file or its journal is of another run, or another run is writing it now.
        CascadeError: it cannot be written there.
    """

    def __init__(self, path: Path, header: Header) -> None:
        suffix(path)
        self.path = path
        self._header = header
        self.done: dict[str, Record] = {}
        self.models: dict[str, str] = {}
        self._partial = path.with_name(f".{path.name}.partial")
        with _told(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._descriptor = os.open(self._partial, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            self._lock()
            try:
                self._read()
            except BaseException:
                if not os.fstat(self._descriptor).st_size:
                    self._partial.unlink()
                raise
        except BaseException:
            os.close(self._descriptor)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        os.close(self._descriptor)

    def know(self, models: dict[str, str]) -> None:
        """Note who answers under the tiers' names, so that a crash does not lose it; empty where
        that is not known."""
        new = {name: model for name, model in models.items() if model}
        if new.items() <= self.models.items():
            return
        self.models |= new
        with _told(self._partial):
            self._write(header_line(self._answered({})))

    def append(self, record: Record) -> None:
        """Keep a record, in place of an earlier one of its id; on the disk when this returns."""
        with _told(self._partial):
            self._write(record_line(record))
            os.fsync(self._descriptor)
        self.done[record.id] = record

    def finish(self, order: Sequence[str], models: dict[str, str]) -> RecordSet | None:
        """Write the file whole and remove the journal; ``None`` where there is no record yet.

        Arguments:
            order: ids in the order in which records are to be written; others follow.
            models: who answered under the tiers' names; empty where nobody did.
        """
        place = {name: i for i, name in enumerate(order)}
        records = sorted(self.done.values(), key=lambda record: place.get(record.id, len(place)))
        if not records:
            self._partial.unlink(missing_ok=True)
            return None
        written = RecordSet.of(self._answered(models), records)
        with _told(self.path):
            save(self.path, written)
        self._partial.unlink(missing_ok=True)
        return written

    def _answered(self, models: dict[str, str]) -> Header:
        """The header with the models that are known."""
        tiers = tuple(
            dataclasses.replace(
                tier, model=models.get(tier.name) or self.models.get(tier.name) or tier.model
            )
            for tier in self._header.tiers
        )
        return dataclasses.replace(self._header, tiers=tiers)

    def _lock(self) -> None:
        busy = InvalidInput("out", f"{self.path.name} is being written by another run")
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            mine, there = os.fstat(self._descriptor), os.stat(self._partial)
        except (BlockingIOError, FileNotFoundError):
            raise busy from None
        if mine.st_ino != there.st_ino:  # the other run ended between the opening and the lock
            raise busy

    def _read(self) -> None:
        """What an earlier run left: its file, and what its journal has beyond that."""
        if self.path.exists():
            before = load(self.path)
            self._check(before.header, self.path.name)
            self.done = {record.id: record for record in before}
        content = self._partial.read_bytes()
        lines, _, torn = content.rpartition(b"\n")
        if torn:
            os.ftruncate(self._descriptor, len(content) - len(torn))
        if not lines:
            with _told(self._partial):
                self._write(header_line(self._header))
            return
        header, records = parse(_one_header(lines), self._partial.name, repeated=True)
        self._check(header, self._partial.name)
        self.done |= {record.id: record for record in records}

    def _write(self, line: str) -> None:
        content = line.encode()
        while content:  # a write may be cut short, e.g. by a signal
            content = content[os.write(self._descriptor, content) :]

    def _check(self, before: Header, name: str) -> None:
        """Refuse to add to what another run wrote; the time and the cloud's models may differ."""
        mine, theirs = (_comparable(header) for header in (self._header, before))
        for field in mine | theirs:
            if theirs.get(field) != mine.get(field):
                raise InvalidInput(
                    "out",
                    f"{name} is of a run with another {field}; choose another file, "
                    "or remove this one",
                )
        self.models |= {tier.name: tier.model for tier in before.tiers if tier.model}
        self._header = dataclasses.replace(self._header, created=before.created)


def _one_header(lines: bytes) -> list[bytes]:
    """The lines of a journal as those of a file: its last header, then the records."""
    parted = lines.split(b"\n")
    headers = [line for line in parted if line.startswith(_HEADER)]
    records = [line for line in parted if not line.startswith(_HEADER)]
    return [*headers[-1:], *records]


@contextmanager
def _told(path: Path) -> Iterator[None]:
    """Say in one line what the system refused: a full disk, a folder that is not ours."""
    try:
        yield
    except OSError as problem:
        raise CascadeError(f"cannot write {path}: {problem.strerror}") from None


def _comparable(header: Header) -> dict[str, object]:
    tiers = tuple(
        dataclasses.replace(tier, model="") if tier.kind == "cloud" else tier
        for tier in header.tiers
    )
    fields = dataclasses.replace(header, tiers=tiers).to_json()
    return {name: value for name, value in fields.items() if name != "created"}
