"""Peers: environments of their own, made on demand, and child processes in them.

Each other module of this package is a child that drives one peer; it imports that peer, and
nothing of ours but ``benchmarks.child``.
"""

from benchmarks.peers.environment import Environment, PeerUnavailable
from benchmarks.peers.process import Child

__all__ = ["Child", "Environment", "PeerUnavailable"]
