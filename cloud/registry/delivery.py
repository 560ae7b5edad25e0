"""A registry as the gateway serves it: what a device is to run, and the files of it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from typing import Final

from cascade.errors import InvalidInput
from cascade.wire import ArtifactQuery, FilePiece, Offer, OfferedArtifact, SignedBytes
from cloud.errors import Overloaded
from cloud.registry.artifact import check_commercial
from cloud.registry.channel import Device
from cloud.registry.store import Registry

DEFAULT_CHANNEL: Final = "stable"

_RETRY_AFTER_S: Final = 2.0


class Delivery:
    """Serves one registry; an ``ArtifactSource``. Reading it blocks, so threads do.

    Arguments:
        most_downloads: files that are sent at one time.
        commercial: releases with research-only artifacts are refused.
    """

    def __init__(
        self, registry: Registry, *, most_downloads: int = 16, commercial: bool = False
    ) -> None:
        self._registry = registry
        self._commercial = commercial
        self._most_downloads = most_downloads
        self._under_way = 0

    async def resolve(self, query: ArtifactQuery) -> Offer | None:
        """What a device of this profile runs now; see ``ArtifactSource``."""
        return await asyncio.to_thread(self._resolve, query)

    async def download(self, sha256: str, offset: int) -> AsyncGenerator[FilePiece]:
        """A file from ``offset`` on; see ``ArtifactSource``."""
        if self._under_way >= self._most_downloads:
            raise Overloaded("the cluster sends as many files as it may now", _RETRY_AFTER_S)
        self._under_way += 1
        try:
            size = await asyncio.to_thread(self._registry.size, sha256)
            if offset > size:
                raise InvalidInput("offset", f"{offset} is beyond the {size} bytes of the file")
            if offset == size:
                yield FilePiece(offset, b"", size)
                return
            chunks = self._registry.chunks(sha256, offset)
            try:
                while data := await asyncio.to_thread(next, chunks, b""):
                    yield FilePiece(offset, data, size)
                    offset += len(data)
            finally:
                await asyncio.to_thread(chunks.close)
        finally:
            self._under_way -= 1

    def _resolve(self, query: ArtifactQuery) -> Offer | None:
        name = query.channel or DEFAULT_CHANNEL
        device = Device(query.device_id, query.architecture, query.memory_bytes)
        release = self._registry.channel(name).resolve(device)
        if not release:
            return None
        if self._commercial:
            check_commercial(self._registry.artifact(digest) for digest in release)
        signed = self._registry.release(name, release)
        lacking = (self._registry.artifact(d) for d in release if d not in query.held)
        return Offer(
            SignedBytes(signed.manifest, _raw(signed.signature)),
            tuple(
                OfferedArtifact(
                    each.artifact.kind, SignedBytes(each.manifest, _raw(each.signature))
                )
                for each in lacking
            ),
        )


def _raw(signature_file: bytes) -> bytes:
    """The 64 bytes in a signature file."""
    return bytes.fromhex(json.loads(signature_file)["signature"])
