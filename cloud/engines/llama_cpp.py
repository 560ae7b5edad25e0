"""GGUF models on CPUs, by llama.cpp inside this process.

llama.cpp batches requests continuously in threads of its own. A request blocks one worker thread,
whose callback hands each message to the event loop and learns there whether to go on.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import secrets
import tempfile
import urllib.request
from collections.abc import AsyncGenerator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import xllamacpp

from cascade.errors import InvalidInput
from cloud.engines.base import (
    Capabilities,
    ChatRequest,
    Done,
    EngineEvent,
    Piece,
    Started,
    check_adapter,
    geometric_mean,
)
from cloud.engines.grammar import options_grammar, structured_grammar
from cloud.engines.llama_prompt import ConversationTokens
from cloud.errors import EngineFailed, ModelUnusable

_log = logging.getLogger(__name__)

# Prompt tokens computed in one step. A step cannot be interrupted: it bounds how long a cancelled
# request still computes. 64 costs about a tenth of the prompt throughput of the default of 2,048.
_STEP_TOKENS: Final = 64
_HTTP_TIMEOUT_S: Final = 120.0
# No proxy from the environment may get between.
_LOOPBACK: Final = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class LlamaCpp:
    """An ``Engine`` over one GGUF file.

    Arguments:
        model_file: the GGUF file; its own chat template is used.
        context_tokens: tokens of prompt and answer together, for each request.
        threads: threads that compute. They spin while waiting for each other: more of them than
            idle cores makes everything slower.
        parallel: requests decoded together; further ones wait inside llama.cpp.
        adapters: LoRA adapters of this model as GGUF files, by name. All are loaded, and a request
            names at most one. Requests with different ones are not decoded in one step.
    """

    def __init__(
        self,
        model_file: str,
        *,
        context_tokens: int,
        threads: int = 1,
        parallel: int = 1,
        adapters: Mapping[str, str] | None = None,
    ) -> None:
        self._model_file = model_file
        self._context_tokens = context_tokens
        self._threads = threads
        self._parallel = parallel
        self._adapters = dict(adapters or {})
        self._key = secrets.token_urlsafe(32)
        self._server: Any = None
        self._tokens = ConversationTokens(self._post)
        self._slots: tempfile.TemporaryDirectory[str] | None = None
        self._workers: ThreadPoolExecutor | None = None

    @property
    def capabilities(self) -> Capabilities:
        """Options and structure by grammar; log probabilities of the tokens."""
        return Capabilities(
            options=True,
            json_schema=True,
            regex=True,
            logprobs=True,
            seeds=True,
            context_tokens=self._context_tokens,
        )

    async def start(self) -> None:
        """Load the model.

        Raises:
            ModelUnusable: the file is missing or not a model that llama.cpp can load.
        """
        if self._server is not None:
            return
        if not os.path.isfile(self._model_file):
            raise ModelUnusable(f"there is no model file {self._model_file}")
        for path in self._adapters.values():
            if not os.path.isfile(path):
                raise ModelUnusable(f"there is no adapter file {path}")
        # llama.cpp erases a slot over its HTTP interface only, and only with a folder for slots.
        self._slots = tempfile.TemporaryDirectory(prefix="cascade-slots-")
        # One thread more than requests, so that a reset does not wait behind them.
        self._workers = ThreadPoolExecutor(self._parallel + 1, thread_name_prefix="llama")
        loop = asyncio.get_running_loop()
        try:
            self._server = await loop.run_in_executor(None, xllamacpp.Server, self._params())
        except RuntimeError:
            await self.close()
            raise ModelUnusable(
                f"llama.cpp cannot load {self._model_file}: it is no GGUF model, or of a kind that "
                f"this llama.cpp does not know{self._or_adapters()}"
            ) from None

    async def stream(self, request: ChatRequest) -> AsyncGenerator[list[EngineEvent]]:
        """Answer ``request``; see ``Engine.stream``."""
        loop = asyncio.get_running_loop()
        # A large grammar takes long enough to check that the other requests would notice.
        body = await asyncio.to_thread(_body, request, self._context_tokens)
        body |= self._adapted(request.adapter)
        messages: asyncio.Queue[str | None] = asyncio.Queue()
        stopped = False

        def on_message(message: str) -> bool:
            loop.call_soon_threadsafe(messages.put_nowait, message)
            return stopped

        def compute() -> None:
            try:
                ids = self._tokens.where_needed(request.messages)
                if ids is None:
                    self._server.handle_chat_completions(json.dumps(body), on_message)
                else:
                    prompt = {**body, "messages": None, "prompt": ids}
                    self._server.handle_completions(json.dumps(prompt), on_message)
            finally:
                loop.call_soon_threadsafe(messages.put_nowait, None)

        reader = _Reader(request, self._context_tokens)
        work = loop.run_in_executor(self._workers, compute)
        try:
            ended = False
            while not ended:
                batch = [await messages.get()]
                while not messages.empty():
                    batch.append(messages.get_nowait())
                ended = batch[-1] is None
                events = [
                    event for text in batch if text is not None for event in reader.read(text)
                ]
                if events:
                    yield events
            await work
            yield [reader.done()]
        finally:
            # The next callback, at most one step away, sees this and llama.cpp drops the request.
            stopped = True

    async def reset_prefix_cache(self) -> int:
        """Erase llama.cpp's slots; see ``Engine.reset_prefix_cache``."""
        loop = asyncio.get_running_loop()
        erased = [
            await loop.run_in_executor(self._workers, self._erase, slot)
            for slot in range(self._parallel)
        ]
        return sum(erased)

    async def close(self) -> None:
        """Free the model and the threads."""
        server, self._server = self._server, None
        workers, self._workers = self._workers, None
        slots, self._slots = self._slots, None
        if workers is not None:
            workers.shutdown(wait=False, cancel_futures=True)
        del server
        if slots is not None:
            slots.cleanup()

    def _or_adapters(self) -> str:
        names = ", ".join(self._adapters)
        return f", or one of its adapters ({names}) is for another model" if names else ""

    def _adapted(self, adapter: str) -> dict[str, Any]:
        """What says which adapter applies. All are named, because llama.cpp goes on with the last
        request's where nothing is said."""
        check_adapter(adapter, self._adapters)
        if not self._adapters:
            return {}
        scales = [float(name == adapter) for name in self._adapters]
        return {"lora": [{"id": at, "scale": scale} for at, scale in enumerate(scales)]}

    def _params(self) -> Any:
        params = xllamacpp.CommonParams()
        params.model.path = self._model_file
        params.n_ctx = self._context_tokens * self._parallel
        params.n_parallel = self._parallel
        params.n_batch = params.n_ubatch = _STEP_TOKENS
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = self._threads
        params.fit_params = False
        params.lora_adapters = [_lora(path) for path in self._adapters.values()]
        params.lora_init_without_apply = True
        # Prompts are kept in their slots alone, so that erasing the slots forgets them all.
        params.cache_ram_mib = 0
        params.verbosity = -1
        # llama.cpp always opens a port; nobody else on this machine gets in.
        params.hostnames = ["127.0.0.1"]
        params.port = 0
        params.api_keys = [self._key]
        params.n_threads_http = 2
        params.ui = False
        params.slot_save_path = f"{self._slots.name}/" if self._slots else ""
        return params

    def _erase(self, slot: int) -> int:
        return int(self._post(f"/slots/{slot}?action=erase", {})["n_erased"])

    def _post(self, path: str, body: Mapping[str, object]) -> dict[str, Any]:
        call = urllib.request.Request(
            f"{self._server.listening_address}{path}",
            data=json.dumps(body).encode(),
            headers={"Authorization": f"Bearer {self._key}", "Content-Type": "application/json"},
        )
        with _LOOPBACK.open(call, timeout=_HTTP_TIMEOUT_S) as reply:
            return dict(json.load(reply))


def _lora(path: str) -> Any:
    adapter = xllamacpp.CommonAdapterLoraInfo()
    adapter.path, adapter.scale = path, 0.0
    return adapter


def _body(request: ChatRequest, context_tokens: int) -> dict[str, Any]:
    body: dict[str, Any] = {
        "messages": [{"role": turn.role, "content": turn.content} for turn in request.messages],
        "max_tokens": request.max_tokens,
        "stream": True,
        "stream_options": {"include_usage": True},
        # Messages between the steps of the prompt: each is a chance to stop.
        "return_progress": True,
        # Counts tokens in every message.
        "timings_per_token": True,
        "cache_prompt": True,
    }
    if request.score:
        # One alternative, which nobody reads, is the least that log probabilities come with. They
        # are the model's own, before the grammar and every filter, and take about 10 ms a token:
        # llama.cpp sorts the whole vocabulary.
        body |= {"logprobs": True, "top_logprobs": 1}
    if request.options:
        return body | {"grammar": options_grammar(request.options), "temperature": 0.0}
    if request.json_schema is not None or request.regex is not None:
        body["grammar"] = structured_grammar(request.json_schema, request.regex)
    sampling = request.sampling
    body |= {
        # Every filter is named, because llama.cpp has some of them on by default. Their order there
        # is the one that ``cascade.sampling`` promises.
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "min_p": sampling.min_p,
        "repeat_penalty": sampling.repetition_penalty,
        # By default only the last 64 tokens count.
        "repeat_last_n": context_tokens,
        "stop": list(request.stop),
    }
    return body if sampling.seed is None else body | {"seed": sampling.seed}


class _Reader:
    """Reads the messages of one answer."""

    def __init__(self, request: ChatRequest, context_tokens: int) -> None:
        self._options = request.options
        self._structure = "regex" if request.regex is not None else "json_schema"
        self._structured = request.regex is not None or request.json_schema is not None
        self._context_tokens = context_tokens
        self._started = False
        self._counted = 0
        self._text = ""
        self._reason: str | None = None
        self._usage: dict[str, Any] | None = None
        self._logprobs: list[float] = []

    def read(self, message: str) -> list[EngineEvent]:
        content = json.loads(message)
        if "error" in content:
            raise self._error(content["error"])
        events: list[EngineEvent] = []
        progress = content.get("prompt_progress")
        if progress is not None and not self._started:
            self._started = True
            events.append(Started(int(progress["total"])))
        self._usage = content.get("usage") or self._usage
        for choice in content["choices"]:
            self._reason = choice.get("finish_reason") or self._reason
            for token in (choice.get("logprobs") or {}).get("content", ()):
                if token["bytes"]:  # the end of the answer is no part of it
                    self._logprobs.append(float(token["logprob"]))
            # Of a conversation, or of a prompt that was sent as tokens.
            text = choice["delta"].get("content") if "delta" in choice else choice["text"]
            if text:
                total = int(content.get("timings", {}).get("predicted_n", self._counted + 1))
                events.append(Piece(text, total - self._counted))
                self._counted = total
                self._text += text
        return events

    def done(self) -> Done:
        if self._usage is None or self._reason is None:
            _log.error("llama.cpp ended an answer without its usage or reason")
            raise EngineFailed
        if self._options and self._text not in self._options:
            raise InvalidInput(
                "prompt",
                f"leaves no room for the answer in {self._context_tokens} tokens; shorten it",
            )
        return Done(
            reason="length" if self._reason == "length" else "stop",
            prompt_tokens=int(self._usage["prompt_tokens"]),
            completion_tokens=int(self._usage["completion_tokens"]),
            cached_tokens=int(self._usage["prompt_tokens_details"]["cached_tokens"]),
            raw_score=geometric_mean(self._logprobs),
        )

    def _error(self, error: dict[str, Any]) -> Exception:
        if error.get("type") == "exceed_context_size_error":
            return InvalidInput(
                "prompt",
                f"has {error['n_prompt_tokens']} tokens with its template; this tier reads at "
                f"most {self._context_tokens}; shorten it",
            )
        _log.error("llama.cpp refused a request: %s", error.get("message"))
        if self._structured and "grammar" in str(error.get("message")):
            return InvalidInput(self._structure, "cannot be kept by this tier; simplify it")
        return EngineFailed()
