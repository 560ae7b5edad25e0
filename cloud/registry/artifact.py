"""An artifact as it is published: a folder or file of this machine, checked, and its record."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self, cast, get_args

from cascade.errors import InvalidInput, NotFound
from cascade.files import sha256_bytes
from cascade.policy import Policy
from cascade.signing import TrustStore
from cascade.strict import Fields
from cloud.errors import LicenceForbids
from cloud.registry.channel import Artifact, Kind
from edge import Adapter, Bundle
from edge.adapter import AdapterManifest

FORMAT: Final = "cascade-artifact"
VERSION: Final = 1

_BUNDLE, _ADAPTER = "manifest.json", "adapter.json"
_SIGNATURES: Final = {_BUNDLE: "manifest.sig", _ADAPTER: "adapter.sig"}
_WEIGHTS: Final = "adapter.safetensors"


@dataclass(frozen=True, slots=True)
class Published:
    """One artifact of a registry.

    Arguments:
        name: for people.
        publisher: the pinned name of who signed it.
        licence: SPDX identifier; empty for a policy, which has none of its own.
        commercial_use: whether the licence allows it.
        manifest, signature: the signed bytes, and the content of the signature file.
        files: sha256 and size of what else belongs to it, by name.
    """

    artifact: Artifact
    name: str
    publisher: str
    licence: str
    commercial_use: bool
    manifest: bytes
    signature: bytes
    files: Mapping[str, tuple[str, int]]

    def to_bytes(self) -> bytes:
        """The record of it in the registry."""
        item = self.artifact
        value = {
            "format": FORMAT,
            "version": VERSION,
            "kind": item.kind,
            "digest": item.digest,
            "base_digest": item.base_digest,
            "adapter_digest": item.adapter_digest,
            "task_id": item.task_id,
            "adapter_version": item.version,
            "name": self.name,
            "publisher": self.publisher,
            "licence": self.licence,
            "commercial_use": self.commercial_use,
            "manifest": base64.b64encode(self.manifest).decode(),
            "signature": base64.b64encode(self.signature).decode(),
            "files": {name: list(entry) for name, entry in self.files.items()},
        }
        return (json.dumps(value, indent=2, sort_keys=True) + "\n").encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Read what ``to_bytes`` wrote.

        Raises:
            InvalidInput: a field is missing, unknown or unusable, or the manifest is not the one of
                the digest.
        """
        fields = Fields.from_bytes(data, "artifact")
        if fields.take("format") != FORMAT or fields.take("version") != VERSION:
            raise InvalidInput("artifact.format", f"is not {FORMAT} {VERSION}; upgrade cascade")
        manifest = _bytes(fields, "manifest")
        read = cls(
            artifact=Artifact(
                kind=cast(Kind, fields.choice("kind", get_args(Kind))),
                digest=fields.sha256("digest"),
                base_digest=fields.text("base_digest"),
                adapter_digest=fields.text("adapter_digest"),
                task_id=fields.text("task_id"),
                version=fields.integer("adapter_version", 0, 2**53),
            ),
            name=fields.text("name"),
            publisher=fields.text("publisher"),
            licence=fields.text("licence"),
            commercial_use=fields.boolean("commercial_use"),
            manifest=manifest,
            signature=_bytes(fields, "signature"),
            files=_files(fields.take("files")),
        )
        fields.end()
        if sha256_bytes(manifest) != read.artifact.digest:
            raise InvalidInput("artifact.manifest", "is not the one of its digest")
        return read


def check_commercial(artifacts: Iterable[Published]) -> None:
    """Refuse what must not be part of something that is sold.

    Raises:
        LicenceForbids: naming the first artifact and its licence.
    """
    for each in artifacts:
        if not each.commercial_use:
            raise LicenceForbids(f"the {each.artifact.kind} {each.name}", each.licence)


def read_artifact(path: Path, trust: TrustStore) -> tuple[Published, dict[str, Path]]:
    """A bundle's or adapter's folder, or a policy's file, with its signature and all digests
    checked. Returns it with the paths of its files.

    Raises:
        NotFound: there is none of the three at ``path``.
        UnknownPublisher, Tampered, BundleError, InvalidInput: it must not be published.
    """
    if (path / _BUNDLE).is_file():
        return _bundle(path, trust)
    if (path / _ADAPTER).is_file():
        return _adapter(path, trust)
    if path.is_file():
        return _policy(path, trust), {}
    if not path.exists():
        raise NotFound(
            f"there is no {path}; give a bundle's or adapter's folder, or a policy's file"
        )
    raise NotFound(f"{path} holds no bundle, adapter or policy")


def verified_adapter(published: Published, trust: TrustStore) -> Published:
    """A registry's record of an adapter with what is signed of it in the place of what the record
    says: whoever can write there can change the record.

    Raises:
        InvalidInput: it is no adapter.
        UnknownPublisher, Tampered, BundleError: it must not be used.
    """
    kind, digest = published.artifact.kind, published.artifact.digest
    if kind != "adapter":
        raise InvalidInput("adapter", f"{digest} is a {kind}")
    publisher = trust.verify(published.manifest, published.signature, what=f"adapter {digest}")
    manifest = AdapterManifest.from_bytes(published.manifest)
    files = {_WEIGHTS: published.files[_WEIGHTS]} if _WEIGHTS in published.files else {}
    return Published(
        artifact=Artifact("adapter", digest, manifest.base_digest, version=manifest.version),
        name=manifest.name,
        publisher=publisher,
        licence=manifest.licence,
        commercial_use=_commercial(manifest.licence),
        manifest=published.manifest,
        signature=published.signature,
        files=files,
    )


def adapter_files(published: Published) -> tuple[dict[str, bytes], dict[str, str]]:
    """The folder of a published adapter: the content of its small files by name, and the sha256 of
    the large one by its name. No other name of the record counts: it is not signed.

    Raises:
        InvalidInput: it is no adapter, or the record lacks its weights.
    """
    kind = published.artifact.kind
    if kind != "adapter" or _WEIGHTS not in published.files:
        raise InvalidInput("artifact", f"{published.name} is a {kind}, or without its weights")
    signed = {_ADAPTER: published.manifest, _SIGNATURES[_ADAPTER]: published.signature}
    return signed, {_WEIGHTS: published.files[_WEIGHTS][0]}


def _bundle(path: Path, trust: TrustStore) -> tuple[Published, dict[str, Path]]:
    bundle = Bundle.open(path, trust)
    manifest = bundle.manifest
    published = Published(
        artifact=Artifact("bundle", bundle.digest, manifest.base_digest),
        name=manifest.name,
        publisher=bundle.publisher,
        licence=manifest.licence,
        commercial_use=manifest.commercial_use,
        manifest=(path / _BUNDLE).read_bytes(),
        signature=(path / _SIGNATURES[_BUNDLE]).read_bytes(),
        files={name: (entry.sha256, entry.bytes) for name, entry in manifest.files.items()},
    )
    return published, {name: bundle.file(name) for name in manifest.files}


def _adapter(path: Path, trust: TrustStore) -> tuple[Published, dict[str, Path]]:
    adapter = Adapter.open(path, trust)
    manifest, data = adapter.manifest, (path / _ADAPTER).read_bytes()
    signature = (path / _SIGNATURES[_ADAPTER]).read_bytes()
    weights = path / _WEIGHTS
    published = Published(
        artifact=Artifact(
            "adapter", adapter.digest, manifest.base_digest, version=manifest.version
        ),
        name=manifest.name,
        publisher=trust.verify(data, signature, what=_ADAPTER),
        licence=manifest.licence,
        commercial_use=_commercial(manifest.licence),
        manifest=data,
        signature=signature,
        files={_WEIGHTS: (manifest.weights_sha256, weights.stat().st_size)},
    )
    return published, {_WEIGHTS: weights}


def _policy(path: Path, trust: TrustStore) -> Published:
    data = path.read_bytes()
    try:
        signature = path.with_suffix(".sig").read_bytes()
    except FileNotFoundError:
        raise NotFound(
            f"{path} has no signature {path.with_suffix('.sig').name} beside it"
        ) from None
    publisher = trust.verify(data, signature, what=path.name)
    policy = Policy.from_bytes(data)
    return Published(
        artifact=Artifact(
            "policy",
            sha256_bytes(data),
            policy.base_digest,
            policy.adapter_digest,
            policy.task.task_id,
        ),
        name=policy.task.task_id,
        publisher=publisher,
        licence="",
        commercial_use=True,
        manifest=data,
        signature=signature,
        files={},
    )


def _commercial(licence: str) -> bool:
    """Non-commercial licences say so in their SPDX identifier."""
    return not {"NC", "RESEARCH"}.intersection(licence.upper().replace("_", "-").split("-"))


def _bytes(fields: Fields, name: str) -> bytes:
    try:
        return base64.b64decode(fields.text(name), validate=True)
    except ValueError:
        raise InvalidInput(fields.path(name), "is not base64") from None


def _files(value: object) -> dict[str, tuple[str, int]]:
    if not isinstance(value, dict):
        raise InvalidInput("artifact.files", "must be a JSON object")
    found: dict[str, tuple[str, int]] = {}
    for name, entry in value.items():
        where = f"artifact.files.{name}"
        if not isinstance(entry, list) or len(entry) != 2:
            raise InvalidInput(where, "must be a list of sha256 and size")
        fields = Fields({"sha256": entry[0], "bytes": entry[1]}, where)
        found[str(name)] = (fields.sha256("sha256"), fields.integer("bytes", 0, 2**53))
    return found
