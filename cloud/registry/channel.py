"""What a channel serves to whom: releases, canaries, and the way back. Pure.

A channel has variants for kinds of devices, the most demanding first; a device gets the first one
that it meets. A release is a bundle with what fits it: at most one adapter, and one policy a task.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal, Self

from cascade.errors import InvalidInput, NotFound
from cascade.strict import Fields

Kind = Literal["bundle", "adapter", "policy"]

KEPT_RELEASES: Final = 10
"""Earlier stable releases that ``rolled_back`` can reach."""

_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")


@dataclass(frozen=True, slots=True)
class Artifact:
    """What a release needs to know of an artifact.

    Arguments:
        digest: sha256 of its manifest, or of the policy itself.
        base_digest: of a bundle its own; of others the one that they are for.
        adapter_digest: of a policy: the adapter that it is for, or empty.
        task_id: of a policy.
        version: of an adapter, else 0.
    """

    kind: Kind
    digest: str
    base_digest: str
    adapter_digest: str = ""
    task_id: str = ""
    version: int = 0


@dataclass(frozen=True, slots=True)
class Device:
    """What a device says that it is; ``memory_bytes`` 0 where it does not know."""

    device_id: str = ""
    architecture: str = ""
    memory_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Needs:
    """What a device must be for a variant: of one of the architectures (empty: any), with at least
    so much memory. One that does not know its memory has none to speak of."""

    architectures: tuple[str, ...] = ()
    memory_bytes: int = 0

    def met_by(self, device: Device) -> bool:
        """Whether a device of this profile gets the variant."""
        fits = not self.architectures or device.architecture in self.architectures
        return fits and device.memory_bytes >= self.memory_bytes


Release = tuple[str, ...]
"""Digests of what is served together: the bundle first."""


@dataclass(frozen=True, slots=True)
class Variant:
    """The releases for one kind of device.

    Arguments:
        stable: what everybody gets; empty before the first promotion.
        canary, percent: what so many of a hundred devices get instead; empty and 0 without one.
        earlier: former stable releases, the last one first.
    """

    needs: Needs = Needs()
    stable: Release = ()
    canary: Release = ()
    percent: int = 0
    earlier: tuple[Release, ...] = ()

    def release_for(self, device: Device, channel: str) -> Release:
        """What this device gets. The same device gets the same until the percentage changes, and
        one that is a canary at 5 % is one at 10 %."""
        if self.canary and device.device_id and _place(device.device_id, channel) < self.percent:
            return self.canary
        return self.stable


@dataclass(frozen=True, slots=True)
class Channel:
    """One channel, e.g. ``stable``. ``revision`` counts its changes."""

    name: str
    revision: int = 0
    variants: tuple[Variant, ...] = ()

    def resolve(self, device: Device) -> Release:
        """What a device of this profile runs now; empty where no variant is for it."""
        for variant in self.variants:
            if variant.needs.met_by(device):
                return variant.release_for(device, self.name)
        return ()

    def with_artifact(
        self,
        artifact: Artifact,
        known: Mapping[str, Artifact],
        *,
        needs: Needs,
        percent: int | None,
    ) -> tuple[Self, tuple[str, ...]]:
        """The channel with one artifact more, and the digests that do not fit any longer.

        Arguments:
            known: artifacts by digest, those of this channel at least.
            needs: of the variant that it goes to; a new one where there is none.
            percent: ``None`` serves it to everybody at once, else to so many of a hundred, 1 to 99.

        Raises:
            InvalidInput: it does not fit what is served beside it.
        """
        if percent is not None and not 1 <= percent <= 99:
            raise InvalidInput("canary", f"{percent} is not in 1 … 99; leave it out for everybody")
        variant = self._variant(needs) or Variant(needs)
        before = variant.canary or variant.stable if percent is not None else variant.stable
        release = joined(tuple(known[digest] for digest in before), artifact)
        dropped = tuple(digest for digest in before if digest not in release)
        if percent is None:
            changed = _promoted(variant, release)
        else:
            changed = dataclasses.replace(variant, canary=release, percent=percent)
        return self._with(changed), dropped

    def promoted(self, needs: Needs) -> Self:
        """The channel with its canary served to everybody.

        Raises:
            NotFound: there is no canary.
        """
        variant = self._existing(needs)
        if not variant.canary:
            raise NotFound(f"channel {self.name} has no canary to promote")
        return self._with(_promoted(variant, variant.canary))

    def rolled_back(self, needs: Needs) -> Self:
        """The channel without its canary, or where it has none, with the stable release before.

        Raises:
            NotFound: there is neither.
        """
        variant = self._existing(needs)
        if variant.canary:
            return self._with(dataclasses.replace(variant, canary=(), percent=0))
        if not variant.earlier:
            raise NotFound(f"channel {self.name} has no earlier release to go back to")
        first, *rest = variant.earlier
        return self._with(dataclasses.replace(variant, stable=first, earlier=tuple(rest)))

    def as_one_change(self, revision: int) -> Self:
        """The same as the one next revision after ``revision``, however many steps it took."""
        return dataclasses.replace(self, revision=revision + 1)

    @property
    def named(self) -> frozenset[str]:
        """Digests that must not be collected: all that is served, or can be gone back to."""
        return frozenset(
            digest
            for variant in self.variants
            for release in (variant.stable, variant.canary, *variant.earlier)
            for digest in release
        )

    def to_json(self) -> dict[str, object]:
        """A plain dict for ``json.dumps``; ``from_json`` gives back an equal channel."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, value: object) -> Self:
        """Read what ``to_json`` wrote.

        Raises:
            InvalidInput: a field is missing, unknown or unusable; it is named.
        """
        fields = Fields(value, "channel")
        listed = fields.take("variants")
        if not isinstance(listed, list):
            raise InvalidInput("channel.variants", "must be a list")
        channel = cls(
            fields.text("name"),
            fields.integer("revision", 0, 2**53),
            tuple(_variant(item, f"channel.variants[{i}]") for i, item in enumerate(listed)),
        )
        fields.end()
        return channel

    def _variant(self, needs: Needs) -> Variant | None:
        return next((each for each in self.variants if each.needs == needs), None)

    def _existing(self, needs: Needs) -> Variant:
        found = self._variant(needs)
        if not self.variants:
            raise NotFound(
                f"nothing is published in channel {self.name}; begin with: cascade registry publish"
            )
        if found is None:
            raise NotFound(f"channel {self.name} has no variant for such devices")
        return found

    def _with(self, variant: Variant) -> Self:
        others = [each for each in self.variants if each.needs != variant.needs]
        # The most demanding first: a device that meets it would meet the others as well.
        ordered = sorted(
            [*others, variant],
            key=lambda each: (-each.needs.memory_bytes, not each.needs.architectures),
        )
        return dataclasses.replace(self, revision=self.revision + 1, variants=tuple(ordered))


def joined(release: tuple[Artifact, ...], artifact: Artifact) -> Release:
    """A release with one artifact more, in the place of its like; what does not fit it is dropped.

    Raises:
        InvalidInput: the artifact does not fit the release's bundle or adapter.
    """
    bundle = next((each for each in release if each.kind == "bundle"), None)
    adapter = next((each for each in release if each.kind == "adapter"), None)
    policies = [each for each in release if each.kind == "policy"]
    if artifact.kind == "bundle":
        bundle = artifact
    elif bundle is None or bundle.base_digest != artifact.base_digest:
        raise InvalidInput(
            artifact.kind,
            f"is for the base {artifact.base_digest[:12]}…, and the channel serves "
            + (f"{bundle.base_digest[:12]}…" if bundle else "no bundle; publish the bundle first"),
        )
    if artifact.kind == "adapter":
        if adapter is not None and artifact.version <= adapter.version:
            raise InvalidInput(
                "adapter",
                f"has version {artifact.version}, and the channel serves {adapter.version}; "
                "raise it (train with --version or --parent), or roll the channel back",
            )
        adapter = artifact
    if adapter is not None and adapter.base_digest != bundle.base_digest:
        adapter = None
    active = adapter.digest if adapter else ""
    if artifact.kind == "policy":
        if artifact.adapter_digest != active:
            raise InvalidInput(
                "policy",
                f"is for the adapter {artifact.adapter_digest[:12] or '(none)'}, and the channel "
                f"serves {active[:12] or '(none)'}; tune it again on what is served",
            )
        policies = [each for each in policies if each.task_id != artifact.task_id] + [artifact]
    fitting = [
        each
        for each in policies
        if each.base_digest == bundle.base_digest and each.adapter_digest == active
    ]
    kept = [bundle, *([adapter] if adapter else []), *fitting]
    return tuple(each.digest for each in kept)


def check_name(name: str) -> None:
    """Raise ``InvalidInput`` unless ``name`` can name a channel."""
    if not _NAME.fullmatch(name):
        raise InvalidInput("channel", "must be 1 to 64 characters of A-Z a-z 0-9 . _ -")


def _promoted(variant: Variant, release: Release) -> Variant:
    earlier = (variant.stable, *variant.earlier) if variant.stable else variant.earlier
    return dataclasses.replace(
        variant, stable=release, canary=(), percent=0, earlier=earlier[:KEPT_RELEASES]
    )


def _place(device_id: str, channel: str) -> int:
    """A device's place among a hundred, its own in each channel."""
    digest = hashlib.sha256(f"{channel}\0{device_id}".encode()).digest()
    return int.from_bytes(digest[:8], "big") % 100


def _variant(value: object, where: str) -> Variant:
    fields = Fields(value, where)
    needs = Fields(fields.take("needs"), f"{where}.needs")
    earlier = fields.take("earlier")
    if not isinstance(earlier, list):
        raise InvalidInput(f"{where}.earlier", "must be a list")
    variant = Variant(
        needs=Needs(needs.texts("architectures"), needs.integer("memory_bytes", 0, 2**53)),
        stable=fields.texts("stable"),
        canary=fields.texts("canary"),
        percent=fields.integer("percent", 0, 99),
        earlier=tuple(
            Fields({"release": item}, f"{where}.earlier[{i}]").texts("release")
            for i, item in enumerate(earlier)
        ),
    )
    needs.end()
    fields.end()
    return variant
