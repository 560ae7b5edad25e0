"""A device's bundle as a tier: ``edge``'s model inside this process, behind its signature.

Serves the same bytes that devices run, with the same options scoring. One request is computed at a
time; further ones wait, and a waiting one that is cancelled never starts.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncGenerator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from pathlib import Path

from cascade.errors import BundleError, NotFound
from cascade.local import CancelToken, LocalAnswer
from cascade.signing import TrustStore
from cloud.engines.base import Capabilities, ChatRequest, EngineEvent, check_adapter
from cloud.engines.one_at_a_time import Put, answering, stream_answer
from cloud.errors import EngineFailed, ModelUnusable
from edge import Adapter, Bundle, OnnxModel
from edge.bundle import Manifest


class OnnxBundle:
    """An ``Engine`` over one bundle.

    Arguments:
        folder: the bundle.
        trust: publisher keys that this machine accepts.
        context_tokens: tokens of prompt and answer together; the bundle's own limit if lower.
        threads: threads that compute.
        adapters: signed adapters of this bundle's base, folders by name. All are checked at the
            start; those that were used last are at hand, and the others are read when asked for.
        most_adapters: at hand at one time, ≥ 1.
    """

    def __init__(
        self,
        folder: Path,
        *,
        trust: TrustStore,
        context_tokens: int,
        threads: int = 1,
        adapters: Mapping[str, Path] | None = None,
        most_adapters: int = 4,
    ) -> None:
        self._folder = folder
        self._trust = trust
        self._context_tokens = context_tokens
        self._threads = threads
        self._adapters = dict(adapters or {})
        self._most_adapters = most_adapters
        # Names and digests of those at hand, the one that was used last at the end.
        self._at_hand: dict[str, str] = {}
        self._manifest: Manifest | None = None
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

        name = request.adapter
        check_adapter(name, self._adapters)
        answer = answering(model.generate, model.choose, request)

        def compute(put: Put, cancel: CancelToken) -> LocalAnswer:
            self._adapt(model, name)  # in the one worker, so that no other request is under way
            return answer(put, cancel)

        prompt_tokens = model.count_tokens(request.messages)
        async with aclosing(stream_answer(worker, request, prompt_tokens, compute)) as batches:
            async for batch in batches:
                yield batch

    async def add_adapter(self, name: str, folder: Path) -> None:
        """Have requests ask for one more adapter; see ``Swapping.add_adapter``."""
        manifest = self._manifest
        if manifest is None:
            raise EngineFailed
        # Beside the worker: answers under way do not wait for it.
        await asyncio.to_thread(lambda: Adapter.open(folder, self._trust).inputs(manifest))
        self._adapters[name] = folder

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

    def _adapt(self, model: OnnxModel, name: str) -> None:
        """Have the next answers be those of an adapter, or of the model alone."""
        if name and name not in self._at_hand:
            while len(self._at_hand) >= self._most_adapters:
                model.unload_adapter(self._at_hand.pop(next(iter(self._at_hand))))
            opened = Adapter.open(self._adapters[name], self._trust)
            self._at_hand[name] = model.load_adapter(opened)
        digest = ""
        if name:
            digest = self._at_hand[name] = self._at_hand.pop(name)
        if digest != model.info.adapter_digest:  # what was read by another one is forgotten
            model.use_adapter(digest)

    def _load(self) -> OnnxModel:
        bundle = Bundle.open(self._folder, self._trust)
        for path in self._adapters.values():
            Adapter.open(path, self._trust).inputs(bundle.manifest)
        self._manifest = bundle.manifest
        self._context_tokens = min(self._context_tokens, bundle.manifest.context_tokens)
        manifest = dataclasses.replace(bundle.manifest, context_tokens=self._context_tokens)
        return OnnxModel(dataclasses.replace(bundle, manifest=manifest), threads=self._threads)
