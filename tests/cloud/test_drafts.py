"""A draft from the device to a tier that scores drafts, over real sockets and with real models."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from cascade.draft import DraftProposal, DraftTape, tokens_within
from cascade.draft_book import DraftBook
from cascade.egress import Egress
from cascade.errors import InvalidInput
from cascade.events import Answer, Final
from cascade.privacy import PiiSpan, Privacy
from cascade.remote import (
    Chunk,
    DeviceReport,
    Finished,
    RemoteEvent,
    Speed,
    Transfer,
    Verified,
)
from cascade.request import Constraints, DataClass, Message, Request
from cascade.signing import SigningKey, TrustStore
from cascade.wire import GrpcRemote
from cloud.accounting import Accounting
from cloud.config import ClusterConfig, GatewayConfig, PriceList, TierConfig
from cloud.engines import ChatRequest, Done, EngineEvent, Piece, Started
from cloud.engines.draft import keeps
from cloud.engines.transformers import Transformers
from cloud.front_door import GatewayFiles
from cloud.routing import Router
from cloud.tier import TierMessage, messages
from cloud.tls import TlsPaths, ensure_local_tls
from edge import AsyncDevice, Bundle, Drafting, OnnxModel
from edge.async_device import remote_to
from edge.build import build_from_folder
from edge.bundle import TOKENIZER
from edge.text import TextCodec
from tests.cloud.access.gate import Gate, gate, until
from tests.edge.build.folders import TEMPLATE, save_model

QUESTION = (Message("user", "Is it?"),)
CONTEXT = 256
LENGTH = 40
# Sends all there is.
LOSSLESS = Drafting("lossless", acceptance=0.999, write_s=1.0, read_s=1e-6)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = tmp_path_factory.mktemp("qwen2")
    save_model(path, "qwen2", max_position_embeddings=CONTEXT, num_key_value_heads=2)
    return path


@pytest.fixture
async def engine(folder: Path) -> AsyncIterator[Transformers]:
    engine = Transformers(folder, context_tokens=CONTEXT)
    await engine.start()
    yield engine
    await engine.close()


@pytest.fixture(scope="module")
def model(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> OnnxModel:
    """The same model on a device, quantised: it agrees with the tier for a while."""
    place, key = tmp_path_factory.mktemp("device"), SigningKey.generate()
    trust = TrustStore(place / "trust")
    trust.pin("tests", key.public)
    out = build_from_folder(
        folder,
        place / "bundle",
        name="tiny",
        base_model="tiny",
        licence="Apache-2.0",
        commercial_use=True,
        signing_key=key,
    )
    return OnnxModel(Bundle.open(out, trust))


async def run(engine: Transformers, request: ChatRequest) -> list[EngineEvent]:
    return [event async for batch in engine.stream(request) for event in batch]


def text_of(events: list[EngineEvent]) -> str:
    return "".join(event.text for event in events if isinstance(event, Piece))


def verified(events: list[EngineEvent]) -> int:
    (kept,) = (event.kept for event in events if isinstance(event, Verified))
    return kept


def asked(**fields: object) -> ChatRequest:
    return ChatRequest(QUESTION, LENGTH, **fields)  # type: ignore[arg-type]


# What the rule keeps.


@given(
    st.lists(st.floats(-20, 20), min_size=2, max_size=9),
    st.integers(0, 8),
    st.one_of(st.just(0.0), st.floats(1e-3, 0.999)),
)
def test_a_token_is_kept_by_its_probability(
    values: list[float], token: int, tolerance: float
) -> None:
    """TokenV3 of speculative cascades, in float64 and by its definition."""
    row = np.array(values, np.float32)
    token %= len(row)
    p = np.exp(row.astype(np.float64) - row.max())
    p /= p.sum()
    margin = p[token] - (1 - tolerance) * p.max()
    if tolerance == 0:
        assert keeps(row, token, 0.0) == (token == int(np.argmax(row)))
    elif abs(margin) > 1e-6 * p.max():
        assert keeps(row, token, tolerance) == (margin >= 0)


# Text of one tokenizer, tokens of another.


def _bpe(split: object, *, merges: int) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = split
    tokenizer.decoder = decoders.ByteLevel()
    rng = random.Random(3)
    words = ["".join(rng.choices("abcde", k=rng.randint(1, 6))) for _ in range(60)]
    corpus = [
        " ".join(rng.choices([*words, "don't", "12", "345", "\n\n", "  ", "x = 1;"], k=40))
        for _ in range(80)
    ]
    trainer = trainers.BpeTrainer(
        vocab_size=256 + merges,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<|im_start|>", "<|im_end|>"],
    )
    tokenizer.train_from_iterator(corpus, trainer)
    return tokenizer


_QWEN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPLITS = {
    "gpt2": pre_tokenizers.ByteLevel(add_prefix_space=False),
    "qwen": pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_QWEN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    ),
}


class _Files:
    def __init__(self, place: Path, tokenizer: Tokenizer) -> None:
        self.file: Callable[[str], Path] = place.joinpath
        tokenizer.save(str(place / TOKENIZER))
        (place / "chat_template.jinja").write_text(TEMPLATE)


@pytest.fixture(scope="module", params=sorted(SPLITS))
def codec(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> TextCodec:
    place = tmp_path_factory.mktemp(request.param)
    return TextCodec(_Files(place, _bpe(SPLITS[request.param], merges=150)))


_TEXT = st.lists(
    st.sampled_from(
        [
            *"abcde",
            "ab",
            "cde",
            " ",
            "  ",
            "\n",
            "\t",
            " \n",
            "'",
            "t",
            "1",
            "23",
            ".",
            "(",
            "é",
            "世",
        ]
    ),
    max_size=14,
).map("".join)


@given(beginning=_TEXT, rest=_TEXT)
def test_tokens_that_are_stable_stay_however_the_text_goes_on(
    codec: TextCodec, beginning: str, rest: str
) -> None:
    stable = codec.encode_stable(beginning)
    assert codec.encode_plain(beginning + rest)[: len(stable)] == stable


def test_all_but_the_last_word_is_stable(codec: TextCodec) -> None:
    for text in ("abc don't abd", "abc don't "):
        assert beginning(codec, codec.encode_stable(text)) == "abc don't"
    assert codec.encode_stable("abc") == []
    assert codec.encode_stable("") == []


def beginning(codec: TextCodec, tokens: list[int]) -> str:
    stream = codec.stream()
    return "".join(map(stream.push, tokens))


@given(text=_TEXT, cuts=st.lists(st.integers(0, 40), max_size=8), kept=st.integers(0, 40))
def test_kept_text_is_counted_in_the_devices_tokens(text: str, cuts: list[int], kept: int) -> None:
    """However the device splits a text into tokens: those that lie in the kept part, by hand."""
    places = sorted({min(cut, len(text)) for cut in cuts} | {0, len(text)})
    pieces = [text[a:b] for a, b in itertools.pairwise(places)]
    lengths = [len(piece.encode()) for piece in pieces]
    head = text[:kept].encode()
    expected = 0
    while expected < len(pieces) and len("".join(pieces[: expected + 1]).encode()) <= len(head):
        expected += 1
    assert tokens_within(lengths, len(head)) == expected


# The engine.


def proposal(
    model: OnnxModel, tokens: list[int], *, by_text: bool = False, **fields: object
) -> DraftProposal:
    """A device's draft of these tokens."""
    stream = model._codec.stream()
    texts = [stream.push(token) for token in tokens]
    made = DraftProposal(
        tuple(tokens),
        tuple(len(text.encode()) for text in texts),
        "".join(texts),
        complete=False,
        tokenizer_digest="" if by_text else model.info.tokenizer_digest,
    )
    return replace(made, **fields)


def greedy(engine: Transformers) -> list[int]:
    """The tier's own tokens."""
    tokens: list[int] = []
    causal = engine._model
    assert causal is not None
    row = causal._decoder.read(causal._codec.encode(QUESTION))
    while len(tokens) < LENGTH:
        tokens.append(int(row.argmax()))
        row = causal._decoder.push(tokens[-1])
    return tokens


@pytest.mark.parametrize("by_text", [False, True], ids=["ids", "text"])
async def test_a_lossless_answer_is_the_plain_one_whatever_is_proposed(
    engine: Transformers, model: OnnxModel, by_text: bool
) -> None:
    plain = await run(engine, asked())
    own = greedy(engine)
    rng = random.Random(8)
    drafts = [own, own[:17], [], [70] * 30, *(_spoilt(own, rng) for _ in range(20))]
    for draft in drafts:
        await engine.reset_prefix_cache()
        offered = proposal(model, draft, by_text=by_text)
        events = await run(engine, asked(draft=offered))
        assert text_of(events) == text_of(plain)
        same = next(
            (at for at, (a, b) in enumerate(zip(draft, own, strict=False)) if a != b), len(draft)
        )
        if by_text:
            # Never more than what agrees; a text that breaks off loses its last word.
            assert verified(events) <= len(draft)
            assert text_of(plain).startswith("".join(_texts(model, draft)[: verified(events)]))
        else:
            assert verified(events) == same
        done = events[-1]
        assert isinstance(done, Done)
        assert done.completion_tokens == LENGTH


def _spoilt(tokens: list[int], rng: random.Random) -> list[int]:
    at = rng.randrange(len(tokens))
    return [*tokens[:at], (tokens[at] + rng.randrange(1, 200)) % 259, *tokens[at + 1 :]]


def _texts(model: OnnxModel, tokens: list[int]) -> list[str]:
    stream = model._codec.stream()
    return [stream.push(token) for token in tokens]


async def test_text_with_words_is_kept_across_tokenizers(
    engine: Transformers, model: OnnxModel
) -> None:
    """What a tolerant tier is given as text comes out as text, but for a word that breaks off."""
    words = "this is a text of so"
    offered = proposal(model, model._codec.encode_plain(words), by_text=True, tolerance=1 - 1e-9)
    broken_off = await run(engine, asked(draft=offered))
    assert text_of(broken_off).startswith("this is a text of")
    assert verified(broken_off) == len("this is a text of")
    complete = await run(engine, asked(draft=replace(offered, complete=True)))
    assert text_of(complete).startswith(words)
    assert verified(complete) == len(words)


async def test_a_tier_tells_how_fast_it_read_a_draft_and_wrote_on(
    engine: Transformers, model: OnnxModel
) -> None:
    own = greedy(engine)
    wrong = [*own[:5], (own[5] + 9) % 259, *own[6:12]]
    for draft, read, written in (
        (own, LENGTH, 0),
        (own[:17], 17, LENGTH - 18),
        (wrong, len(wrong), LENGTH - 6),
        ([70] * 9, 0, LENGTH - 1),
    ):
        events = await run(engine, asked(draft=proposal(model, draft)))
        (speed,) = (event for event in events if isinstance(event, Speed))
        # The last token of an answer is written without reading it.
        assert (speed.read_tokens, speed.written_tokens) == (read, written)
        assert (speed.read_s > 0, speed.written_s > 0) == (read > 0, written > 0)
    assert not [event for event in await run(engine, asked()) if isinstance(event, Speed)]


async def test_an_answer_that_ends_within_a_draft_says_what_it_kept(
    engine: Transformers, model: OnnxModel
) -> None:
    own = greedy(engine)
    events = await run(engine, replace(asked(draft=proposal(model, own)), max_tokens=10))
    assert verified(events) == 10
    done = events[-1]
    assert isinstance(done, Done)
    plain = (await run(engine, replace(asked(), max_tokens=10)))[-1]
    assert isinstance(plain, Done)
    # The last token of the answer is written without reading it.
    assert done.prompt_tokens == plain.prompt_tokens + len(own) - 9


async def test_ids_that_the_model_does_not_know_count_as_text(
    engine: Transformers, model: OnnxModel
) -> None:
    words = "is"
    tokens = model._codec.encode_plain(words)
    known = proposal(model, tokens, tolerance=1 - 1e-9, complete=True)
    events = await run(engine, asked(draft=replace(known, tokens=(tokens[0], 100_000))))
    assert text_of(events).startswith(words)
    assert verified(events) == len(tokens)


async def test_a_draft_that_is_no_text_is_refused(engine: Transformers) -> None:
    bad = DraftProposal((), (), "\ud800", complete=False)
    with pytest.raises(InvalidInput, match="draft: is not valid Unicode"):
        await run(engine, asked(draft=bad))
    assert len(text_of(await run(engine, asked()))) > 0


# The gateway, and a device in front of it.


class Counted:
    """A tier stream that counts its calls and what is still open."""

    def __init__(self, engine: Transformers) -> None:
        self.engine = engine
        self.asked: list[ChatRequest] = []
        self.open = 0

    async def __call__(self, request: ChatRequest) -> AsyncGenerator[TierMessage]:
        self.asked.append(request)
        self.open += 1
        try:
            async with aclosing(messages(self.engine, request)) as answer:
                async for message in answer:
                    yield message
        finally:
            self.open -= 1


def config(engine: str = "transformers", **gateway: object) -> ClusterConfig:
    tier = TierConfig(
        name="tier1",
        engine=engine,  # type: ignore[arg-type]
        model="tiny.gguf",
        context_tokens=CONTEXT,
        price=PriceList(input_usd_per_million_tokens=10, output_usd_per_million_tokens=100),
    )
    return ClusterConfig(gateway=GatewayConfig(**gateway), tiers=(tier,))  # type: ignore[arg-type]


@pytest.fixture
async def cluster(engine: Transformers, tls: TlsPaths, tmp_path: Path) -> AsyncIterator[Cluster]:
    async with opened(engine, config(), tls, tmp_path) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> TlsPaths:
    return ensure_local_tls(tmp_path_factory.mktemp("tls"), "127.0.0.1")


@dataclass
class Cluster:
    tier: Counted
    gate: Gate

    async def ask(self, model: OnnxModel, drafting: Drafting | None, **how: object) -> Answer:
        options: dict[str, object] = {"max_tokens": LENGTH, "drafting": drafting} | how
        egress = options.pop("egress", None) or Egress()
        remote = remote_to(self.gate.profile())
        async with AsyncDevice(model, remote, egress=egress) as device:  # type: ignore[arg-type]
            async for event in device.ask(QUESTION, **options):  # type: ignore[arg-type]
                if isinstance(event, Final):
                    return event.answer
        raise AssertionError


@asynccontextmanager
async def opened(
    engine: Transformers,
    config: ClusterConfig,
    tls: TlsPaths,
    place: Path,
    *,
    draft_s: float = 1.0,
) -> AsyncIterator[Cluster]:
    """The front door, quotas and the router before the engine."""
    tier = Counted(engine)
    files = GatewayFiles(tls.certificate, tls.key, place / "api-keys", quotas=place / "q.sqlite")
    accounting = Accounting(config, files)
    router = accounting.answerer(Router(config, accounting.streams({"tier1": tier})))
    async with gate(tls, place, router.answer, draft_s=draft_s) as door:
        yield Cluster(tier, door)


async def test_a_device_proposes_its_answer_and_gets_the_tiers_own(
    cluster: Cluster, model: OnnxModel
) -> None:
    plain = await cluster.ask(model, None)
    assert (plain.source, plain.draft_tokens, plain.draft_kept) == ("tier1", 0, None)
    drafted = await cluster.ask(model, LOSSLESS)
    assert drafted.text == plain.text
    assert drafted.draft_tokens == drafted.local_tokens == plain.local_tokens
    own = greedy(cluster.tier.engine)
    (sent,) = (request.draft for request in cluster.tier.asked if request.draft)
    same = [a == b for a, b in zip(sent.tokens, own, strict=True)]
    assert drafted.draft_kept == (same.index(False) if False in same else len(same))
    assert drafted.draft_kept > 0
    assert drafted.bytes_up > plain.bytes_up
    assert not any("draft_ignored" in reason for reason in drafted.reasons)
    assert cluster.tier.open == 0


async def test_a_device_learns_what_its_drafts_bring(cluster: Cluster, model: OnnxModel) -> None:
    """Times and kept tokens of a real tier take the place of what was configured."""
    book = DraftBook()
    egress = Egress(drafts=book, cluster="c")
    # Worth sending, though nothing is right: a token a second, and none is refused.
    configured = replace(LOSSLESS, write_s=1e4, read_s=1.0)
    drafted = await cluster.ask(model, configured, egress=egress)
    learned = book.learned("c", configured, None)
    kept, sent = drafted.draft_kept, drafted.draft_tokens
    assert kept is not None
    refused = kept < sent
    assert learned.acceptance == pytest.approx((20 * 0.999 + kept) / (20 + kept + refused))
    assert 0 < learned.write_s < 1e4
    assert 0 < learned.read_s < 1.0
    assert book.learned("c", replace(configured, mode="threshold", tolerance=0.5), None) != learned


async def test_a_tolerant_tier_keeps_more(cluster: Cluster, model: OnnxModel) -> None:
    lossless = await cluster.ask(model, LOSSLESS)
    tolerant = replace(LOSSLESS, mode="threshold", tolerance=0.999)
    drafted = await cluster.ask(model, tolerant)
    assert drafted.draft_kept is not None
    assert lossless.draft_kept is not None
    assert drafted.draft_kept >= lossless.draft_kept
    sent = cluster.tier.asked[-1].draft
    assert sent is not None
    assert sent.tolerance == pytest.approx(0.999)


async def test_a_draft_that_is_not_worth_its_reading_is_not_sent(
    cluster: Cluster, model: OnnxModel
) -> None:
    answer = await cluster.ask(model, Drafting(write_s=0.01, read_s=1.0))
    assert (answer.draft_tokens, answer.draft_kept) == (0, None)
    assert cluster.tier.asked[-1].draft is None
    some = await cluster.ask(model, Drafting(acceptance=0.5, write_s=1.0, read_s=0.2))
    assert some.draft_tokens == 2


async def test_a_tier_without_draft_scoring_ignores_it_and_says_so(
    engine: Transformers, model: OnnxModel, tls: TlsPaths, tmp_path: Path
) -> None:
    async with opened(engine, config("llama_cpp"), tls, tmp_path) as cluster:
        plain = await cluster.ask(model, None)
        drafted = await cluster.ask(model, LOSSLESS)
    assert drafted.text == plain.text
    assert drafted.draft_kept is None
    assert "tier1:draft_ignored" in drafted.reasons
    assert "tier1:draft_ignored" not in plain.reasons
    assert [request.draft for request in cluster.tier.asked] == [None, None]


async def test_reading_a_draft_costs_and_a_price_limit_leaves_it_out(
    cluster: Cluster, model: OnnxModel
) -> None:
    plain, drafted = await cluster.ask(model, None), await cluster.ask(model, LOSSLESS)
    read = drafted.cloud_prompt_tokens - plain.cloud_prompt_tokens
    assert read > 0
    assert drafted.cost_usd == pytest.approx(plain.cost_usd + read * 10e-6)
    # Enough for the longest answer, and not for a draft besides.
    prompt = len("Is it?") + 32 + 8
    limits = Constraints(max_cost_usd=(prompt * 10 + LENGTH * 100 + 1) / 1e6)
    cheap = await cluster.ask(model, LOSSLESS, constraints=limits)
    assert cheap.text == plain.text
    assert cheap.draft_kept is None
    assert "tier1:draft_ignored" in cheap.reasons


async def test_quotas_and_size_limits_count_the_draft(
    engine: Transformers, model: OnnxModel, tls: TlsPaths, tmp_path: Path
) -> None:
    quota = {"default": {"tokens_per_day": 120}}
    async with opened(engine, config(quotas=quota), tls, tmp_path / "quota") as cluster:
        # 46 tokens of prompt and 40 of answer at most, and as many bytes of draft.
        drafted = await cluster.ask(model, LOSSLESS)
        assert drafted.remote_status == "RESOURCE_EXHAUSTED"
        assert (await cluster.ask(model, None)).remote_status is None
    async with opened(engine, config(max_prompt_chars=20), tls, tmp_path / "size") as cluster:
        drafted = await cluster.ask(model, LOSSLESS)
        assert drafted.remote_status == "INVALID_ARGUMENT"
        assert "draft" in (drafted.remote_error or "")
        assert (await cluster.ask(model, None)).source == "tier1"
        assert cluster.tier.open == 0


class Names:
    """Finds what is told it."""

    def __init__(self, word: str) -> None:
        self.word = word

    def find(self, text: str) -> list[PiiSpan]:
        at = text.find(self.word)
        return [] if at < 0 else [PiiSpan(at, at + len(self.word), "NAME", 1.0)]


async def test_a_draft_with_personal_data_stays_and_so_does_one_to_a_reworded_request(
    cluster: Cluster, model: OnnxModel
) -> None:
    own = model.generate(QUESTION, max_tokens=LENGTH).text
    clean = await cluster.ask(model, LOSSLESS, egress=Egress(privacy=Privacy(Names("nobody"))))
    assert clean.draft_tokens > 0
    for word in (own[2:6], "Is it"):
        answer = await cluster.ask(model, LOSSLESS, egress=Egress(privacy=Privacy(Names(word))))
        assert answer.source == "tier1"
        assert (answer.draft_tokens, answer.draft_kept) == (0, None)
    kept_here = Constraints(data_class=DataClass.NEVER_LEAVE)
    calls = len(cluster.tier.asked)
    answer = await cluster.ask(model, LOSSLESS, constraints=kept_here)
    assert (answer.source, answer.draft_tokens, answer.bytes_up) == ("device", 0, 0)
    assert len(cluster.tier.asked) == calls


async def test_a_caller_that_leaves_while_its_draft_is_verified_frees_the_tier(
    cluster: Cluster, model: OnnxModel
) -> None:
    long = asyncio.create_task(cluster.ask(model, LOSSLESS, regex="[a-z]{200}", max_tokens=200))
    await until(lambda: cluster.tier.open == 1)
    long.cancel()
    with pytest.raises(asyncio.CancelledError):
        await long
    await until(lambda: cluster.tier.open == 0 and cluster.gate.answering == 0)
    assert (await cluster.ask(model, LOSSLESS)).source == "tier1"


# The prompt, read while the draft is written.


@pytest.fixture
async def patient(engine: Transformers, tls: TlsPaths, tmp_path: Path) -> AsyncIterator[Cluster]:
    """A gateway that waits for a draft for as long as it takes."""
    async with opened(engine, config(), tls, tmp_path, draft_s=600.0) as cluster:
        yield cluster


class Slow:
    """A device that writes its draft when it is told to, over the same connection as any other."""

    def __init__(self, cluster: Cluster, model: OnnxModel) -> None:
        self.tape = DraftTape(LOSSLESS)
        self.remote = GrpcRemote(cluster.gate.profile())
        request = Request(QUESTION, max_tokens=LENGTH)
        report = DeviceReport(tokenizer_digest=model.info.tokenizer_digest)
        stream = self.remote.answer(
            request, report, deadline_s=60.0, transfer=Transfer(), draft=self.tape
        )
        self.answer = asyncio.create_task(_read(stream))

    def write(self, model: OnnxModel, tokens: list[int]) -> None:
        for token, text in zip(tokens, _texts(model, tokens), strict=True):
            self.tape.add_token(token)
            self.tape.add_text(text)
        self.tape.end(complete=False)


async def _read(stream: AsyncGenerator[RemoteEvent]) -> list[RemoteEvent]:
    async with aclosing(stream) as events:
        return [event async for event in events]


def held(engine: Transformers) -> list[int]:
    """What the engine's decoder holds."""
    assert engine._model is not None
    return list(engine._model._decoder._tokens)  # type: ignore[attr-defined]


def prompt_of(engine: Transformers) -> list[int]:
    assert engine._model is not None
    return engine._model._codec.encode(QUESTION)


async def test_a_prompt_that_is_read_ahead_is_not_read_again_and_changes_nothing(
    engine: Transformers,
) -> None:
    plain = await run(engine, asked())
    prompt = prompt_of(engine)
    await engine.reset_prefix_cache()
    ahead = await run(engine, asked(prefill=True))
    assert text_of(ahead) == ""
    assert ahead[0] == Started(len(prompt))
    assert ahead[-1] == Done("stop", len(prompt), 0, 0)
    assert held(engine) == prompt[:-1]
    passes = recorded(engine)
    assert text_of(await run(engine, asked())) == text_of(plain)
    assert passes[0] == 1


def recorded(engine: Transformers) -> list[int]:
    """Lengths of the passes from here on."""
    assert engine._model is not None
    decoder = engine._model._decoder
    passes: list[int] = []
    run_pass = decoder._run  # type: ignore[attr-defined]

    def counted(tokens: list[int], wanted: int) -> np.ndarray:
        passes.append(len(tokens))
        return run_pass(tokens, wanted)

    decoder._run = counted  # type: ignore[attr-defined]
    return passes


async def test_a_prompt_that_is_too_long_to_read_ahead_is_refused_where_it_is_asked(
    engine: Transformers,
) -> None:
    long = replace(asked(prefill=True), messages=(Message("user", "word " * 3000),))
    with pytest.raises(InvalidInput, match=r"prompt: has \d+ tokens"):
        await run(engine, long)


async def test_a_tier_reads_the_prompt_while_the_draft_is_written(
    patient: Cluster, model: OnnxModel
) -> None:
    engine = patient.tier.engine
    plain, own = text_of(await run(engine, asked())), greedy(engine)
    await engine.reset_prefix_cache()
    slow = Slow(patient, model)
    await until(lambda: held(engine) == prompt_of(engine)[:-1])
    assert not slow.answer.done()
    assert [each.prefill for each in patient.tier.asked] == [True]
    passes = recorded(engine)
    slow.write(model, own[:20])
    events = await slow.answer
    await slow.remote.close()
    assert "".join(event.text for event in events if isinstance(event, Chunk)) == plain
    assert [event.kept for event in events if isinstance(event, Verified)] == [20]
    # Of the prompt only the last token is read behind the draft, and the draft in one pass.
    assert passes[:2] == [1, 20]
    finished = events[-1]
    assert isinstance(finished, Finished)
    assert finished.prompt_tokens == len(prompt_of(engine))
    assert patient.tier.open == 0


async def test_a_caller_that_leaves_while_its_draft_is_awaited_frees_the_tier(
    patient: Cluster, model: OnnxModel
) -> None:
    engine = patient.tier.engine
    await engine.reset_prefix_cache()
    slow = Slow(patient, model)
    await until(lambda: held(engine) == prompt_of(engine)[:-1])
    slow.answer.cancel()
    await asyncio.wait({slow.answer})
    await slow.remote.close()
    await until(lambda: patient.tier.open == 0 and patient.gate.answering == 0)
    assert [each.prefill for each in patient.tier.asked] == [True]
    assert (await patient.ask(model, LOSSLESS)).source == "tier1"
