"""Making bundles: from a GGUF file with numpy and onnx alone (extra ``bundle``).

This folder's README has the picture and the formulas.
"""

from __future__ import annotations

from cascade.errors import CascadeError

try:
    from edge.build.bundle import build_from_gguf
except ModuleNotFoundError as missing:
    if missing.name != "onnx":
        raise
    raise CascadeError(
        "building a bundle needs onnx; install it with: pip install 'edge-cloud-cascade[bundle]'"
    ) from None

__all__ = ["build_from_gguf"]
