"""What a supervisor leaves for others to find it: a lock that it holds while it lives, and a file
that says who it is and how far it has come.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final, Literal

from cascade.errors import ClusterError
from cascade.files import write_whole
from cascade.home import cluster_dir
from cloud import processes

FOLDER_PREFIX: Final = "cascade-"
FOLDER_VARIABLE: Final = "RAY_TMPDIR"
"""All processes of a session have its folder in this environment variable."""


@dataclass(frozen=True, slots=True)
class SessionState:
    """The content of the pid file.

    Arguments:
        pid, begun: the supervisor; ``begun`` tells it from a later process with the same pid.
        stage: ``"ready"`` when requests are answered, ``"stopping"`` when no longer.
        address: ``host:port`` for clients on this machine.
        folder: the session's temporary folder; holds the control socket.
        tiers: name and model of each tier, from the lowest to the highest.
    """

    pid: int
    begun: str
    stage: Literal["starting", "ready", "stopping"]
    address: str
    folder: str
    tiers: tuple[tuple[str, str], ...]

    @property
    def control_socket(self) -> Path:
        """Unix socket that the supervisor answers; in a folder that only its owner may enter."""
        return Path(self.folder) / "control.sock"

    def save(self) -> None:
        """Write the pid file."""
        write_whole(
            state_path(), (json.dumps(asdict(self), indent=2) + "\n").encode(), private=True
        )


def state_path() -> Path:
    """The pid file."""
    return cluster_dir() / "supervisor.json"


def log_path() -> Path:
    """What a supervisor in the background prints."""
    return cluster_dir() / "cluster.log"


def request_log_path() -> Path:
    """One JSON line a request, without its content."""
    return cluster_dir() / "requests.jsonl"


def api_keys_path() -> Path:
    """The keys that may call this machine's cluster."""
    return cluster_dir() / "api-keys"


def quotas_path() -> Path:
    """What callers have used."""
    return cluster_dir() / "quotas.sqlite"


def audit_path() -> Path:
    """What went to providers."""
    return cluster_dir() / "audit.jsonl"


def read_state() -> SessionState | None:
    """What the pid file says, whether or not that supervisor still lives."""
    try:
        content = json.loads(state_path().read_text())
        tiers = tuple((str(name), str(model)) for name, model in content.pop("tiers"))
        return SessionState(**content, tiers=tiers)
    except (FileNotFoundError, ValueError, TypeError, KeyError):
        return None


def running_state() -> SessionState | None:
    """The supervisor that runs now, or ``None``. A file left by a killed one does not count."""
    state = read_state()
    if state is None or processes.start_time(state.pid) != state.begun:
        return None
    return state


def remove_remains(state: SessionState) -> None:
    """End what a supervisor that is no more has left: Ray's processes and its folder.

    Ray's processes are told by their environment, not by their parents, who may have ended first.
    """
    if Path(state.folder).name.startswith(FOLDER_PREFIX):
        processes.kill_with_variable(FOLDER_VARIABLE, state.folder)
        shutil.rmtree(state.folder, ignore_errors=True)
    if read_state() == state:
        state_path().unlink(missing_ok=True)


@contextlib.contextmanager
def claim() -> Iterator[None]:
    """Hold the lock of this machine's one supervisor; the pid file is removed at the end.

    Raises:
        ClusterError: another supervisor holds it.
    """
    folder = cluster_dir()
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)
    descriptor = os.open(folder / "supervisor.lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise already_running() from None
        try:
            yield
        finally:
            state_path().unlink(missing_ok=True)
    finally:
        os.close(descriptor)


def already_running() -> ClusterError:
    """The refusal of a second supervisor."""
    state = running_state()
    who = "" if state is None else f" (pid {state.pid}, {state.address})"
    return ClusterError(f"a cluster is already running{who}; stop it with `cascade cluster down`")
