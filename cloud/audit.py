"""The record of what leaves for providers: a file of JSON lines that is on the disk before anything
is sent, and is put aside when it is full. Several gateways of a machine write to one file."""

from __future__ import annotations

import fcntl
import json
import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

Entry = Mapping[str, str | int | float | list[str] | list[dict[str, str]] | None]

_OWNER_ONLY: Final = 0o600


class AuditFile:
    """Lines that stay. ``write`` blocks until the disk has the line; call it in a thread.

    Arguments:
        max_bytes: a line that would make the file larger begins a new one; the full one becomes
            ``NAME.1``, that one ``NAME.2``, and so on.
        keep_files: so many full ones are kept.
    """

    def __init__(self, path: Path, *, max_bytes: int = 10_000_000, keep_files: int = 10) -> None:
        self._path = path
        self._max_bytes = max_bytes
        self._keep_files = keep_files
        self._writing = threading.Lock()

    def write(self, entry: Entry) -> None:
        """Append one line.

        Raises:
            OSError: it is not on the disk; nothing of it is in the file.
        """
        line = (json.dumps(entry, ensure_ascii=False) + "\n").encode("utf-8", "backslashreplace")
        with self._writing, self._alone():
            size = self._path.stat().st_size if self._path.exists() else 0
            if size and size + len(line) > self._max_bytes:
                self._put_aside()
                size = 0
            self._append(line, size)

    def _append(self, line: bytes, size: int) -> None:
        new = not self._path.exists()
        file = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, _OWNER_ONLY)
        try:
            left = line
            while left:
                left = left[os.write(file, left) :]
            os.fsync(file)
        except OSError:
            # Half a line would spoil the next one.
            with suppress(OSError):
                os.ftruncate(file, size)
            raise
        finally:
            os.close(file)
        if new:
            self._sync_folder()

    def _put_aside(self) -> None:
        def aside(number: int) -> Path:
            return self._path.with_name(f"{self._path.name}.{number}")

        aside(self._keep_files).unlink(missing_ok=True)
        for number in range(self._keep_files - 1, 0, -1):
            if aside(number).exists():
                os.replace(aside(number), aside(number + 1))
        os.replace(self._path, aside(1))

    def _sync_folder(self) -> None:
        folder = os.open(self._path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """No other process writes meanwhile."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.with_name(f".{self._path.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
