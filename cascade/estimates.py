"""Estimates by name, in one JSON file that the processes of a machine share.

Only the keeping lives here: what is estimated, and how it fades, is said by who keeps it. What the
file holds are estimates, so that losing it costs nothing but measuring again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Generic, TypeVar

from cascade.errors import InvalidInput
from cascade.files import write_whole
from cascade.strict import Fields

T = TypeVar("T")


class EstimateFile(Generic[T]):
    """``values``, as they were read or kept last. Not thread-safe: lock around what belongs
    together.

    Arguments:
        path: the file, or ``None`` to forget everything at the end of the process. A file that
            cannot be read counts as empty.
        kind: how the estimates are called in the file.
        version: of the file's format.
        read: makes an estimate of the fields of one.
        written: the plain values of one; ``None`` leaves it out, for it says nothing any more.
    """

    def __init__(
        self,
        path: Path | None,
        *,
        kind: str,
        version: int,
        read: Callable[[Fields], T],
        written: Callable[[T], Mapping[str, object] | None],
    ) -> None:
        self.values: dict[str, T] = {}
        self._path = path
        self._kind = kind
        self._version = version
        self._parse = read
        self._written = written
        self._read: tuple[int, int] | None = None

    def refresh(self) -> None:
        """Read the file where another process has written it."""
        if self._path is None:
            return
        try:
            status = self._path.stat()
            written = (status.st_mtime_ns, status.st_ino)
            if written != self._read:
                self.values = self._parsed(self._path.read_bytes())
                self._read = written
        except (OSError, InvalidInput):
            return

    def save(self) -> None:
        """Write ``values``. Of two processes that do so in the same millisecond, one may be in
        vain."""
        if self._path is None:
            return
        plain = {key: self._written(value) for key, value in self.values.items()}
        content = {
            "format": self._version,
            self._kind: {key: value for key, value in plain.items() if value is not None},
        }
        try:
            write_whole(self._path, json.dumps(content).encode())
            status = self._path.stat()
            self._read = (status.st_mtime_ns, status.st_ino)
        except OSError:  # a full disk must not cost the user an answer that is already there
            return

    def _parsed(self, data: bytes) -> dict[str, T]:
        fields = Fields.from_bytes(data, "estimates")
        fields.integer("format", self._version, self._version)
        listed = fields.take(self._kind)
        if not isinstance(listed, dict):
            raise InvalidInput(fields.path(self._kind), "must be an object")
        return {
            str(key): self._parse(Fields(value, f"{fields.path(self._kind)}.{key}"))
            for key, value in listed.items()
        }
