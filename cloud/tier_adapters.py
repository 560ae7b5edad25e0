"""The adapters of tiers: which ones the configuration names now, whether they may be served, and
their files on this machine.

This is the one place that looks into the registry for a tier: when the cluster is built
(``checked``), while it runs, where a channel changes (``described``), and in the replicas, which
fetch what they lack by digest (``start_with``, ``fetched``). Signatures are checked against the
keys that are pinned on the machine that looks.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

from cascade.errors import (
    BundleError,
    CascadeError,
    ClusterError,
    InvalidInput,
    NotFound,
)
from cascade.home import cluster_dir, trust_dir
from cascade.signing import TrustStore
from cloud.adapter_source import InRegistry, in_registry
from cloud.channel_word import ChannelWord, SeenRevisions, adapters_in, read_word
from cloud.config import ClusterConfig, TierConfig
from cloud.errors import ModelUnusable
from cloud.registry import Published, Registry, read_artifact, verified_adapter
from cloud.served_adapters import ServedAdapters, TierAdapter
from edge import bundle_path
from edge.adapter import MANIFEST
from edge.bundle import inspect

_log = logging.getLogger("ray.serve")


def seen_revisions(registry: str) -> SeenRevisions:
    """What this machine has seen of a registry's channels."""
    return SeenRevisions(registry, cluster_dir() / "channels.json")


def look_up(config: ClusterConfig, tier: TierConfig) -> tuple[TierAdapter, ...]:
    """The adapters of one tier, in the configuration's order. Nothing is fetched, and nothing
    raised: what is wrong with one is its ``problem``. Adapters that are elsewhere (vLLM's) are
    told by name alone."""
    return tuple(_look_up(config, tier, name, source) for name, source in tier.adapters.items())


def checked(config: ClusterConfig) -> ServedAdapters:
    """What all adapters of a configuration stand for now, found fit to be served. From then on this
    machine believes no channel that is older than what it said here.

    Raises:
        ClusterError: an adapter is missing, damaged, of an unknown publisher, for another base, or
            its licence forbids what the cluster is for; one line for each.
    """
    tiers = {tier.name: look_up(config, tier) for tier in config.tiers}
    found = [each for adapters in tiers.values() for each in adapters]
    problems = [each.problem for each in found if each.problem]
    if problems:
        raise ClusterError("\n".join(problems))
    if config.gateway.registry is not None:
        seen = seen_revisions(config.gateway.registry)
        for each in found:
            place = in_registry(each.source)
            if place is not None and place.channel:
                seen.note(place.channel, each.revision)
    return ServedAdapters(tiers)


def described(
    config: ClusterConfig, tier: TierConfig, name: str, word: ChannelWord | None = None
) -> TierAdapter:
    """One adapter of a tier.

    Arguments:
        word: of its channel, where that was just read.

    Raises:
        CascadeError: it must not be served; the message says why, in one line.
        OSError: the registry, or the adapter's file, cannot be read.
    """
    source = tier.adapters[name]
    try:
        published, revision = _published(config.gateway.registry, source, word)
        if published is None:
            return TierAdapter(name, source)
        base = _base(tier, published)
    except CascadeError as problem:
        told = problem.problem if isinstance(problem, InvalidInput) else str(problem)
        raise ClusterError(f"tier {tier.name}: adapter {name}: {told}") from None
    if config.commercial and not published.commercial_use:
        raise ClusterError(
            f"tier {tier.name}: commercial is true, but {published.licence}, the licence of the "
            f"adapter {name} ({published.name}), does not allow that; take it out"
        )
    return TierAdapter(
        name,
        source,
        digest=published.artifact.digest,
        publisher=published.publisher,
        licence=published.licence,
        commercial_use=published.commercial_use,
        base=base,
        revision=revision,
    )


def start_with(
    tier: TierConfig, digests: Mapping[str, str], registry: str | None, scratch: Path
) -> TierConfig:
    """The tier as a replica's engine starts with it: folders of this machine under their digests in
    the place of adapters of the registry, fetched where they are not there yet, and checked.

    Arguments:
        digests: of those adapters when the cluster was built, by name. What a channel served then,
            and the registry has no more, is left out: no request will ask for it.
        registry: folder or URL.
        scratch: see ``fetched``.

    Raises:
        ModelUnusable: one cannot be had, or must not be used.
    """
    adapters: dict[str, str | Path] = {}
    for name, source in tier.adapters.items():
        place, digest = in_registry(source), digests.get(name, "")
        if place is None or registry is None:
            adapters[name] = source
            continue
        try:
            adapters[digest] = str(fetched(digest, registry, scratch))
        except NotFound as problem:
            if not place.channel:
                raise ModelUnusable(f"adapter {name}: {problem}") from None
            _log.warning("adapter %s: what %s was is gone: %s", name, source, problem)
        except (CascadeError, OSError) as problem:
            raise ModelUnusable(f"adapter {name}: {problem}") from None
    return tier.model_copy(update={"adapters": adapters})


def fetched(digest: str, registry: str, scratch: Path) -> Path:
    """The folder of an adapter of the registry on this machine, fetched if it is not there yet, and
    checked.

    Arguments:
        registry: folder or URL.
        scratch: where it goes if nothing can be written under ``CASCADE_HOME``, as in a pod that
            mounts it read-only.

    Raises:
        NotFound: the registry lacks it.
        CascadeError: it must not be used.
        OSError: the registry cannot be read.
    """
    trust, kept = TrustStore(trust_dir()), cluster_dir() / "adapters"
    if _holds(kept / digest, digest, trust):
        return kept / digest
    place = kept if _writable(kept) else scratch
    folder = place / digest
    shutil.rmtree(folder, ignore_errors=True)  # where it is damaged
    with tempfile.TemporaryDirectory(dir=place, prefix=".fetch-") as unfinished:
        copy = Path(unfinished) / "adapter"
        Registry(registry).fetch_adapter(digest, copy)
        read_artifact(copy, trust)
        try:
            copy.rename(folder)
        except OSError:  # another replica of this node was faster
            read_artifact(folder, trust)
    return folder


def _look_up(config: ClusterConfig, tier: TierConfig, name: str, source: str) -> TierAdapter:
    found = TierAdapter(name, source)
    if not tier.local:
        return found
    try:
        return described(config, tier, name)
    except ClusterError as problem:
        return dataclasses.replace(found, problem=str(problem))
    except OSError as problem:
        told = f"tier {tier.name}: adapter {name}: {problem}"
        return dataclasses.replace(found, problem=told)


def _published(
    registry: str | None, source: str, word: ChannelWord | None
) -> tuple[Published | None, int]:
    """What is signed of an adapter, its signature checked, and as of which revision of a channel;
    ``None`` of a file without one."""
    trust = TrustStore(trust_dir())
    place = in_registry(source)
    if place is None:
        path = Path(source)
        if not path.exists():
            raise NotFound(f"there is no {path}")
        return (read_artifact(path, trust)[0] if (path / MANIFEST).is_file() else None), 0
    if registry is None:  # the configuration has seen to it that it is there
        raise NotFound("gateway.registry is missing")
    there, digest, revision = Registry(registry), place.digest, 0
    if not digest:
        if word is None:
            least = seen_revisions(registry).least(place.channel)
            word = read_word(there, place.channel, trust, least=least)
        digest, revision = _named(adapters_in(word, there, trust), place), word.revision
    published = verified_adapter(there.artifact(digest), trust)
    for sha256, _ in published.files.values():
        there.size(sha256)
    return published, revision


def _named(served: Mapping[str, str], place: InRegistry) -> str:
    """The digest of the one adapter of this name among those that a channel serves."""
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
