"""A channel's signed word on which adapters everybody gets, and the memory of how far it was.

Whoever can write to a registry can put a channel's file of last month back, with all its
signatures. So the highest revision that was seen is kept on this machine, and a lower one is not
believed: as devices do it, and over restarts.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cascade.errors import InvalidInput, NotFound, Tampered
from cascade.files import write_whole
from cascade.release import ReleaseManifest
from cascade.signing import TrustStore
from cloud.registry import Registry, verified_adapter
from cloud.registry.channel import Release

_log = logging.getLogger("ray.serve")


@dataclass(frozen=True, slots=True)
class ChannelWord:
    """What a channel serves to everybody; canaries do not count.

    Arguments:
        revision: as it is signed.
        releases: one for each kind of device.
    """

    channel: str
    revision: int
    releases: frozenset[Release]


def read_word(registry: Registry, channel: str, trust: TrustStore, *, least: int) -> ChannelWord:
    """What a channel says now.

    Arguments:
        least: the revision below which it is not believed.

    Raises:
        NotFound: it serves nothing to everybody.
        UnknownPublisher: no pinned key has signed it.
        Tampered: it was signed for another channel, or is older than what was seen.
        InvalidInput: it has expired, or is unreadable.
    """
    state, signed = registry.signed_channel(channel)
    releases = frozenset(variant.stable for variant in state.variants if variant.stable)
    if not releases:
        raise NotFound(f"channel {channel} serves nothing to everybody; publish to it, or promote")
    revisions = []
    for release in releases:
        word = signed.get(release)
        if word is None:
            raise Tampered(f"channel {channel}", "serves what nobody has signed")
        trust.verify(word.manifest, word.signature, what=f"channel {channel}")
        manifest = ReleaseManifest.from_bytes(word.manifest)
        if manifest.channel != channel or manifest.revision > state.revision:
            raise Tampered(f"channel {channel}", "serves what was signed for another one")
        if manifest.expires is not None and manifest.expires < time.time():
            raise InvalidInput("adapters", f"channel {channel} has expired; sign it again")
        revisions.append(manifest.revision)
    # All are signed anew with each change, so the lowest is that of the channel.
    if min(revisions) < least:
        raise Tampered(
            f"channel {channel}",
            f"is at revision {min(revisions)}, and was at {least} before: an old state was put "
            "back; going back is a new revision (cascade registry rollback)",
        )
    return ChannelWord(channel, min(revisions), releases)


def adapters_in(word: ChannelWord, registry: Registry, trust: TrustStore) -> dict[str, str]:
    """Names of the adapters that a channel serves, by digest.

    Raises:
        NotFound: the registry lacks one.
        UnknownPublisher, Tampered, BundleError: it must not be used.
    """
    found: dict[str, str] = {}
    for digest in sorted({digest for release in word.releases for digest in release}):
        published = registry.artifact(digest)
        if published.artifact.kind == "adapter":
            found[digest] = verified_adapter(published, trust).name
    return found


class SeenRevisions:
    """The highest revision of each channel of a registry that this machine has believed.

    Arguments:
        url: the registry's.
        file: JSON, one object of channels for each registry. Where it cannot be written, as in a
            pod that mounts its home read-only, this object alone remembers.
    """

    def __init__(self, url: str, file: Path) -> None:
        self._url = url
        self._file = file
        self._here: dict[str, int] = {}

    def least(self, channel: str) -> int:
        """The revision below which a channel is not believed; 0 where it was never seen."""
        return max(self._here.get(channel, 0), self._kept().get(self._url, {}).get(channel, 0))

    def note(self, channel: str, revision: int) -> None:
        """Remember that a channel was seen at a revision."""
        self._here[channel] = max(revision, self._here.get(channel, 0))
        kept = self._kept()
        channels = kept.get(self._url, {})
        if channels.get(channel, 0) >= revision:
            return
        changed = {**kept, self._url: {**channels, channel: revision}}
        try:
            # Two gateways that write at one time: the other's is written at its next look.
            write_whole(self._file, (json.dumps(changed, indent=2) + "\n").encode(), private=True)
        except OSError:
            _log.debug("%s cannot be written", self._file)

    def _kept(self) -> Mapping[str, dict[str, int]]:
        try:
            content = json.loads(self._file.read_bytes())
            return {
                str(url): {str(name): int(revision) for name, revision in channels.items()}
                for url, channels in content.items()
            }
        except (FileNotFoundError, NotADirectoryError):
            return {}
        except (OSError, ValueError, AttributeError, TypeError) as problem:
            _log.warning("%s cannot be read: %s", self._file, problem)
            return {}
