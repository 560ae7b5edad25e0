"""Opening an ONNX graph for a device: threads that sleep while they wait, and one clear error."""

from __future__ import annotations

from pathlib import Path

import onnxruntime as ort

from cascade.errors import BundleError, InvalidInput


def open_session(graph: Path, *, threads: int) -> ort.InferenceSession:
    """A session on the CPU.

    Arguments:
        threads: threads of one run, ≥ 1. They do not spin, because that starves whatever else runs
            on the device's cores.

    Raises:
        InvalidInput: fewer than one thread.
        BundleError: onnxruntime cannot load the graph.
    """
    if threads < 1:
        raise InvalidInput("threads", f"{threads} is below 1")
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        return ort.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
    except Exception as problem:  # onnxruntime raises a dozen unrelated types
        first_line = str(problem).splitlines()[0] if str(problem) else type(problem).__name__
        raise BundleError(f"{graph.name}: onnxruntime cannot load it ({first_line})") from None
