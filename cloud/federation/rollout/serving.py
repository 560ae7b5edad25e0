"""What a rollout means for a channel. Each function looks at what the channel serves and changes it
once: done again, it changes nothing.
"""

from __future__ import annotations

from typing import Final

from cascade.errors import InvalidInput
from cascade.signing import SigningKey
from cloud.registry import Artifact, Channel, Registry, Variant

_TO_GO_BACK_S: Final = 7 * 86_400.0
"""How long devices may take a way back at least."""


class Superseded(InvalidInput):
    """Somebody else has changed the channel meanwhile: the candidate is not what it serves."""


def served_adapter(registry: Registry, channel: Channel, base_digest: str) -> str:
    """The adapter that devices of a base get now, where there is one; else ""."""
    for variant in _variants(registry, channel, base_digest):
        for digest in variant.stable:
            if registry.artifact(digest).artifact.kind == "adapter":
                return digest
    return ""


def begin(
    registry: Registry,
    key: SigningKey,
    name: str,
    adapter: str,
    *,
    policies: tuple[str, ...],
    percent: int,
) -> int:
    """Serve an adapter with its policies, as one release, to a share of the channel's devices;
    returns the channel's revision.

    Raises:
        InvalidInput: the channel serves no bundle that it fits, an adapter as new as this one, or a
            canary of somebody else's.
        ClusterError: the channel was changed in between; try again.
    """
    before = registry.channel(name)
    artifact = registry.artifact(adapter).artifact
    variants = _variants(registry, before, artifact.base_digest)
    if not variants:
        raise InvalidInput(
            "channel", f"{name} serves no bundle of the base {artifact.base_digest[:12]}…"
        )
    known = {digest: registry.artifact(digest).artifact for digest in before.named}
    added = [artifact, *(registry.artifact(digest).artifact for digest in policies)]
    known |= {each.digest: each for each in added}
    changed = before
    for variant in variants:
        if adapter in variant.canary or adapter in variant.stable:
            continue
        if variant.canary:
            raise InvalidInput("channel", f"{name} has a canary of somebody else's")
        changed = _with(changed, variant, added, known, percent)
    return _saved(registry, key, before, changed)


def promote(registry: Registry, key: SigningKey, name: str, adapter: str) -> int:
    """Serve a canary to everybody; returns the channel's revision.

    Raises:
        Superseded: the channel does not serve it.
        ClusterError: the channel was changed in between; try again.
    """
    before = registry.channel(name)
    changed = before
    for variant in _serving(before, adapter):
        if adapter in variant.canary:
            changed = changed.promoted(variant.needs)
    return _saved(registry, key, before, changed)


def roll_back(registry: Registry, key: SigningKey, name: str, adapter: str, *, now: float) -> int:
    """Serve what was served before an adapter, canary or not, by a new signed revision; returns the
    revision. It is good for a week at least: of a channel whose releases have expired meanwhile,
    devices that run the adapter would take nothing, and so keep it.

    Arguments:
        now: seconds since 1970.

    Raises:
        NotFound: there is no earlier release to go back to.
        ClusterError: the channel was changed in between; try again.
    """
    before = registry.channel(name)
    changed = before
    while served := [each for each in changed.variants if adapter in (*each.canary, *each.stable)]:
        # A canary first, then what was published on top of the adapter, then the adapter.
        changed = changed.rolled_back(served[0].needs)
    return _saved(registry, key, before, changed, at_least=int(now + _TO_GO_BACK_S))


def _variants(registry: Registry, channel: Channel, base_digest: str) -> list[Variant]:
    """Those whose bundle has this base."""
    return [
        variant
        for variant in channel.variants
        if variant.stable
        and registry.artifact(variant.stable[0]).artifact.base_digest == base_digest
    ]


def _serving(channel: Channel, adapter: str) -> list[Variant]:
    found = [each for each in channel.variants if adapter in (*each.canary, *each.stable)]
    if not found:
        raise Superseded("channel", f"{channel.name} does not serve the adapter {adapter[:12]}…")
    return found


def _with(
    channel: Channel,
    variant: Variant,
    added: list[Artifact],
    known: dict[str, Artifact],
    percent: int,
) -> Channel:
    for artifact in added:
        channel, _ = channel.with_artifact(artifact, known, needs=variant.needs, percent=percent)
    return channel


def _saved(
    registry: Registry, key: SigningKey, before: Channel, changed: Channel, *, at_least: int = 0
) -> int:
    if changed == before:
        return before.revision
    one = changed.as_one_change(before.revision)
    expires = registry.expires(before.name)
    registry.save(one, key, None if expires is None else max(expires, at_least))
    return one.revision
