"""Bundles of the Llama and Qwen2 families, from a GGUF file or a Hugging Face folder.

Both are read into one ``Source``; from there on there is one way. Folders of other families go
through ``edge.build.export``.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from cascade.errors import InvalidInput
from cascade.signing import SigningKey
from edge.build.assembly import Contents, Label, Progress, assemble
from edge.build.checkpoint import Source
from edge.build.folder import folder_source
from edge.build.gguf_checkpoint import gguf_source
from edge.build.graph import adapter_slots, write_decoder
from edge.build.matrices import AccuracyLevel
from edge.build.quantise import Quantisation
from edge.build.weight_file import WeightFile
from edge.bundle import CHAT_TEMPLATE, DECODE_GRAPH, DECODE_WEIGHTS, TOKENIZER


def build_from_gguf(
    source: Path,
    out: Path,
    *,
    name: str,
    base_model: str,
    licence: str,
    commercial_use: bool,
    signing_key: SigningKey,
    quantise: Quantisation = "lossless",
    context: int | None = None,
    chat_template: str | None = None,
    accuracy_level: AccuracyLevel = 4,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Path:
    """Make a bundle that computes exactly what the GGUF file's weights say.

    The same file gives the same bytes for graph, weights, tokenizer and template.

    Arguments:
        out: folder to create.
        name, base_model, licence, commercial_use: for the manifest; what a catalog entry says.
        quantise: ``"lossless"`` keeps the file's blocks; ``"fp32"`` is a reference without them.
        context: longest sequence in tokens, if shorter than what the model was made for.
        chat_template: Jinja text to use instead of the file's own.
        accuracy_level: 4 for devices (int8 activations), 0 for an exact reference (float32).
        overwrite: replace ``out`` if it exists; it stays whole until the new bundle is finished.
        progress: called with a short text and the share done, 0 to 1.

    Returns:
        ``out``.

    Raises:
        InvalidInput: ``out`` exists (and is no bundle, or ``overwrite`` is off), or the GGUF file
            cannot be read or is of an unsupported kind.
        CascadeError: the disk is full; nothing is left of the attempt.
    """
    report = progress or _silent
    report("reading the model", 0.0)
    return assemble(
        out,
        lambda folder: _fill(
            folder, gguf_source(source, quantise, chat_template), context, accuracy_level, report
        ),
        label=Label(name, base_model, licence, commercial_use),
        signing_key=signing_key,
        overwrite=overwrite,
        report=report,
    )


def build_from_folder(
    source: Path,
    out: Path,
    *,
    name: str,
    base_model: str,
    licence: str,
    commercial_use: bool,
    signing_key: SigningKey,
    quantise: Quantisation = "int8",
    context: int | None = None,
    chat_template: str | None = None,
    accuracy_level: AccuracyLevel = 4,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Path:
    """Make a bundle from a Hugging Face folder of the Llama or Qwen2 family, without torch.

    The same folder gives the same bytes for graph, weights, tokenizer and template.

    Arguments:
        source: a folder with ``config.json``, ``tokenizer.json``, ``*.safetensors`` and, for chat
            template and stop tokens, ``tokenizer_config.json`` and ``generation_config.json``.
        quantise: how weights are stored, see ``edge.build.quantise``.

    The other arguments, ``Returns`` and ``Raises`` are those of ``build_from_gguf``.
    """
    report = progress or _silent
    report("reading the model", 0.0)
    return assemble(
        out,
        lambda folder: _fill(
            folder,
            folder_source(source, quantise, chat_template),
            context,
            accuracy_level,
            report,
        ),
        label=Label(name, base_model, licence, commercial_use),
        signing_key=signing_key,
        overwrite=overwrite,
        report=report,
    )


def _fill(
    folder: Path,
    source: Source,
    context: int | None,
    accuracy_level: AccuracyLevel,
    report: Progress,
) -> Contents:
    decoder = source.decoder
    if context is not None:
        decoder = dataclasses.replace(decoder, context=shorter(context, decoder.context))
    report("writing the tokenizer", 0.1)
    (folder / TOKENIZER).write_bytes(source.tokenizer.encode())
    (folder / CHAT_TEMPLATE).write_bytes(source.chat_template.encode())
    report("writing the weights", 0.3)
    with (folder / DECODE_WEIGHTS).open("wb") as data:
        weights = WeightFile(data, DECODE_WEIGHTS)
        graph = write_decoder(source.weights, decoder, weights, accuracy_level)
    (folder / DECODE_GRAPH).write_bytes(graph.SerializeToString(deterministic=True))
    return Contents(
        architecture=decoder.family,
        quantisation=source.quantisation,
        context_tokens=decoder.context,
        vocab_size=decoder.vocabulary,
        layers=decoder.layers,
        kv_heads=decoder.kv_heads,
        head_dim=decoder.head_dim,
        stop_token_ids=source.stop_token_ids,
        adapter_slots=adapter_slots(decoder),
        graph="fused",
    )


def shorter(context: int, made_for: int) -> int:
    """``context``; raises ``InvalidInput`` unless it is 1 to ``made_for`` tokens."""
    if not 1 <= context <= made_for:
        raise InvalidInput("context", f"{context} is not between 1 and the model's {made_for}")
    return context


def _silent(_text: str, _share: float) -> None:
    pass
