"""Opening an ONNX graph for a device: threads that sleep while they wait, and one clear error."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import onnxruntime as ort

from cascade.errors import BundleError, InvalidInput

_MOST_THREADS_A_CORE: Final = 8


def open_session(
    graph: Path, *, threads: int, weights: Mapping[str, ort.OrtValue] | None = None
) -> ort.InferenceSession:
    """A session on the CPU.

    Arguments:
        threads: threads of one run, ≥ 1. They do not spin, because that starves whatever else runs
            on the device's cores.
        weights: external initializers of the graph that are in no file, by name.

    Raises:
        InvalidInput: fewer than one thread, or many more than there are cores.
        BundleError: onnxruntime cannot load the graph.
    """
    most = _MOST_THREADS_A_CORE * (os.cpu_count() or 1)
    if not 1 <= threads <= most:
        raise InvalidInput("threads", f"{threads} is not in 1 … {most} on this machine")
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4  # an error is raised; its log beside it says the same
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if weights:
        options.add_external_initializers(list(weights), list(weights.values()))
    try:
        return ort.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
    except Exception as problem:  # onnxruntime raises a dozen unrelated types
        first_line = str(problem).splitlines()[0] if str(problem) else type(problem).__name__
        raise BundleError(f"{graph.name}: onnxruntime cannot load it ({first_line})") from None
