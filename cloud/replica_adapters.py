"""The adapters of the registry in one replica: those that its engine began with, and those that
requests have asked for since, by digest."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from cascade.errors import CascadeError, InvalidInput, NotFound, RemoteError
from cloud.engines import ChatRequest, Swapping
from cloud.tier_adapters import fetched

# A publisher's key may be pinned meanwhile; until then nobody reads the adapter again.
_REFUSED_S: Final = 30.0

_log = logging.getLogger("ray.serve")


class ReplicaAdapters:
    """Has an engine know the adapters that it is asked for.

    Arguments:
        engine: knows adapters of the registry by their digests.
        there: digests of those that it has.
        registry: folder or URL where others are fetched from.
        scratch: see ``tier_adapters.fetched``.
    """

    def __init__(
        self, engine: Swapping, there: Iterable[str], registry: str, scratch: Path
    ) -> None:
        self._engine = engine
        self._there = set(there)
        self._registry = registry
        self._scratch = scratch
        self._refused: dict[str, tuple[float, RemoteError]] = {}
        self._adding = asyncio.Lock()

    async def known(self, request: ChatRequest) -> ChatRequest:
        """The request as the engine takes it, with an adapter that it has by now.

        Raises:
            RemoteError: UNAVAILABLE where the adapter cannot be had now, FAILED_PRECONDITION where
                it must not be used here, or is for another model.
        """
        digest = request.adapter_digest
        if not digest:
            return request
        if digest not in self._there:
            async with self._adding:
                if digest not in self._there:
                    await self._add(request.adapter, digest)
        return dataclasses.replace(request, adapter=digest)

    async def _add(self, name: str, digest: str) -> None:
        since, refusal = self._refused.get(digest, (-_REFUSED_S, None))
        if refusal is not None and time.monotonic() - since < _REFUSED_S:
            raise refusal
        try:
            folder = await asyncio.to_thread(fetched, digest, self._registry, self._scratch)
            await self._engine.add_adapter(digest, folder)
        except Exception as problem:  # an fsspec file system raises what its library does
            _log.warning("adapter %s (%s): %s", name, digest, problem)
            if not isinstance(problem, CascadeError) or isinstance(problem, NotFound):
                raise RemoteError(
                    "UNAVAILABLE", f"the adapter {name} cannot be fetched now; try again"
                ) from None
            told = problem.problem if isinstance(problem, InvalidInput) else str(problem)
            refusal = RemoteError("FAILED_PRECONDITION", f"adapter {name}: {told}")
            self._refused[digest] = time.monotonic(), refusal
            raise refusal from None
        self._there.add(digest)
