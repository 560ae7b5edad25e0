"""Engines: what computes the answers of a tier."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from cascade.remote import Speed, Verified
from cloud.config import TierConfig
from cloud.engines.base import (
    Capabilities,
    ChatRequest,
    Done,
    Engine,
    EngineEvent,
    Piece,
    Started,
    Swapping,
)
from cloud.errors import ConfigError, ModelUnusable

if TYPE_CHECKING:
    from cloud.engines.vllm import ChatHandle

__all__ = [
    "Capabilities",
    "ChatRequest",
    "Done",
    "Engine",
    "EngineEvent",
    "Piece",
    "Speed",
    "Started",
    "Swapping",
    "Verified",
    "make_engine",
]


def make_engine(tier: TierConfig, model_file: str, backend: ChatHandle | None = None) -> Engine:
    """The engine that ``tier.engine`` names, not yet started.

    Arguments:
        tier: its adapters are paths on this machine; see ``tier_adapters.start_with``.
        model_file: the model on this machine: a GGUF file, or the folder of a bundle or model.
            Of no use where somebody else has it.
        backend: the deployment of ray.serve.llm; for ``vllm`` alone.

    Raises:
        ModelUnusable: what the engine needs is not installed.
    """
    match tier.engine:
        case "llama_cpp":
            from cloud.engines.llama_cpp import LlamaCpp

            return LlamaCpp(
                model_file,
                context_tokens=tier.context_tokens,
                threads=tier.threads,
                parallel=tier.parallel,
                adapters=tier.adapters,
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
                adapters=_folders(tier),
                most_adapters=tier.resident_adapters,
            )
        case "onnx_classifier":
            from cloud.engines.onnx_classifier import OnnxClassifierEngine

            return OnnxClassifierEngine(model_file, threads=tier.threads)
        case "transformers":
            return _transformers(tier, Path(model_file))
        case "vllm":
            from cloud.engines.vllm import VllmEngine

            if backend is None:
                raise ConfigError(f"tier {tier.name} has no deployment of ray.serve.llm")
            return VllmEngine(tier, backend)
        case "openai" | "anthropic":
            return _provider_engine(tier)


def _transformers(tier: TierConfig, folder: Path) -> Engine:
    try:
        from cloud.engines.transformers import Transformers
    except ImportError:
        raise ModelUnusable(_not_installed(tier.engine)) from None
    return Transformers(
        folder,
        context_tokens=tier.context_tokens,
        threads=tier.threads,
        adapters=_folders(tier),
        most_adapters=tier.resident_adapters,
    )


def _folders(tier: TierConfig) -> dict[str, Path]:
    return {name: Path(path) for name, path in tier.adapters.items()}


def _provider_engine(tier: TierConfig) -> Engine:
    if tier.provider is None:  # the configuration has seen to it that it is there
        raise ConfigError(f"tier {tier.name} names no provider")
    try:
        if tier.engine == "openai":
            from cloud.engines.openai import OpenAiEngine

            return OpenAiEngine(tier.model, tier.provider, context_tokens=tier.context_tokens)
        from cloud.engines.anthropic import AnthropicEngine

        return AnthropicEngine(tier.model, tier.provider, context_tokens=tier.context_tokens)
    except ImportError:
        raise ModelUnusable(_not_installed(tier.engine)) from None


def _not_installed(engine: str) -> str:
    return f"the engine {engine} is not installed: pip install 'edge-cloud-cascade[{engine}]'"
