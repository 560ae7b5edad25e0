"""The access log: one JSON line a call, never its content.

Calls that an overloaded gateway refuses unread are alike and many: a line for each would cost a
tenth of the refusal and push the lines of real calls out of a log of bounded size. The first of a
caller is written as it comes; those of the second after it become one line with their number in
``calls``. Metrics count every one.
"""

from __future__ import annotations

import asyncio
import datetime
import json
import logging
import os
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from io import TextIOWrapper
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Final

from cascade.wire import CallRecord

_LOG_BYTES: Final = 10_000_000
_GATHERED_S: Final = 1.0
_MOST_CALLERS: Final = 1000


class RequestLog:
    """Writes what ``on_call`` of ``cascade.wire.add_answerer`` is told.

    Arguments:
        path: the file; ``None`` for the process's own log.
        gathered_s: how long refusals are gathered.
    """

    def __init__(self, path: Path | None, *, gathered_s: float = _GATHERED_S) -> None:
        self._log = _logger(path)
        self._gathered_s = gathered_s
        self._gathered: dict[tuple[str, str], _Refusals] = {}

    def __call__(self, record: CallRecord) -> None:
        """Write a call down, now or with others like it. On an event loop."""
        if record.status != "RESOURCE_EXHAUSTED" or record.request_id or record.quota:
            self._write(record)
            return
        key = (record.caller, record.problem)
        known = self._gathered.get(key)
        if known is not None:
            known.add(record)
            return
        self._write(record)
        if len(self._gathered) < _MOST_CALLERS:
            self._gathered[key] = _Refusals()
            asyncio.get_running_loop().call_later(self._gathered_s, self._settle, key)

    def flush(self) -> None:
        """Write what is still gathered."""
        for key in list(self._gathered):
            self._settle(key)

    def _settle(self, key: tuple[str, str]) -> None:
        refusals = self._gathered.pop(key, None)
        if refusals is not None and refusals.last is not None:
            slowest = replace(refusals.last, seconds=refusals.slowest_s, trace_id="")
            self._write(slowest, calls=refusals.calls)

    def _write(self, record: CallRecord, *, calls: int | None = None) -> None:
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
        counted = {} if calls is None else {"calls": calls}
        self._log.info(json.dumps({"time": now, **_told(record), **counted}))


_FIELDS: Final = tuple(field.name for field in fields(CallRecord))


def _told(record: CallRecord) -> dict[str, object]:
    # `asdict` copies what is in the fields, too.
    return {name: getattr(record, name) for name in _FIELDS}


@dataclass(slots=True)
class _Refusals:
    calls: int = 0
    slowest_s: float = 0.0
    last: CallRecord | None = None

    def add(self, record: CallRecord) -> None:
        self.calls += 1
        self.slowest_s = max(self.slowest_s, record.seconds)
        self.last = record


class _SharedFile(RotatingFileHandler):
    """A file that other gateways of this machine write to as well, and may put aside."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            there = os.stat(self.baseFilename)
        except OSError:
            there = None
        if there is None or not os.path.samestat(there, self._opened):
            self.close()
            self.stream = self._open()
            there = self._opened
        self._bytes = there.st_size
        super().emit(record)

    def shouldRollover(self, record: logging.LogRecord) -> bool:
        # With what the others have written; the stream knows of its own alone, and asks thrice.
        return self.maxBytes > 0 and self._bytes + len(record.getMessage()) >= self.maxBytes

    def _open(self) -> TextIOWrapper:
        stream = super()._open()
        self._opened = os.fstat(stream.fileno())
        return stream


def _logger(path: Path | None) -> logging.Logger:
    # Below Ray Serve's own logger: without a path, what it writes goes into the replica's log.
    log = logging.getLogger("ray.serve.requests")
    log.setLevel(logging.INFO)
    if path is not None:
        with suppress(OSError):
            target = _SharedFile(path, maxBytes=_LOG_BYTES, backupCount=3)
            target.setFormatter(logging.Formatter("%(message)s"))
            for earlier in log.handlers:
                earlier.close()
            log.handlers = [target]
            log.propagate = False
    return log
