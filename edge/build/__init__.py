"""Making bundles with numpy and onnx alone (extra ``bundle``): from a GGUF file, a Hugging Face
folder or a classifier's ONNX graph; with torch from any other causal model (``edge.build.export``).

This folder's README has the picture and the formulas.
"""

from __future__ import annotations

from cascade.errors import CascadeError

try:
    from edge.build.architecture import FAMILIES
    from edge.build.bundle import build_from_folder, build_from_gguf
    from edge.build.classifier import build_classifier
    from edge.build.folder_config import family_of
    from edge.build.folder_text import PLAIN_TEMPLATE
    from edge.build.preprocess import rescaling
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
    "build_classifier",
    "build_from_folder",
    "build_from_gguf",
    "family_of",
    "rescaling",
]
