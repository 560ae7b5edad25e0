"""Tracing a model with optimum, and holding the traced graph to the model's own logits.

Everything that needs torch is in this file.
"""

from __future__ import annotations

import errno
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime as ort
import torch
from numpy.typing import NDArray
from optimum.exporters.onnx import onnx_export_from_model
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from cascade.errors import InvalidInput
from edge.build.assembly import Progress

_TASK = "text-generation-with-past"
# Lengths at which graph and model are compared, the first without a past.
_PIECES = (7, 1, 12)
_TOLERANCE = 1e-3


@dataclass(frozen=True, slots=True)
class Traced:
    """A model as a graph.

    Arguments:
        graph: the ONNX file, float32.
        vocabulary: token ids that the model knows.
        context: longest sequence in tokens; None where the model does not limit it.
        linears: paths of the modules that take an adapter: all that multiply by a matrix, but for
            the head, which no bundle has a slot for.
    """

    graph: Path
    vocabulary: int
    context: int | None
    linears: tuple[str, ...]


def trace(folder: Path, scratch: Path, report: Progress) -> Traced:
    """Export the model in ``folder`` into ``scratch``.

    Raises:
        InvalidInput: the model cannot be loaded or exported, or the graph computes something else.
    """
    with _quiet(), _named(folder):
        report("loading the model with torch", 0.05)
        model = AutoModelForCausalLM.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False, dtype=torch.float32
        ).eval()
        report("exporting with optimum", 0.2)
        onnx_export_from_model(
            model=model, output=scratch, task=_TASK, no_post_process=True, do_validation=False
        )
    graph = scratch / "model.onnx"
    report("comparing the graph with the model", 0.5)
    context = getattr(model.config, "max_position_embeddings", None)
    traced = Traced(graph, int(model.config.vocab_size), context, _linears(model))
    _check(model, traced, folder.name)
    return traced


def _linears(model: PreTrainedModel) -> tuple[str, ...]:
    head = model.get_output_embeddings()
    return tuple(
        path
        for path, module in model.named_modules()
        if isinstance(module, torch.nn.Linear | Conv1D) and module is not head
    )


def _check(model: PreTrainedModel, traced: Traced, name: str) -> None:
    """Read random tokens in pieces, each on the past of those before it, and compare logits."""
    length = min(sum(_PIECES), traced.context or sum(_PIECES))
    ids = np.random.default_rng(0).integers(0, traced.vocabulary, (1, length))
    with torch.no_grad():
        expected = model(torch.from_numpy(ids)).logits.numpy()
    found = _run(traced.graph, ids)
    apart = float(np.abs(found - expected).max() / max(1.0, float(np.abs(expected).max())))
    if not apart < _TOLERANCE:
        raise InvalidInput(
            "folder",
            f"{name}: the exported graph is {apart:.1e} away from the model's own logits "
            f"(at most {_TOLERANCE:.0e}); this architecture does not survive exporting",
        )


def _run(graph: Path, ids: NDArray[np.int64]) -> NDArray[np.float32]:
    session = ort.InferenceSession(str(graph), providers=["CPUExecutionProvider"])
    taken = {value.name: value.shape for value in session.get_inputs()}
    returned = [value.name for value in session.get_outputs()]
    past = {
        name: np.zeros([1, *(0 if isinstance(size, str) else size for size in shape[1:])], "f4")
        for name, shape in taken.items()
        if name.startswith("past_key_values.")
    }
    logits, first = [], 0
    for piece in _PIECES:
        total = min(first + piece, ids.shape[1])
        feeds: dict[str, NDArray[np.generic]] = {
            "input_ids": ids[:, first:total],
            "attention_mask": np.ones((1, total), np.int64),
            "position_ids": np.arange(first, total)[None],
        }
        feeds = {name: value for name, value in feeds.items() if name in taken}
        results = dict(zip(returned, session.run(None, feeds | past), strict=True))
        past = {name: results[name.replace("past_key_values", "present", 1)] for name in past}
        logits.append(results["logits"])
        first = total
        if first == ids.shape[1]:
            break
    return np.concatenate(logits, axis=1)


@contextmanager
def _named(folder: Path) -> Iterator[None]:
    """Whatever torch, transformers and optimum raise, as one line that names the folder."""
    try:
        yield
    except Exception as problem:
        full = isinstance(problem, OSError) and problem.errno in (errno.ENOSPC, errno.EDQUOT)
        if full:
            raise
        lines = str(problem).strip().splitlines() or [type(problem).__name__]
        raise InvalidInput("folder", f"{folder} cannot be exported ({lines[0]})") from None


@contextmanager
def _quiet() -> Iterator[None]:
    """Hold back the exporter's pages of warnings; what matters is checked afterwards."""
    level = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
