"""From one GGUF file to a signed bundle folder: all of it, or nothing.

The parts are made by the other modules of this folder; here they are put together beside the
destination, sealed, and moved into place by one rename.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

from cascade.signing import SigningKey
from edge.build.architecture import read_decoder
from edge.build.blocks import BlockType
from edge.build.gguf_file import GgufFile, read_gguf
from edge.build.graph import adapter_slots, write_decoder
from edge.build.matrices import AccuracyLevel
from edge.build.place import check_free, finished_or_absent
from edge.build.tokenizer import chat_template, stop_token_ids, tokenizer_json
from edge.build.weight_file import WeightFile
from edge.bundle import (
    CHAT_TEMPLATE,
    DECODE_GRAPH,
    DECODE_WEIGHTS,
    TOKENIZER,
    Manifest,
    describe_files,
    seal,
)

Progress: TypeAlias = Callable[[str, float], None]


def build_from_gguf(
    gguf_path: Path,
    out: Path,
    *,
    name: str,
    base_model: str,
    licence: str,
    commercial_use: bool,
    signing_key: SigningKey,
    accuracy_level: AccuracyLevel = 4,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Path:
    """Make a bundle that computes exactly what the GGUF file's weights say.

    The same file gives the same bytes for graph, weights, tokenizer and template.

    Arguments:
        out: folder to create.
        name, base_model, licence, commercial_use: for the manifest; what a catalog entry says.
        accuracy_level: 4 for devices (int8 activations), 0 for an exact reference (float32).
        overwrite: replace ``out`` if it exists; it stays whole until the new bundle is finished.
        progress: called with a short text and the share done, 0 to 1.

    Returns:
        ``out``.

    Raises:
        InvalidInput: ``out`` exists (and is no bundle, or ``overwrite`` is off), or the GGUF file
            cannot be read or is of an unsupported kind.
    """
    report = progress or (lambda _text, _share: None)
    check_free(out, overwrite=overwrite)
    report("reading the model", 0.0)
    gguf = read_gguf(gguf_path)
    decoder = read_decoder(gguf)
    with finished_or_absent(out) as folder:
        report("writing the tokenizer", 0.1)
        _write_text(folder / TOKENIZER, tokenizer_json(gguf))
        _write_text(folder / CHAT_TEMPLATE, chat_template(gguf))
        report("re-encoding the weights", 0.3)
        with (folder / DECODE_WEIGHTS).open("wb") as data:
            graph = write_decoder(gguf, decoder, WeightFile(data, DECODE_WEIGHTS), accuracy_level)
        (folder / DECODE_GRAPH).write_bytes(graph.SerializeToString(deterministic=True))
        report("signing", 0.9)
        manifest = Manifest(
            name=name,
            base_model=base_model,
            licence=licence,
            commercial_use=commercial_use,
            architecture=decoder.family,
            quantisation=_quantisation(gguf),
            context_tokens=decoder.context,
            vocab_size=decoder.vocabulary,
            layers=decoder.layers,
            kv_heads=decoder.kv_heads,
            head_dim=decoder.head_dim,
            stop_token_ids=stop_token_ids(gguf),
            adapter_slots=adapter_slots(decoder),
            files=describe_files(folder),
        )
        seal(folder, manifest, signing_key)
    report("done", 1.0)
    return out


def _write_text(path: Path, text: str) -> None:
    path.write_bytes(text.encode())


def _quantisation(gguf: GgufFile) -> str:
    """The source's block types, most weights first, e.g. ``"lossless Q4_1+Q8_0"``."""
    size: dict[BlockType, int] = {}
    for tensor in gguf.tensors.values():
        size[tensor.kind] = size.get(tensor.kind, 0) + tensor.raw.size
    matrices = [kind for kind in sorted(size, key=lambda kind: -size[kind]) if kind.weights > 1]
    return "lossless " + "+".join(kind.name for kind in matrices or size)
