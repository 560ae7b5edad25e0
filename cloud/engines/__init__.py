"""Engines: what computes the answers of a tier."""

from __future__ import annotations

from pathlib import Path

from cloud.config import TierConfig
from cloud.engines.base import (
    Capabilities,
    ChatRequest,
    Done,
    Engine,
    EngineEvent,
    Piece,
    Started,
)

__all__ = [
    "Capabilities",
    "ChatRequest",
    "Done",
    "Engine",
    "EngineEvent",
    "Piece",
    "Started",
    "make_engine",
]


def make_engine(tier: TierConfig, model_file: str) -> Engine:
    """The engine that ``tier.engine`` names, not yet started.

    Arguments:
        model_file: the model on this machine: a GGUF file, or a bundle's folder.
    """
    match tier.engine:
        case "llama_cpp":
            from cloud.engines.llama_cpp import LlamaCpp

            return LlamaCpp(
                model_file,
                context_tokens=tier.context_tokens,
                threads=tier.threads,
                parallel=tier.parallel,
            )
        case "onnx":
            from cascade.home import trust_dir
            from cascade.signing import TrustStore
            from cloud.engines.onnx import OnnxBundle

            return OnnxBundle(
                Path(model_file),
                trust=TrustStore(trust_dir()),
                context_tokens=tier.context_tokens,
                threads=tier.threads,
            )
