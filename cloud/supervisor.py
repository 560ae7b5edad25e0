"""The process that owns a local cluster: it has it started, waits, and takes everything down again,
however it ends.

``python -m cloud.supervisor CONFIG`` is what ``up_detached`` runs in the background. The steps of
starting are ``startup``; how other processes talk to this one is ``control`` and
``control_socket``.
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
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Final

from cascade.errors import Cancelled, CascadeError, ClusterError
from cascade.wire import profile_path
from cloud import processes, session, startup
from cloud.config import ClusterConfig, load_config
from cloud.control import FAILURE, KEEP, PROGRESS, Progress
from cloud.control_socket import control_socket, reset_prefix_caches
from cloud.local_ray import stop_ray

_log = logging.getLogger(__name__)

_KILL_AFTER_S: Final = 3.0


def up(config: ClusterConfig, *, on_progress: Progress) -> None:
    """Run a cluster on this machine until SIGINT or SIGTERM. Call it on the main thread.

    Arguments:
        on_progress: told in one line what is being done.

    Raises:
        ClusterError: it cannot start; the message says what to do. Nothing is left running.
        Cancelled: a signal came before it was ready; likewise.
    """
    began = time.monotonic()
    model_files = startup.model_files(config)
    with session.claim(), _Interruptible() as signals:
        startup.check_port(config)
        _remove_remains()
        # Short: Ray's socket names must fit into 107 bytes.
        folder = Path(tempfile.mkdtemp(prefix="cascade-", dir="/tmp"))
        others = processes.descendants(os.getpid())
        processes.adopt_orphans()
        state = _state(config, folder)
        try:
            state.save()
            try:
                profile = startup.start(config, model_files, folder, on_progress)
                reset_prefix_caches(config)
            except (_Stopped, SystemExit):
                raise Cancelled("interrupted; the cluster was taken down again") from None
            signals.defer()
            with control_socket(state.control_socket, config):
                profile.save(profile_path())
                replace(state, stage="ready").save()
                on_progress(f"ready at {state.address} in {time.monotonic() - began:.1f} s")
                _wait(signals)
            on_progress("stopping")
            _drain(config)
        finally:
            signals.defer()
            with contextlib.suppress(OSError):
                replace(state, stage="stopping").save()
            stop_ray()
            killed = processes.end_descendants(others, grace_s=_KILL_AFTER_S)
            if killed:
                _log.info("%d processes had to be killed", killed)
            shutil.rmtree(folder, ignore_errors=True)


class _Stopped(BaseException):
    """A signal arrived while the cluster was starting."""


class _Interruptible:
    """SIGINT and SIGTERM: raise ``_Stopped`` at once, or after ``defer`` only set ``stopped``."""

    def __init__(self) -> None:
        self.stopped = threading.Event()
        self._raising = True
        self._before: dict[int, object] = {}

    def __enter__(self) -> _Interruptible:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def defer(self) -> None:
        """From now on, do not interrupt what runs. Ray has put a handler of its own in place."""
        self._raising = False
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.stopped.set()
        if self._raising:
            self._raising = False
            raise _Stopped


def _remove_remains() -> None:
    """A supervisor that was killed leaves its folder; the lock proves that it no longer runs."""
    remains = session.read_state()
    if remains is not None and Path(remains.folder).name.startswith("cascade-"):
        shutil.rmtree(remains.folder, ignore_errors=True)


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
        handle.drain.remote().result(timeout_s=config.gateway.drain_s + _KILL_AFTER_S)
    except Exception:
        _log.exception("the gateway was not drained")


def _wait(signals: _Interruptible) -> None:
    """Wait for a signal, or for Ray to break."""
    own = {pid: processes.start_time(pid) for pid in _ray_processes()}
    while not signals.stopped.wait(1.0):
        if any(processes.start_time(pid) != begun for pid, begun in own.items()):
            raise ClusterError("Ray ended by itself; the cluster was taken down")


def _ray_processes() -> list[int]:
    """Ray's two processes without which nothing works, children of this one."""
    names = {"gcs_server", "raylet"}
    return [
        pid for pid in processes.descendants(os.getpid()) if processes.command_name(pid) in names
    ]


def _stop_when_abandoned() -> None:
    """Until told to keep running, live no longer than the process that started this one."""

    def watch() -> None:
        if sys.stdin.buffer.readline() != KEEP:
            os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True, name="watch-parent").start()


def main(arguments: list[str]) -> int:
    """Run the supervisor in the background of another process; returns the exit code."""
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    _stop_when_abandoned()

    def report(line: str) -> None:
        print(f"{PROGRESS}{line}", flush=True)

    try:
        up(load_config(Path(arguments[0])), on_progress=report)
    except CascadeError as error:
        print(f"{FAILURE}{' '.join(str(error).split())}", flush=True)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
