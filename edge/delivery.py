"""Setting a device up from a cluster: what its channel has, fetched, verified and installed.

Nothing that comes over the wire is believed. The release and every artifact carry a publisher's
signature, which a pinned key must have made; every file is checked against the sha256 in a signed
manifest; a release of a lower revision than one seen before is refused. Files are kept while they
are incomplete and resumed; what is in use is replaced in one step, or not at all.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import platform
import re
import secrets
import shutil
import time
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Final

from cascade import home
from cascade.errors import BundleError, RemoteError, Tampered
from cascade.files import sha256_bytes, sha256_file, write_whole
from cascade.policy import Policy
from cascade.release import ReleaseManifest
from cascade.signing import TrustStore
from edge.adapter import AdapterManifest
from edge.bundle import MANIFEST, SIGNATURE, Manifest
from edge.delivered import DEFAULT_CHANNEL, Delivered, alone
from edge.trial import Trial, on_trial, passed, refuse_given_up, settled

if TYPE_CHECKING:  # gRPC takes a quarter of a second, which only a set-up is to pay
    from cascade.wire import ArtifactQuery, ClientProfile, GrpcArtifacts, Offer

_ADAPTER_FILES: Final = ("adapter.json", "adapter.sig", "adapter.safetensors")
_FOLDER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_ATTEMPTS: Final = 5
_PAUSE_S: Final = 0.5

_Entries = Mapping[str, tuple[str, int | None]]
"""Of files: sha256, and the size where it is known."""

OnBytes = Callable[[str, int, int], None]
"""Told a file's name, how much of it is here, and its size."""


async def set_up(
    profile: ClientProfile,
    *,
    channel: str = DEFAULT_CHANNEL,
    trust: TrustStore | None = None,
    memory_bytes: int = 0,
    on_bytes: OnBytes | None = None,
) -> Delivered:
    """Install what the cluster's channel has for this device. Call it again to update.

    Arguments:
        trust: pinned publisher keys; by default those under ``CASCADE_HOME``.
        memory_bytes: that the application may use; by default what this machine has.

    Raises:
        RemoteError: the cluster cannot be asked, or has nothing for this device.
        UnknownPublisher, Tampered, BundleError, InvalidInput: what it offers must not be installed;
            what is installed stays as it is. ``AdapterRefused``, a BundleError: its adapter ended
            the process when it was tried here.
    """
    with alone():
        return await install(
            profile,
            channel=channel,
            trust=trust or TrustStore(home.trust_dir()),
            memory_bytes=memory_bytes,
            on_bytes=on_bytes,
        )


async def install(
    profile: ClientProfile,
    *,
    channel: str,
    trust: TrustStore,
    memory_bytes: int = 0,
    on_bytes: OnBytes | None = None,
) -> Delivered:
    """``set_up`` for one who holds the lock, ``edge.delivered.alone``, already."""
    from cascade.wire import GrpcArtifacts

    settled()  # what is here is what a trial leaves
    before = Delivered.load()
    if before.revision == 0:
        before.save()  # keeps its name from now on
    source = GrpcArtifacts(profile)
    try:
        offer = await source.resolve(_query(before, channel, memory_bytes))
        if offer is None:
            raise RemoteError(
                "NOT_FOUND", f"the cluster's channel {channel} has nothing for this device"
            )
        return await _Install(source, trust, on_bytes).run(offer, before, channel)
    finally:
        await source.close()


class _Install:
    def __init__(self, source: GrpcArtifacts, trust: TrustStore, on_bytes: OnBytes | None) -> None:
        self._source = source
        self._trust = trust
        self._on_bytes = on_bytes or (lambda name, done, size: None)

    async def run(self, offer: Offer, before: Delivered, channel: str) -> Delivered:
        release = self._release(offer, before, channel)
        offered = {sha256_bytes(item.manifest.data): item for item in offer.artifacts}
        bundle, adapter = "", ""
        policies: list[tuple[Policy, bytes, bytes]] = []
        for digest in release.artifacts:
            item = offered.get(digest)
            if item is None:
                raise RemoteError("INTERNAL", f"the cluster left out the artifact {digest[:12]}…")
            data, what = item.manifest.data, f"{item.kind} {digest[:12]}…"
            signature = self._trust.signature_file(data, item.manifest.signature, what=what)
            if item.kind == "bundle":
                bundle = await self._bundle(digest, data, signature)
            elif item.kind == "adapter":
                refuse_given_up(digest)
                await self._adapter(digest, data, signature)
                adapter = digest
            else:
                policies.append((Policy.from_bytes(data), data, signature))
        after = Delivered(
            channel, release.revision, release.artifacts, bundle, adapter, before.device_id
        )
        if adapter and (adapter != before.adapter or on_trial(adapter)):
            Trial.begin(before, after, {policy.base_digest for policy, _, _ in policies})
        # Last, so that none is found before what it was certified for.
        for policy, data, signature in policies:
            _put_policy(policy, data, signature)
        after.save()
        if not adapter:
            passed()  # one that was on trial is gone
        return after

    def _release(self, offer: Offer, before: Delivered, channel: str) -> ReleaseManifest:
        """The release, if it is the publisher's, of this channel, not older, and still valid."""
        data = offer.release.data
        self._trust.signature_file(data, offer.release.signature, what="the release")
        release = ReleaseManifest.from_bytes(data)
        if release.channel != channel:
            raise Tampered("release", f"is for the channel {release.channel!r}, not {channel!r}")
        if before.channel == channel and release.revision < before.revision:
            raise Tampered(
                "release",
                f"has revision {release.revision}, and this device has seen {before.revision}; "
                "somebody holds newer ones back, or the registry was set back",
            )
        if release.expires is not None and release.expires < (now := time.time()):
            raise Tampered(
                "release",
                f"has expired at {_utc(release.expires)}, and here it is {_utc(now)}; its "
                "publisher has to sign it again, or this device's clock has to be set",
            )
        return release

    async def _bundle(self, digest: str, data: bytes, signature: bytes) -> str:
        """Fetch a bundle into its place; returns the name of its folder."""
        manifest = Manifest.from_bytes(data)
        if not _FOLDER.fullmatch(manifest.name):
            raise BundleError(f"the bundle's name {manifest.name!r} is no plain folder name")
        final = home.bundles_dir() / manifest.name
        entries = {name: (each.sha256, each.bytes) for name, each in manifest.files.items()}
        signed: _Entries = {
            MANIFEST: (digest, None),
            SIGNATURE: (sha256_bytes(signature), None),
        }
        if await _whole(final, {**signed, **entries}):
            return manifest.name
        waiting = await self._fetch(digest, entries, at_hand=final)
        write_whole(waiting / MANIFEST, data)
        write_whole(waiting / SIGNATURE, signature)
        _replace(waiting, final)
        return manifest.name

    async def _adapter(self, digest: str, data: bytes, signature: bytes) -> None:
        manifest = AdapterManifest.from_bytes(data)
        final = home.adapters_dir() / digest
        name, name_signature, weights = _ADAPTER_FILES
        entries: _Entries = {weights: (manifest.weights_sha256, None)}
        signed: _Entries = {
            name: (digest, None),
            name_signature: (sha256_bytes(signature), None),
        }
        if await _whole(final, {**signed, **entries}):
            return
        waiting = await self._fetch(digest, entries)
        write_whole(waiting / name, data)
        write_whole(waiting / name_signature, signature)
        _replace(waiting, final)

    async def _fetch(
        self,
        digest: str,
        entries: _Entries,
        at_hand: Path | None = None,
    ) -> Path:
        """The files of an artifact in a folder of their own, each of them whole.

        Arguments:
            at_hand: a folder with files of the same names, some of which may be the same.
        """
        folder = home.home() / "incoming" / digest
        folder.mkdir(parents=True, exist_ok=True)
        needed = sum(size or 0 for _, size in entries.values())
        if shutil.disk_usage(folder).free < needed:
            raise BundleError(
                f"there is not enough room in {home.home()}: {needed / 1e6:.0f} MB are needed"
            )
        for name, (sha256, size) in entries.items():
            path = folder / name
            if _is(path, sha256):
                continue
            if at_hand is not None and _is(at_hand / name, sha256):
                shutil.copyfile(at_hand / name, path)
            else:
                await self._file(path, sha256, size)
        return folder

    async def _file(self, path: Path, sha256: str, size: int | None) -> None:
        """Download one file, from where an earlier try ended."""
        part = path.with_name(f"{path.name}.part")
        for attempt in range(_ATTEMPTS):
            try:
                await self._rest(part, path.name, sha256)
                break
            except RemoteError as problem:
                last = attempt + 1 == _ATTEMPTS
                if last or problem.status not in ("UNAVAILABLE", "RESOURCE_EXHAUSTED"):
                    raise
                await asyncio.sleep(problem.retry_after_s or _PAUSE_S * 2**attempt)
        if sha256_file(part) != sha256 or (size is not None and part.stat().st_size != size):
            part.unlink()
            raise Tampered(path.name, "is not the file that its publisher signed; try again")
        os.replace(part, path)

    async def _rest(self, part: Path, name: str, sha256: str) -> None:
        with part.open("ab") as file:
            pieces = self._source.download(sha256, file.tell())
            async with contextlib.aclosing(pieces):
                async for piece in pieces:
                    file.write(piece.data)
                    self._on_bytes(name, piece.offset + len(piece.data), piece.total_bytes)


def _query(before: Delivered, channel: str, memory_bytes: int) -> ArtifactQuery:
    from cascade.wire import ArtifactQuery

    return ArtifactQuery(
        channel=channel,
        device_id=before.device_id,
        sdk_version=metadata.version("edge-cloud-cascade"),
        architecture=platform.machine(),
        memory_bytes=memory_bytes or _memory_bytes(),
    )


def _memory_bytes() -> int:
    """What this machine has; 0 where that cannot be told."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return 0


def _utc(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(seconds))


def _put_policy(policy: Policy, data: bytes, signature: bytes) -> None:
    path = home.policies_dir() / policy.base_digest / f"{policy.task.task_id}.json"
    path.with_suffix(".sig").unlink(missing_ok=True)
    write_whole(path, data)
    write_whole(path.with_suffix(".sig"), signature)


async def _whole(folder: Path, entries: _Entries) -> bool:
    """Whether all files of an artifact are there as they were published: one that was damaged here
    is fetched again."""

    def looked() -> bool:
        return all(_is(folder / name, sha256) for name, (sha256, _) in entries.items())

    return await asyncio.to_thread(looked)


def _is(path: Path, sha256: str) -> bool:
    return path.is_file() and sha256_file(path) == sha256


def _replace(waiting: Path, final: Path) -> None:
    """Put a folder in the place of another. Who has the old one open keeps it."""
    final.parent.mkdir(parents=True, exist_ok=True)
    old = final.with_name(f".{final.name}.{secrets.token_hex(4)}")
    if final.exists():
        os.replace(final, old)
    os.replace(waiting, final)
    shutil.rmtree(old, ignore_errors=True)
