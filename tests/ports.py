"""Ports for servers under test."""

from __future__ import annotations

import socket


def free_port() -> int:
    """A loopback port that nothing listens on, outside of the range that Ray's workers use."""
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port: int = probe.getsockname()[1]
        if not 10002 <= port < 20000:
            return port
