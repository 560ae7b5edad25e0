"""What the names of tiers' adapters stand for now, and why one is not served: what a gateway
decides by. It changes while the gateway runs, where a channel does (``adapter_watch``).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from cloud.adapter_source import in_registry


@dataclass(frozen=True, slots=True)
class TierAdapter:
    """One adapter of a tier.

    Arguments:
        name: what requests call it.
        source: as the configuration has it.
        digest: of its manifest; empty for a file that has none, such as a GGUF file.
        publisher: whose pinned key signed it; empty likewise.
        licence: SPDX identifier; empty where nobody has said.
        commercial_use: whether the licence allows it; ``None`` where nobody has said.
        base: ``"checked"`` against the digest of the tier's bundle, ``"unknown"`` where there is
            no digest to compare with; the engine then checks names and shapes when it starts.
        revision: of the channel that said so; 0 where none did.
        problem: what keeps it from being served, or empty.
    """

    name: str
    source: str
    digest: str = ""
    publisher: str = ""
    licence: str = ""
    commercial_use: bool | None = None
    base: str = "unknown"
    revision: int = 0
    problem: str = ""


class ServedAdapters:
    """The adapters of a cluster's tiers.

    Arguments:
        tiers: those of each tier, by the tier's name; a tier that is not in it, and an adapter that
            nothing is known of, are served as the configuration says.
    """

    def __init__(self, tiers: Mapping[str, Iterable[TierAdapter]] | None = None) -> None:
        self._known = {
            (tier, each.name): each for tier, adapters in (tiers or {}).items() for each in adapters
        }

    def find(self, tier: str, name: str) -> TierAdapter | None:
        """What is known of an adapter."""
        return self._known.get((tier, name))

    def change(self, tier: str, adapter: TierAdapter) -> None:
        """Have requests from now on get this one under its name. Those that are under way are not
        concerned: they were handed to their tier with a digest."""
        self._known = {**self._known, (tier, adapter.name): adapter}  # for readers on other threads

    def state(self) -> list[dict[str, str | int]]:
        """Those of a registry, as ``cascade cluster status`` tells of them."""
        return [
            {
                "tier": tier,
                "name": each.name,
                "source": each.source,
                "digest": each.digest,
                "revision": each.revision,
                "problem": each.problem,
            }
            for (tier, _), each in self._known.items()
            if in_registry(each.source)
        ]

    def digests(self, tier: str) -> dict[str, str]:
        """Digests of a tier's adapters, by name, as far as they have one."""
        return {
            name: each.digest
            for (at, name), each in self._known.items()
            if at == tier and each.digest
        }
