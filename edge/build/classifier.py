"""From an ONNX classifier to a signed bundle folder: all of it, or nothing.

Any graph will do that takes numeric arrays and gives one score for each class. It is stored as it
is, in one file; what it takes and gives is read from the graph, tried out, and written into the
manifest.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from google.protobuf.message import DecodeError, EncodeError

from cascade.errors import BundleError, InvalidInput, NotFound
from cascade.signing import SigningKey
from edge.build.place import check_free, finished_or_absent
from edge.bundle import (
    CLASSIFIER_GRAPH,
    PREPROCESS_GRAPH,
    Bundle,
    Manifest,
    describe_files,
    seal,
)
from edge.classifier import Graphs, OnnxClassifier
from edge.classifier_spec import ClassifierSpec, Scores, check_labels

Model = Path | onnx.ModelProto
"""An ONNX file, or a graph in memory."""

_SOFTMAXES: dict[str, Scores] = {"Softmax": "probabilities", "LogSoftmax": "logits"}
# What exporters put behind the last operator that computes.
_PASSING = ("Identity", "Cast", "Reshape", "Squeeze", "Flatten", "DequantizeLinear")


def build_classifier(
    model: Model,
    out: Path,
    *,
    labels: Sequence[str],
    signing_key: SigningKey,
    preprocessor: Model | None = None,
    scores: Scores | None = None,
    output: str | None = None,
    name: str | None = None,
    licence: str = "LicenseRef-own",
    commercial_use: bool = True,
    overwrite: bool = False,
) -> Path:
    """Make a bundle of a classifier.

    Arguments:
        model: takes one or more numeric arrays, each with the batch as its first axis where it has
            two or more; gives one score for each class.
        out: folder to create.
        labels: the classes in the order of the scores; at least two, all different.
        preprocessor: a graph that is run first. It takes what the sensor gives, and its outputs are
            the model's inputs, by name or, where each has just one, whatever their names.
        scores: whether the model gives probabilities or logits; may be left out where its last
            operator is a softmax.
        output: the output with the scores; may be left out where there is but one of floats.
        name: for the manifest; by default the folder's.
        licence: SPDX identifier of the weights' licence.
        commercial_use: whether that licence allows commercial use.
        overwrite: replace ``out`` if it exists; it stays whole until the new bundle is finished.

    Returns:
        ``out``.

    Raises:
        NotFound: there is no such file.
        InvalidInput: an argument is unusable; it is named, and what would be right.
        BundleError: onnxruntime cannot run the graphs.
    """
    check_free(out, overwrite=overwrite)
    classes = tuple(labels)
    check_labels(classes)
    graph = _read("model", model)
    names = [CLASSIFIER_GRAPH]
    with finished_or_absent(out) as folder:
        _write(folder / CLASSIFIER_GRAPH, graph)
        if preprocessor is not None:
            names.append(PREPROCESS_GRAPH)
            _write(folder / PREPROCESS_GRAPH, _read("preprocessor", preprocessor))
        manifest = Manifest(
            name=name or out.name,
            base_model=graph.graph.name or "classifier",
            licence=licence,
            commercial_use=commercial_use,
            architecture="onnx",
            quantisation=_weights_type(graph),
            context_tokens=0,
            vocab_size=0,
            layers=0,
            kv_heads=0,
            head_dim=0,
            stop_token_ids=(),
            adapter_slots=(),
            files=describe_files(folder, names),
            kind="classifier",
            classifier=_spec(folder, graph, classes, scores, output, preprocess=len(names) > 1),
        )
        seal(folder, manifest, signing_key)
        _try_out(folder, manifest)
    return out


def _spec(
    folder: Path,
    graph: onnx.ModelProto,
    labels: tuple[str, ...],
    scores: Scores | None,
    output: str | None,
    *,
    preprocess: bool,
) -> ClassifierSpec:
    graphs = Graphs(folder, preprocess=preprocess)
    outputs = graphs.outputs
    if output is None:
        if len(outputs) != 1:
            raise InvalidInput(
                "output",
                f"must name the one with the scores; outputs of floats: "
                f"{', '.join(outputs) or 'none (export without ZipMap)'}",
            )
        (output,) = outputs
    elif output not in outputs:
        raise InvalidInput(
            "output", f"{output!r} is none of the outputs of floats: {', '.join(outputs) or 'none'}"
        )
    classes = outputs[output]
    if classes is not None and classes != len(labels):
        raise InvalidInput(
            "labels",
            f"are {len(labels)}, but {output} has {classes} scores; give one label for each, in "
            "their order",
        )
    found = scores or _scores_of(graph.graph, output)
    if found is None:
        raise InvalidInput(
            "scores",
            f"say whether {output} holds probabilities or logits; its last operator is no softmax",
        )
    return ClassifierSpec(graphs.inputs, output, found, labels)


def _try_out(folder: Path, manifest: Manifest) -> None:
    """Classify something, so that what can never work is refused here and not on devices."""
    spec = manifest.classifier_spec()
    sample = spec.sample()
    classifier = OnnxClassifier(Bundle(folder, manifest, "", ""))
    if sample is None:
        return
    try:
        classifier.classify(sample)
    except InvalidInput as problem:
        raise BundleError(f"the graphs do not run: {problem.problem}") from None


def _scores_of(graph: onnx.GraphProto, output: str) -> Scores | None:
    maker = {name: node for node in graph.node for name in node.output}
    node = maker.get(output)
    while node is not None and node.op_type in _PASSING:
        node = maker.get(node.input[0])
    return _SOFTMAXES.get(node.op_type) if node is not None else None


def _read(field: str, model: Model) -> onnx.ModelProto:
    """The graph with all of its weights inside."""
    if isinstance(model, onnx.ModelProto):
        return model
    if not model.is_file():
        raise NotFound(f"{field}: there is no file {model}")
    try:
        graph = onnx.load(model)
        onnx.checker.check_model(graph)
    except (DecodeError, onnx.checker.ValidationError, OSError, ValueError) as problem:
        line = next(iter(str(problem).splitlines()), type(problem).__name__)
        raise InvalidInput(field, f"{model} is no whole ONNX file ({line})") from None
    return graph


def _write(path: Path, graph: onnx.ModelProto) -> None:
    try:
        path.write_bytes(graph.SerializeToString(deterministic=True))
    except (EncodeError, ValueError):
        raise InvalidInput("model", "is larger than the 2 GB of one ONNX file") from None


def _weights_type(graph: onnx.ModelProto) -> str:
    """The element type that most of the weights have, e.g. ``"int8"``."""
    counts: dict[str, int] = {}
    for tensor in graph.graph.initializer:
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).name
        counts[dtype] = counts.get(dtype, 0) + int(np.prod(tensor.dims))
    return max(counts, key=lambda dtype: counts[dtype]) if counts else "none"
