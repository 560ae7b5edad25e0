"""The ``openai`` engine against a real OpenAI-compatible server: llama.cpp's, on the loopback."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
import xllamacpp

from cascade.errors import InvalidInput
from cascade.request import Message
from cloud.backend_config import ProviderConfig
from cloud.engines import ChatRequest, Done, EngineEvent, Piece, Started
from cloud.engines.openai import OpenAiEngine
from cloud.errors import ProviderUnavailable

KEY = "a-local-key"
ASKED = (Message("user", "Count from one to five in words."),)


@pytest.fixture(scope="module")
def url(model_path: Callable[[str], Path]) -> Iterator[str]:
    params = xllamacpp.CommonParams()
    params.model.path = str(model_path("qwen2.5-coder-0.5b-instruct-q4_k_m"))
    params.n_ctx, params.n_parallel = 512, 2
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    params.fit_params, params.verbosity, params.ui = False, -1, False
    params.hostnames, params.port, params.api_keys = ["127.0.0.1"], 0, [KEY]
    server = xllamacpp.Server(params)
    yield f"{server.listening_address}/v1"
    del server


@pytest.fixture
async def engine(url: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[OpenAiEngine]:
    monkeypatch.setenv("LOCAL_KEY", KEY)
    engine = OpenAiEngine(
        "local", ProviderConfig(base_url=url, api_key_env="LOCAL_KEY"), context_tokens=256
    )
    await engine.start()
    yield engine
    await engine.close()


async def run(engine: OpenAiEngine, request: ChatRequest) -> list[EngineEvent]:
    return [event async for batch in engine.stream(request) for event in batch]


async def test_an_answer_streams_with_the_servers_count_of_tokens(engine: OpenAiEngine) -> None:
    started, *pieces, done = await run(engine, ChatRequest(ASKED, 24))
    assert started == Started(None)
    assert len(pieces) > 3
    text = "".join(piece.text for piece in pieces if isinstance(piece, Piece)).lower()
    assert "two" in text
    assert isinstance(done, Done)
    assert 0 < done.completion_tokens <= 24
    assert done.prompt_tokens > 10


async def test_log_probabilities_make_a_score(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_KEY", KEY)
    provider = ProviderConfig(base_url=url, api_key_env="LOCAL_KEY", logprobs=True)
    engine = OpenAiEngine("local", provider, context_tokens=256)
    await engine.start()
    done = (await run(engine, ChatRequest(ASKED, 8, score=True)))[-1]
    await engine.close()
    assert isinstance(done, Done)
    assert done.raw_score is not None
    assert 0.05 < done.raw_score <= 1


async def test_a_closed_set_is_kept(engine: OpenAiEngine) -> None:
    moods = ("positive", "negative")
    question = (Message("user", "Is 'I hate this awful film.' positive or negative?"),)
    _, piece, done = await run(engine, ChatRequest(question, 4, options=moods))
    assert isinstance(piece, Piece)
    assert piece.text in moods
    assert done.completion_tokens > 1


async def test_a_schema_is_kept(engine: OpenAiEngine) -> None:
    schema = '{"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}'
    request = ChatRequest((Message("user", "Three as JSON."),), 40, json_schema=schema)
    _, piece, _ = await run(engine, request)
    assert isinstance(piece, Piece)
    assert '"n"' in piece.text


async def test_a_prompt_beyond_the_context_is_the_prompts_fault(engine: OpenAiEngine) -> None:
    with pytest.raises(InvalidInput, match="prompt: is longer than"):
        await run(engine, ChatRequest((Message("user", "word " * 2000),), 4))


async def test_a_wrong_key_is_not_the_devices_fault(
    engine: OpenAiEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOCAL_KEY", "another")
    with pytest.raises(ProviderUnavailable):
        await run(engine, ChatRequest(ASKED, 4))


async def test_leaving_an_answer_frees_the_server_for_the_next(engine: OpenAiEngine) -> None:
    stream = engine.stream(ChatRequest(ASKED, 200))
    async for batch in stream:
        if any(isinstance(event, Piece) for event in batch):
            break
    await stream.aclose()
    async with asyncio.timeout(60):
        assert isinstance((await run(engine, ChatRequest(ASKED, 4)))[-1], Done)
