"""How a tier's YAML says where an adapter is: by a path, or by name in the gateway's registry."""

from __future__ import annotations

import re
from dataclasses import dataclass

_DIGEST = re.compile(r"[0-9a-f]{64}")
_AT_CHANNEL = re.compile(r"(?P<name>[A-Za-z0-9._-]{1,64})@(?P<channel>[A-Za-z0-9._-]{1,64})")


@dataclass(frozen=True, slots=True)
class InRegistry:
    """An adapter of the registry: the one of a digest, or the one that is called ``name`` in what a
    channel serves to everybody.

    Arguments:
        digest: hex sha256 of its manifest; empty where a channel says which.
        name, channel: empty beside a digest.
    """

    digest: str = ""
    name: str = ""
    channel: str = ""


def in_registry(source: str) -> InRegistry | None:
    """What ``NAME@CHANNEL`` or 64 hex digits name; ``None`` for a path. A file whose name looks so
    is a path with ``./`` before it."""
    if _DIGEST.fullmatch(source):
        return InRegistry(digest=source)
    match = _AT_CHANNEL.fullmatch(source)
    return InRegistry(name=match["name"], channel=match["channel"]) if match else None
