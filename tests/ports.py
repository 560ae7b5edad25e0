"""Ports for servers under test."""

from __future__ import annotations

import socket


def free_port() -> int:
    """A port that is free now and outside of the range that Ray uses."""
    for port in range(7500, 9500):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise AssertionError("no free port")
