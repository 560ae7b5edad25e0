"""Making bundles: from a GGUF file or a Hugging Face folder with numpy and onnx alone (extra
``bundle``), and with torch from any other causal language model (``edge.build.export``).

This folder's README has the picture and the formulas.
"""

from __future__ import annotations

from cascade.errors import CascadeError

try:
    from edge.build.architecture import FAMILIES
    from edge.build.bundle import build_from_folder, build_from_gguf
    from edge.build.folder_config import family_of
    from edge.build.folder_text import PLAIN_TEMPLATE
    from edge.build.quantise import Quantisation
except ModuleNotFoundError as missing:
    if missing.name != "onnx":
        raise
    raise CascadeError(
        "building a bundle needs onnx; install it with: pip install 'edge-cloud-cascade[bundle]'"
    ) from None

__all__ = [
    "FAMILIES",
    "PLAIN_TEMPLATE",
    "Quantisation",
    "build_from_folder",
    "build_from_gguf",
    "family_of",
]
