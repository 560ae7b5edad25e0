"""The process that owns a local cluster: it has it started, waits, and takes everything down again,
however it ends.

``python -m cloud.supervisor CONFIG`` is what ``up`` and ``up_detached`` start. The steps that it
takes are ``startup``; how other processes talk to it is ``control`` and ``control_socket``.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Final, NoReturn

from cascade.errors import Cancelled, CascadeError, ClusterError
from cascade.wire import profile_path
from cloud import processes, session, startup
from cloud.config import ClusterConfig, load_config
from cloud.control import FAILURE, KEEP, PROGRESS, Progress
from cloud.control_socket import control_socket, reset_prefix_caches
from cloud.local_ray import stop_ray
from cloud.tier_adapters import checked

_log = logging.getLogger(__name__)

_KILL_AFTER_S: Final = 3.0
_POLL_S: Final = 0.1


def run(config: ClusterConfig, *, on_progress: Progress) -> None:
    """Run a cluster on this machine until SIGINT, SIGTERM, or the end of standard input. Call it on
    the main thread of a process that does nothing else.

    Where that comes before the cluster is ready, this process ends at once, and all that it
    started: what raises in the middle of Ray's start may get lost in there, or break it.

    Arguments:
        on_progress: told in one line what is being done.

    Raises:
        ClusterError: it cannot start; the message says what to do. Nothing is left running.
    """
    began = time.monotonic()
    model_files = startup.model_files(config)
    adapters = checked(config)
    with session.claim():
        startup.check_port(config)
        remains = session.read_state()
        if remains is not None:  # of one that was killed: the lock proves that it no longer runs
            session.remove_remains(remains)
        # Short: Ray's socket names must fit into 107 bytes.
        folder = Path(tempfile.mkdtemp(prefix=session.FOLDER_PREFIX, dir="/tmp"))
        others = processes.descendants(os.getpid())
        processes.adopt_orphans()
        state = _state(config, folder)
        stop = _Stop()
        try:
            state.save()
            with stop.at_once(lambda: _end_at_once(state, others)):
                profile = startup.start(config, model_files, adapters, folder, on_progress)
                stop.listen()  # Ray has put handlers of its own in place
                reset_prefix_caches(config)
            with control_socket(state.control_socket, config):
                profile.save(profile_path())
                on_progress(f"ready at {state.address} in {time.monotonic() - began:.1f} s")
                replace(state, stage="ready").save()
                _wait(stop.asked)
            on_progress("stopping")
            _drain(config)
        finally:
            with contextlib.suppress(OSError):
                replace(state, stage="stopping").save()
            stop_ray()
            killed = processes.end_descendants(others, grace_s=_KILL_AFTER_S)
            if killed:
                _log.info("%d processes had to be killed", killed)
            shutil.rmtree(folder, ignore_errors=True)


class _Stop:
    """Whether this process was asked to stop: by a signal, or by the end of its standard input."""

    def __init__(self) -> None:
        self.asked = threading.Event()
        self._changing = threading.Lock()
        self.listen()
        threading.Thread(target=self._watch_input, daemon=True, name="watch-parent").start()

    def listen(self) -> None:
        """Take SIGINT and SIGTERM."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: self.asked.set())

    @contextlib.contextmanager
    def at_once(self, end: Callable[[], NoReturn]) -> Iterator[None]:
        """In here, being asked calls ``end``, on a thread of its own."""
        over = threading.Event()

        def guard() -> None:
            while not over.is_set():
                if self.asked.wait(_POLL_S):
                    with self._changing:
                        if not over.is_set():
                            end()

        threading.Thread(target=guard, daemon=True, name="end-at-once").start()
        try:
            yield
        finally:
            with self._changing:
                over.set()

    def _watch_input(self) -> None:
        """Until told to keep running, live no longer than the process that started this one."""
        if sys.stdin.buffer.readline() != KEEP:
            self.asked.set()


def _end_at_once(state: session.SessionState, others: frozenset[int]) -> NoReturn:
    """End this process without asking Ray, which may be anywhere in its start."""
    processes.end_descendants(others, grace_s=0.0)
    session.remove_remains(state)
    session.state_path().unlink(missing_ok=True)
    print(f"{FAILURE}it was stopped while it started", flush=True)
    os._exit(Cancelled.exit_code)


def _state(config: ClusterConfig, folder: Path) -> session.SessionState:
    pid = os.getpid()
    return session.SessionState(
        pid=pid,
        begun=processes.start_time(pid) or "",
        stage="starting",
        address=startup.client_address(config),
        folder=str(folder),
        tiers=tuple((tier.name, tier.model_name) for tier in config.tiers),
    )


def _drain(config: ClusterConfig) -> None:
    """Let the answers that are under way finish; Ray Serve would cut them off."""
    from ray import serve

    from cloud.gateway import APP_NAME

    try:
        handle = serve.get_deployment_handle("gateway", APP_NAME)
        handle.broadcast("drain").results(timeout_s=config.gateway.drain_s + _KILL_AFTER_S)
    except Exception:
        _log.exception("the gateway was not drained")


def _wait(asked: threading.Event) -> None:
    """Wait to be asked to stop, or for Ray to break."""
    own = {pid: processes.start_time(pid) for pid in _ray_processes()}
    while not asked.wait(1.0):
        if any(processes.start_time(pid) != begun for pid, begun in own.items()):
            raise ClusterError("Ray ended by itself; the cluster was taken down")


def _ray_processes() -> list[int]:
    """Ray's two processes without which nothing works, children of this one."""
    names = {"gcs_server", "raylet"}
    return [
        pid for pid in processes.descendants(os.getpid()) if processes.command_name(pid) in names
    ]


def main(arguments: list[str]) -> int:
    """Run the supervisor for another process; returns the exit code."""
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s")

    def report(line: str) -> None:
        print(f"{PROGRESS}{line}", flush=True)

    try:
        run(load_config(Path(arguments[0])), on_progress=report)
    except CascadeError as error:
        print(f"{FAILURE}{' '.join(str(error).split())}", flush=True)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
