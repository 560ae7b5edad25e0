"""The supervisor's ear: a Unix socket on which this machine's user gives it commands.

The other end is ``control``.
"""

from __future__ import annotations

import contextlib
import json
import logging
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from cloud.config import ClusterConfig

_log = logging.getLogger(__name__)

_COMMAND_S: Final = 120.0
_FIGURES_S: Final = 2.0


@contextlib.contextmanager
def control_socket(path: Path, config: ClusterConfig) -> Iterator[None]:
    """Answer commands of this machine's user: one line in, one JSON line out."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(path))
        listener.listen()
        worker = threading.Thread(target=_serve_control, args=(listener, config), daemon=True)
        worker.start()
        yield
        # Wakes up the accept below.
        listener.shutdown(socket.SHUT_RDWR)
        worker.join()


def _serve_control(listener: socket.socket, config: ClusterConfig) -> None:
    while True:
        try:
            connection, _ = listener.accept()
        except OSError:
            return
        with connection, contextlib.suppress(OSError):
            connection.settimeout(_COMMAND_S)
            with connection.makefile("rb") as lines:
                command = lines.readline()
            connection.sendall((json.dumps(_reply(command, config)) + "\n").encode())


def _reply(command: bytes, config: ClusterConfig) -> dict[str, object]:
    try:
        match command:
            case b"reset_prefix_caches\n":
                return {"tokens": reset_prefix_caches(config)}
            case b"figures\n":
                return figures()
    except Exception:
        _log.exception("the command %r failed", command.decode(errors="replace").strip())
        return {"error": "failed"}
    return {"error": "unknown command"}


def figures() -> dict[str, object]:
    """What every gateway of the running cluster knows of the last minute, and how it is itself."""
    from ray import serve

    from cloud.gateway import APP_NAME

    gateways = serve.get_deployment_handle("gateway", APP_NAME)
    known = gateways.broadcast("figures").results(timeout_s=_FIGURES_S)
    states = gateways.broadcast("state").results(timeout_s=_FIGURES_S)
    return {"gateways": known, "states": states}


def reset_prefix_caches(config: ClusterConfig) -> int:
    """Make every replica of the running cluster forget its prompts; returns how many tokens."""
    from ray import serve

    from cloud.gateway import APP_NAME, deployment_name

    tokens = 0
    for tier in config.tiers:
        handle = serve.get_deployment_handle(deployment_name(tier.name), APP_NAME)
        tokens += sum(handle.broadcast("reset_prefix_cache").results(timeout_s=_COMMAND_S))
    return tokens
