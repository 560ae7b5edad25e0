"""Adapters of rounds in the registry: the ones that rounds start from, and the candidates that come
of them. A candidate is a signed artifact that no channel serves yet.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from cascade.errors import InvalidInput
from cascade.federation import Shapes, Tensors, shapes_of
from cascade.signing import SigningKey, TrustStore
from cloud.registry import Registry
from edge.adapter import AdapterManifest, LoraPair, write_adapter
from edge.head import Head, HeadSpec
from edge.safetensors_file import read_bytes

_WEIGHTS: Final = "adapter.safetensors"
_REMEMBERED: Final = 8
_PUBLISHER: Final = "coordinator"


@dataclass(frozen=True, slots=True)
class StartingAdapter:
    """An adapter of the registry.

    Arguments:
        data, signature: the manifest's signed bytes, and the 64 bytes of the signature.
        tensors: ``NAME.a`` and ``NAME.b``, and those of a head.
    """

    digest: str
    manifest: AdapterManifest
    data: bytes
    signature: bytes
    tensors: Tensors

    @property
    def shapes(self) -> Shapes:
        """Of all tensors."""
        return shapes_of(self.tensors)


class Adapters:
    """Reads and publishes them.

    Arguments:
        key: signs candidates; ``None`` where none are published.
    """

    def __init__(self, registry: Registry, key: SigningKey | None = None) -> None:
        self._registry = registry
        self._key = key
        self._read: dict[str, StartingAdapter] = {}

    def known(self, digest: str) -> StartingAdapter | None:
        """One that was read before."""
        return self._read.get(digest)

    def read(self, digest: str) -> StartingAdapter:
        """An adapter by its digest. The last ones are remembered: what has a digest never changes.

        Raises:
            NotFound: the registry has no such artifact.
            InvalidInput: it is no adapter.
        """
        known = self.known(digest)
        if known is not None:
            return known
        published = self._registry.artifact(digest)
        if published.artifact.kind != "adapter":
            raise InvalidInput("adapter", f"{digest[:12]}… is a {published.artifact.kind}")
        sha256, _ = published.files[_WEIGHTS]
        weights = b"".join(self._registry.chunks(sha256, 0))
        adapter = StartingAdapter(
            digest,
            AdapterManifest.from_bytes(published.manifest),
            published.manifest,
            bytes.fromhex(json.loads(published.signature)["signature"]),
            {
                name: each.values().astype(np.float32)
                for name, each in read_bytes(weights, _WEIGHTS).items()
            },
        )
        while len(self._read) >= _REMEMBERED:
            del self._read[next(iter(self._read))]
        self._read[digest] = adapter
        return adapter

    def publish(self, start: StartingAdapter, trained: Tensors, *, version: int, name: str) -> str:
        """Publish what a round made of ``start``; returns its digest. The same again is the same
        artifact.

        Arguments:
            trained: the new values of those tensors that were trained.
        """
        if self._key is None:
            raise InvalidInput("federation.signing_key", "is missing; candidates must be signed")
        tensors = {**start.tensors, **trained}
        pairs, head = parts_of(tensors, start.manifest.head)
        with tempfile.TemporaryDirectory(prefix="cascade-candidate-") as folder:
            trust = TrustStore(Path(folder) / "trust")
            trust.pin(_PUBLISHER, self._key.public)
            path = write_adapter(
                Path(folder) / "adapter",
                pairs,
                name=name,
                base_digest=start.manifest.base_digest,
                signing_key=self._key,
                version=version,
                parent=start.digest,
                licence=start.manifest.licence,
                head=head,
            )
            return self._registry.publish(path, trust).artifact.digest


def parts_of(tensors: Tensors, spec: HeadSpec | None) -> tuple[dict[str, LoraPair], Head | None]:
    """An adapter's pairs by linear, and its head, from its tensors by name.

    Raises:
        InvalidInput: the tensors are no such head.
    """
    names = sorted(name.removesuffix(".a") for name in tensors if name.endswith(".a"))
    pairs = {name: LoraPair(tensors[f"{name}.a"], tensors[f"{name}.b"]) for name in names}
    return pairs, None if spec is None else Head.from_tensors(spec, tensors)
