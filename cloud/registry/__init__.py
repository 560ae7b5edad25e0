"""What devices are given to run: artifacts by digest, and channels that say who gets which."""

from __future__ import annotations

from cloud.registry.artifact import Published, read_artifact, verified_adapter
from cloud.registry.channel import Artifact, Channel, Device, Needs, Variant
from cloud.registry.delivery import Delivery
from cloud.registry.store import CHUNK, Registry, SignedRelease, default_url

__all__ = [
    "CHUNK",
    "Artifact",
    "Channel",
    "Delivery",
    "Device",
    "Needs",
    "Published",
    "Registry",
    "SignedRelease",
    "Variant",
    "default_url",
    "read_artifact",
    "verified_adapter",
]
