"""Files that are whole or absent: written aside, then renamed; and their digests."""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
from collections.abc import Callable
from pathlib import Path

_CHUNK = 1 << 20


def write_whole(path: Path, data: bytes, *, private: bool = False) -> None:
    """Write ``data`` so that ``path`` holds either its old content or all of the new.

    Arguments:
        private: readable and writable by the owner alone (0600).
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        descriptor = os.open(
            aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600 if private else 0o644
        )
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    except OSError as problem:
        if problem.filename is None:  # a full disk says nothing of the file
            problem.filename = str(path)
        raise
    finally:
        aside.unlink(missing_ok=True)


def write_new(path: Path, data: bytes, *, private: bool = False) -> None:
    """Write ``data`` unless ``path`` is there. Where several do so at once, the data of one of them
    is there for all: read it from there.

    Arguments:
        private: see ``write_whole``.
    """
    aside = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        write_whole(aside, data, private=private)
        try:
            os.link(aside, path)  # unlike a renaming, it never replaces
        except FileExistsError:
            return
        except OSError:  # Android lets no app link; others may read a part for a moment, no more
            with contextlib.suppress(FileExistsError), path.open("xb") as file:
                try:
                    path.chmod(0o600 if private else 0o644)
                    file.write(data)
                    file.flush()
                except BaseException:
                    path.unlink(missing_ok=True)
                    raise
    finally:
        aside.unlink(missing_ok=True)


def sha256_bytes(data: bytes) -> str:
    """Lower-case hex sha256 of ``data``."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path, on_bytes: Callable[[int], None] | None = None) -> str:
    """Lower-case hex sha256 of a file, read in pieces; ``on_bytes`` is told the size of each."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            if on_bytes is not None:
                on_bytes(len(chunk))
    return digest.hexdigest()
