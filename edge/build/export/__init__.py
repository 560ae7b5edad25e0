"""Bundles of any Hugging Face causal language model, by way of torch and optimum (extra ``build``).

Slower than ``edge.build.bundle`` in every way: torch loads the model, optimum traces it into a
graph of thousands of small operations, and each decoded token copies the past. It is for
architectures that are not built node by node.
"""

from __future__ import annotations

from cascade.errors import CascadeError

try:
    from edge.build.export.bundle import build_by_export
except ModuleNotFoundError as missing:
    if missing.name not in ("onnx", "optimum", "torch", "transformers"):
        raise
    raise CascadeError(
        f"exporting a model needs {missing.name}; install it with: "
        "pip install 'edge-cloud-cascade[build]'"
    ) from None

__all__ = ["build_by_export"]
