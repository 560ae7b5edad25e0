"""A transformers tier with LoRA adapters: each request gets its own, as PEFT would compute it."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from safetensors.torch import load_file, save_file

from cascade.draft import DraftProposal
from cascade.errors import InvalidInput
from cascade.remote import Verified
from cascade.request import Message
from cascade.signing import SigningKey, TrustStore
from cascade.task import Task
from cloud.config import TierConfig
from cloud.engines import ChatRequest, make_engine
from cloud.engines.draft import Draft
from cloud.engines.transformers import Transformers
from cloud.errors import ModelUnusable
from edge.adapter import LoraPair, write_adapter
from edge.head import Head, HeadSpec
from edge.peft import read_peft
from tests.cloud.test_transformers import Reference, done_of, run, text_of
from tests.edge.build.folders import change_json, load, save_model

QUESTION = (Message("user", "Is it?"),)
CONTEXT = 256
WEIGHTS = "adapter_model.safetensors"
# What the names of a family's linears are, several of them with ranks and scales of their own; the
# second family keeps its matrices the other way round (Conv1D).
TARGETS: dict[str, dict[str, dict[str, Any]]] = {
    "llama": {
        "legal": {"target_modules": ["q_proj", "down_proj"], "r": 4, "lora_alpha": 8},
        "v1.2": {
            "target_modules": "all-linear",
            "r": 2,
            "rank_pattern": {"k_proj": 6},
            "alpha_pattern": {"up_proj": 5.0},
            "use_rslora": True,
        },
        "tax": {"target_modules": r".*\.1\..*v_proj", "r": 8, "lora_dropout": 0.5},
    },
    "gpt2": {
        "legal": {"target_modules": ["c_attn"], "fan_in_fan_out": True, "r": 4},
        "v1.2": {"target_modules": ["c_fc", "c_proj"], "fan_in_fan_out": True, "r": 2},
        "tax": {"target_modules": ["c_attn", "c_fc"], "fan_in_fan_out": True, "r": 1},
    },
}


def save_peft(model: Path, where: Path, seed: int, **options: Any) -> Path:
    """An adapter of random weights, strong enough to change every answer, as PEFT saves it."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        adapted = peft.get_peft_model(load(model), peft.LoraConfig(**options))
        for name, values in adapted.named_parameters():
            if "lora_" in name:
                values.data.normal_(std=0.3)
    adapted.save_pretrained(str(where))
    return where


@pytest.fixture(scope="module", params=TARGETS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = tmp_path_factory.mktemp(request.param) / request.param

    heads = {} if request.param == "gpt2" else {"num_key_value_heads": 2}
    save_model(path, request.param, max_position_embeddings=CONTEXT, **heads)
    return path


@pytest.fixture(scope="module")
def adapters(folder: Path) -> dict[str, Path]:
    return {
        name: save_peft(folder, folder.parent / f"adapter-{seed}", seed, **options)
        for seed, (name, options) in enumerate(TARGETS[folder.name].items())
    }


@pytest.fixture(scope="module")
def engine(folder: Path, adapters: dict[str, Path]) -> Iterator[Transformers]:
    engine = Transformers(folder, context_tokens=CONTEXT, adapters=adapters, most_adapters=2)
    asyncio.run(engine.start())
    yield engine
    asyncio.run(engine.close())


@pytest.fixture(scope="module")
def merged(folder: Path, adapters: dict[str, Path]) -> dict[str, Reference]:
    """By adapter: the base with the adapter in its weights, by PEFT alone; and the base."""
    references = {"": Reference(folder)}
    for name, path in adapters.items():
        reference = Reference(folder)
        adapted = peft.PeftModel.from_pretrained(reference.model, str(path))
        reference.model = adapted.merge_and_unload()
        references[name] = reference
    return references


def asked(adapter: str, tokens: int = 30, **more: Any) -> ChatRequest:
    return ChatRequest(QUESTION, tokens, adapter=adapter, **more)


async def text(engine: Transformers, adapter: str, tokens: int = 30) -> str:
    return text_of(await run(engine, asked(adapter, tokens)))


async def test_an_adapters_answer_is_that_of_its_merged_weights(
    engine: Transformers, merged: dict[str, Reference]
) -> None:
    expected = {name: one.text(one.greedy(30)) for name, one in merged.items()}
    assert len(set(expected.values())) == 4
    for name in ("legal", "", "v1.2", "tax", "legal", ""):
        assert await text(engine, name) == expected[name]


async def test_adapters_that_come_later_are_as_good_as_those_of_the_start(
    folder: Path, adapters: dict[str, Path], merged: dict[str, Reference], tmp_path: Path
) -> None:
    expected = {name: one.text(one.greedy(30)) for name, one in merged.items()}
    for begun in ({}, {"legal": adapters["legal"]}):
        engine = Transformers(folder, context_tokens=CONTEXT, adapters=begun, most_adapters=1)
        await engine.start()
        under_way = asyncio.create_task(text(engine, ""))
        await engine.add_adapter("v1.2", adapters["v1.2"])
        assert await under_way == expected[""]
        spoilt = tmp_path / f"spoilt-{len(begun)}"
        shutil.copytree(adapters["tax"], spoilt)
        tensors = load_file(spoilt / WEIGHTS)
        save_file(dict(list(tensors.items())[1:]), spoilt / WEIGHTS)
        with pytest.raises(ModelUnusable):
            await engine.add_adapter("spoilt", spoilt)
        with pytest.raises(InvalidInput, match="no 'spoilt'"):
            await text(engine, "spoilt")
        await engine.add_adapter("tax", adapters["tax"])
        for name in ("v1.2", "", "tax", *begun, "v1.2"):
            assert await text(engine, name) == expected[name]
        await engine.close()


async def test_logits_are_those_of_the_merged_weights_and_without_one_the_bases(
    engine: Transformers, merged: dict[str, Reference], folder: Path
) -> None:
    ids = [1, 77, 30, 259, 4, 200, 131]

    def logits(engine: Transformers) -> np.ndarray:
        decoder = engine._model._decoder  # type: ignore[union-attr]
        decoder.forget()
        return decoder.read(ids)

    plain = Transformers(folder, context_tokens=CONTEXT)
    await plain.start()
    bare = logits(plain)
    await plain.close()
    for name in ("v1.2", "", "tax", "legal", ""):
        await run(engine, asked(name, 1))
        expected = merged[name].logits(ids)[-1]
        np.testing.assert_allclose(logits(engine), expected, rtol=0, atol=1e-3)
        assert name or np.array_equal(logits(engine), bare)  # to the last bit


async def test_requests_at_one_time_never_mix(engine: Transformers) -> None:
    names = ("legal", "", "tax", "v1.2")
    alone = {name: await text(engine, name) for name in names}
    options = tuple(f"{letter}b" for letter in "abcdef")
    chosen = {name: done_of(await run(engine, asked(name, 1, options=options))) for name in names}
    mixed = [name for turn in range(4) for name in (*names[turn:], *names[:turn])]
    kinds = [place % 3 for place in range(len(mixed))]

    async def one(name: str, kind: int) -> object:
        if kind == 0:
            return await text(engine, name)
        if kind == 1:
            return done_of(await run(engine, asked(name, 1, options=options)))
        return (await engine.score_draft(QUESTION, Draft(alone[name]), name)).text

    together = await asyncio.gather(*map(one, mixed, kinds))
    for name, kind, answer in zip(mixed, kinds, together, strict=True):
        if kind == 2:
            assert isinstance(answer, str)
            assert alone[name].startswith(answer)
        else:
            assert answer == (alone[name] if kind == 0 else chosen[name])


async def test_one_that_is_cancelled_leaves_the_next_ones_alone(engine: Transformers) -> None:
    alone = {name: await text(engine, name, 100) for name in ("legal", "tax", "")}
    for name, following in (("legal", "tax"), ("tax", ""), ("", "legal")):
        stream = engine.stream(asked(name, 100))
        await anext(stream)  # it has begun
        later = asyncio.create_task(text(engine, following, 100))
        await stream.aclose()
        assert await later == alone[following]


async def test_a_draft_is_scored_by_the_adapter_that_is_named(
    engine: Transformers, merged: dict[str, Reference]
) -> None:
    for name, reference in merged.items():
        greedy = tuple(reference.greedy(12))
        kept = {
            other: (await engine.score_draft(QUESTION, Draft(greedy), other)).kept
            for other in merged
        }
        assert kept[name] == len(greedy)
        assert all(kept[other] < len(greedy) for other in merged if other != name)
    with pytest.raises(InvalidInput, match=r"no 'no'; adapters: legal, v1\.2, tax"):
        await engine.score_draft(QUESTION, Draft("a"), "no")


async def test_a_devices_draft_is_verified_by_the_adapter_of_its_request(
    engine: Transformers, merged: dict[str, Reference], folder: Path
) -> None:
    greedy = tuple(merged["legal"].greedy(12))
    lengths = tuple(len(merged["legal"].text([token]).encode()) for token in greedy)
    proposal = DraftProposal(
        text=merged["legal"].text(list(greedy)),
        tokens=greedy,
        lengths=lengths,
        tokenizer_digest=next(iter(engine._model._tokenizer_digests)),  # type: ignore[union-attr]
        complete=True,
    )
    for name, whole in (("legal", True), ("tax", False), ("", False)):
        plain = await run(engine, asked(name))
        drafted = await run(engine, replace(asked(name), draft=proposal))
        assert text_of(drafted) == text_of(plain)
        (verified,) = [event for event in drafted if isinstance(event, Verified)]
        assert (verified.kept == len(greedy)) is whole


async def test_those_that_were_used_last_are_in_memory(engine: Transformers) -> None:
    loaded = engine._adapters
    assert loaded is not None
    await text(engine, "v1.2", 2)
    await text(engine, "tax", 2)
    held = []
    for name in ("legal", "", "tax", "legal", "v1.2", "tax"):
        await text(engine, name, 2)
        held.append(loaded.resident)
    assert held == [
        ("tax", "legal"),
        ("tax", "legal"),
        ("legal", "tax"),
        ("tax", "legal"),
        ("legal", "v1.2"),
        ("v1.2", "tax"),
    ]
    # What PEFT holds is as many: the others' matrices are freed.
    kept = {
        name.rpartition(".lora_A.")[2]
        for name, _ in loaded._model.named_parameters()
        if ".lora_A." in name
    }
    assert kept == {"adapter1.weight", "adapter2.weight"}


async def test_one_at_a_time_is_enough(folder: Path, adapters: dict[str, Path]) -> None:
    roomy = Transformers(folder, context_tokens=CONTEXT, adapters=adapters)
    tight = Transformers(folder, context_tokens=CONTEXT, adapters=adapters, most_adapters=1)
    await roomy.start()
    await tight.start()
    for name in ("tax", "legal", "", "legal", "tax"):
        assert await text(tight, name) == await text(roomy, name)
    await roomy.close()
    await tight.close()


async def test_an_unknown_adapter_is_refused_with_those_there_are(engine: Transformers) -> None:
    with pytest.raises(InvalidInput, match=r"no 'no'; adapters: legal, v1\.2, tax"):
        await run(engine, asked("no"))


async def test_a_file_that_is_damaged_later_fails_its_own_requests_alone(
    folder: Path, adapters: dict[str, Path], tmp_path: Path
) -> None:
    copied = {
        name: Path(shutil.copytree(path, tmp_path / str(place)))
        for place, (name, path) in enumerate(adapters.items())
    }
    engine = Transformers(folder, context_tokens=CONTEXT, adapters=copied, most_adapters=1)
    await engine.start()
    tax, base = await text(engine, "tax"), await text(engine, "")
    (copied["legal"] / WEIGHTS).write_bytes(b"half")
    for _ in range(2):
        with pytest.raises(ModelUnusable, match="adapter legal"):
            await text(engine, "legal")
        assert (await text(engine, "tax"), await text(engine, "")) == (tax, base)
    await engine.close()


def nan(path: Path) -> None:
    tensors = load_file(path / WEIGHTS)
    next(iter(tensors.values()))[0, 0] = torch.nan
    save_file(tensors, path / WEIGHTS)


def without(half: str) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        tensors = load_file(path / WEIGHTS)
        first = min(name for name in tensors if half in name)
        module = first.partition(".lora_")[0]
        gone = [name for name in tensors if name.startswith(f"{module}.{half}")]
        save_file({name: t for name, t in tensors.items() if name not in gone}, path / WEIGHTS)

    return change


def narrow(path: Path) -> None:
    tensors = load_file(path / WEIGHTS)
    cut = {name: (t[:, :-1] if "lora_A" in name else t).contiguous() for name, t in tensors.items()}
    save_file(cut, path / WEIGHTS)


def renamed(path: Path) -> None:
    tensors = load_file(path / WEIGHTS)
    save_file({name.replace(".1.", ".7."): t for name, t in tensors.items()}, path / WEIGHTS)


def config(**fields: object) -> Callable[[Path], None]:
    return lambda path: change_json(path / "adapter_config.json", **fields)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (nan, "holds NaN or infinite"),
        (without("lora_B"), "has only one of lora_A and lora_B"),
        (without("lora_"), r"lacks .*lora_A\.weight"),
        (narrow, "is for another model: .* needs A"),
        (renamed, r"is for another model, with a linear '.*\.?7\."),
        (config(use_dora=True), "use_dora is True; only plain LoRA"),
        (config(bias="all"), "bias is 'all'; only plain LoRA"),
        (config(peft_type="IA3"), "peft_type is IA3, not LORA"),
        (config(r=3), "is for another model"),
        (config(target_modules=["nothing"]), "is for another model: .*nothing"),
        (lambda path: (path / WEIGHTS).unlink(), f"{WEIGHTS} is missing"),
        (lambda path: (path / WEIGHTS).write_bytes(b"half"), "adapter odd"),
        (lambda path: (path / "adapter_config.json").write_text("{"), "is not JSON"),
        (shutil.rmtree, "no PEFT adapter"),
    ],
)
async def test_what_cannot_be_applied_stops_the_start_and_is_named(
    folder: Path,
    adapters: dict[str, Path],
    tmp_path: Path,
    change: Callable[[Path], None],
    problem: str,
) -> None:
    odd = Path(shutil.copytree(adapters["legal"], tmp_path / "odd"))
    change(odd)
    both = {"tax": adapters["tax"], "odd": odd}
    engine = Transformers(folder, context_tokens=CONTEXT, adapters=both)
    with pytest.raises(ModelUnusable, match=f"adapter odd: .*{problem}|^{problem}"):
        await engine.start()


@pytest.fixture
def publisher(tmp_path: Path) -> tuple[SigningKey, TrustStore]:
    key, trust = SigningKey.generate(), TrustStore(tmp_path / "trust")
    trust.pin("teacher", key.public)
    return key, trust


async def test_a_devices_signed_adapter_answers_as_the_one_that_it_was_made_of(
    folder: Path,
    adapters: dict[str, Path],
    merged: dict[str, Reference],
    publisher: tuple[SigningKey, TrustStore],
    tmp_path: Path,
) -> None:
    key, trust = publisher
    signed = {
        name: write_adapter(
            tmp_path / f"signed{place}",
            read_peft(path),
            name=name,
            base_digest="0" * 64,
            signing_key=key,
        )
        for place, (name, path) in enumerate(adapters.items())
    }
    engine = Transformers(folder, context_tokens=CONTEXT, adapters=signed, trust=trust)
    await engine.start()
    for name, reference in merged.items():
        assert await text(engine, name) == reference.text(reference.greedy(30))
    await engine.close()
    stranger = TrustStore(tmp_path / "nobody")
    engine = Transformers(folder, context_tokens=CONTEXT, adapters=signed, trust=stranger)
    with pytest.raises(ModelUnusable, match=r"adapter legal: .*unknown publisher"):
        await engine.start()


async def test_a_signed_adapter_of_another_model_or_altered_or_with_a_head_is_refused(
    folder: Path,
    adapters: dict[str, Path],
    publisher: tuple[SigningKey, TrustStore],
    tmp_path: Path,
) -> None:
    key, trust = publisher
    pairs = read_peft(adapters["legal"])
    first = min(pairs)

    async def refusal(pairs: dict[str, LoraPair], *, alter: bool = False, **more: Any) -> str:
        path = write_adapter(
            tmp_path / "odd", pairs, name="odd", base_digest="0" * 64, signing_key=key, **more
        )
        if alter:
            weights = path / "adapter.safetensors"
            weights.write_bytes(weights.read_bytes()[:-1] + b"x")
        engine = Transformers(folder, context_tokens=CONTEXT, adapters={"odd": path}, trust=trust)
        with pytest.raises(ModelUnusable) as problem:
            await engine.start()
        return str(problem.value)

    wide = LoraPair(np.vstack([pairs[first].a, pairs[first].a]), pairs[first].b)
    assert "is for another model" in await refusal(pairs | {first: wide})
    assert "with a linear 'layers.9.q_proj'" in await refusal({"layers.9.q_proj": pairs[first]})
    broken = LoraPair(pairs[first].a * np.nan, pairs[first].b)
    assert "NaN" in await refusal(pairs | {first: broken})
    assert "altered after signing" in await refusal(pairs, alter=True)
    task = Task("mood", ("good", "bad"), "{input}: ", " ", "{input}")
    width = np.zeros(128, np.float32)
    head = Head(HeadSpec(task, 1), np.zeros((2, 128), np.float32), width[:2], width, width + 1)
    assert "serve it with the engine onnx" in await refusal(pairs, head=head)


async def test_a_tier_of_the_configuration_has_them(
    folder: Path, adapters: dict[str, Path], merged: dict[str, Reference]
) -> None:
    tier = TierConfig(
        name="tuned",
        engine="transformers",
        model=str(folder),
        context_tokens=256,
        adapters=adapters,
        most_adapters=1,
    )
    engine = make_engine(tier, tier.model)
    await engine.start()
    assert isinstance(engine, Transformers)
    expected = merged["tax"]
    assert await text(engine, "tax") == expected.text(expected.greedy(30))
    await engine.close()
