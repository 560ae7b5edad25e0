"""Classifier bundles on CPUs, by onnxruntime inside this process.

The same signed bundles and the same runtime as on devices, larger models. The bundle's publisher
must be pinned on the cluster's machine.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from pathlib import Path

from cascade import home
from cascade.errors import CascadeError, ClusterError, InvalidInput
from cascade.local import CancelToken
from cascade.request import Request
from cascade.signing import TrustStore
from cloud.config import TierConfig
from cloud.engines.base import Capabilities, ChatRequest, Done, EngineEvent, Piece, Started
from cloud.errors import EngineFailed, ModelUnusable
from edge import Bundle, OnnxClassifier, bundle_path


class OnnxClassifierEngine:
    """An ``Engine`` over one classifier bundle.

    Arguments:
        folder: the bundle.
        threads: threads of one run, ≥ 1.
        trust: accepted publishers; by default those pinned under ``CASCADE_HOME``.
    """

    def __init__(self, folder: str, *, threads: int = 1, trust: TrustStore | None = None) -> None:
        self._folder = Path(folder)
        self._threads = threads
        self._trust = trust or TrustStore(home.trust_dir())
        self._classifier: OnnxClassifier | None = None

    @property
    def capabilities(self) -> Capabilities:
        """Labels alone; it has no tokens and no context."""
        return Capabilities(
            options=True,
            json_schema=False,
            regex=False,
            logprobs=False,
            seeds=False,
            context_tokens=0,
        )

    async def start(self) -> None:
        """Verify and load the bundle.

        Raises:
            ModelUnusable: it must not or cannot be used.
        """
        if self._classifier is None:
            self._classifier = await asyncio.to_thread(self._load)

    async def stream(self, request: ChatRequest) -> AsyncGenerator[list[EngineEvent]]:
        """Classify; see ``Engine.stream``. A classification counts as one token of answer."""
        if not request.tensors:
            raise InvalidInput("prompt", "is text; this tier classifies tensors")
        if self._classifier is None:
            raise EngineFailed
        cancel = CancelToken()
        try:
            answer = await asyncio.to_thread(
                self._classifier.classify, request.tensors, options=request.options, cancel=cancel
            )
        finally:
            cancel.cancel()
        score = min(1.0, answer.raw_score) if request.score else None
        done = Done("stop", 0, answer.tokens, 0, score)
        yield [Started(0), Piece(answer.text, answer.tokens), done]

    async def reset_prefix_cache(self) -> int:
        """There is none."""
        return 0

    async def close(self) -> None:
        """Free the model."""
        self._classifier = None

    def _load(self) -> OnnxClassifier:
        try:
            return OnnxClassifier(Bundle.open(self._folder, self._trust), threads=self._threads)
        except CascadeError as problem:
            raise ModelUnusable(f"the bundle {self._folder} cannot be used: {problem}") from None


def bundle_folder(tier: TierConfig) -> Path:
    """The folder of a tier's bundle, given by path or by name under ``CASCADE_HOME``.

    Raises:
        ClusterError: it is not there, or must not or cannot be used.
    """
    folder = bundle_path(tier.model).absolute()
    try:
        Bundle.open(folder, TrustStore(home.trust_dir())).manifest.classifier_spec()
    except CascadeError as problem:
        raise ClusterError(f"tier {tier.name}: {problem}") from None
    return folder


def sample_request(folder: Path) -> Request | None:
    """A question that proves that a tier answers; ``None`` where an input may have any length."""
    spec = Bundle.open(folder, TrustStore(home.trust_dir())).manifest.classifier_spec()
    sample = spec.sample()
    return None if sample is None else Request((), options=spec.labels, tensors=sample)
