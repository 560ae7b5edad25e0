"""From a Hugging Face folder to a bundle whose graph optimum exported and we quantised.

The exported graph is compared with the model itself before it is used: tracing can bake in what
depends on the length of a text.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import onnx

from cascade.errors import InvalidInput
from cascade.signing import SigningKey
from edge.build.assembly import Contents, Label, Progress, assemble
from edge.build.bundle import shorter
from edge.build.export.trace import Traced, trace
from edge.build.exported_graph import write_exported
from edge.build.folder import describe
from edge.build.folder_config import family_of
from edge.build.folder_text import FolderText
from edge.build.matrices import AccuracyLevel
from edge.build.quantise import Quantisation, for_floats
from edge.build.weight_file import WeightFile
from edge.bundle import CHAT_TEMPLATE, DECODE_GRAPH, DECODE_WEIGHTS, TOKENIZER

_OTHER_INPUTS = {"input_ids", "attention_mask", "position_ids"}


def build_by_export(
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
    """Make a bundle from a folder with any causal language model that optimum can export.

    No code from the folder is run: a model that brings its own is refused.

    The arguments, ``Returns`` and ``Raises`` are those of ``edge.build.build_from_folder``;
    ``gradient_layers`` must be left out or 0: there is no gradient graph for traced models.
    ``InvalidInput`` also where the model cannot be exported, or its graph computes something else.
    """
    report = progress or (lambda _text, _share: None)
    for_floats(quantise)
    if gradient_layers:
        raise InvalidInput(
            "gradient",
            "exported graphs have none; train with PEFT and bring the adapter in with "
            "edge.peft.read_peft, or take a Llama or Qwen2 model",
        )
    report("reading the model", 0.0)

    def fill(folder: Path) -> Contents:
        text = FolderText(source)
        template = text.chat_template() if chat_template is None else chat_template
        (folder / TOKENIZER).write_bytes(text.tokenizer().encode())
        (folder / CHAT_TEMPLATE).write_bytes(template.encode())
        with tempfile.TemporaryDirectory(dir=folder.parent) as aside:
            traced = trace(source, Path(aside), report)
            text.check_ids(traced.vocabulary)
            sizes = _past(traced)
            length = _context(traced, context)
            report("writing the weights", 0.7)
            model = onnx.load(traced.graph)
        with (folder / DECODE_WEIGHTS).open("wb") as data:
            weights = WeightFile(data, DECODE_WEIGHTS)
            graph, slots = write_exported(
                model,
                traced.vocabulary,
                quantise,
                weights,
                accuracy_level,
                linears=traced.linears,
            )
        (folder / DECODE_GRAPH).write_bytes(graph.SerializeToString(deterministic=True))
        return Contents(
            architecture=family_of(source),
            quantisation=describe(quantise),
            context_tokens=length,
            vocab_size=traced.vocabulary,
            layers=sizes.layers,
            kv_heads=sizes.kv_heads,
            head_dim=sizes.head_dim,
            stop_token_ids=text.stop_token_ids(),
            adapter_slots=slots,
            graph="exported",
        )

    return assemble(
        out,
        fill,
        label=Label(name, base_model, licence, commercial_use),
        signing_key=signing_key,
        overwrite=overwrite,
        report=report,
    )


@dataclass(frozen=True, slots=True)
class _Past:
    layers: int
    kv_heads: int
    head_dim: int


def _past(traced: Traced) -> _Past:
    """Sizes of the past, where the graph's inputs are those that are run."""
    graph = onnx.load(traced.graph, load_external_data=False).graph
    past = {
        value.name: [dimension.dim_value for dimension in value.type.tensor_type.shape.dim]
        for value in graph.input
        if value.name not in _OTHER_INPUTS
    }
    layers = len(past) // 2
    names = {f"past_key_values.{i}.{half}" for i in range(layers) for half in ("key", "value")}
    sizes = {(shape[1], shape[3]) for shape in past.values() if len(shape) == 4}
    if not past or set(past) != names or len(sizes) != 1 or not all(*sizes):
        raise InvalidInput(
            "folder",
            "the exported graph keeps its past in another form than keys and values of "
            "[batch, heads, length, size]; this architecture is not supported",
        )
    ((kv_heads, head_dim),) = sizes
    return _Past(layers, kv_heads, head_dim)


def _context(traced: Traced, asked: int | None) -> int:
    if traced.context is not None:
        return traced.context if asked is None else shorter(asked, traced.context)
    if asked is None:
        raise InvalidInput(
            "context", "config.json does not say how long a text may be; give --context TOKENS"
        )
    return shorter(asked, asked)
