"""Making bundles: from a GGUF file, or a classifier from its ONNX graph, with numpy and onnx alone
(extra ``bundle``).

This folder's README has the picture and the formulas.
"""

from __future__ import annotations

from cascade.errors import CascadeError

try:
    from edge.build.bundle import build_from_gguf
    from edge.build.classifier import build_classifier
    from edge.build.preprocess import rescaling
except ModuleNotFoundError as missing:
    if missing.name != "onnx":
        raise
    raise CascadeError(
        "building a bundle needs onnx; install it with: pip install 'edge-cloud-cascade[bundle]'"
    ) from None

__all__ = ["build_classifier", "build_from_gguf", "rescaling"]
