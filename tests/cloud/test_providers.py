"""The unmodified SDKs against servers that speak their protocols, and fail as providers do."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import math
from collections.abc import AsyncIterator, Iterator

import pytest

from cascade.errors import InvalidInput, RemoteError
from cascade.request import Message
from cascade.sampling import Sampling
from cloud.backend_config import ProviderConfig
from cloud.config import TierConfig, parse_config
from cloud.engines import ChatRequest, Done, Engine, EngineEvent, Piece, Started, make_engine
from cloud.errors import ConfigError, EngineFailed, ModelUnusable, Overloaded, ProviderUnavailable
from tests.cloud.provider_server import KEY, WORDS, ProviderServer, serving

ASKED = (Message("system", "Be brief."), Message("user", "Name a colour."))
FREE = ChatRequest(ASKED, 20)
MOODS = ("positive", "negative")
SCHEMA = '{"type": "object", "properties": {"colour": {"type": "string"}}, "required": ["colour"]}'
ENGINES = pytest.mark.parametrize("kind", ["openai", "anthropic"])


@pytest.fixture(scope="module")
def server() -> Iterator[ProviderServer]:
    with serving() as running:
        yield running


@pytest.fixture
async def engines(server: ProviderServer, tmp_path) -> AsyncIterator[Engines]:
    made = Engines(server, tmp_path / "key")
    yield made
    for engine in made.open:
        await engine.close()


class Engines:
    """Engines of either kind over the local server."""

    def __init__(self, server: ProviderServer, key_file) -> None:
        self.server = server
        self.key_file = key_file
        key_file.write_text(f"{KEY}\n")
        self.open: list[Engine] = []

    async def make(self, kind: str, model: str, **settings) -> Engine:
        base = f"{self.server.url}/v1" if kind == "openai" else self.server.url
        settings = {"api_key_file": self.key_file, **settings}
        tier = TierConfig(
            name="t", engine=kind, model=model, provider=ProviderConfig(base_url=base, **settings)
        )
        engine = make_engine(tier, "")
        await engine.start()
        self.open.append(engine)
        return engine

    async def ask(self, kind: str, model: str, request: ChatRequest = FREE, **settings):
        engine = await self.make(kind, model, **settings)
        return [event async for batch in engine.stream(request) for event in batch]


def text_of(events: list[EngineEvent]) -> str:
    return "".join(event.text for event in events if isinstance(event, Piece))


@ENGINES
async def test_an_answer_streams_and_is_billed_by_the_providers_own_count(engines, kind) -> None:
    started, *pieces, done = await engines.ask(kind, "good")
    assert started == Started(None if kind == "openai" else 11)
    assert [piece.text for piece in pieces] == list(WORDS)
    assert done == Done("stop", 11, 4, 3)
    sent = engines.server.asked[-1]
    assert (sent["max_tokens"], sent["stream"]) == (20, True)
    if kind == "openai":
        assert [turn["role"] for turn in sent["messages"]] == ["system", "user"]
    else:
        assert sent["system"] == "Be brief."
        assert [turn["role"] for turn in sent["messages"]] == ["user"]


@ENGINES
async def test_an_answer_that_is_cut_off_at_the_most_tokens_says_so(engines, kind) -> None:
    assert (await engines.ask(kind, "short"))[-1].reason == "length"


async def test_an_endpoint_that_reports_log_probabilities_has_a_score(engines) -> None:
    asked = dataclasses.replace(FREE, score=True)
    done = (await engines.ask("openai", "good", asked, logprobs=True))[-1]
    assert done.raw_score == pytest.approx(math.exp(-0.5))
    for request, reports in ((asked, False), (FREE, True)):
        assert (await engines.ask("openai", "good", request, logprobs=reports))[
            -1
        ].raw_score is None
        assert "logprobs" not in engines.server.asked[-1]


async def test_without_usage_the_bill_is_an_upper_bound(engines) -> None:
    done = (await engines.ask("openai", "uncounted"))[-1]
    assert done == Done("stop", sum(len(turn.content) for turn in ASKED), 4, 0)


@ENGINES
async def test_a_closed_set_is_asked_for_by_schema_and_answered_by_an_option(engines, kind) -> None:
    events = await engines.ask(kind, "good", ChatRequest(ASKED, 3, options=MOODS))
    assert text_of(events) == "positive"
    sent = engines.server.asked[-1]
    assert sent["max_tokens"] > 3  # room for the object around it
    wanted = sent["response_format"]["json_schema"] if kind == "openai" else sent["output_config"]
    assert tuple(_enum(wanted)) == MOODS


def _enum(wanted) -> list[str]:
    schema = wanted.get("schema") or wanted["format"]["schema"]
    return schema["properties"]["answer"]["enum"]


@ENGINES
async def test_a_model_that_ignores_the_schema_but_names_an_option_is_understood(
    engines, kind
) -> None:
    events = await engines.ask(kind, "ignores", ChatRequest(ASKED, 3, options=MOODS))
    assert text_of(events) == "positive"


@ENGINES
async def test_an_answer_that_is_no_option_is_never_passed_on(engines, kind) -> None:
    with pytest.raises(EngineFailed):
        await engines.ask(kind, "wrong", ChatRequest(ASKED, 3, options=MOODS))


@ENGINES
async def test_a_schema_is_checked_before_the_answer_is_passed_on(engines, kind) -> None:
    events = await engines.ask(kind, "good", ChatRequest(ASKED, 20, json_schema=SCHEMA))
    assert text_of(events) == '{"colour": "green"}'
    with pytest.raises(EngineFailed):
        await engines.ask(kind, "wrong", ChatRequest(ASKED, 20, json_schema=SCHEMA))


@ENGINES
async def test_what_a_provider_has_no_words_for_is_refused_by_name(engines, kind) -> None:
    for request, field in (
        (ChatRequest(ASKED, 20, regex="a+"), "regex"),
        (ChatRequest(ASKED, 20, sampling=Sampling(top_k=3)), "sampling.top_k"),
        (ChatRequest(ASKED, 20, sampling=Sampling(min_p=0.1)), "sampling.min_p"),
    ):
        with pytest.raises(InvalidInput) as refused:
            await engines.ask(kind, "good", request)
        assert refused.value.field == field


@ENGINES
async def test_sampling_travels_where_the_provider_takes_it(engines, kind) -> None:
    request = ChatRequest(ASKED, 20, sampling=Sampling(temperature=0.5, top_p=0.9, seed=4))
    await engines.ask(kind, "good", request)
    sent = engines.server.asked[-1]
    assert (sent["temperature"], sent["top_p"]) == (0.5, 0.9)
    assert sent.get("seed") == (4 if kind == "openai" else None)
    await engines.ask(kind, "good", request, sampling=False)
    assert not {"temperature", "top_p", "seed"}.intersection(engines.server.asked[-1])


async def test_the_field_for_the_most_tokens_is_the_endpoints(engines) -> None:
    await engines.ask("openai", "good", max_tokens_field="max_completion_tokens")
    sent = engines.server.asked[-1]
    assert (sent["max_completion_tokens"], "max_tokens" in sent) == (20, False)


@ENGINES
@pytest.mark.parametrize(
    ("model", "error"),
    [
        ("busy", Overloaded),
        ("poor", ProviderUnavailable),
        ("unknown", ProviderUnavailable),
        ("long", InvalidInput),
        ("strict", EngineFailed),
        ("broken", ProviderUnavailable),
        ("html", ProviderUnavailable),
        ("html502", ProviderUnavailable),
        ("half", ProviderUnavailable),
        ("cut", ProviderUnavailable),
        ("filtered", EngineFailed),
    ],
)
async def test_each_failure_of_a_provider_has_its_meaning(
    engines, kind, model, error, caplog
) -> None:
    caplog.set_level(logging.DEBUG, logger="cloud")
    with pytest.raises(error) as failed:
        await engines.ask(kind, model)
    if model == "busy":
        assert failed.value.retry_after_s == 7
    told = str(failed.value) + caplog.text
    assert "secret" not in told
    assert KEY not in told


@ENGINES
async def test_an_error_inside_of_a_good_answer_is_an_error(engines, kind) -> None:
    with pytest.raises(RemoteError) as failed:
        await engines.ask(kind, "inside")
    assert failed.value.status == (
        "UNAVAILABLE" if kind == "openai" else "RESOURCE_EXHAUSTED"  # it says overloaded
    )


@ENGINES
async def test_leaving_an_answer_ends_the_call(engines, kind) -> None:
    engine = await engines.make(kind, "slow")
    stream = engine.stream(FREE)
    async for batch in stream:
        if any(isinstance(event, Piece) for event in batch):
            break
    before = len(engines.server.left)
    await stream.aclose()
    async with asyncio.timeout(5):
        while len(engines.server.left) == before:
            await asyncio.sleep(0.01)


@ENGINES
async def test_a_provider_that_does_not_answer_in_time_is_unavailable(engines, kind) -> None:
    with pytest.raises(ProviderUnavailable):
        await engines.ask(kind, "slow", timeout_s=0.3)


@ENGINES
async def test_a_key_is_rotated_without_a_restart_and_a_wrong_one_is_not_told(
    engines, kind, caplog
) -> None:
    engines.key_file.write_text("sk-wrong-key")
    engine = await engines.make(kind, "good")
    with pytest.raises(ProviderUnavailable) as refused:
        [event async for event in engine.stream(FREE)]
    assert "sk-" not in str(refused.value) + caplog.text
    engines.key_file.write_text(KEY)
    assert [event async for event in engine.stream(FREE)]


@ENGINES
async def test_a_key_that_is_missing_is_told_before_anything_is_sent(
    engines, kind, monkeypatch
) -> None:
    engines.key_file.unlink()
    with pytest.raises(ModelUnusable, match="holds no key"):
        await engines.make(kind, "good")
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    with pytest.raises(ModelUnusable, match="environment variable NO_SUCH_KEY"):
        await engines.make(kind, "good", api_key_file=None, api_key_env="NO_SUCH_KEY")
    monkeypatch.setenv("NO_SUCH_KEY", KEY)
    assert await engines.ask(kind, "good", api_key_file=None, api_key_env="NO_SUCH_KEY")


@pytest.mark.parametrize(
    ("provider", "problem"),
    [
        ("", "tiers[0]: provider is missing; openai needs to know where the key is"),
        ("provider: {api_key: sk-1}", "tiers[0].provider.api_key is not a known key; did you mean"),
        ("provider: {}", "tiers[0].provider: name where the key is: api_key_env or api_key_file"),
        (
            "provider: {api_key_env: A, api_key_file: b}",
            "tiers[0].provider: give api_key_env or api_key_file, not both",
        ),
        (
            "provider: {base_url: 'ftp://x'}",
            "tiers[0].provider.base_url: must be an http or https address",
        ),
    ],
)
def test_a_providers_configuration_is_checked(provider: str, problem: str) -> None:
    text = f"tiers: [{{name: t, engine: openai, model: m, {provider}}}]"
    with pytest.raises(ConfigError) as refused:
        parse_config(text, "f")
    assert str(refused.value).startswith(f"f: {problem}")


def test_a_provider_is_for_engines_that_ask_one() -> None:
    text = "tiers: [{name: t, model: m, provider: {base_url: 'http://x'}}]"
    with pytest.raises(ConfigError, match="provider is for openai and anthropic, not for llama"):
        parse_config(text, "f")
