"""A classifier bundle that answers: raw tensors in, one of its labels out, with a score for each.

Implements ``cascade.local.LocalClassifier``. The bundle's two graphs, an optional preprocessor and
the model, are run one after the other by ``Graphs``; making them is ``edge.build.classifier``.
Everything that a bundle brings is an ONNX graph of standard operators: no code of it is executed.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from cascade.errors import BundleError, Cancelled, InvalidInput
from cascade.local import CancelToken, LocalAnswer, ModelInfo
from cascade.signals import OptionScores, option_signals
from cascade.tensor import DTYPES, Tensor, check_tensors
from edge.bundle import CLASSIFIER_GRAPH, PREPROCESS_GRAPH, Bundle
from edge.classifier_spec import Array, ClassifierSpec, InputSpec
from edge.session import open_session

# Half-precision and 8-bit graphs round their probabilities.
_SUM_TOLERANCE = 0.02
_TINY = 1e-30
_LABELS_SHOWN = 20
_DTYPES = {"float": "float32", "double": "float64"}


class OnnxClassifier:
    """The model of a verified classifier bundle, loaded. Safe to share between threads.

    Arguments:
        threads: threads of one run, ≥ 1.

    Raises:
        BundleError: it is no classifier bundle, onnxruntime cannot load its graphs, or they are not
            what its manifest says.
    """

    def __init__(self, bundle: Bundle, *, threads: int = 1) -> None:
        manifest = bundle.manifest
        self._spec = manifest.classifier_spec()
        # By the manifest: a file that somebody put beside the signed ones is not run.
        preprocess = PREPROCESS_GRAPH in manifest.files
        self._graphs = Graphs(bundle.path, preprocess=preprocess, threads=threads)
        self._graphs.check(self._spec)
        self._places = {label: place for place, label in enumerate(self._spec.labels)}
        self._info = ModelInfo(
            name=manifest.name,
            base_digest=manifest.base_digest,
            tokenizer_digest="",
            bundle_digest=bundle.digest,
            context_tokens=0,
        )

    @property
    def info(self) -> ModelInfo:
        """What this model is. It has no tokenizer and no context."""
        return self._info

    @property
    def spec(self) -> ClassifierSpec:
        """What it takes and gives."""
        return self._spec

    @property
    def labels(self) -> tuple[str, ...]:
        """The classes, in the order of the model's scores."""
        return self._spec.labels

    def classify(
        self,
        tensors: Sequence[Tensor],
        *,
        options: tuple[str, ...] = (),
        cancel: CancelToken | None = None,
    ) -> LocalAnswer:
        """Answer with one of the labels; see ``LocalClassifier.classify``.

        ``prefill_s`` is the preprocessor's time and ``decode_s`` the model's. The one decision
        counts as one token, and is what ``signals`` measure.
        """
        check_tensors(tensors)
        options = options or self.labels
        self._check_options(options)
        feeds = self._spec.read(tensors, self._info.name)
        started = time.perf_counter()
        features = self._graphs.prepare(feeds)
        prepared_at = time.perf_counter()
        if cancel is not None and cancel.cancelled:
            raise Cancelled("the request was cancelled before it was classified")
        scores = self._graphs.scores(features, self._spec.output)
        ended = time.perf_counter()
        probabilities = _probabilities(scores, self._spec)
        if options != self.labels:
            probabilities = probabilities[[self._places[option] for option in options]]
        result = _result(options, probabilities)
        return LocalAnswer(
            text=options[result.best],
            signals=option_signals(result),
            options=result,
            prompt_tokens=0,
            tokens=1,
            prefill_s=prepared_at - started,
            decode_s=ended - prepared_at,
            finish="stop",
        )

    def _check_options(self, options: tuple[str, ...]) -> None:
        if options == self.labels:
            return
        if len(options) != len(self.labels) or self._places.keys() != set(options):
            shown = ", ".join(self.labels[:_LABELS_SHOWN])
            more = ", …" if len(self.labels) > _LABELS_SHOWN else ""
            raise InvalidInput("options", f"must be the labels of {self._info.name}: {shown}{more}")


class Graphs:
    """The graphs of a classifier bundle's folder: ``classifier.onnx``, and before it
    ``preprocess.onnx`` where the bundle has one.

    The preprocessor's outputs are the model's inputs, by name; one output and one input need not
    share a name.

    Arguments:
        preprocess: whether there is a preprocessor.
        threads: threads of one run. They sleep instead of spinning while they wait.

    Raises:
        BundleError: onnxruntime cannot load a graph, or the two do not fit each other.
    """

    def __init__(self, folder: Path, *, preprocess: bool, threads: int = 1) -> None:
        if threads < 1:
            raise InvalidInput("threads", f"{threads} is below 1")
        self._model = open_session(folder / CLASSIFIER_GRAPH, threads=threads)
        self._model_inputs = _inputs(self._model, CLASSIFIER_GRAPH)
        self._preprocessor: ort.InferenceSession | None = None
        self._names: tuple[str, ...] = ()
        if preprocess:
            self._preprocessor = open_session(folder / PREPROCESS_GRAPH, threads=threads)
            self._names = self._connected(self._preprocessor)

    @property
    def inputs(self) -> tuple[InputSpec, ...]:
        """What a request carries."""
        if self._preprocessor is None:
            return self._model_inputs
        return _inputs(self._preprocessor, PREPROCESS_GRAPH)

    @property
    def outputs(self) -> dict[str, int | None]:
        """The model's outputs that are arrays of floats, with the length of their last axis where
        the graph fixes it."""
        found = {}
        for value in self._model.get_outputs():
            if value.type in ("tensor(float)", "tensor(double)", "tensor(float16)"):
                last = value.shape[-1] if value.shape else 1
                found[value.name] = last if isinstance(last, int) else None
        return found

    def check(self, spec: ClassifierSpec) -> None:
        """Raise ``BundleError`` unless these graphs are what ``spec`` describes."""
        if self.inputs != spec.inputs:
            raise BundleError(
                f"the graphs take {', '.join(map(str, self.inputs))}, but the manifest says "
                f"{', '.join(map(str, spec.inputs))}; build the bundle again"
            )
        if spec.output not in self.outputs:
            raise BundleError(
                f"{CLASSIFIER_GRAPH}: has no output {spec.output!r} of floats; its outputs of "
                f"floats: {', '.join(self.outputs) or 'none'}"
            )
        classes = self.outputs[spec.output]
        if classes is not None and classes != len(spec.labels):
            raise _wrong_count(classes, spec)

    def prepare(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """The model's inputs by name."""
        if self._preprocessor is None:
            return dict(feeds)
        return dict(zip(self._names, _run(self._preprocessor, None, feeds), strict=True))

    def scores(self, features: Mapping[str, Array], output: str) -> NDArray[np.float64]:
        """The model's scores, shape ``[classes]``."""
        (scores,) = _run(self._model, [output], features)
        return scores.astype(np.float64).reshape(-1)

    def _connected(self, preprocessor: ort.InferenceSession) -> tuple[str, ...]:
        """The model's input for each output of the preprocessor."""
        given = [value.name for value in preprocessor.get_outputs()]
        wanted = [spec.name for spec in self._model_inputs]
        if len(given) == len(wanted) == 1:
            given = wanted
        if sorted(given) != sorted(wanted):
            raise BundleError(
                f"{PREPROCESS_GRAPH}: gives {', '.join(given)}, but {CLASSIFIER_GRAPH} takes "
                f"{', '.join(wanted)}; name them alike"
            )
        types = {spec.name: spec.dtype for spec in self._model_inputs}
        for name, value in zip(given, preprocessor.get_outputs(), strict=True):
            if _dtype(value.type) != types[name]:
                raise BundleError(
                    f"{PREPROCESS_GRAPH}: gives {value.type} where {CLASSIFIER_GRAPH} takes "
                    f"{name} as {types[name]}"
                )
        return tuple(given)


def _run(
    session: ort.InferenceSession, outputs: list[str] | None, feeds: Mapping[str, Array]
) -> list[Array]:
    try:
        results: list[Array] = session.run(outputs, dict(feeds))
    # onnxruntime raises a dozen types; a variable axis may have a length that cannot be
    except Exception as problem:
        raise InvalidInput("tensors", f"cannot be computed on ({_line(problem)})") from None
    return results


def _inputs(session: ort.InferenceSession, graph: str) -> tuple[InputSpec, ...]:
    specs = []
    for value in session.get_inputs():
        dtype = _dtype(value.type)
        if dtype is None:
            raise BundleError(f"{graph}: its input {value.name} is {value.type}, no numeric array")
        shape = tuple(
            axis if isinstance(axis, int) else axis or f"axis{index}"
            for index, axis in enumerate(value.shape)
        )
        specs.append(InputSpec(value.name, dtype, shape))
    return tuple(specs)


def _dtype(onnx_type: str) -> str | None:
    """NumPy name of ``tensor(…)``; ``None`` for what is no array of numbers."""
    inner = onnx_type.removeprefix("tensor(").removesuffix(")")
    dtype = _DTYPES.get(inner, inner)
    return dtype if onnx_type.startswith("tensor(") and dtype in DTYPES else None


def _probabilities(scores: NDArray[np.float64], spec: ClassifierSpec) -> NDArray[np.float64]:
    if len(scores) != len(spec.labels):
        raise _wrong_count(len(scores), spec)
    if not np.isfinite(scores).all():
        raise BundleError(f"{CLASSIFIER_GRAPH}: gave a score that is NaN or infinite")
    if spec.scores == "logits":
        weights = np.exp(scores - scores.max())
        return np.asarray(weights / weights.sum())
    total = float(scores.sum())
    if scores.min() < -_SUM_TOLERANCE or abs(total - 1) > _SUM_TOLERANCE:
        raise BundleError(
            f"{CLASSIFIER_GRAPH}: its scores are no probabilities (lowest {scores.min():.3g}, sum "
            f"{total:.3g}); if they are logits, build the bundle with scores=logits"
        )
    positive = np.maximum(scores, 0.0)
    return np.asarray(positive / positive.sum())


def _result(options: tuple[str, ...], probabilities: NDArray[np.float64]) -> OptionScores:
    return OptionScores(
        options,
        logprobs=np.log(np.maximum(probabilities, _TINY)),
        prior_logprobs=np.zeros(len(options)),
        probabilities=probabilities,
    )


def _wrong_count(classes: int, spec: ClassifierSpec) -> BundleError:
    return BundleError(
        f"{CLASSIFIER_GRAPH}: {spec.output} has {classes} scores for {len(spec.labels)} labels; "
        "give one label for each, in the order of the scores"
    )


def _line(problem: Exception) -> str:
    return str(problem).splitlines()[0] if str(problem) else type(problem).__name__
