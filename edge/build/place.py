"""Where a bundle is put: all of it at once by one rename, or nothing."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cascade.errors import CascadeError, InvalidInput
from edge.bundle import MANIFEST


def check_free(out: Path, *, overwrite: bool) -> None:
    """Raise ``InvalidInput`` unless a bundle may be put at ``out``: nothing is there, or an older
    bundle that may be overwritten."""
    if not out.exists():
        return
    if not overwrite:
        raise InvalidInput("out", f"{out} exists; choose another folder or allow overwriting")
    if not (out / MANIFEST).is_file():
        raise InvalidInput("out", f"{out} is not a bundle; it will not be overwritten")


@contextmanager
def finished_or_absent(out: Path) -> Iterator[Path]:
    """A folder beside ``out`` that takes its place at the end, and is removed on any failure.

    Raises:
        CascadeError: the disk is full.
        InvalidInput: the place cannot be written.
    """
    try:
        with _aside(out) as folder:
            yield folder
    except OSError as problem:
        if problem.errno in (errno.ENOSPC, errno.EDQUOT):
            raise CascadeError(
                f"{out}: the disk is full; nothing was left behind. Free some space or build "
                "elsewhere"
            ) from None
        if problem.filename is None:  # not a file's: a defect, which its trace has to tell
            raise
        raise InvalidInput(
            "out", f"{out} cannot be written ({problem.strerror}); choose another folder"
        ) from None


@contextmanager
def _aside(out: Path) -> Iterator[Path]:
    out.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        folder = aside / "new"
        folder.mkdir()
        yield folder
        if out.exists():
            os.replace(out, aside / "old")
        os.replace(folder, out)
    finally:
        if (aside / "old").exists() and not out.exists():  # interrupted between the two renames
            os.replace(aside / "old", out)
        shutil.rmtree(aside)
