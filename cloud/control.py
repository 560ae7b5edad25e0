"""Talking to the supervisor of this machine from another process: start it in the background, ask
how it is, reset its tiers' prefix caches, stop it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, Literal

from cascade.errors import Cancelled, CascadeError, ClusterError, RemoteError
from cascade.files import write_whole
from cascade.home import cluster_dir
from cascade.wire import ClientProfile, GrpcRemote
from cloud import processes
from cloud.config import ClusterConfig
from cloud.figures import Figures, together
from cloud.session import (
    SessionState,
    already_running,
    log_path,
    read_state,
    remove_remains,
    running_state,
)

PROGRESS: Final = "progress: "
FAILURE: Final = "error: "
KEEP: Final = b"keep\n"
_POLL_S: Final = 0.1
_CONTROL_TIMEOUT_S: Final = 130.0
_FIGURES_TIMEOUT_S: Final = 5.0
_STOP_TIMEOUT_S: Final = 60.0
_LAST_LINES: Final = 5

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class TierStatus:
    """One tier.

    Arguments:
        health: a word of ``grpc.health.v1``, or the status of the failed check.
        figures: of the last minute; ``None`` where the gateways do not tell.
    """

    name: str
    model: str
    health: str
    figures: Figures | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class AdapterStatus:
    """What the name of a registry's adapter stands for.

    Arguments:
        source: as the configuration has it.
        digest: what is served; empty where nothing is.
        revision: of the channel that said so; 0 where none did.
        problem: why it is not served, or empty.
    """

    tier: str
    name: str
    source: str
    digest: str
    revision: int
    problem: str


@dataclass(frozen=True, slots=True)
class GatewayStatus:
    """One gateway.

    Arguments:
        under_way: requests that it answers or queues now.
        metrics: ``host:port`` where Prometheus finds it; empty where it shows nothing.
        adapters: those of a registry, as this gateway serves them now.
    """

    pid: int
    under_way: int
    metrics: str = ""
    adapters: tuple[AdapterStatus, ...] = ()


@dataclass(frozen=True, slots=True)
class ClusterStatus:
    """The cluster of this machine.

    Arguments:
        stage: how far its supervisor is; ``"stopped"`` when there is none.
        health: of the whole, like a tier's.
        metrics: ``host:port`` where Prometheus finds each gateway; none where they show nothing.
        gateways: those that run; none where they do not tell.
    """

    stage: Literal["stopped", "starting", "ready", "stopping"]
    pid: int | None = None
    address: str = ""
    health: str = ""
    tiers: tuple[TierStatus, ...] = ()
    metrics: tuple[str, ...] = ()
    gateways: tuple[GatewayStatus, ...] = ()

    @property
    def running(self) -> bool:
        """Whether a supervisor lives."""
        return self.pid is not None


def up(config: ClusterConfig, *, on_progress: Progress, timeout_s: float = 300.0) -> None:
    """Run a cluster on this machine until Ctrl-C or ``down``, or until this process ends.

    Arguments, and what is raised before it answers requests: see ``up_detached``.

    Raises:
        ClusterError: it ended by itself.
    """
    child = _start(config, on_progress, timeout_s)
    on_progress("Ctrl-C stops it")
    try:
        while child.poll() is None:
            time.sleep(_POLL_S)
    except KeyboardInterrupt:
        on_progress("stopping")
    finally:
        _end(child)
    if child.returncode:
        raise ClusterError(_last_words(child.returncode, log_path()))


def up_detached(
    config: ClusterConfig, *, on_progress: Progress, timeout_s: float = 300.0
) -> ClusterStatus:
    """Start a cluster in the background and wait until it answers requests.

    If this process is interrupted or ends before that, the cluster takes itself down.

    Arguments:
        on_progress: told in one line what is being done.

    Raises:
        ClusterError: it does not come up; nothing of it is left running.
        Cancelled: Ctrl-C; likewise.
    """
    child = _start(config, on_progress, timeout_s)
    if child.stdin is not None:
        child.stdin.write(KEEP)
        child.stdin.close()
    # It outlives this process, which therefore never asks for its exit code.
    child.returncode = 0
    return status()


def _start(
    config: ClusterConfig, on_progress: Progress, timeout_s: float
) -> subprocess.Popen[bytes]:
    """A supervisor whose cluster answers; it lives until its standard input is closed."""
    if running_state() is not None:
        raise already_running()
    config_file = cluster_dir() / "config.yaml"
    write_whole(config_file, config.yaml().encode())
    log = log_path()
    log.unlink(missing_ok=True)
    with log.open("wb") as output:
        # Its own session: a Ctrl-C in this terminal is not meant for it.
        child = subprocess.Popen(
            [sys.executable, "-m", "cloud.supervisor", str(config_file)],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=_environment(),
            start_new_session=True,
        )
    try:
        _follow(child, log, on_progress, time.monotonic() + timeout_s)
    except KeyboardInterrupt:
        _end(child)
        raise Cancelled("interrupted; the cluster was taken down again") from None
    except BaseException:
        _end(child)
        raise
    return child


def status() -> ClusterStatus:
    """How the cluster of this machine is. Asks it over its real address; takes up to 5 s."""
    state = running_state()
    if state is None:
        return ClusterStatus("stopped")
    if state.stage != "ready":
        tiers = tuple(TierStatus(name, model, "NOT_SERVING") for name, model in state.tiers)
        return ClusterStatus(state.stage, state.pid, state.address, "NOT_SERVING", tiers)
    return _with_figures(asyncio.run(_checked(state)), state)


def down(timeout_s: float = 60.0) -> bool:
    """Stop the supervisor of this machine and wait until it is gone. Returns whether there was one.

    Only the process that the pid file names gets a signal, and only while it is provably the one
    that wrote it.

    Raises:
        ClusterError: it did not end within ``timeout_s``.
    """
    state = running_state()
    if state is None:
        return False
    with contextlib.suppress(ProcessLookupError):
        os.kill(state.pid, signal.SIGTERM)
    end = time.monotonic() + timeout_s
    while processes.start_time(state.pid) == state.begun:
        if time.monotonic() > end:
            raise ClusterError(
                f"the supervisor (pid {state.pid}) did not end within {timeout_s:g} s; "
                f"see {log_path()}, then end it with `kill -KILL {state.pid}`"
            )
        time.sleep(_POLL_S)
    remove_remains(state)
    return True


def reset_prefix_caches() -> int:
    """Make every replica of every tier forget the prompts it has read, so that the next request
    costs what a first one does. Returns the number of tokens forgotten.

    Raises:
        ClusterError: no cluster runs on this machine, or it does not answer.
    """
    state = running_state()
    if state is None or state.stage != "ready":
        raise ClusterError("no cluster runs on this machine; start one with `cascade cluster up`")
    try:
        reply = _asked(state, "reset_prefix_caches", _CONTROL_TIMEOUT_S)
        return int(reply["tokens"])
    except (OSError, ValueError, KeyError):
        raise ClusterError(
            f"the supervisor (pid {state.pid}) did not reset the prefix caches; see {log_path()}"
        ) from None


def _asked(state: SessionState, command: str, timeout_s: float) -> dict[str, Any]:
    """The supervisor's reply to a command; see ``control_socket``."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(timeout_s)
        connection.connect(str(state.control_socket))
        connection.sendall(f"{command}\n".encode())
        with connection.makefile("rb") as lines:
            reply = json.loads(lines.readline())
    if not isinstance(reply, dict):
        raise ValueError("the reply is no object")
    return reply


def _with_figures(status: ClusterStatus, state: SessionState) -> ClusterStatus:
    """The status with what the gateways know of the last minute, as far as they tell."""
    try:
        reply = _asked(state, "figures", _FIGURES_TIMEOUT_S)
        known = [
            {name: Figures.from_json(each) for name, each in gateway.items()}
            for gateway in reply["gateways"]
        ]
        gateways = tuple(
            GatewayStatus(
                int(each["pid"]),
                int(each["under_way"]),
                str(each["metrics"]),
                tuple(AdapterStatus(**adapter) for adapter in each["adapters"]),
            )
            for each in sorted(reply["states"], key=lambda each: (each["metrics"], each["pid"]))
        )
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        return status
    tiers = (
        replace(
            tier,
            figures=together(parts)
            if (parts := [each[tier.name] for each in known if tier.name in each])
            else None,
        )
        for tier in status.tiers
    )
    addresses = tuple(each.metrics for each in gateways if each.metrics)
    return replace(status, tiers=tuple(tiers), metrics=addresses, gateways=gateways)


async def _checked(state: SessionState) -> ClusterStatus:
    try:
        remote = GrpcRemote(ClientProfile.load())
    except CascadeError as error:
        raise ClusterError(
            f"the cluster runs, but its client profile does not load: {error}"
        ) from None
    try:
        names = ["", *(f"tier/{name}" for name, _ in state.tiers)]
        whole, *tiers = await asyncio.gather(*(_health(remote, name) for name in names))
    finally:
        await remote.close()
    statuses = tuple(
        TierStatus(name, model, health)
        for (name, model), health in zip(state.tiers, tiers, strict=True)
    )
    return ClusterStatus(state.stage, state.pid, state.address, whole, statuses)


async def _health(remote: GrpcRemote, service: str) -> str:
    try:
        return await remote.health(service)
    except RemoteError as error:
        return error.status


def _follow(child: subprocess.Popen[bytes], log: Path, on_progress: Progress, end: float) -> None:
    """Relay progress until the child is ready; raise when it ends or time is over."""
    with log.open(errors="replace") as lines:
        while True:
            # Asked before reading: what it wrote before that is still read.
            ended = child.poll() is not None
            state = running_state()
            for line in _whole_lines(lines.fileno()):
                if line.startswith(PROGRESS):
                    on_progress(line.removeprefix(PROGRESS))
                elif line.startswith(FAILURE):
                    raise ClusterError(line.removeprefix(FAILURE))
            if state is not None and state.pid == child.pid and state.stage == "ready":
                return
            if ended:
                raise ClusterError(_last_words(child.returncode, log))
            if time.monotonic() > end:
                raise ClusterError(f"the cluster was not ready in time; see {log}")
            time.sleep(_POLL_S)


def _whole_lines(descriptor: int) -> Iterator[str]:
    """Lines that were completed since the last call; a half-written one is read again."""
    data = os.read(descriptor, 1 << 20)
    whole = data.rfind(b"\n") + 1
    os.lseek(descriptor, whole - len(data), os.SEEK_CUR)
    yield from data[:whole].decode(errors="replace").splitlines()


def _last_words(code: int, log: Path) -> str:
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    words = " | ".join(lines[-_LAST_LINES:]) or "it said nothing"
    return f"the supervisor ended with code {code}: {words} (log: {log})"


def _end(child: subprocess.Popen[bytes]) -> None:
    """Take the child down, whatever else is interrupted meanwhile, and what it may leave."""
    state = read_state()
    # Its end is all that is said: a signal in the middle of Ray's start would find Ray's handlers.
    if child.stdin is not None:
        child.stdin.close()
    end = time.monotonic() + _STOP_TIMEOUT_S
    while child.poll() is None and time.monotonic() < end:
        with contextlib.suppress(KeyboardInterrupt):
            time.sleep(_POLL_S)
    if child.poll() is None:
        child.kill()
        child.wait()
    if state is not None and state.pid == child.pid:
        remove_remains(state)


def _environment() -> dict[str, str]:
    # The supervisor and Ray's workers import these packages, also from a source tree.
    root = str(Path(__file__).resolve().parent.parent)
    path = os.environ.get("PYTHONPATH")
    return {
        **os.environ,
        "PYTHONPATH": root if not path else f"{root}{os.pathsep}{path}",
        "PYTHONUNBUFFERED": "1",
    }
