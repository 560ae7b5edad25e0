"""Adapters: a signed folder on disk, and the inputs of the decode graph that it becomes.

An adapter changes each linear that it names from y = x W to y = x W + (x A) B (LoRA, arXiv
2106.09685; the factor alpha / rank is part of B). It may have a head for one task, too, or a head
alone (``edge.head``). Applying it is ``edge.decoder``'s and ``edge.choose``'s business; no adapter
is trained here.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray

from cascade.errors import BundleError, InvalidInput, NotFound, Tampered
from cascade.files import sha256_bytes, write_whole
from cascade.signing import SigningKey, TrustStore
from edge.bundle import AdapterSlot, Manifest
from edge.head import Head, HeadSpec
from edge.safetensors_file import read_bytes

ADAPTER_FORMAT = 2
"""Written where there is a head; without one format 1, which earlier versions read as well."""

MANIFEST, _SIGNATURE, _WEIGHTS = "adapter.json", "adapter.sig", "adapter.safetensors"

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class LoraPair:
    """A and B of one linear.

    Arguments:
        a: float32, shape ``[inputs, rank]``.
        b: float32, shape ``[rank, outputs]``; carries the scale.
    """

    a: Floats
    b: Floats


@dataclass(frozen=True, slots=True)
class AdapterManifest:
    """What an adapter is. The publisher signs its exact bytes.

    Arguments:
        name: for people.
        version: ≥ 1; a device that follows a channel never goes back.
        parent: digest of the adapter that it was made from, "" for none.
        base_digest: of the only bundles that it fits (``Manifest.base_digest``).
        licence: SPDX identifier.
        weights_sha256: hex digest of the weights file.
        head: what its head is for; None for an adapter without one.
    """

    name: str
    version: int
    parent: str
    base_digest: str
    licence: str
    weights_sha256: str
    head: HeadSpec | None = None

    def to_bytes(self) -> bytes:
        """The bytes that are signed."""
        fields: dict[str, object] = {
            field.name: getattr(self, field.name) for field in dataclasses.fields(self)
        }
        fields["format_version"] = 1 if self.head is None else ADAPTER_FORMAT
        if self.head is None:
            del fields["head"]
        else:
            fields["head"] = self.head.to_json()
        return (json.dumps(fields, indent=2, sort_keys=True) + "\n").encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Read a manifest.

        Raises:
            BundleError: of another format, or a field is missing, unknown or of a wrong type.
        """
        try:
            fields = json.loads(data)
            version = fields.pop("format_version")
            if version not in (1, ADAPTER_FORMAT):
                raise BundleError(
                    f"{MANIFEST}: format {version} is not format {ADAPTER_FORMAT} of this SDK; "
                    "upgrade the SDK"
                )
            if (version == ADAPTER_FORMAT) != ("head" in fields):
                raise BundleError(f"{MANIFEST}: head must be there exactly in format 2")
            if "head" in fields:
                fields["head"] = HeadSpec.from_json(fields["head"])
            manifest = cls(**fields)
        except InvalidInput as problem:
            raise BundleError(f"{MANIFEST}: {problem}") from None
        except (ValueError, KeyError, TypeError) as problem:
            raise BundleError(f"{MANIFEST}: is not an adapter manifest ({problem})") from None
        if not isinstance(manifest.version, int) or manifest.version < 1:
            raise BundleError(f"{MANIFEST}: version is {manifest.version!r}, not 1 or more")
        return manifest


@dataclass(frozen=True, slots=True)
class Adapter:
    """A verified adapter. Make one with ``Adapter.open``.

    Arguments:
        digest: hex sha256 of the manifest's bytes: what a policy names.
        pairs: by linear, e.g. ``"layers.0.q_proj"`` (``edge.slots.linear_name``); may be empty
            where there is a head.
        head: of one task; None for none.
    """

    manifest: AdapterManifest
    digest: str
    pairs: Mapping[str, LoraPair]
    head: Head | None = None

    @classmethod
    def open(cls, path: Path, trust: TrustStore) -> Self:
        """Check signature and digest, then read the weights.

        Raises:
            NotFound: there is no adapter at ``path``.
            UnknownPublisher, Tampered, BundleError: it must not or cannot be used.
        """
        data = _read(path, MANIFEST)
        trust.verify(data, _read(path, _SIGNATURE), what=MANIFEST)
        manifest = AdapterManifest.from_bytes(data)
        weights = _read(path, _WEIGHTS)
        if sha256_bytes(weights) != manifest.weights_sha256:
            raise Tampered(_WEIGHTS, f"in {path} was altered after signing; fetch it again")
        pairs, head = _read_weights(weights, manifest.head)
        return cls(manifest, sha256_bytes(data), pairs, head)

    def inputs(self, bundle: Manifest) -> dict[str, Floats]:
        """The decode graph's inputs that apply this adapter, packed as its slots are.

        Raises:
            BundleError: made for another base, or the bundle has no slots, or not for a linear that
                the adapter names, or a shape does not fit; the linear is named.
        """
        if self.manifest.base_digest != bundle.base_digest:
            raise BundleError(
                f"adapter {self.manifest.name}: was made for base "
                f"{self.manifest.base_digest[:12]}…, not for {bundle.name} "
                f"({bundle.base_digest[:12]}…); use the bundle that it was trained on"
            )
        if self.pairs and not bundle.adapter_slots:
            raise BundleError(
                f"adapter {self.manifest.name}: the graph of {bundle.name} has no adapter slots; "
                "build the bundle again with this version: cascade bundle build"
            )
        left = dict(self.pairs)
        packed: dict[str, Floats] = {}
        for slot in bundle.adapter_slots:
            pairs = [left.pop(module, None) for module in slot.modules]
            for module, width, pair in zip(slot.modules, slot.widths, pairs, strict=True):
                if pair is not None:
                    self._check_shapes(module, pair, slot.columns, width)
            packed |= pack(slot, pairs)
        if left:
            raise BundleError(
                f"adapter {self.manifest.name}: {bundle.name} has no linear {min(left)!r}"
            )
        return packed

    def _check_shapes(self, module: str, pair: LoraPair, inputs: int, outputs: int) -> None:
        rank = pair.a.shape[1]
        if pair.a.shape != (inputs, rank) or pair.b.shape != (rank, outputs):
            raise BundleError(
                f"adapter {self.manifest.name}: {module} has A {pair.a.shape} and B "
                f"{pair.b.shape}; this bundle needs A ({inputs}, rank) and B (rank, {outputs})"
            )


def pack(slot: AdapterSlot, pairs: Sequence[LoraPair | None]) -> dict[str, Floats]:
    """The two inputs of a slot that apply ``pairs``, one a module or None; empty for none at all.

    The A lie side by side. Each B lies over its own linear's outputs, and over its own part of the
    packed rank.
    """
    a = [pair.a for pair in pairs if pair is not None]
    if not a:
        return {}
    return {
        slot.input_a: np.ascontiguousarray(np.concatenate(a, axis=1)),
        slot.input_b: _block_diagonal(pairs, slot.widths),
    }


def write_adapter(
    folder: Path,
    pairs: Mapping[str, LoraPair],
    *,
    name: str,
    base_digest: str,
    signing_key: SigningKey,
    version: int = 1,
    parent: str = "",
    licence: str = "Apache-2.0",
    head: Head | None = None,
) -> Path:
    """Write and sign an adapter. ``folder`` may exist; what is not the adapter's stays."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors: dict[str, Floats] = {}
    for module, pair in sorted(pairs.items()):
        tensors[f"{module}.a"] = np.ascontiguousarray(pair.a, np.float32)
        tensors[f"{module}.b"] = np.ascontiguousarray(pair.b, np.float32)
    if head is not None:
        tensors |= head.tensors()
    weights = safetensors.numpy.save(tensors)
    manifest = AdapterManifest(
        name,
        version,
        parent,
        base_digest,
        licence,
        sha256_bytes(weights),
        None if head is None else head.spec,
    )
    data = manifest.to_bytes()
    # The signature last: without it the folder is no adapter.
    write_whole(folder / _WEIGHTS, weights)
    write_whole(folder / MANIFEST, data)
    write_whole(folder / _SIGNATURE, signing_key.sign(data))
    return folder


def _read_weights(weights: bytes, spec: HeadSpec | None) -> tuple[dict[str, LoraPair], Head | None]:
    try:
        tensors = {name: tensor.values() for name, tensor in read_bytes(weights, _WEIGHTS).items()}
        head = None if spec is None else Head.from_tensors(spec, tensors)
    except InvalidInput as problem:
        raise BundleError(f"{_WEIGHTS}: {problem.problem}") from None
    if head is not None:
        tensors = {name: tensor for name, tensor in tensors.items() if name not in head.tensors()}
        if not tensors:
            return {}, head
    return _pairs(tensors), head


def _pairs(tensors: Mapping[str, NDArray[np.float16 | np.float32]]) -> dict[str, LoraPair]:
    modules = {name.rpartition(".")[0] for name in tensors}
    if not modules or set(tensors) != {f"{module}.{x}" for module in modules for x in "ab"}:
        raise BundleError(f"{_WEIGHTS}: must hold pairs NAME.a and NAME.b, at least one")
    for name, tensor in tensors.items():
        if tensor.ndim != 2:
            raise BundleError(f"{_WEIGHTS}: {name} has the shape {list(tensor.shape)}: no matrix")
        if not np.isfinite(tensor).all():
            raise BundleError(f"{_WEIGHTS}: {name} holds NaN or infinite numbers")
    return {
        module: LoraPair(
            tensors[f"{module}.a"].astype(np.float32), tensors[f"{module}.b"].astype(np.float32)
        )
        for module in sorted(modules)
    }


def _block_diagonal(pairs: Sequence[LoraPair | None], widths: tuple[int, ...]) -> Floats:
    rank = sum(pair.b.shape[0] for pair in pairs if pair is not None)
    packed = np.zeros((rank, sum(widths)), np.float32)
    row = column = 0
    for pair, width in zip(pairs, widths, strict=True):
        if pair is not None:
            packed[row : row + pair.b.shape[0], column : column + width] = pair.b
            row += pair.b.shape[0]
        column += width
    return packed


def _read(path: Path, name: str) -> bytes:
    try:
        return (path / name).read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise NotFound(f"there is no adapter at {path} ({name} is missing)") from None
