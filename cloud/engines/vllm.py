"""Models on GPUs by vLLM, which ray.serve.llm deploys behind a handle of its own.

An OpenAI-style chat request goes in, server-sent events come out. Nothing of vLLM is imported
before a tier names it. **This engine was never run against vLLM**: what it sends and reads is
tested with a scripted handle.
"""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import suppress
from typing import Any, Final, Protocol, cast

from ray.exceptions import RayError, RayTaskError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError

from cascade.errors import InvalidInput, RemoteError
from cascade.sampling import GREEDY
from cascade.structured import grammar
from cloud.config import TierConfig
from cloud.engines.base import (
    Capabilities,
    ChatRequest,
    Done,
    EngineEvent,
    Piece,
    Started,
    geometric_mean,
)
from cloud.engines.vllm_config import adapted_id, llm_config, request_id, require_vllm
from cloud.errors import EngineFailed, ModelUnusable, Overloaded, TierUnavailable

_log = logging.getLogger(__name__)

_RETRY_AFTER_S: Final = 1.0
_BEGIN: Final = "data: "
_END: Final = "[DONE]"
# vLLM has no codes for these: its words are all there is to tell them by.
_TOO_LONG: Final = ("context length", "max_model_len", "longer than the maximum model length")
_NO_FORM: Final = ("grammar", "json schema", "json_schema", "regex", "structured", "choice")


class ChatHandle(Protocol):
    """What is needed of a handle to a deployment of ray.serve.llm."""

    def chat(self, request: object) -> AsyncIterator[object]:
        """Batches of server-sent events, or errors."""
        ...

    def reset(self) -> AsyncIterator[object]:
        """Empty the prefix caches."""
        ...


class VllmEngine:
    """An ``Engine`` over a deployment of ray.serve.llm.

    Arguments:
        tier: with the engine ``vllm``.
        handle: to its deployment.
        make_request: makes ray.serve.llm's request of an OpenAI-style one; its own by default.
    """

    def __init__(
        self,
        tier: TierConfig,
        handle: ChatHandle,
        make_request: Callable[[dict[str, Any]], object] | None = None,
    ) -> None:
        self._tier = tier
        self._model = request_id(tier)
        self._handle = handle
        self._make_request = make_request

    @property
    def capabilities(self) -> Capabilities:
        """Closed sets and structure by masks; log probabilities of the tokens."""
        return Capabilities(
            options=True,
            json_schema=True,
            regex=True,
            logprobs=True,
            seeds=True,
            context_tokens=self._tier.context_tokens,
        )

    async def start(self) -> None:
        """Nothing to load here: Ray starts the model's own deployment.

        Raises:
            ModelUnusable: vLLM is not installed.
        """
        if self._make_request is None:
            require_vllm()
            from ray.serve.llm.openai_api_models import ChatCompletionRequest

            self._make_request = lambda body: ChatCompletionRequest(**body)

    async def stream(self, request: ChatRequest) -> AsyncGenerator[list[EngineEvent]]:
        """Answer ``request``; see ``Engine.stream``."""
        if self._make_request is None:
            raise EngineFailed
        model = adapted_id(self._tier, request.adapter) if request.adapter else self._model
        wanted = self._make_request(chat_body(request, model))
        batches = self._handle.chat(wanted)
        reader = _Reader(request, self._tier)
        try:
            async for batch in batches:
                events = [event for text in _texts(batch) for event in reader.read(text)]
                if events:
                    yield events
            yield [reader.done()]
        except (RayError, BackPressureError, DeploymentUnavailableError) as error:
            raise self._meaning(error) from None
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            if isinstance(error, InvalidInput):
                raise
            _log.error("vLLM sent what is no answer: %s", type(error).__name__)
            raise EngineFailed from None
        finally:
            # Without this the replica computes a cancelled answer to its end.
            cancel = getattr(batches, "cancel", None)
            if cancel is not None and not reader.ended:
                with suppress(RayError):
                    cancel()

    async def reset_prefix_cache(self) -> int:
        """Empty the prefix cache of one replica; how much it held, vLLM does not tell."""
        async for _ in self._handle.reset():
            pass
        return 0

    async def close(self) -> None:
        """Ray ends the model's deployment."""

    def _meaning(self, error: Exception) -> RemoteError:
        if isinstance(error, BackPressureError):
            return Overloaded(f"{self._tier.name} has no room in its queue", _RETRY_AFTER_S)
        if isinstance(error, RayTaskError):  # raised by its code; the replica lives
            _log.error("ray.serve.llm failed: %s", type(error.cause).__name__)
            return EngineFailed()
        _log.warning("%s lost a replica: %s", self._tier.name, type(error).__name__)
        return TierUnavailable(self._tier.name)


class RayHandle:
    """A ``ChatHandle`` over Ray's.

    Arguments:
        handle: a ``DeploymentHandle`` of what ``build_backend`` made.
    """

    def __init__(self, handle: Any) -> None:
        self._handle = handle

    def chat(self, request: object) -> AsyncIterator[object]:
        """Batches of server-sent events, or errors. A request that names an adapter goes where Ray
        has loaded it already."""
        model = str(getattr(request, "model", ""))
        adapted = {"multiplexed_model_id": model} if ":" in model else {}
        handle = self._handle.options(stream=True, **adapted)
        return cast("AsyncIterator[object]", handle.chat.remote(request))

    async def reset(self) -> AsyncGenerator[object]:
        """Empty the prefix cache of the replica that Ray chooses."""
        yield await self._handle.reset_prefix_cache.remote()


def build_backend(tier: TierConfig, *, name: str, drain_s: float) -> Any:
    """The Ray Serve application that runs the tier's model.

    Arguments:
        name: of its deployment.

    Raises:
        ModelUnusable: vLLM is not installed, or ray.serve.llm refuses the configuration.
    """
    require_vllm()
    from ray.serve.llm import LLMConfig, build_llm_deployment

    given: dict[str, Any] = llm_config(tier, name=name, drain_s=drain_s)
    try:
        config = LLMConfig(**given)
        return build_llm_deployment(config, name_prefix="vllm:")
    except ValueError as problem:
        first = str(problem).strip().splitlines()[0]
        raise ModelUnusable(f"tier {tier.name}: ray.serve.llm refuses it: {first}") from None


def chat_body(request: ChatRequest, model: str) -> dict[str, Any]:
    """The request as vLLM takes it: OpenAI's chat completions and vLLM's own additions.

    Arguments:
        model: that it names.

    Raises:
        InvalidInput: a schema or an expression cannot be kept.
    """
    sampling = request.sampling
    body: dict[str, Any] = {
        "model": model,
        "messages": [{"role": turn.role, "content": turn.content} for turn in request.messages],
        "max_completion_tokens": request.max_tokens,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    if request.score:
        # The model's own, before masks and filters, which is vLLM's default.
        body |= {"logprobs": True, "top_logprobs": 0}
    if request.options:
        body["structured_outputs"] = {"choice": list(request.options)}
        sampling = GREEDY
    elif request.json_schema is not None or request.regex is not None:
        # Refused here, by name, is what no tier can keep.
        grammar(request.json_schema, request.regex)
        body["structured_outputs"] = (
            {"regex": request.regex}
            if request.regex is not None
            else {"json": json.loads(request.json_schema or "")}
        )
    # Every filter is named: vLLM takes what is not from the model's generation_config.json.
    body |= {
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k or -1,
        "min_p": sampling.min_p,
        "repetition_penalty": sampling.repetition_penalty,
    }
    if request.stop and not request.options:
        body["stop"] = list(request.stop)
    return body if sampling.seed is None else body | {"seed": sampling.seed}


def _texts(batch: object) -> Iterator[str]:
    """The JSON of each event in what a handle yields: a string, an error, or a list of them."""
    for item in batch if isinstance(batch, list) else [batch]:
        if isinstance(item, str):
            for line in item.splitlines():
                if line.startswith(_BEGIN) and line[len(_BEGIN) :] != _END:
                    yield line[len(_BEGIN) :]
        elif isinstance(item, dict):
            yield json.dumps(item)
        else:  # ray.serve.llm's own models
            yield cast(Any, item).model_dump_json()


class _Reader:
    """Reads the events of one answer."""

    def __init__(self, request: ChatRequest, tier: TierConfig) -> None:
        self._request = request
        self._tier = tier.name
        self._context_tokens = tier.context_tokens
        self._started = False
        self._text = ""
        self._reason: str | None = None
        self._usage: dict[str, Any] | None = None
        self._logprobs: list[float] = []
        self.ended = False

    def read(self, text: str) -> Iterator[EngineEvent]:
        content = json.loads(text)
        if "error" in content:
            raise self._error(content["error"])
        if not self._started:
            self._started = True
            yield Started(None)
        self._usage = content.get("usage") or self._usage
        for choice in content["choices"]:
            self._reason = choice.get("finish_reason") or self._reason
            told = (choice.get("logprobs") or {}).get("content") or ()
            # The end of the answer, which has no bytes, is no part of it.
            self._logprobs += [float(each["logprob"]) for each in told if each.get("bytes") != []]
            piece = choice["delta"].get("content")
            if piece:
                self._text += piece
                yield Piece(piece, len(told) or 1)

    def done(self) -> Done:
        self.ended = True
        if self._reason is None or self._usage is None:
            _log.error("vLLM ended an answer without its usage or reason")
            raise EngineFailed
        if self._request.options and self._text not in self._request.options:
            raise InvalidInput(
                "prompt",
                f"leaves no room for the answer in {self._context_tokens} tokens; shorten it",
            )
        details = self._usage.get("prompt_tokens_details") or {}
        return Done(
            reason="length" if self._reason == "length" else "stop",
            prompt_tokens=int(self._usage["prompt_tokens"]),
            completion_tokens=int(self._usage["completion_tokens"]),
            cached_tokens=int(details.get("cached_tokens") or 0),
            raw_score=geometric_mean(self._logprobs),
        )

    def _error(self, error: dict[str, Any]) -> Exception:
        """What vLLM's error means. Its words are neither shown nor logged: they may quote the
        prompt."""
        self.ended = True
        code = int(error.get("code") or 500)
        words = str(error.get("message")).casefold()
        _log.warning("vLLM: %s, code %d", error.get("type"), code)
        request = self._request
        if code in (400, 422):
            if any(phrase in words for phrase in _TOO_LONG):
                return InvalidInput(
                    "prompt",
                    f"does not fit this tier's {self._context_tokens} tokens; shorten it",
                )
            form = "regex" if request.regex is not None else "json_schema"
            asked = request.regex is not None or request.json_schema is not None
            if asked and any(word in words for word in _NO_FORM):
                return InvalidInput(form, "cannot be kept by this tier; simplify it")
        if code == 429:
            return Overloaded(f"{self._tier} is busy", _RETRY_AFTER_S)
        return TierUnavailable(self._tier) if code == 503 else EngineFailed()
