"""A device's bundle as a tier: ``edge``'s model inside this process, behind its signature.

Serves the same bytes that devices run, with the same options scoring. One request is computed at a
time; further ones wait, and a waiting one that is cancelled never starts.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncGenerator
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from pathlib import Path

from cascade.errors import BundleError, NotFound
from cascade.signing import TrustStore
from cloud.engines.base import Capabilities, ChatRequest, EngineEvent
from cloud.engines.one_at_a_time import answering, stream_answer
from cloud.errors import EngineFailed, ModelUnusable
from edge import Bundle, OnnxModel


class OnnxBundle:
    """An ``Engine`` over one bundle.

    Arguments:
        folder: the bundle.
        trust: publisher keys that this machine accepts.
        context_tokens: tokens of prompt and answer together; the bundle's own limit if lower.
        threads: threads that compute.
    """

    def __init__(
        self, folder: Path, *, trust: TrustStore, context_tokens: int, threads: int = 1
    ) -> None:
        self._folder = folder
        self._trust = trust
        self._context_tokens = context_tokens
        self._threads = threads
        self._model: OnnxModel | None = None
        self._worker: ThreadPoolExecutor | None = None

    @property
    def capabilities(self) -> Capabilities:
        """Options by their probabilities; log probabilities are not reported yet."""
        return Capabilities(
            options=True,
            json_schema=True,
            regex=True,
            logprobs=False,
            seeds=True,
            context_tokens=self._context_tokens,
        )

    async def start(self) -> None:
        """Verify and load the bundle.

        Raises:
            ModelUnusable: it is missing, altered, of a publisher that is not pinned here, or of a
                kind that this onnxruntime cannot load.
        """
        if self._model is not None:
            return
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="onnx")
        try:
            self._model = await asyncio.get_running_loop().run_in_executor(self._worker, self._load)
        except (NotFound, BundleError) as error:
            await self.close()
            raise ModelUnusable(str(error)) from None

    async def stream(self, request: ChatRequest) -> AsyncGenerator[list[EngineEvent]]:
        """Answer ``request``; see ``Engine.stream``.

        A token whose bytes only the next one completes counts in ``Done`` alone, and prompt tokens
        that were at hand are not counted in ``cached_tokens``.
        """
        model, worker = self._model, self._worker
        if model is None or worker is None:
            raise EngineFailed

        compute = answering(model.generate, model.choose, request)
        prompt_tokens = model.count_tokens(request.messages)
        async with aclosing(stream_answer(worker, request, prompt_tokens, compute)) as batches:
            async for batch in batches:
                yield batch

    async def reset_prefix_cache(self) -> int:
        """Empty the model's cache; see ``Engine.reset_prefix_cache``."""
        if self._model is None:
            return 0
        forget = self._model.forget_prefix
        return await asyncio.get_running_loop().run_in_executor(self._worker, forget)

    async def close(self) -> None:
        """Free the model and its thread."""
        worker, self._worker, self._model = self._worker, None, None
        if worker is not None:
            worker.shutdown(wait=False, cancel_futures=True)

    def _load(self) -> OnnxModel:
        bundle = Bundle.open(self._folder, self._trust)
        self._context_tokens = min(self._context_tokens, bundle.manifest.context_tokens)
        manifest = dataclasses.replace(bundle.manifest, context_tokens=self._context_tokens)
        return OnnxModel(dataclasses.replace(bundle, manifest=manifest), threads=self._threads)
