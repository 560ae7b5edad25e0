"""API keys: a server keeps of each only the sha256, in a file that is read again when it changes.

One line a key: ``name sha256``, and ``expires=TIME`` behind it where the key ends by itself. Two
lines of one name are two keys of one caller: that is how a key is rotated without a gap.
"""

from __future__ import annotations

import datetime
import fcntl
import hashlib
import hmac
import logging
import re
import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from cascade.errors import InvalidInput
from cascade.files import write_whole

_log = logging.getLogger(__name__)

_LINE = re.compile(r"([A-Za-z0-9._-]{1,64})[ \t]+([0-9a-f]{64})(?:[ \t]+expires=(\S+))?")
_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
_SHOWN: Final = 12


def new_key() -> str:
    """A fresh API key with 256 bits of randomness."""
    return secrets.token_urlsafe(32)


def key_hash(key: str) -> str:
    """What a server keeps of a key: lower-case hex sha256. A random key needs no salt."""
    return hashlib.sha256(key.encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class ApiKey:
    """What a server knows of a key.

    Arguments:
        name: of its owner: in logs, quotas and records.
        sha256: of the key.
        expires: it is refused from then on; ``None`` for never. Has a time zone.
    """

    name: str
    sha256: str
    expires: datetime.datetime | None = None

    @property
    def shown(self) -> str:
        """Enough of the hash to tell two keys of one owner apart."""
        return self.sha256[:_SHOWN]

    def expired(self, now: datetime.datetime) -> bool:
        """Whether it is past its end."""
        return self.expires is not None and now >= self.expires


class KeyRing:
    """The keys that may call."""

    def __init__(self, keys: Iterable[ApiKey] = ()) -> None:
        self.keys = tuple(keys)

    @classmethod
    def load(cls, path: Path) -> KeyRing:
        """Read a keys file; a missing one is an empty ring, which lets nobody in.

        Raises:
            InvalidInput: naming the line that is not ``name sha256 [expires=TIME]``.
        """
        keys: list[ApiKey] = []
        lines = path.read_text().splitlines() if path.exists() else []
        for number, line in enumerate(lines, start=1):
            text = line.partition("#")[0].strip()
            if not text:
                continue
            parts = _LINE.fullmatch(text)
            if parts is None:
                raise InvalidInput(
                    "api_keys_file", f"{path} line {number} is not `name sha256 [expires=TIME]`"
                )
            keys.append(ApiKey(parts[1], parts[2], _time(parts[3], f"{path} line {number}")))
        return cls(keys)

    def save(self, path: Path) -> None:
        """Write a keys file, readable by the owner alone."""
        lines = []
        for key in sorted(self.keys, key=lambda each: (each.name, each.sha256)):
            end = "" if key.expires is None else f" expires={key.expires.isoformat()}"
            lines.append(f"{key.name} {key.sha256}{end}\n")
        write_whole(path, "".join(lines).encode(), private=True)

    def with_key(
        self,
        name: str,
        key: str,
        *,
        expires: datetime.datetime | None = None,
        others_until: datetime.datetime | None = None,
    ) -> KeyRing:
        """This ring and ``key``, which replaces the earlier keys of that name.

        Arguments:
            others_until: earlier keys of the name are good until then; by default no longer.

        Raises:
            InvalidInput: the name is not one that a keys file can hold.
        """
        if not _NAME.fullmatch(name):
            raise InvalidInput("name", f"{name!r} is not 1 to 64 characters of A-Z a-z 0-9 . _ -")
        kept = [each for each in self.keys if each.name != name]
        if others_until is not None:
            kept += [_ending(each, others_until) for each in self.keys if each.name == name]
        return KeyRing((*kept, ApiKey(name, key_hash(key), expires)))

    def without(self, name: str) -> KeyRing:
        """This ring without any key of that name."""
        return KeyRing(each for each in self.keys if each.name != name)

    def find(self, key: str) -> ApiKey | None:
        """What is known of a key, expired or not; ``None`` for an unknown one. Takes the same time
        for every key."""
        found: ApiKey | None = None
        digest = key_hash(key)
        for known in self.keys:
            if hmac.compare_digest(known.sha256, digest):
                found = known
        return found

    def owner(self, key: str) -> str | None:
        """Name of the owner of a key, or ``None`` for one that is unknown or expired."""
        found = self.find(key)
        if found is None or found.expired(datetime.datetime.now(datetime.UTC)):
            return None
        return found.name


class KeyFile:
    """A keys file that is read again when it has changed. A change that cannot be read leaves the
    keys as they were, and is logged once.

    Raises:
        InvalidInput: it cannot be read at the beginning.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen = _stamp(path)
        self._ring = KeyRing.load(path)

    def ring(self) -> KeyRing:
        """The keys now."""
        stamp = _stamp(self._path)
        if stamp != self._seen:
            self._seen = stamp
            try:
                self._ring = KeyRing.load(self._path)
            except (InvalidInput, OSError, UnicodeDecodeError) as problem:
                _log.error("the API keys stay as they were: %s", problem)
        return self._ring


@contextmanager
def editing_keys(path: Path) -> Iterator[KeyRing]:
    """The keys of a file, while nobody else who asks this way changes it; save the new ring before
    the ``with`` block ends."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name(f".{path.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield KeyRing.load(path)


def _ending(key: ApiKey, until: datetime.datetime) -> ApiKey:
    return key if key.expires is not None and key.expires < until else replace(key, expires=until)


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return (found.st_mtime_ns, found.st_size, found.st_ino)


def _time(text: str | None, where: str) -> datetime.datetime | None:
    if text is None:
        return None
    try:
        read = datetime.datetime.fromisoformat(text)
    except ValueError:
        raise InvalidInput(
            "api_keys_file", f"{where}: {text!r} is not a time such as 2027-01-31T00:00:00+00:00"
        ) from None
    # A date without a zone must not end at another hour on another machine.
    return read if read.tzinfo is not None else read.replace(tzinfo=datetime.UTC)
