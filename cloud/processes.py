"""Processes of this machine: who descends from whom, whether a pid is still the same process, and
how to end a whole family so that nothing is left.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Final

_PR_SET_CHILD_SUBREAPER: Final = 36
_POLL_S: Final = 0.05


def adopt_orphans() -> None:
    """Make descendants whose parent ends children of this process, so that they can be found. Linux
    only; elsewhere nothing happens."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def start_time(pid: int) -> str | None:
    """A mark of when the process began, or ``None`` when there is no such process. Together with
    the pid it names one process for ever, though pids are used again."""
    if sys.platform == "linux":
        fields = _stat(pid)
        # Field 3 is the state, 22 the start time; a zombie has ended.
        return None if fields is None or fields[0] == "Z" else fields[19]
    reply = subprocess.run(
        ["ps", "-o", "lstart=", "-p", str(pid)], capture_output=True, text=True, check=False
    )
    return reply.stdout.strip() or None


def descendants(pid: int) -> frozenset[int]:
    """All children of ``pid``, their children, and so on; without ``pid``."""
    children: defaultdict[int, list[int]] = defaultdict(list)
    for child, parent in _parents():
        children[parent].append(child)
    found: set[int] = set()
    todo = [pid]
    while todo:
        for child in children[todo.pop()]:
            if child not in found:
                found.add(child)
                todo.append(child)
    return frozenset(found)


def command_name(pid: int) -> str:
    """Short name of the program that ``pid`` runs; empty when there is no such process."""
    if sys.platform == "linux":
        try:
            return Path(f"/proc/{pid}/comm").read_text().strip()
        except (FileNotFoundError, ProcessLookupError):
            return ""
    reply = subprocess.run(
        ["ps", "-o", "comm=", "-p", str(pid)], capture_output=True, text=True, check=False
    )
    return Path(reply.stdout.strip()).name


def with_variable(name: str, value: str) -> frozenset[int]:
    """All other processes that were started with this environment variable, whoever their parents
    are by now. Linux only; empty elsewhere."""
    if sys.platform != "linux":
        return frozenset()
    wanted = f"{name}={value}".encode()
    found = set()
    for pid, _ in _parents():
        with contextlib.suppress(OSError):  # ended meanwhile, or another user's
            if wanted in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                found.add(pid)
    return frozenset(found - {os.getpid()})


def kill_with_variable(name: str, value: str) -> int:
    """Kill them, and what they start meanwhile. Returns how many there were."""
    killed: set[int] = set()
    while left := frozenset(
        pid for pid in with_variable(name, value) if start_time(pid) is not None
    ):
        for pid in left:
            _signal(pid, signal.SIGKILL)
        killed |= left
        time.sleep(_POLL_S)
    return len(killed)


def end_descendants(keep: frozenset[int], *, grace_s: float) -> int:
    """End every descendant of this process that is not in ``keep``: SIGTERM, then SIGKILL after
    ``grace_s``. Returns how many had to be killed."""
    for pid in _others(keep):
        _signal(pid, signal.SIGTERM)
    end = time.monotonic() + grace_s
    while _others(keep) and time.monotonic() < end:
        time.sleep(_POLL_S)
    killed: set[int] = set()
    # A process may start another one before it dies.
    while left := _others(keep):
        for pid in left:
            _signal(pid, signal.SIGKILL)
        killed |= left
        time.sleep(_POLL_S)
    return len(killed)


def _others(keep: frozenset[int]) -> frozenset[int]:
    others = descendants(os.getpid()) - keep
    for pid in others:
        # Ended children stay as zombies until somebody asks; grandchildren are not ours to ask.
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)
    return frozenset(pid for pid in others if start_time(pid) is not None)


def _signal(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def _parents() -> list[tuple[int, int]]:
    if sys.platform == "linux":
        pids = [int(entry) for entry in os.listdir("/proc") if entry.isdigit()]
        stats = [(pid, _stat(pid)) for pid in pids]
        return [(pid, int(fields[1])) for pid, fields in stats if fields is not None]
    reply = subprocess.run(["ps", "-A", "-o", "pid=,ppid="], capture_output=True, check=True)
    pairs = (line.split() for line in reply.stdout.decode().splitlines())
    return [(int(pid), int(parent)) for pid, parent in pairs]


def _stat(pid: int) -> list[str] | None:
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The command name, in parentheses, may itself hold blanks and parentheses.
    return text.rpartition(")")[2].split()
