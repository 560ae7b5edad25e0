"""The adapters of tiers: which ones the configuration names now, whether they may be served, and
their files on this machine.

This is the one place that looks into the registry for a tier. A channel is asked once, when the
cluster is built (``pinned``), so that all replicas serve the same for as long as they live; each
replica then fetches what it lacks by digest (``fetched``). Signatures are checked against the keys
that are pinned on the machine that looks.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cascade.errors import (
    BundleError,
    CascadeError,
    ClusterError,
    InvalidInput,
    NotFound,
    Tampered,
)
from cascade.home import cluster_dir, trust_dir
from cascade.release import ReleaseManifest
from cascade.signing import TrustStore
from cloud.adapter_source import InRegistry, in_registry
from cloud.config import ClusterConfig, TierConfig
from cloud.errors import ModelUnusable
from cloud.registry import Published, Registry, read_artifact, verified_adapter
from edge import bundle_path
from edge.adapter import MANIFEST
from edge.bundle import inspect


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
        problem: what keeps it from being served, or empty.
    """

    name: str
    source: str
    digest: str = ""
    publisher: str = ""
    licence: str = ""
    commercial_use: bool | None = None
    base: str = "unknown"
    problem: str = ""


def look_up(config: ClusterConfig, tier: TierConfig) -> tuple[TierAdapter, ...]:
    """The adapters of one tier, in the configuration's order. Nothing is fetched, and nothing
    raised: what is wrong with one is its ``problem``. Adapters that are elsewhere (vLLM's) are
    told by name alone."""
    return tuple(_look_up(config, tier, name, source) for name, source in tier.adapters.items())


def pinned(config: ClusterConfig) -> ClusterConfig:
    """The same with the digest of what each channel serves now in the place of its name. A tier
    with an adapter that must not be sold answers no commercial request, whatever is said of it.

    Raises:
        ClusterError: an adapter is missing, damaged, of an unknown publisher, for another base, or
            its licence forbids what the cluster is for; one line for each.
    """
    tiers, problems = [], []
    for tier in config.tiers:
        adapters = look_up(config, tier)
        problems += [each.problem for each in adapters if each.problem]
        tiers.append(_pinned(tier, adapters))
    if problems:
        raise ClusterError("\n".join(problems))
    return config.model_copy(update={"tiers": tuple(tiers)})


def fetched(tier: TierConfig, registry: str | None, scratch: Path) -> TierConfig:
    """The same with folders of this machine in the place of digests: fetched where they are not
    there yet, and checked.

    Arguments:
        tier: of a ``pinned`` configuration.
        registry: folder or URL.
        scratch: where they go if nothing can be written under ``CASCADE_HOME``, as in a pod that
            mounts it read-only.

    Raises:
        ModelUnusable: one cannot be had, or must not be used.
    """
    digests = {
        name: place.digest
        for name, source in tier.adapters.items()
        if (place := in_registry(source)) is not None
    }
    if not digests or registry is None:
        return tier
    folders = {
        name: str(_fetched(name, digest, registry, scratch)) for name, digest in digests.items()
    }
    return tier.model_copy(update={"adapters": tier.adapters | folders})


def _pinned(tier: TierConfig, adapters: tuple[TierAdapter, ...]) -> TierConfig:
    sources: Mapping[str, str] = {
        each.name: each.digest for each in adapters if in_registry(each.source) is not None
    }
    changed: dict[str, object] = {"adapters": tier.adapters | dict(sources)}
    if any(each.commercial_use is False for each in adapters):
        changed["commercial_use"] = False
    return tier.model_copy(update=changed)


def _look_up(config: ClusterConfig, tier: TierConfig, name: str, source: str) -> TierAdapter:
    found = TierAdapter(name, source)
    if not tier.local:
        return found
    try:
        published = _published(config.gateway.registry, source)
        if published is None:
            return found
        return TierAdapter(
            name,
            source,
            digest=published.artifact.digest,
            publisher=published.publisher,
            licence=published.licence,
            commercial_use=published.commercial_use,
            base=_base(tier, published),
            problem=_licence_problem(config, tier, name, published),
        )
    except (CascadeError, OSError) as problem:
        told = problem.problem if isinstance(problem, InvalidInput) else str(problem)
        return TierAdapter(name, source, problem=f"tier {tier.name}: adapter {name}: {told}")


def _published(registry: str | None, source: str) -> Published | None:
    """What is signed of an adapter, its signature checked; ``None`` of a file without one."""
    trust = TrustStore(trust_dir())
    place = in_registry(source)
    if place is None:
        path = Path(source)
        if not path.exists():
            raise NotFound(f"there is no {path}")
        return read_artifact(path, trust)[0] if (path / MANIFEST).is_file() else None
    if registry is None:  # the configuration has seen to it that it is there
        raise NotFound("gateway.registry is missing")
    there = Registry(registry)
    digest = place.digest or _served(there, place, trust)
    published = verified_adapter(there.artifact(digest), trust)
    for sha256, _ in published.files.values():
        there.size(sha256)
    return published


def _served(registry: Registry, place: InRegistry, trust: TrustStore) -> str:
    """The digest of the adapter of this name in a channel's stable releases, which are signed too:
    else whoever can write there could bring an old adapter back."""
    channel = registry.channel(place.channel)
    served: dict[str, str] = {}
    for release in filter(None, (variant.stable for variant in channel.variants)):
        signed = registry.release(place.channel, release)
        trust.verify(signed.manifest, signed.signature, what=f"channel {place.channel}")
        manifest = ReleaseManifest.from_bytes(signed.manifest)
        if manifest.channel != place.channel or manifest.revision > channel.revision:
            raise Tampered(f"channel {place.channel}", "serves what was signed for another one")
        if manifest.expires is not None and manifest.expires < time.time():
            raise InvalidInput("adapters", f"channel {place.channel} has expired; sign it again")
        for published in map(registry.artifact, release):
            if published.artifact.kind == "adapter":
                adapter = verified_adapter(published, trust)
                served[adapter.artifact.digest] = adapter.name
    named = [digest for digest, name in served.items() if name == place.name]
    if not named:
        there = ", ".join(sorted(set(served.values()))) or "none"
        raise NotFound(
            f"channel {place.channel} serves no adapter called {place.name}; adapters: {there}"
        )
    if len(named) > 1:
        raise InvalidInput(
            "adapters",
            f"channel {place.channel} serves several adapters called {place.name}; name one by its "
            f"digest: {', '.join(sorted(named))}",
        )
    return named[0]


def _base(tier: TierConfig, published: Published) -> str:
    """Whether the adapter is for the tier's bundle, where the tier has one."""
    if tier.engine != "onnx":
        return "unknown"
    folder = bundle_path(tier.model)
    if not folder.is_dir():  # said of the tier itself
        return "unknown"
    bundle = inspect(folder)
    if published.artifact.base_digest != bundle.base_digest:
        raise BundleError(
            f"is for the base {published.artifact.base_digest[:12]}…, and {bundle.name} is "
            f"{bundle.base_digest[:12]}…; take the bundle that it was trained on"
        )
    return "checked"


def _licence_problem(
    config: ClusterConfig, tier: TierConfig, name: str, published: Published
) -> str:
    if published.commercial_use or not config.commercial:
        return ""
    return (
        f"tier {tier.name}: commercial is true, but {published.licence}, the licence of the "
        f"adapter {name} ({published.name}), does not allow that; take it out"
    )


def _fetched(name: str, digest: str, url: str, scratch: Path) -> Path:
    trust, kept = TrustStore(trust_dir()), cluster_dir() / "adapters"
    if _holds(kept / digest, digest, trust):
        return kept / digest
    place = kept if _writable(kept) else scratch
    folder = place / digest
    try:
        shutil.rmtree(folder, ignore_errors=True)  # where it is damaged
        with tempfile.TemporaryDirectory(dir=place, prefix=".fetch-") as unfinished:
            copy = Path(unfinished) / "adapter"
            Registry(url).fetch_adapter(digest, copy)
            read_artifact(copy, trust)
            try:
                copy.rename(folder)
            except OSError:  # another replica of this node was faster
                read_artifact(folder, trust)
    except (CascadeError, OSError) as problem:
        raise ModelUnusable(f"adapter {name}: {problem}") from None
    return folder


def _holds(folder: Path, digest: str, trust: TrustStore) -> bool:
    try:
        return read_artifact(folder, trust)[0].artifact.digest == digest
    except (CascadeError, OSError):
        return False


def _writable(folder: Path) -> bool:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK)
