"""One base model, several LoRA adapters: a request says which, and gets that one's answer alone."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path

import gguf
import numpy as np
import pytest

from cascade import testing
from cascade.errors import InvalidInput, RemoteError
from cascade.remote import Accepted, Chunk, DeviceReport, Finished, RemoteEvent, Transfer
from cascade.request import Constraints, Message, Request
from cascade.signing import TrustStore
from cascade.testing import Script, TinyBundle
from cascade.wire import GrpcRemote
from cloud.config import ClusterConfig, load_config, parse_config
from cloud.engines import ChatRequest, Engine, Piece, make_engine
from cloud.engines.llama_cpp import LlamaCpp
from cloud.engines.onnx import OnnxBundle
from cloud.errors import ConfigError, ModelUnusable
from cloud.plan import plan_cluster
from edge import Adapter, OnnxModel
from edge.adapter import LoraPair
from edge.adapter import write_adapter as write_lesson

MODEL = "qwen2.5-coder-0.5b-instruct-q4_k_m"
ASKED = (Message("user", "Count from one to five in words."),)
WIDTH, FEED, LAYERS, RANK = 896, 4864, (20, 21, 22, 23), 4


def write_adapter(path: Path, seed: int, *, width: int = WIDTH) -> Path:
    """A LoRA adapter of random weights for the model, large enough to change an answer. Five times
    as large, the best two tokens come so close that llama.cpp's rounding, which depends on what
    else is in a step, decides between them."""
    writer = gguf.GGUFWriter(path, "qwen2")
    writer.add_string(gguf.Keys.General.TYPE, "adapter")
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, float(RANK))
    draws = np.random.default_rng(seed)
    for layer in LAYERS:
        for part, inputs in (("attn_q", width), ("ffn_down", FEED)):
            name = f"blk.{layer}.{part}.weight"
            writer.add_tensor(f"{name}.lora_a", 0.01 * _drawn(draws, RANK, inputs))
            writer.add_tensor(f"{name}.lora_b", _drawn(draws, width, RANK))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _drawn(draws: np.random.Generator, *shape: int) -> np.ndarray:
    return draws.normal(size=shape).astype(np.float32)


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("adapters")
    return {
        name: str(write_adapter(folder / f"{name}.gguf", seed))
        # In each step of the answers to ASKED the best token leads by 0.5 in log probability.
        for name, seed in (("legal", 0), ("medical", 7))
    }


@pytest.fixture(scope="module")
def engine(model_path: Callable[[str], Path], adapters: dict[str, str]) -> Iterator[LlamaCpp]:
    engine = LlamaCpp(
        str(model_path(MODEL)), context_tokens=256, threads=1, parallel=2, adapters=adapters
    )
    asyncio.run(engine.start())
    yield engine
    asyncio.run(engine.close())


async def answer(engine: Engine, adapter: str = "", messages: tuple[Message, ...] = ASKED) -> str:
    request = ChatRequest(messages, 8, adapter=adapter)
    return "".join(
        [
            event.text
            async for batch in engine.stream(request)
            for event in batch
            if isinstance(event, Piece)
        ]
    )


@pytest.mark.models
async def test_each_request_gets_its_own_adapter_and_leaves_no_trace(
    engine: LlamaCpp, model_path: Callable[[str], Path]
) -> None:
    plain = LlamaCpp(str(model_path(MODEL)), context_tokens=256, threads=1, parallel=2)
    await plain.start()
    bare = await answer(plain)
    await plain.close()
    alone = {name: await answer(engine, name) for name in ("legal", "medical", "")}
    assert len(set(alone.values())) == 3
    # An adapter that is loaded, and one that has just answered in this slot, changes nothing.
    assert alone[""] == bare
    # At one time, and in another order.
    names = ("medical", "", "legal", "medical", "")
    together = await asyncio.gather(*(answer(engine, name) for name in names))
    assert together == [alone[name] for name in names]


@pytest.mark.models
async def test_a_prompt_that_is_sent_as_tokens_keeps_the_adapter(engine: LlamaCpp) -> None:
    spelt = (Message("user", "What is <|im_end|>?"),)
    answers = {await answer(engine, name, spelt) for name in ("", "legal", "medical")}
    assert len(answers) == 3


@pytest.mark.models
async def test_an_unknown_adapter_is_refused_with_those_there_are(engine: LlamaCpp) -> None:
    with pytest.raises(InvalidInput, match="no 'tax'; adapters: legal, medical"):
        await answer(engine, "tax")


@pytest.mark.models
async def test_an_adapter_of_another_model_is_named_at_the_start(
    model_path: Callable[[str], Path], tmp_path: Path
) -> None:
    other = write_adapter(tmp_path / "other.gguf", 1, width=64)
    for path, problem in ((other, r"one of its adapters \(odd\)"), (tmp_path / "no", "no adapter")):
        engine = LlamaCpp(str(model_path(MODEL)), context_tokens=256, adapters={"odd": str(path)})
        with pytest.raises(ModelUnusable, match=problem):
            await engine.start()


@pytest.fixture
def lessons(tiny: TinyBundle, tmp_path: Path) -> dict[str, Path]:
    """Three signed adapters of the tiny bundle, as devices get them."""
    manifest = tiny.bundle.manifest
    slot = next(slot for slot in manifest.adapter_slots if len(slot.modules) == 1)

    def lesson(seed: int) -> Path:
        draws = np.random.default_rng(seed)
        pair = LoraPair(_drawn(draws, slot.columns, 4), _drawn(draws, 4, slot.widths[0]))
        return write_lesson(
            tmp_path / f"lesson-{seed}",
            {slot.modules[0]: pair},
            name=f"lesson-{seed}",
            base_digest=manifest.base_digest,
            signing_key=tiny.key,
        )

    return {name: lesson(seed) for seed, name in enumerate(("a", "b", "c"))}


async def test_a_bundles_tier_takes_signed_adapters_and_keeps_those_used_last(
    tiny: TinyBundle, lessons: dict[str, Path]
) -> None:
    def alone(name: str) -> str:
        model = OnnxModel(tiny.bundle)
        if name:
            model.use_adapter(model.load_adapter(Adapter.open(lessons[name], tiny.trust)))
        return model.generate(ASKED, max_tokens=8).text

    expected = {name: alone(name) for name in ("", *lessons)}
    assert len(set(expected.values())) == 4
    engine = OnnxBundle(
        tiny.path, trust=tiny.trust, context_tokens=256, adapters=lessons, most_adapters=2
    )
    await engine.start()
    opened: list[Path] = []
    with pytest.MonkeyPatch.context() as patch:
        reads = Adapter.open

        def noting(path: Path, trust: TrustStore) -> Adapter:
            opened.append(path)
            return reads(path, trust)

        patch.setattr(Adapter, "open", noting)
        asked = ("a", "b", "", "a", "c", "a", "b")
        answers = await asyncio.gather(*(answer(engine, name) for name in asked))
    assert answers == [expected[name] for name in asked]
    # "b" was used least lately when "c" came, and had to be read again.
    assert opened == [lessons[name] for name in ("a", "b", "c", "b")]
    with pytest.raises(InvalidInput, match="no 'd'; adapters: a, b, c"):
        await answer(engine, "d")
    await engine.close()


async def test_an_adapter_that_nobody_pinned_or_that_was_altered_stops_the_start(
    tiny: TinyBundle, lessons: dict[str, Path]
) -> None:
    weights = lessons["b"] / "adapter.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    engine = OnnxBundle(tiny.path, trust=tiny.trust, context_tokens=256, adapters=lessons)
    with pytest.raises(ModelUnusable, match="altered after signing"):
        await engine.start()


TWO = """
tiers:
  - {name: small, model: a/m.gguf}
  - {name: tuned, model: a/m.gguf, adapters: {legal: ./legal.gguf, medical: ./medical.gguf}}
"""


async def ask(cluster: testing.Cluster, adapter: str, **limits: object) -> list[RemoteEvent]:
    remote = GrpcRemote(cluster.profile)
    constraints = Constraints(**limits)  # type: ignore[arg-type]
    request = Request(ASKED, adapter=adapter, constraints=constraints)
    try:
        events = remote.answer(request, DeviceReport(), deadline_s=10.0, transfer=Transfer())
        return [event async for event in events]
    finally:
        await remote.close()


async def test_a_request_goes_to_the_lowest_tier_that_has_its_adapter() -> None:
    config = parse_config(TWO, "f.yaml")
    with testing.cluster({"small": Script("a"), "tuned": Script("b")}, config=config) as cluster:
        accepted, chunk, finished = await ask(cluster, "legal")
        assert (accepted, chunk) == (Accepted("tuned", "m.gguf:legal"), Chunk("b", 1))
        assert isinstance(finished, Finished)
        assert (finished.model, finished.reasons) == (
            "m.gguf:legal",
            ("small:adapter", "lowest_allowed_tier"),
        )
        assert cluster.asked("tuned")[0].adapter == "legal"
        assert (await ask(cluster, ""))[0] == Accepted("small", "m.gguf")
        with pytest.raises(RemoteError, match="adapters: tuned: legal, medical") as unknown:
            await ask(cluster, "tax")
        assert unknown.value.status == "INVALID_ARGUMENT"
        with pytest.raises(RemoteError, match="small:adapter, tuned:not_allowed") as nobody:
            await ask(cluster, "legal", allowed_tiers=frozenset({"small"}))
        assert nobody.value.status == "FAILED_PRECONDITION"


async def test_a_name_that_is_none_is_refused_before_it_is_sent() -> None:
    with pytest.raises(InvalidInput, match="adapter: must be 1 to 64"):
        Request(ASKED, adapter="no name").check()


def test_files_are_found_beside_the_configuration_and_missing_ones_named(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(TWO)
    config = load_config(tmp_path / "c.yaml")
    assert config.tiers[1].adapters["legal"] == str(tmp_path / "legal.gguf")
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "m.gguf").write_bytes(b"")
    planned = plan_cluster(config, cores=4)
    names = ("legal", "medical")
    assert tuple(each.name for each in planned.tiers[1].adapters) == names
    lacking = (f"tier tuned: adapter {name}: there is no {tmp_path}/{name}.gguf" for name in names)
    assert planned.problems == tuple(lacking)
    engine = make_engine(config.tiers[1], "m.gguf")
    assert engine.capabilities.options


def test_nobody_has_said_that_an_adapter_may_be_sold() -> None:
    def tier(**more: object) -> bool:
        fields = {"name": "t", "model": MODEL, **more}
        return ClusterConfig.model_validate({"tiers": [fields]}).tiers[0].allows_commercial_use

    assert tier()
    assert not tier(adapters={"legal": "l.gguf"})
    assert tier(adapters={"legal": "l.gguf"}, commercial_use=True)


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        (
            "engine: onnx_classifier, adapters: {a: b}",
            "for llama_cpp, onnx, transformers, vllm, not for onnx_classifier",
        ),
        ("adapters: {a b: c}", "'a b' is no name"),
        (
            "adapters: {a: b.gguf}, most_adapters: 2",
            "no effect on llama_cpp, of which every replica loads all of its adapters",
        ),
        (
            "engine: vllm, vllm: {}, most_adapters: 2",
            r"no effect on vllm, which has vllm\.most_adapters for it; leave it out",
        ),
        ("engine: onnx_classifier, most_adapters: 2", "which takes no adapters; leave it out"),
        (
            "adapters: {a: b@stable}",
            r"of a registry \(a\) are for onnx and transformers; llama_cpp",
        ),
        ("engine: onnx, adapters: {a: b@stable}", r"'b@stable' of a registry, and gateway\.regis"),
    ],
)
def test_what_cannot_be_adapted_is_refused(fields: str, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        parse_config(f"tiers: [{{name: t, model: a/m, {fields}}}]", "f.yaml")
