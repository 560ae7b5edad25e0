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
from edge.build.coarse import coarse_matrices, with_coarse, write_coarse
from edge.build.folder import folder_source
from edge.build.gguf_checkpoint import gguf_source
from edge.build.gradient import write_gradient, write_scores
from edge.build.graph import adapter_slots, write_decoder
from edge.build.matrices import AccuracyLevel
from edge.build.quantise import Quantisation
from edge.build.trunk import cut_trunk
from edge.build.weight_file import WeightFile
from edge.bundle import (
    CHAT_TEMPLATE,
    COARSE_GRAPH,
    DECODE_GRAPH,
    DECODE_WEIGHTS,
    GRADIENT_GRAPH,
    SCORES_GRAPH,
    TOKENIZER,
    TRUNK_GRAPH,
)

GRADIENT_LAYERS = 4
"""Layers that adapters can be trained for where nobody says otherwise."""


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
    gradient_layers: int | None = None,
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
        accuracy_level: 4 for devices (int8 activations, in the trunk that training reads, too), 0
            for an exact reference (float32).
        gradient_layers: how many layers, counted from the last, a device can train adapters for; 0
            leaves the graphs for that out, None takes ``GRADIENT_LAYERS`` or all that there are.
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
            folder,
            gguf_source(source, quantise, chat_template),
            context=context,
            accuracy_level=accuracy_level,
            gradient_layers=gradient_layers,
            report=report,
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
    gradient_layers: int | None = None,
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
            context=context,
            accuracy_level=accuracy_level,
            gradient_layers=gradient_layers,
            report=report,
        ),
        label=Label(name, base_model, licence, commercial_use),
        signing_key=signing_key,
        overwrite=overwrite,
        report=report,
    )


def _fill(
    folder: Path,
    source: Source,
    *,
    context: int | None,
    accuracy_level: AccuracyLevel,
    gradient_layers: int | None,
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
    trained = trainable(gradient_layers, decoder.layers)
    graphs = {DECODE_GRAPH: graph}
    if trained:
        coarse = coarse_matrices(decoder, weights, trained) if accuracy_level else []
        if coarse:
            graphs[COARSE_GRAPH] = write_coarse(weights, coarse)
        graphs[TRUNK_GRAPH] = cut_trunk(with_coarse(graph, coarse), decoder, trained)
        graphs[GRADIENT_GRAPH] = write_gradient(decoder, weights, trained)
        graphs[SCORES_GRAPH] = write_scores(decoder, weights, trained)
    for name, each in graphs.items():
        (folder / name).write_bytes(each.SerializeToString(deterministic=True))
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
        more_files=tuple(name for name in graphs if name != DECODE_GRAPH),
    )


def trainable(layers: int | None, of: int) -> int:
    """How many layers are to be trained; raises ``InvalidInput`` unless that is 0 to ``of``."""
    if layers is None:
        return min(GRADIENT_LAYERS, of)
    if not 0 <= layers <= of:
        raise InvalidInput("gradient", f"{layers} is not between 0 and the model's {of} layers")
    return layers


def shorter(context: int, made_for: int) -> int:
    """``context``; raises ``InvalidInput`` unless it is 1 to ``made_for`` tokens."""
    if not 1 <= context <= made_for:
        raise InvalidInput("context", f"{context} is not between 1 and the model's {made_for}")
    return context


def _silent(_text: str, _share: float) -> None:
    pass
