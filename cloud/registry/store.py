"""Where artifacts and channels are kept: a folder, or any place that fsspec reaches.

Files lie under their sha256, artifacts under their digest, channels under their name. An artifact's
record is written last, a channel's file in one piece, so a reader never sees half of either. One
person publishes at a time: a channel that changed in between is refused, not overwritten.
"""

from __future__ import annotations

import base64
import json
import secrets
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import fsspec

from cascade.errors import ClusterError, InvalidInput, NotFound, Tampered
from cascade.files import sha256_file
from cascade.release import ReleaseManifest
from cascade.signing import SigningKey, TrustStore
from cascade.strict import Fields
from cloud.registry.artifact import (
    Published,
    adapter_files,
    check_commercial,
    read_artifact,
)
from cloud.registry.channel import Channel, Release, check_name

CHUNK: Final = 1 << 20

_FORMAT: Final = "cascade-channel"
_VERSION: Final = 1


@dataclass(frozen=True, slots=True)
class SignedRelease:
    """A release manifest's bytes, and the content of its signature file."""

    manifest: bytes
    signature: bytes


class Registry:
    """Artifacts and channels at one place.

    Arguments:
        url: a folder, or an fsspec URL such as ``s3://bucket/registry``.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        try:
            self._files, self._root = fsspec.core.url_to_fs(url)
        except (ImportError, ValueError) as problem:
            raise InvalidInput("registry", f"{url} cannot be reached: {problem}") from None

    def publish(
        self,
        path: Path,
        trust: TrustStore,
        on_bytes: Callable[[int], None] | None = None,
        *,
        commercial: bool = False,
    ) -> Published:
        """Check an artifact of this machine and copy it in. Files that are there already stay.

        Arguments:
            commercial: it will be part of something that is sold.
            on_bytes: told the size of each piece that was copied.

        Raises:
            NotFound: there is no artifact at ``path``.
            UnknownPublisher, Tampered, BundleError, InvalidInput: it must not be published.
            LicenceForbids: its licence does not allow commercial use.
            ClusterError: the registry cannot be written.
        """
        published, paths = read_artifact(path, trust)
        if commercial:
            check_commercial([published])
        try:
            for name, file in paths.items():
                digest, size = published.files[name]
                if not self._has(f"files/{digest}", size):
                    self._copy(file, f"files/{digest}", on_bytes)
            self._put(f"artifacts/{published.artifact.digest}.json", published.to_bytes())
        except OSError as problem:
            raise _unwritable(self.url, problem) from None
        return published

    def artifact(self, digest: str) -> Published:
        """One artifact.

        Raises:
            NotFound: there is none of this digest.
            Tampered: the record under this digest is another one's.
        """
        data = self._read(f"artifacts/{digest}.json")
        if data is None:
            raise NotFound(f"the registry has no artifact {digest[:12]}…")
        published = Published.from_bytes(data)
        if published.artifact.digest != digest:
            raise Tampered(f"{digest[:12]}….json", "is the record of another one than its digest")
        return published

    def artifacts(self) -> Iterator[Published]:
        """All of them, by digest."""
        for name in self._names("artifacts"):
            yield self.artifact(name.removesuffix(".json"))

    def channels(self) -> Iterator[Channel]:
        """All of them, by name."""
        for name in self._names("channels"):
            yield self.channel(name.removesuffix(".json"))

    def channel(self, name: str) -> Channel:
        """A channel; an empty one where nothing was published to it yet."""
        return self.signed_channel(name)[0]

    def signed_channel(self, name: str) -> tuple[Channel, Mapping[Release, SignedRelease]]:
        """A channel with the publisher's word for each of its releases, of one moment."""
        check_name(name)
        data = self._read(f"channels/{name}.json")
        return (Channel(name), {}) if data is None else _read_channel(data)

    def release(self, channel: str, release: Release) -> SignedRelease:
        """The publisher's word for one of a channel's releases.

        Raises:
            NotFound: the channel does not serve it.
        """
        signed = self.signed_channel(channel)[1]
        if release not in signed:
            raise NotFound(f"channel {channel} does not serve this release")
        return signed[release]

    def expires(self, channel: str) -> int | None:
        """When the first of a channel's releases expires, in seconds since 1970; ``None`` for
        never."""
        signed = self.signed_channel(channel)[1].values()
        given = [ReleaseManifest.from_bytes(each.manifest).expires for each in signed]
        return min((each for each in given if each is not None), default=None)

    def save(self, channel: Channel, key: SigningKey, expires: int | None = None) -> None:
        """Write a changed channel, its releases signed.

        Arguments:
            expires: seconds since 1970 after which devices take nothing new from it.

        Raises:
            ClusterError: it was changed by somebody else meanwhile, or cannot be written.
        """
        if self.channel(channel.name).revision != channel.revision - 1:
            raise ClusterError(
                f"channel {channel.name} was changed by somebody else meanwhile; try again"
            )
        served = {each for v in channel.variants for each in (v.stable, v.canary) if each}
        signed = []
        for release in sorted(served):
            manifest = ReleaseManifest(channel.name, channel.revision, release, expires).to_bytes()
            signed.append([_text(manifest), _text(key.sign(manifest))])
        value = {
            "format": _FORMAT,
            "version": _VERSION,
            "channel": channel.to_json(),
            "releases": signed,
        }
        try:
            self._put(
                f"channels/{channel.name}.json", (json.dumps(value, indent=2) + "\n").encode()
            )
        except OSError as problem:
            raise _unwritable(self.url, problem) from None

    def size(self, sha256: str) -> int:
        """Size of a file in bytes.

        Raises:
            NotFound: the registry does not have it.
        """
        try:
            return int(self._files.info(self._at(f"files/{sha256}"))["size"])
        except FileNotFoundError:
            raise NotFound(f"the registry has no file {sha256[:12]}…") from None

    def chunks(self, sha256: str, offset: int) -> Generator[bytes]:
        """A file from ``offset`` on, in pieces of at most ``CHUNK`` bytes."""
        with self._files.open(self._at(f"files/{sha256}"), "rb") as file:
            file.seek(offset)
            while chunk := file.read(CHUNK):
                yield chunk

    def fetch_adapter(self, digest: str, folder: Path) -> None:
        """Copy an adapter into ``folder``, which must not exist, as ``publish`` found it.
        Nothing of it is checked here: open it with the keys that the machine trusts.

        Raises:
            NotFound: the registry lacks it, or its weights.
            InvalidInput: it is no adapter.
        """
        written, weights = adapter_files(self.artifact(digest))
        folder.mkdir(parents=True)
        for name, content in written.items():
            (folder / name).write_bytes(content)
        for name, sha256 in weights.items():
            self.size(sha256)  # says what is missing
            with (folder / name).open("wb") as file:
                for chunk in self.chunks(sha256, 0):
                    file.write(chunk)

    def collect(self, *, older_than_s: float = 86_400.0, dry_run: bool = False) -> list[str]:
        """Remove artifacts that no channel names, and files that no artifact names; returns what.

        Arguments:
            older_than_s: what is younger stays: it may be part of something that is just being
                published.
            dry_run: remove nothing.
        """
        before = time.time() - older_than_s
        artifacts = {each.artifact.digest: each for each in self.artifacts()}
        # Read after the artifacts, so that what is named in between is found.
        named = {digest for channel in self.channels() for digest in channel.named}
        gone = [f"artifacts/{digest}.json" for digest in artifacts if digest not in named]
        gone = [name for name in gone if self._modified(name) <= before]
        kept = {
            sha256
            for digest, each in artifacts.items()
            if f"artifacts/{digest}.json" not in gone
            for sha256, _ in each.files.values()
        }
        files = [f"files/{name}" for name in self._names("files") if name not in kept]
        gone += [name for name in files if self._modified(name) <= before]
        if not dry_run:
            for name in gone:
                self._files.rm_file(self._at(name))
        return gone

    def _modified(self, name: str) -> float:
        return float(self._files.modified(self._at(name)).timestamp())

    def _at(self, name: str) -> str:
        return f"{self._root.rstrip('/')}/{name}"

    def _has(self, name: str, size: int) -> bool:
        try:
            return int(self._files.info(self._at(name))["size"]) == size
        except FileNotFoundError:
            return False

    def _read(self, name: str) -> bytes | None:
        try:
            return bytes(self._files.cat_file(self._at(name)))
        except (FileNotFoundError, NotADirectoryError):
            return None

    def _names(self, folder: str) -> list[str]:
        try:
            found = self._files.ls(self._at(folder), detail=False, refresh=True)
        except (FileNotFoundError, NotADirectoryError):
            return []
        names = (str(name).rstrip("/").rpartition("/")[2] for name in found)
        return sorted(name for name in names if not name.startswith("."))

    def _put(self, name: str, data: bytes) -> None:
        self._whole(name, lambda file: file.write(data))

    def _copy(self, source: Path, name: str, on_bytes: Callable[[int], None] | None) -> None:
        expected = name.rpartition("/")[2]
        if sha256_file(source) != expected:
            raise Tampered(source.name, "changed while it was published; try again")

        def copy(file: Any) -> None:
            with source.open("rb") as content:
                while chunk := content.read(CHUNK):
                    file.write(chunk)
                    if on_bytes is not None:
                        on_bytes(len(chunk))

        self._whole(name, copy)

    def _whole(self, name: str, write: Callable[[Any], object]) -> None:
        """Write aside, then rename: on a file system and on object stores alike, nobody sees a
        part."""
        final = self._at(name)
        folder, _, last = final.rpartition("/")
        self._files.makedirs(folder, exist_ok=True)
        aside = f"{folder}/.{last}.{secrets.token_hex(4)}"
        try:
            with self._files.open(aside, "wb") as file:
                write(file)
            self._files.mv(aside, final)
        except BaseException:
            if self._files.exists(aside):
                self._files.rm_file(aside)
            raise


def default_url(home: Path) -> str:
    """The registry of this machine."""
    return str(home / "registry")


def _read_channel(data: bytes) -> tuple[Channel, dict[Release, SignedRelease]]:
    fields = Fields.from_bytes(data, "channel")
    if fields.take("format") != _FORMAT or fields.take("version") != _VERSION:
        raise InvalidInput("channel.format", f"is not {_FORMAT} {_VERSION}; upgrade cascade")
    channel = Channel.from_json(fields.take("channel"))
    listed = fields.take("releases")
    fields.end()
    if not isinstance(listed, list):
        raise InvalidInput("channel.releases", "must be a list")
    signed: dict[Release, SignedRelease] = {}
    for item in listed:
        try:
            manifest, signature = (base64.b64decode(each, validate=True) for each in item)
        except (ValueError, TypeError):
            raise InvalidInput("channel.releases", "must be pairs in base64") from None
        signed[ReleaseManifest.from_bytes(manifest).artifacts] = SignedRelease(manifest, signature)
    return channel, signed


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _unwritable(url: str, problem: OSError) -> ClusterError:
    return ClusterError(f"the registry at {url} cannot be written: {problem.strerror or problem}")


__all__ = ["CHUNK", "Registry", "SignedRelease", "default_url"]
