"""Children answer in JSON lines whatever else they print, and what goes wrong has a reason."""

from __future__ import annotations

import subprocess
import time
import zipfile
from pathlib import Path

import pytest

from benchmarks.peers import Child, Environment, PeerUnavailable
from benchmarks.peers.environment import run_whole

CHATTY = """
import sys
from benchmarks.child import serve, timed

def handlers():
    print("a banner that some library prints")
    return {
        "double": lambda number: {"number": 2 * number},
        "work": lambda: timed(lambda: sum(range(1000))),
        "fail": lambda: sys.exit("out of memory"),
    }

serve(handlers)
"""


@pytest.fixture
def chatty(tmp_path, monkeypatch):
    (tmp_path / "chatty_child.py").write_text(CHATTY)
    monkeypatch.syspath_prepend(str(tmp_path))
    return "chatty_child"


def test_a_child_answers_past_what_libraries_print(chatty):
    with Child(chatty) as child:
        assert child.ask("double", number=21) == {"number": 42}
        sample = child.time("work")
        assert 0 <= sample.cpu_s <= sample.wall_s + 0.05


def test_a_child_that_ends_gives_its_last_line_as_reason(chatty):
    with Child(chatty) as child, pytest.raises(PeerUnavailable, match="out of memory"):
        child.ask("fail")


def test_a_module_that_is_not_there_is_a_reason_too():
    with Child("no_such_module") as child, pytest.raises(PeerUnavailable, match="no_such_module"):
        child.ask("anything")


def test_what_takes_too_long_ends_with_all_that_it_started(tmp_path):
    pid_file = tmp_path / "pid"
    script = f"sleep 600 & echo $! > {pid_file}; wait"
    with pytest.raises(PeerUnavailable, match="not done within"):
        run_whole(["sh", "-c", script], what="a build", limit_s=1.0)
    deadline = time.monotonic() + 10
    while running(int(pid_file.read_text())) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not running(int(pid_file.read_text()))


def running(pid):
    """Whether a process exists and has not ended."""
    try:
        state = Path("/proc", str(pid), "stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def test_an_environment_that_cannot_be_made_says_why_and_is_tried_again(tmp_path, monkeypatch):
    monkeypatch.setenv("CASCADE_BENCH_CACHE", str(tmp_path))
    missing = str(tmp_path / "missing-1.0-py3-none-any.whl")
    environment = Environment("missing", (missing,), pip_arguments=("--no-index",))
    said = []
    for _ in range(2):
        with pytest.raises(PeerUnavailable, match="missing"):
            environment.python(said.append)
    assert len(said) == 2


def test_an_environment_is_made_once_and_is_apart_from_ours(tmp_path, monkeypatch):
    monkeypatch.setenv("CASCADE_BENCH_CACHE", str(tmp_path))
    environment = Environment("tiny", (str(tiny_wheel(tmp_path)),), pip_arguments=("--no-index",))
    said = []
    python = environment.python(said.append)
    assert environment.python(said.append) == python
    assert len(said) == 1
    probe = "import tiny_peer, importlib.util; print(importlib.util.find_spec('numpy'))"
    done = subprocess.run([python, "-c", probe], capture_output=True, text=True, check=True, env={})
    assert done.stdout.strip() == "None"


def tiny_wheel(folder):
    """A wheel of one empty module."""
    path = folder / "tiny_peer-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr("tiny_peer.py", "")
        described = "tiny_peer-1.0.dist-info"
        wheel.writestr(
            f"{described}/METADATA", "Metadata-Version: 2.1\nName: tiny_peer\nVersion: 1.0\n"
        )
        wheel.writestr(
            f"{described}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(f"{described}/RECORD", "")
    return path
