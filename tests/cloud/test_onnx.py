"""Bundles as a tier: the engine keeps the promises of every engine."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from cascade import home
from cascade.errors import InvalidInput
from cascade.request import Message
from cascade.sampling import Sampling
from cascade.signing import TrustStore
from cascade.testing import TinyBundle
from cloud.config import TierConfig
from cloud.engines import ChatRequest, Done, EngineEvent, Piece, Started, make_engine
from cloud.engines.onnx import OnnxBundle
from cloud.errors import ModelUnusable
from edge import OnnxModel

QUESTION = (Message("user", "Is it?"),)


@pytest.fixture
async def engine(tiny: TinyBundle) -> AsyncIterator[OnnxBundle]:
    engine = OnnxBundle(tiny.path, trust=tiny.trust, context_tokens=100_000)
    await engine.start()
    yield engine
    await engine.close()


async def run(engine: OnnxBundle, request: ChatRequest) -> list[EngineEvent]:
    return [event async for batch in engine.stream(request) for event in batch]


def text_of(events: list[EngineEvent]) -> str:
    return "".join(event.text for event in events if isinstance(event, Piece))


async def test_an_answer_is_the_devices_own_and_is_counted(
    engine: OnnxBundle, tiny: TinyBundle
) -> None:
    started, *pieces, done = await run(engine, ChatRequest(QUESTION, 12))
    expected = OnnxModel(tiny.bundle).generate(QUESTION, max_tokens=12)
    assert text_of(pieces) == expected.text
    assert started == Started(expected.prompt_tokens)
    assert done == Done("length", expected.prompt_tokens, 12, 0)
    assert sum(piece.count for piece in pieces if isinstance(piece, Piece)) == 12


async def test_a_stop_string_ends_the_answer_before_it(engine: OnnxBundle) -> None:
    words = text_of(await run(engine, ChatRequest(QUESTION, 12))).split()
    events = await run(engine, ChatRequest(QUESTION, 12, stop=(words[2],)))
    assert text_of(events).split() == words[: words.index(words[2])]
    assert isinstance(events[-1], Done)
    assert events[-1].reason == "stop"


async def test_an_option_is_chosen_whole(engine: OnnxBundle) -> None:
    options = ("not", "not good", "Grüße, 世界")
    _, piece, done = await run(engine, ChatRequest(QUESTION, 30, options))
    assert isinstance(piece, Piece)
    assert piece.text in options
    assert isinstance(done, Done)
    assert (done.reason, done.completion_tokens) == ("stop", piece.count)


async def test_how_sure_it_is_is_what_the_device_would_say(
    engine: OnnxBundle, tiny: TinyBundle
) -> None:
    model = OnnxModel(tiny.bundle)
    done = (await run(engine, ChatRequest(QUESTION, 30, ("good", "bad"), score=True)))[-1]
    assert isinstance(done, Done)
    assert done.raw_score == pytest.approx(model.choose(QUESTION, ("good", "bad")).raw_score)
    done = (await run(engine, ChatRequest(QUESTION, 12, score=True)))[-1]
    assert isinstance(done, Done)
    assert done.raw_score == pytest.approx(model.generate(QUESTION, max_tokens=12).raw_score)


async def test_a_reset_forgets_every_prompt(engine: OnnxBundle) -> None:
    for text in ("one", "two of them"):
        await run(engine, ChatRequest((Message("user", text),), 2))
    assert await engine.reset_prefix_cache() > 20
    assert await engine.reset_prefix_cache() == 0


async def test_closing_the_stream_frees_the_model(engine: OnnxBundle) -> None:
    stream = engine.stream(ChatRequest(QUESTION, 100_000))
    async for batch in stream:
        if any(isinstance(event, Piece) for event in batch):
            break
    await stream.aclose()
    # Waits for the only worker: without the cancellation, until the context is full.
    assert await engine.reset_prefix_cache() < engine.capabilities.context_tokens


async def test_requests_wait_for_each_other_and_get_their_own_answers(engine: OnnxBundle) -> None:
    questions = [ChatRequest((Message("user", word),), 6) for word in ("one", "two", "three")]
    alone = [text_of(await run(engine, question)) for question in questions]
    together = await asyncio.gather(*(run(engine, question) for question in questions))
    assert [text_of(events) for events in together] == alone


async def test_a_request_that_is_cancelled_while_it_waits_leaves_no_trace(
    engine: OnnxBundle,
) -> None:
    first, second = (engine.stream(ChatRequest(QUESTION, 400)) for _ in range(2))
    await anext(first)
    await anext(second)
    await second.aclose()
    *_, last = [batch async for batch in first]
    assert isinstance(last[-1], Done)
    assert last[-1].completion_tokens == 400


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (ChatRequest(QUESTION, 5, regex="(?=a)b"), "regex"),
        (ChatRequest((Message("user", "word " * 3000),), 5), r"prompt: has \d+ tokens"),
        (ChatRequest(QUESTION, 5, options=("a", "a")), "options"),
    ],
)
async def test_what_it_cannot_do_is_refused_by_name(
    engine: OnnxBundle, request_: ChatRequest, message: str
) -> None:
    with pytest.raises(InvalidInput, match=message):
        await run(engine, request_)
    assert len(await run(engine, ChatRequest(QUESTION, 2))) >= 3


async def test_it_samples_and_keeps_a_form(engine: OnnxBundle) -> None:
    async def text(**options: Any) -> str:
        events = await run(engine, ChatRequest(QUESTION, 12, **options))
        return "".join(event.text for event in events if isinstance(event, Piece))

    hot = Sampling(temperature=1.5, seed=3)
    assert await text(sampling=hot) == await text(sampling=hot) != await text()
    assert re.fullmatch("[0-9]{4}", await text(regex="[0-9]{4}"))


async def test_the_tiers_limit_counts_where_it_is_the_lower_one(tiny: TinyBundle) -> None:
    engine = OnnxBundle(tiny.path, trust=tiny.trust, context_tokens=32)
    await engine.start()
    with pytest.raises(InvalidInput, match="reads at most 32"):
        await run(engine, ChatRequest((Message("user", "word " * 30),), 5))
    await engine.close()


async def test_a_tier_of_the_configuration_serves_what_is_pinned_on_this_machine(
    tiny: TinyBundle, empty_home: Path
) -> None:
    tier = TierConfig(name="tier1", engine="onnx", model=str(tiny.path))
    with pytest.raises(ModelUnusable, match="unknown publisher"):
        await make_engine(tier, tier.model).start()
    TrustStore(home.trust_dir()).pin("tests", tiny.key.public)
    engine = make_engine(tier, tier.model)
    await engine.start()
    assert engine.capabilities.context_tokens == tiny.bundle.manifest.context_tokens
    await engine.close()


async def test_a_folder_without_a_bundle_is_refused(tiny: TinyBundle, tmp_path: Path) -> None:
    engine = OnnxBundle(tmp_path, trust=tiny.trust, context_tokens=512)
    with pytest.raises(ModelUnusable, match="no bundle"):
        await engine.start()
