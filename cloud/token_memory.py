"""Tokens that were used, where each is good for one call: one SQLite file for all gateways of a
machine. Of a token its sha256 is kept, until it would be refused anyway."""

from __future__ import annotations

import hashlib
import logging
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Final

from cascade.errors import RemoteError

_log = logging.getLogger(__name__)

_WAIT_S: Final = 5.0


class TokenMemory:
    """See the module. A ``Memory`` for ``Tokens``; made when it is first asked.

    Arguments:
        wall_s: the time in seconds since 1970.
    """

    def __init__(self, file: Path, wall_s: Callable[[], float] = time.time) -> None:
        self._file = file
        self._wall_s = wall_s

    def first_use(self, token: str, ends_s: float) -> bool:
        """Whether ``token`` is used for the first time; see ``Memory``."""
        digest = hashlib.sha256(token.encode()).digest()
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            with closing(sqlite3.connect(self._file, timeout=_WAIT_S)) as file, file:
                file.execute("BEGIN IMMEDIATE")
                file.execute(
                    "CREATE TABLE IF NOT EXISTS used_token"
                    " (digest BLOB PRIMARY KEY, ends_s REAL NOT NULL) WITHOUT ROWID"
                )
                file.execute("DELETE FROM used_token WHERE ends_s < ?", (self._wall_s(),))
                added = file.execute(
                    "INSERT OR IGNORE INTO used_token VALUES (?, ?)", (digest, ends_s)
                )
                return added.rowcount == 1
        except (sqlite3.Error, OSError) as problem:
            _log.error("used tokens cannot be looked up in %s: %s", self._file, problem)
            raise RemoteError(
                "UNAVAILABLE", "whether this token was used before cannot be looked up now"
            ) from None
