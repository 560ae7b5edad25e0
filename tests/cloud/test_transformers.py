"""Hugging Face models as a tier: their own logits, the promises of every engine, and drafts."""

from __future__ import annotations

import asyncio
import json
import math
import re
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

from cascade.errors import InvalidInput
from cascade.request import Message
from cascade.sampling import Sampling
from cloud.config import TierConfig
from cloud.engines import ChatRequest, Done, EngineEvent, Piece, Started, make_engine
from cloud.engines.draft import Draft
from cloud.engines.transformers import Transformers
from cloud.errors import ModelUnusable
from tests.edge.build.folders import END, save_model

QUESTION = (Message("user", "Is it?"),)
CONTEXT = 256


@pytest.fixture(scope="module", params=["llama", "qwen2"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = tmp_path_factory.mktemp(request.param)
    save_model(path, request.param, max_position_embeddings=CONTEXT, num_key_value_heads=2)
    return path


@pytest.fixture
async def engine(folder: Path) -> AsyncIterator[Transformers]:
    engine = Transformers(folder, context_tokens=100_000)
    await engine.start()
    yield engine
    await engine.close()


class Reference:
    """The same folder by transformers alone."""

    def __init__(self, folder: Path) -> None:
        import transformers

        self.model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))

    def prompt(self, text: str = QUESTION[0].content) -> list[int]:
        whole = f"<|im_start|>{text}<|im_end|>"
        return list(self.tokenizer.encode(whole, add_special_tokens=False).ids)

    def logits(self, ids: list[int]) -> np.ndarray:
        with torch.inference_mode():
            return self.model(torch.tensor([ids])).logits[0].numpy()

    def greedy(self, count: int, **options: Any) -> list[int]:
        """What ``generate`` writes, without the end token."""
        ids = torch.tensor([self.prompt()])
        written = self.model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=count,
            do_sample=False,
            pad_token_id=0,
            eos_token_id=END,
            **options,
        )[0, ids.shape[1] :].tolist()
        return written[: written.index(END)] if END in written else written

    def text(self, ids: list[int]) -> str:
        """As it streams: a character that is not complete is not written."""
        stream = DecodeStream(skip_special_tokens=True)
        return "".join(stream.step(self.tokenizer, token) or "" for token in ids)


@pytest.fixture
def reference(folder: Path) -> Reference:
    return Reference(folder)


async def run(
    engine: Transformers, request: ChatRequest, draft: Draft | None = None
) -> list[EngineEvent]:
    return [event async for batch in engine.stream(request, draft) for event in batch]


def text_of(events: list[EngineEvent]) -> str:
    return "".join(event.text for event in events if isinstance(event, Piece))


def done_of(events: list[EngineEvent]) -> Done:
    assert isinstance(events[-1], Done)
    return events[-1]


async def test_a_greedy_answer_is_that_of_generate_and_is_counted(
    engine: Transformers, reference: Reference
) -> None:
    expected = reference.greedy(40)
    events = await run(engine, ChatRequest(QUESTION, 40))
    assert text_of(events) == reference.text(expected)
    assert events[0] == Started(len(reference.prompt()))
    reason = "length" if len(expected) == 40 else "stop"
    assert done_of(events) == Done(reason, len(reference.prompt()), len(expected), 0)


async def test_a_penalty_is_that_of_generate(engine: Transformers, reference: Reference) -> None:
    expected = reference.text(reference.greedy(30, repetition_penalty=1.3))
    request = ChatRequest(QUESTION, 30, sampling=Sampling(repetition_penalty=1.3))
    assert text_of(await run(engine, request)) == expected
    assert expected != reference.text(reference.greedy(30))


async def test_how_sure_it_is_is_the_mean_probability_of_its_tokens(
    engine: Transformers, reference: Reference
) -> None:
    written = reference.greedy(20)
    start = len(reference.prompt())
    logits = torch.from_numpy(reference.logits(reference.prompt() + written))
    logprobs = torch.log_softmax(logits, -1)[range(start - 1, start - 1 + len(written)), written]
    done = done_of(await run(engine, ChatRequest(QUESTION, 20, score=True)))
    assert done.raw_score == pytest.approx(math.exp(logprobs.mean().item()), rel=1e-4)


async def test_a_closed_set_is_scored_exactly(engine: Transformers, reference: Reference) -> None:
    options = ("good", "goods", "bad", "Grüße, 世界")
    prompt = reference.prompt()
    scores = []
    for option in options:
        ids = reference.tokenizer.encode(option).ids
        logprobs = torch.log_softmax(torch.from_numpy(reference.logits(prompt + ids)), -1)
        places = range(len(prompt) - 1, len(prompt) - 1 + len(ids))
        score = logprobs[places, ids].sum().item()
        if option == "good":  # it also has to end: whatever is no "s"
            s = reference.tokenizer.encode("goods").ids[-1]
            score += math.log1p(-math.exp(logprobs[len(prompt) - 1 + len(ids), s].item()))
        scores.append(score)
    share = np.exp(np.array(scores) - max(scores))
    events = await run(engine, ChatRequest(QUESTION, 30, options, score=True))
    assert text_of(events) == options[int(np.argmax(scores))]
    assert done_of(events).raw_score == pytest.approx(1 / share.sum(), rel=1e-4)


async def test_samples_are_drawn_by_the_seed_from_what_the_filters_keep(
    engine: Transformers, reference: Reference
) -> None:
    prompt = reference.prompt()
    row = reference.logits(prompt)[-1]
    two = {reference.text([int(token)]) for token in np.argsort(-row)[:2]}
    seen = set()
    for seed in range(12):
        sampling = Sampling(temperature=2.0, top_k=2, seed=seed)
        seen.add(text_of(await run(engine, ChatRequest(QUESTION, 1, sampling=sampling))))
    assert seen <= two | {""}
    hot = ChatRequest(QUESTION, 12, sampling=Sampling(temperature=1.5, seed=3))
    assert text_of(await run(engine, hot)) == text_of(await run(engine, hot))
    assert text_of(await run(engine, hot)) != text_of(await run(engine, ChatRequest(QUESTION, 12)))


async def test_a_stop_string_ends_the_answer_before_it(engine: Transformers) -> None:
    whole = text_of(await run(engine, ChatRequest(QUESTION, 30)))
    stop = whole[8:10]
    events = await run(engine, ChatRequest(QUESTION, 30, stop=(stop,)))
    assert text_of(events) == whole[: whole.index(stop)]
    assert done_of(events).reason == "stop"


async def test_it_keeps_an_expression_and_a_schema(engine: Transformers) -> None:
    assert re.fullmatch(
        "[0-9]{4}", text_of(await run(engine, ChatRequest(QUESTION, 9, regex="[0-9]{4}")))
    )
    schema = json.dumps(
        {
            "type": "object",
            "properties": {"answer": {"enum": ["yes", "no"]}},
            "required": ["answer"],
            "additionalProperties": False,
        }
    )
    text = text_of(await run(engine, ChatRequest(QUESTION, 40, json_schema=schema)))
    assert json.loads(text)["answer"] in ("yes", "no")


async def test_a_long_prompt_in_passes_is_the_prompt_in_one(
    engine: Transformers, reference: Reference
) -> None:
    """Longer than one pass of 64 tokens, and with a beginning that is at hand already."""
    for text in ("word " * 30, "word " * 30 + "more of them"):
        prompt = reference.prompt(text)
        assert len(prompt) > 128
        row = torch.log_softmax(torch.from_numpy(reference.logits(prompt)[-1]), -1)
        request = ChatRequest((Message("user", text),), 1, score=True)
        done = done_of(await run(engine, request))
        assert done.raw_score == pytest.approx(math.exp(row.max().item()), rel=1e-4)


async def test_a_reset_forgets_the_prompt(engine: Transformers, reference: Reference) -> None:
    await run(engine, ChatRequest(QUESTION, 2))
    assert await engine.reset_prefix_cache() >= len(reference.prompt())
    assert await engine.reset_prefix_cache() == 0


async def test_closing_the_stream_frees_the_model(engine: Transformers) -> None:
    stream = engine.stream(ChatRequest(QUESTION, 100_000, regex="[a-z]{50000}"))
    async for batch in stream:
        if any(isinstance(event, Piece) for event in batch):
            break
    await stream.aclose()
    # Waits for the only worker: without the cancellation, until the context is full.
    assert await engine.reset_prefix_cache() < engine.capabilities.context_tokens == CONTEXT


async def test_requests_wait_for_each_other_and_get_their_own_answers(engine: Transformers) -> None:
    questions = [ChatRequest((Message("user", word),), 6) for word in ("one", "two", "three")]
    alone = [text_of(await run(engine, question)) for question in questions]
    together = await asyncio.gather(*(run(engine, question) for question in questions))
    assert [text_of(events) for events in together] == alone


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (ChatRequest(QUESTION, 5, regex="(?=a)b"), "regex"),
        (ChatRequest((Message("user", "word " * 3000),), 5), r"prompt: has \d+ tokens"),
        (ChatRequest(QUESTION, 5, options=("a", "a")), "options"),
        (ChatRequest((Message("user", "word " * 49),), 5, options=("x" * 40, "b")), "no room"),
    ],
)
async def test_what_it_cannot_do_is_refused_by_name(
    engine: Transformers, request_: ChatRequest, message: str
) -> None:
    with pytest.raises(InvalidInput, match=message):
        await run(engine, request_)
    assert len(await run(engine, ChatRequest(QUESTION, 2))) >= 2


def drafts(greedy: list[int]) -> list[list[int]]:
    """Good, spoilt early, in the middle and late, hopeless, and none."""
    spoilt = [[*greedy[:at], (greedy[at] + 5) % 259, *greedy[at + 1 :]] for at in (0, 3, 60, 90)]
    return [greedy, greedy[:70], *spoilt, [7] * 100, []]


async def test_a_draft_changes_nothing_of_a_greedy_answer(
    engine: Transformers, reference: Reference
) -> None:
    """Accepted beginning and continuation together are the greedy answer, unless two logits are so
    close that the pass over many tokens may order them otherwise."""
    greedy = reference.greedy(95)
    assert len(greedy) == 95
    plain = text_of(await run(engine, ChatRequest(QUESTION, 95)))
    close = _first_close(reference, greedy)
    for draft in drafts(greedy):
        await engine.reset_prefix_cache()
        drafted = await run(engine, ChatRequest(QUESTION, 95), Draft(tuple(draft)))
        text = text_of(drafted)
        if close is None:
            assert text == plain
            assert done_of(drafted).completion_tokens == 95
        else:
            assert text.startswith(reference.text(greedy[:close]))
        score = await engine.score_draft(QUESTION, Draft(tuple(draft)))
        same = next((i for i, (a, b) in enumerate(zip(draft, greedy, strict=False)) if a != b), 0)
        expected = len(draft) if draft == greedy[: len(draft)] else same
        if close is None or close >= expected:
            assert score.kept == expected
            assert score.text == reference.text(greedy[: score.kept])
            assert (score.gap is None) == (score.kept == len(draft))


def _first_close(reference: Reference, greedy: list[int]) -> int | None:
    prompt = reference.prompt()
    rows = np.sort(reference.logits(prompt + greedy)[len(prompt) - 1 : -1], axis=-1)
    close = np.flatnonzero(rows[:, -1] - rows[:, -2] < 1e-3)
    return int(close[0]) if len(close) else None


async def test_a_draft_changes_nothing_of_a_drawn_or_kept_form_or_stopped_answer(
    engine: Transformers,
) -> None:
    whole = text_of(await run(engine, ChatRequest(QUESTION, 30)))
    for options in (
        {"sampling": Sampling(temperature=1.0, seed=5)},
        {"sampling": Sampling(repetition_penalty=1.4)},
        {"regex": "[a-z]{8}"},
        {"stop": (whole[9:11],)},
    ):
        request = ChatRequest(QUESTION, 20, **options)
        expected = await run(engine, request)
        for draft in (Draft(text_of(expected)), Draft(whole), Draft("abc")):
            drafted = await run(engine, request, draft)
            assert text_of(drafted) == text_of(expected)
            # What was read of the draft for nothing counts as read.
            read = done_of(drafted).prompt_tokens
            assert read >= done_of(expected).prompt_tokens
            assert replace(done_of(expected), prompt_tokens=read) == done_of(drafted)


async def test_a_draft_is_read_in_few_passes(engine: Transformers, reference: Reference) -> None:
    greedy = tuple(reference.greedy(95))
    decoder = engine._model._decoder  # type: ignore[union-attr]
    passes = []
    run_pass = decoder._run
    decoder._run = lambda tokens, wanted: passes.append(len(tokens)) or run_pass(tokens, wanted)
    await run(engine, ChatRequest(QUESTION, 95), Draft(greedy))
    assert passes == [len(reference.prompt()), 64, 31]
    passes.clear()
    await engine.reset_prefix_cache()
    await run(engine, ChatRequest(QUESTION, 95))
    assert len(passes) == 95


async def test_a_tolerant_reader_keeps_what_is_nearly_as_probable(
    engine: Transformers, reference: Reference
) -> None:
    prompt = reference.prompt()
    row = torch.softmax(torch.from_numpy(reference.logits(prompt)[-1]), -1).numpy()
    second = int(np.argsort(-row)[1])
    short = 1 - row[second] / row.max()
    for tolerance, kept in ((short + 0.01, 1), (short - 0.01, 0), (0.0, 0)):
        draft = Draft((second,), tolerance)
        score = await engine.score_draft(QUESTION, draft)
        assert score.kept == kept
        assert score.logprobs == pytest.approx([math.log(row[second])], abs=1e-4)
        request = ChatRequest(QUESTION, 1, score=True)
        done = done_of(await run(engine, request, draft))
        taken = row[second] if kept else row.max()
        assert done.raw_score == pytest.approx(float(taken), rel=1e-4)


async def test_a_tolerated_draft_neither_breaks_a_form_nor_outlives_a_refusal(
    engine: Transformers, reference: Reference
) -> None:
    digits = ChatRequest(QUESTION, 9, regex="[0-9]{4}")
    assert re.fullmatch("[0-9]{4}", text_of(await run(engine, digits, Draft("12ab", 0.999))))
    greedy = reference.greedy(20)
    wrong = (*greedy[:5], (greedy[5] + 9) % 259, *greedy[6:])
    strict = Draft(wrong, 1e-6)
    assert (await engine.score_draft(QUESTION, strict)).kept == 5
    plain = text_of(await run(engine, ChatRequest(QUESTION, 20)))
    assert text_of(await run(engine, ChatRequest(QUESTION, 20), strict)) == plain


@pytest.mark.parametrize(
    ("draft", "message"),
    [
        (Draft("a", 1.0), "draft.tolerance: 1 is not in"),
        (Draft("a", math.nan), "draft.tolerance"),
        (Draft((5, 100_000)), "draft: has ids that are not in 0"),
        (Draft("\ud800"), "draft: is not valid Unicode"),
    ],
)
async def test_a_draft_that_makes_no_sense_is_refused(
    engine: Transformers, draft: Draft, message: str
) -> None:
    with pytest.raises(InvalidInput, match=message):
        await engine.score_draft(QUESTION, draft)


async def test_the_example_in_the_docs_runs(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = (Path(__file__).parents[2] / "docs" / "cluster.md").read_text()
    (example,) = (
        block for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "Draft(" in block
    )
    names: dict[str, Any] = {}
    exec(example, names)
    await names["verified"](folder, "Is it?", "no idea")
    printed = capsys.readouterr().out
    assert re.match(r"keeps \d of 7 tokens: ", printed)
    assert "Done(" in printed


async def test_a_tier_of_the_configuration(folder: Path) -> None:
    tier = TierConfig(name="tier1", engine="transformers", model=str(folder), context_tokens=256)
    engine = make_engine(tier, tier.model)
    await engine.start()
    assert engine.capabilities.draft_scoring
    assert tier.scores_drafts
    await engine.close()


async def test_what_is_no_model_is_refused(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(ModelUnusable, match=r"no config\.json"):
        await Transformers(tmp_path, context_tokens=256).start()
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    with pytest.raises(ModelUnusable, match="cannot load"):
        await Transformers(tmp_path, context_tokens=256).start()
    for file in folder.iterdir():
        if file.name != "tokenizer.json":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    with pytest.raises(ModelUnusable, match=r"has no tokenizer\.json"):
        await Transformers(tmp_path, context_tokens=256).start()
