"""A bundle on disk: the manifest that describes it, and the checks before anything of it is used.

Nothing here runs a model (``edge.model``, ``edge.classifier``) or makes a bundle (``edge.build``).
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self, TypeAlias, get_args

from cascade.errors import BundleError, InvalidInput, NotFound, Tampered
from cascade.files import sha256_bytes, sha256_file, write_whole
from cascade.signing import SigningKey, TrustStore
from edge.classifier_spec import ClassifierSpec

FORMAT_VERSION = 3
MANIFEST, SIGNATURE = "manifest.json", "manifest.sig"
DECODE_GRAPH, DECODE_WEIGHTS = "decode.onnx", "decode.data"
TOKENIZER, CHAT_TEMPLATE = "tokenizer.json", "chat_template.jinja"
FILES = (DECODE_GRAPH, DECODE_WEIGHTS, TOKENIZER, CHAT_TEMPLATE)
GRADIENT_GRAPH, TRUNK_GRAPH = "gradient.onnx", "trunk.onnx"
"""What trains adapters; a bundle may lack both."""
SCORES_GRAPH = "scores.onnx"
"""The gradient graph without its way back, which scores answers in less time; a bundle may lack
it."""
COARSE_GRAPH = "coarse.onnx"
"""Makes whole numbers of the trunk's matrices when it is loaded; a bundle may lack it, and then its
trunk multiplies floats."""
HIDDEN_PREFIX = "hidden."
"""Begins the name of the decode graph's output of hidden states; what follows is how many layers
are below. A graph may lack it."""
CLASSIFIER_GRAPH, PREPROCESS_GRAPH = "classifier.onnx", "preprocess.onnx"

Kind = Literal["decoder", "classifier"]

GraphLayout: TypeAlias = Literal["fused", "exported"]
"""Inputs of the decode graph: ``fused`` writes its key-value cache in place (``edge.decoder``);
``exported`` takes the past and returns it longer, as optimum exports it (``edge.exported``)."""


@dataclass(frozen=True, slots=True)
class FileEntry:
    """Size in bytes and lower-case hex sha256 of one file of a bundle."""

    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class AdapterSlot:
    """A place in the decode graph that takes a LoRA adapter: y = x W + (x A) B.

    Linears over the same input are packed side by side, and so are their adapters.

    Arguments:
        name: e.g. ``"layers.0.qkv"``; the graph's inputs are ``lora.<name>.a`` and ``.b``.
        columns: width of the input x; A is float32 ``[columns, rank]``.
        modules: the packed linears, in order, e.g. ``("layers.0.q_proj", …)``.
        widths: their output widths; B is float32 ``[rank, sum(widths)]``.
    """

    name: str
    columns: int
    modules: tuple[str, ...]
    widths: tuple[int, ...]

    @property
    def rows(self) -> int:
        """Width of the output y."""
        return sum(self.widths)

    @property
    def input_a(self) -> str:
        """The graph's input for A."""
        return f"lora.{self.name}.a"

    @property
    def input_b(self) -> str:
        """The graph's input for B."""
        return f"lora.{self.name}.b"


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a bundle is. The publisher signs its exact bytes.

    Arguments:
        name: short name, e.g. ``"smollm2-135m-instruct-int4"``.
        base_model: the model that it was made from.
        licence: SPDX identifier of the weights' licence.
        commercial_use: whether that licence allows commercial use.
        architecture: ``"llama"`` or another family of ``edge.build``.
        quantisation: how weights are stored, for people, e.g. ``"lossless Q4_1+Q8_0"``.
        context_tokens, vocab_size, layers, kv_heads, head_dim: the graph's sizes.
        stop_token_ids: tokens that end an answer.
        adapter_slots: where the graph takes LoRA adapters; may be empty.
        files: every other file of the bundle.
        graph: which runtime the decode graph needs.
        kind: ``"decoder"`` writes text, ``"classifier"`` gives one of its labels; the sizes above
            are 0 and the tokens and slots empty for the latter.
        classifier: what a classifier takes and gives; ``None`` exactly for a decoder.
    """

    name: str
    base_model: str
    licence: str
    commercial_use: bool
    architecture: str
    quantisation: str
    context_tokens: int
    vocab_size: int
    layers: int
    kv_heads: int
    head_dim: int
    stop_token_ids: tuple[int, ...]
    adapter_slots: tuple[AdapterSlot, ...]
    files: dict[str, FileEntry]
    format_version: int = FORMAT_VERSION
    graph: GraphLayout = "fused"
    kind: Kind = "decoder"
    classifier: ClassifierSpec | None = None

    @property
    def base_digest(self) -> str:
        """What adapters and policies bind to: sha256 over the sorted digests of decode weights and
        tokenizer, joined by a newline; for a classifier over its graphs' digests and what it takes
        and gives."""
        if self.classifier is not None:
            parts = sorted(entry.sha256 for entry in self.files.values())
            parts.append(json.dumps(dataclasses.asdict(self.classifier), sort_keys=True))
            return sha256_bytes("\n".join(parts).encode())
        digests = sorted(self.files[name].sha256 for name in (DECODE_WEIGHTS, TOKENIZER))
        return sha256_bytes("\n".join(digests).encode())

    def to_bytes(self) -> bytes:
        """The bytes that are signed."""
        return (json.dumps(dataclasses.asdict(self), indent=2, sort_keys=True) + "\n").encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Read a manifest.

        Raises:
            BundleError: of a newer format, or a field is missing, unknown or of a wrong type.
        """
        try:
            fields = json.loads(data)
            version = fields["format_version"]
            if version != FORMAT_VERSION:
                raise BundleError(
                    f"{MANIFEST}: format {version} is not format {FORMAT_VERSION} of this SDK; "
                    "upgrade the SDK or build the bundle again"
                )
            fields["files"] = {name: FileEntry(**entry) for name, entry in fields["files"].items()}
            fields["stop_token_ids"] = tuple(fields["stop_token_ids"])
            fields["adapter_slots"] = tuple(map(_adapter_slot, fields["adapter_slots"]))
            if fields.get("classifier") is not None:
                fields["classifier"] = ClassifierSpec.from_json(fields["classifier"])
            manifest = cls(**fields)
        except InvalidInput as problem:
            raise BundleError(f"{MANIFEST}: {problem}") from None
        except (ValueError, KeyError, TypeError, AttributeError) as problem:
            raise BundleError(f"{MANIFEST}: is not a bundle manifest ({problem})") from None
        manifest._check()
        return manifest

    def classifier_spec(self) -> ClassifierSpec:
        """What this classifier takes and gives.

        Raises:
            BundleError: this is no classifier bundle.
        """
        if self.classifier is None:
            raise BundleError(f"{self.name} is a decoder bundle: it reads text, no tensors")
        return self.classifier

    def _check(self) -> None:
        for field in ("name", "base_model", "licence", "architecture", "quantisation"):
            if not isinstance(getattr(self, field), str):
                raise BundleError(f"{MANIFEST}: {field} must be a string")
        if not isinstance(self.commercial_use, bool):  # the string "no" would count as true
            raise BundleError(f"{MANIFEST}: commercial_use must be true or false")
        if self.kind not in ("decoder", "classifier"):
            raise BundleError(f"{MANIFEST}: kind is {self.kind!r}; upgrade the SDK")
        if (self.kind == "classifier") != (self.classifier is not None):
            raise BundleError(f"{MANIFEST}: classifier must be there exactly for that kind")
        if self.kind == "decoder":
            self._check_sizes()
        required = (CLASSIFIER_GRAPH,) if self.kind == "classifier" else FILES
        for name in self.files:
            if Path(name).name != name or name in (MANIFEST, SIGNATURE, ".", ".."):
                raise BundleError(f"{MANIFEST}: files names {name!r}, which is no plain file name")
        for name in required:
            if name not in self.files:
                raise BundleError(f"{MANIFEST}: files lacks {name}; build the bundle again")

    def _check_sizes(self) -> None:
        for field in ("context_tokens", "vocab_size", "layers", "kv_heads", "head_dim"):
            value = getattr(self, field)
            if not _is_whole(value) or value < 1:
                raise BundleError(f"{MANIFEST}: {field} is {value!r}, not a positive integer")
        if not all(map(_is_whole, self.stop_token_ids)):
            raise BundleError(f"{MANIFEST}: stop_token_ids must be whole numbers")
        if self.graph not in get_args(GraphLayout):
            raise BundleError(
                f"{MANIFEST}: graph is {self.graph!r}; this SDK runs "
                + " and ".join(get_args(GraphLayout))
            )


@dataclass(frozen=True, slots=True)
class Bundle:
    """A verified bundle. Make one with ``Bundle.open``."""

    path: Path
    manifest: Manifest
    digest: str
    publisher: str

    @classmethod
    def open(
        cls, path: Path, trust: TrustStore, *, on_bytes: Callable[[int], None] | None = None
    ) -> Self:
        """Check the signature and the sha256 of every file, then describe the bundle.

        Arguments:
            trust: the publisher keys that this device accepts.
            on_bytes: told the size of each piece that was hashed, for progress.

        Raises:
            NotFound: there is no bundle at ``path``.
            UnknownPublisher, Tampered, BundleError: it must not be used; the file is named.
        """
        manifest, data, publisher = _signed_manifest(path, trust)
        for name, entry in manifest.files.items():
            file = path / name
            if not file.is_file():
                raise Tampered(name, f"is missing from {path}; fetch or build the bundle again")
            if file.stat().st_size != entry.bytes or sha256_file(file, on_bytes) != entry.sha256:
                raise Tampered(
                    name, f"in {path} was altered after signing; fetch or build the bundle again"
                )
        return cls(path, manifest, sha256_bytes(data), publisher)

    def file(self, name: str) -> Path:
        """Path of one of the bundle's files."""
        return self.path / name


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _adapter_slot(fields: dict[str, Any]) -> AdapterSlot:
    modules, widths = tuple(fields.pop("modules")), tuple(fields.pop("widths"))
    return AdapterSlot(**fields, modules=modules, widths=widths)


def inspect(path: Path) -> Manifest:
    """Read a bundle's manifest *without* checking signature or files.

    Raises:
        NotFound: there is no bundle at ``path``.
        BundleError: the manifest cannot be read.
    """
    return Manifest.from_bytes(_read(path, MANIFEST))


def seal(path: Path, manifest: Manifest, key: SigningKey) -> None:
    """Write manifest and signature into the folder of a finished bundle."""
    data = manifest.to_bytes()
    write_whole(path / MANIFEST, data)
    write_whole(path / SIGNATURE, key.sign(data))


def describe_files(path: Path, names: Sequence[str] = FILES) -> dict[str, FileEntry]:
    """Entries of ``Manifest.files`` for the files ``names`` in ``path``; by default a decoder's."""
    return {
        name: FileEntry((path / name).stat().st_size, sha256_file(path / name)) for name in names
    }


def _signed_manifest(path: Path, trust: TrustStore) -> tuple[Manifest, bytes, str]:
    data = _read(path, MANIFEST)
    publisher = trust.verify(data, _read(path, SIGNATURE), what=MANIFEST)
    return Manifest.from_bytes(data), data, publisher


def _read(path: Path, name: str) -> bytes:
    try:
        return (path / name).read_bytes()
    except FileNotFoundError:
        raise NotFound(
            f"there is no bundle at {path} ({name} is missing); make one with: cascade bundle build"
        ) from None
    except NotADirectoryError:
        raise NotFound(f"{path} is a file, not a bundle folder") from None
