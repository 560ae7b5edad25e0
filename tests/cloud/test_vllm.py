"""vLLM behind ray.serve.llm: what is configured, sent and read. vLLM itself is not installed here;
the handle is a script."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray import serve
from ray.exceptions import RayActorError, RayTaskError
from ray.serve.exceptions import BackPressureError

from cascade.errors import InvalidInput, RemoteError
from cascade.request import Message
from cascade.sampling import Sampling
from cloud.app import build_app
from cloud.config import TierConfig, parse_config
from cloud.engines import ChatRequest, Done, Piece, Started
from cloud.engines.vllm import RayHandle, VllmEngine, build_backend, chat_body
from cloud.engines.vllm_config import llm_config, request_id
from cloud.errors import ConfigError, ModelUnusable
from cloud.front_door import GatewayFiles
from cloud.plan import plan_cluster

YAML = """
tiers:
  - name: large
    engine: vllm
    model: Qwen/Qwen2.5-7B-Instruct
    context_tokens: 8192
    parallel: 32
    max_queued_requests: 16
    autoscaling: {min_replicas: 0, max_replicas: 3}
    vllm: {SECTION}
"""
SECTION = (
    "{accelerator_type: L4, tensor_parallel: 2, cpus_per_worker: 2, placement: STRICT_PACK, "
    "adapters_url: s3://bucket/adapters, adapter: legal/v2, engine_kwargs: {dtype: bfloat16}}"
)
QUESTION = (Message("user", "Is water wet?"),)


def tier(section: str = "{}") -> TierConfig:
    return parse_config(YAML.replace("{SECTION}", section), "f.yaml").tiers[0]


def test_a_tier_in_the_words_of_ray_serve_llm() -> None:
    config = llm_config(tier(SECTION), name="tier-large", drain_s=5)
    assert config == {
        "model_loading_config": {"model_id": "large", "model_source": "Qwen/Qwen2.5-7B-Instruct"},
        "engine_kwargs": {
            "dtype": "bfloat16",
            "max_model_len": 8192,
            "max_num_seqs": 32,
            "tensor_parallel_size": 2,
            "pipeline_parallel_size": 1,
            "structured_outputs_config": {"backend": "guidance"},
            "enable_lora": True,
            "max_loras": 4,
        },
        "accelerator_type": "L4",
        "placement_group_config": {
            "bundle_per_worker": {"CPU": 2.0, "GPU": 1.0},
            "strategy": "STRICT_PACK",
        },
        "lora_config": {
            "dynamic_lora_loading_path": "s3://bucket/adapters",
            "max_num_adapters_per_replica": 4,
        },
        "deployment_config": {
            "name": "tier-large",
            "autoscaling_config": {
                "min_replicas": 0,
                "max_replicas": 3,
                "target_ongoing_requests": 32,
            },
            "max_ongoing_requests": 32,
            "max_queued_requests": 16,
            "graceful_shutdown_timeout_s": 7,
        },
    }
    assert request_id(tier(SECTION)) == "large:legal/v2"
    assert request_id(tier()) == "large"


@pytest.mark.filterwarnings("ignore:Using extra keyword arguments on .Field.:DeprecationWarning")
def test_ray_takes_the_configuration() -> None:
    """By the class behind ``ray.serve.llm.LLMConfig``, which loads without vLLM and refuses unknown
    keys; the public name does not."""
    from ray.llm._internal.common.placement import PlacementGroupConfig
    from ray.llm._internal.serve.core.configs.llm_config import LLMConfig

    for section in ("{}", SECTION, "{gpus_per_worker: 0, cpus_per_worker: 4}"):
        given: dict[str, Any] = llm_config(tier(section), name="tier-large", drain_s=5)
        config = LLMConfig(**given)
        assert config.model_id == "large"
        assert config.max_request_context_length == 8192
        PlacementGroupConfig(**given["placement_group_config"])
    adapted = LLMConfig(**llm_config(tier(SECTION), name="n", drain_s=5))
    assert adapted.multiplex_config().max_num_models_per_replica == 4
    with pytest.raises(ValueError, match="extra"):
        LLMConfig(**(given | {"acelerator_type": "L4"}))
    unknown = llm_config(tier("{accelerator_type: L5}"), name="n", drain_s=5)
    with pytest.raises(ValueError, match="Unsupported accelerator"):
        LLMConfig(**unknown)


@pytest.mark.parametrize(
    ("section", "problem"),
    [
        ("null", "vllm is missing; write vllm: {} for its defaults"),
        ("{tensor_paralel: 2}", "did you mean tensor_parallel?"),
        ("{adapter: x}", "adapter needs adapters_url"),
        ("{adapters_url: /local}", "must begin with s3://"),
        ("{engine_kwargs: {max_model_len: 1}}", "max_model_len follows from the tier's other keys"),
        ("{gpus_per_worker: 0, accelerator_type: L4}", "accelerator_type needs gpus_per_worker"),
    ],
)
def test_mistakes_are_named(section: str, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem.replace("{", r"\{").replace("?", r"\?")):
        tier(section)


def test_a_section_of_another_engine_is_a_mistake() -> None:
    text = YAML.replace("{SECTION}", "{}").replace("engine: vllm", "engine: llama_cpp")
    with pytest.raises(ConfigError, match="vllm is for the engine vllm"):
        parse_config(text, "f.yaml")


def test_a_hub_name_is_no_path_of_this_machine(tmp_path: Any) -> None:
    from cloud.config import load_config

    path = tmp_path / "cluster.yaml"
    path.write_text(YAML.replace("{SECTION}", "{}"))
    assert load_config(path).tiers[0].model == "Qwen/Qwen2.5-7B-Instruct"
    assert load_config(path).tiers[0].model_name == "Qwen/Qwen2.5-7B-Instruct"


async def test_without_vllm_it_says_what_to_install() -> None:
    line = r"pip install 'edge-cloud-cascade\[cloud,vllm\]'"
    with pytest.raises(ModelUnusable, match=line):
        build_backend(tier(), name="tier-large", drain_s=5)
    with pytest.raises(ModelUnusable, match=line):
        await VllmEngine(tier(), Script()).start()
    (problem,) = plan_cluster(parse_config(YAML.replace("{SECTION}", "{}"), "f.yaml")).problems
    assert problem.startswith("tier large: the engine vllm is not installed")


def test_a_request_in_vllms_words() -> None:
    sampling = Sampling(0.7, top_p=0.9, min_p=0.05, repetition_penalty=1.1, seed=7)
    request = ChatRequest(QUESTION, 50, stop=("\n",), sampling=sampling, score=True)
    assert chat_body(request, "large") == {
        "model": "large",
        "messages": [{"role": "user", "content": "Is water wet?"}],
        "max_completion_tokens": 50,
        "stream": True,
        "stream_options": {"include_usage": True},
        "logprobs": True,
        "top_logprobs": 0,
        "temperature": 0.7,
        "top_p": 0.9,
        "top_k": -1,
        "min_p": 0.05,
        "repetition_penalty": 1.1,
        "stop": ["\n"],
        "seed": 7,
    }


def test_forms_are_asked_for_as_structured_outputs() -> None:
    options = chat_body(ChatRequest(QUESTION, 9, ("yes", "no"), sampling=Sampling(2.0)), "m")
    assert options["structured_outputs"] == {"choice": ["yes", "no"]}
    assert (options["temperature"], options["top_k"], options["min_p"]) == (0, -1, 0)
    assert "seed" not in options
    regex = chat_body(ChatRequest(QUESTION, 9, regex="[a-z]+"), "m")
    assert regex["structured_outputs"] == {"regex": "[a-z]+"}
    schema = chat_body(ChatRequest(QUESTION, 9, json_schema='{"type": "object"}'), "m")
    assert schema["structured_outputs"] == {"json": {"type": "object"}}
    with pytest.raises(InvalidInput, match="json_schema: cannot be kept"):
        chat_body(ChatRequest(QUESTION, 9, json_schema='{"type": "thing"}'), "m")


def test_the_tier_stands_thin_before_the_deployment_that_scales(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    @serve.deployment(name="vllm:tier-large")
    class Backend:
        pass

    asked: list[dict[str, object]] = []

    def backend(tier: TierConfig, **options: object) -> serve.Application:
        asked.append({"tier": tier.name, **options})
        return Backend.bind()

    monkeypatch.setattr("cloud.engines.vllm.build_backend", backend)
    config = parse_config(YAML.replace("{SECTION}", SECTION), "f.yaml")
    files = GatewayFiles(tmp_path, tmp_path, tmp_path, tmp_path)
    bound = build_app(config, files, {})._bound_deployment.init_kwargs["large"]._bound_deployment
    assert asked == [{"tier": "large", "name": "tier-large", "drain_s": 5.0}]
    assert bound.name == "tier-large"
    assert bound.ray_actor_options["num_cpus"] == 0
    assert bound.max_ongoing_requests == 3 * 32
    scaling = bound._deployment_config.autoscaling_config
    assert (scaling.min_replicas, scaling.max_replicas) == (1, 1)
    tier, model_file, handle = bound.init_args
    assert (tier, model_file) == (config.tiers[0], "")
    assert handle._bound_deployment.name == "vllm:tier-large"


class Script:
    """A handle that yields what it was given, as ray.serve.llm's does."""

    def __init__(self, *batches: object, then: Exception | None = None) -> None:
        self.batches = batches
        self.then = then
        self.requests: list[object] = []
        self.cancelled = False
        self.resets = 0

    def chat(self, request: object) -> Script:
        self.requests.append(request)
        return self

    async def reset(self) -> AsyncIterator[object]:
        self.resets += 1
        yield None

    async def __aiter__(self) -> AsyncIterator[object]:
        for batch in self.batches:
            await asyncio.sleep(0)
            yield batch
        if self.then is not None:
            raise self.then

    def cancel(self) -> None:
        self.cancelled = True


def event(
    content: str | None = None,
    *,
    logprobs: tuple[float, ...] = (),
    reason: str | None = None,
) -> str:
    told = [{"token": "t", "logprob": each, "bytes": [116]} for each in logprobs]
    choice = {
        "index": 0,
        "delta": {"role": "assistant"} if content is None else {"content": content},
        "logprobs": {"content": told} if told else None,
        "finish_reason": reason,
    }
    return f"data: {json.dumps({'choices': [choice]})}\n\n"


USAGE = {
    "prompt_tokens": 12,
    "completion_tokens": 3,
    "prompt_tokens_details": {"cached_tokens": 8},
}
LAST = f"data: {json.dumps({'choices': [], 'usage': USAGE})}\n\n"
END = "data: [DONE]\n\n"


def engine_over(script: Script, section: str = "{}") -> VllmEngine:
    return VllmEngine(tier(section), script, make_request=lambda body: body)


async def answered(script: Script, request: ChatRequest) -> list[object]:
    return [each async for batch in engine_over(script).stream(request) for each in batch]


async def test_an_answer_is_read() -> None:
    script = Script(
        [event()],
        [event("Yes", logprobs=(-0.5,)), event(", it is", logprobs=(-1.0, -0.3))],
        [event("", reason="stop"), LAST, END],
    )
    started, first, second, done = await answered(script, ChatRequest(QUESTION, 9, score=True))
    assert (started, first, second) == (Started(None), Piece("Yes", 1), Piece(", it is", 2))
    assert isinstance(done, Done)
    assert (done.reason, done.prompt_tokens, done.completion_tokens) == ("stop", 12, 3)
    assert done.cached_tokens == 8
    assert done.raw_score == pytest.approx(2.718281828 ** (-1.8 / 3))
    assert not script.cancelled


async def test_events_may_come_one_by_one_and_cut_short() -> None:
    script = Script(event() + event("a"), event("b", reason="length") + LAST, END)
    *pieces, done = await answered(script, ChatRequest(QUESTION, 2))
    assert pieces == [Started(None), Piece("a", 1), Piece("b", 1)]
    assert isinstance(done, Done)
    assert (done.reason, done.raw_score) == ("length", None)


async def test_an_adapter_is_asked_for_by_its_name() -> None:
    script = Script([event("a", reason="stop"), LAST, END])
    async for _ in engine_over(script, SECTION).stream(ChatRequest(QUESTION, 2)):
        pass
    assert script.requests[0]["model"] == "large:legal/v2"  # type: ignore[index]


async def test_a_request_names_one_of_the_tiers_adapters() -> None:
    section = "{adapters_url: s3://bucket/adapters}\n    adapters: {tax: tax/v3}"
    script = Script([event("a", reason="stop"), LAST, END])
    engine = engine_over(script, section)
    async for _ in engine.stream(ChatRequest(QUESTION, 2, adapter="tax")):
        pass
    assert script.requests[0]["model"] == "large:tax/v3"  # type: ignore[index]
    with pytest.raises(InvalidInput, match="adapter: this tier has no 'law'; adapters: tax"):
        await anext(engine.stream(ChatRequest(QUESTION, 2, adapter="law")))
    with pytest.raises(ConfigError, match=r"adapters needs vllm\.adapters_url"):
        tier("{}\n    adapters: {tax: tax/v3}")


def test_rays_handle_is_told_the_adapter_and_no_base_model() -> None:
    class Handle:
        chat = property(lambda self: self)

        def options(self, **options: object) -> Handle:
            given.append(options)
            return self

        def remote(self, request: object) -> None: ...

    given: list[dict[str, object]] = []
    handle = RayHandle(Handle())
    handle.chat(SimpleNamespace(model="large:legal/v2"))
    handle.chat(SimpleNamespace(model="large"))
    assert given == [{"stream": True, "multiplexed_model_id": "large:legal/v2"}, {"stream": True}]


async def test_a_half_option_is_a_prompt_without_room() -> None:
    script = Script([event("ye", reason="length"), LAST, END])
    with pytest.raises(InvalidInput, match="prompt: leaves no room"):
        await answered(script, ChatRequest(QUESTION, 9, ("yes", "no")))


def error(code: int, message: str) -> dict[str, object]:
    return {"error": {"message": message, "type": "BadRequestError", "param": None, "code": code}}


@pytest.mark.parametrize(
    ("failure", "request_", "status", "shown"),
    [
        (
            error(400, "This model's maximum context length is 8192 tokens; SECRET"),
            ChatRequest(QUESTION, 9),
            "INVALID_ARGUMENT",
            "prompt: does not fit this tier's 8192 tokens; shorten it",
        ),
        (
            error(400, "Invalid grammar SECRET"),
            ChatRequest(QUESTION, 9, regex="a+"),
            "INVALID_ARGUMENT",
            "regex: cannot be kept by this tier; simplify it",
        ),
        (error(400, "Invalid grammar SECRET"), ChatRequest(QUESTION, 9), "INTERNAL", "failed"),
        (error(404, "no such model SECRET"), ChatRequest(QUESTION, 9), "INTERNAL", "failed"),
        (error(429, "SECRET"), ChatRequest(QUESTION, 9), "RESOURCE_EXHAUSTED", "large is busy"),
        (error(503, "SECRET"), ChatRequest(QUESTION, 9), "UNAVAILABLE", "large lost"),
        (error(500, "SECRET"), ChatRequest(QUESTION, 9), "INTERNAL", "failed"),
    ],
)
async def test_errors_are_mapped_and_never_quoted(
    failure: dict[str, object],
    request_: ChatRequest,
    status: str,
    shown: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Before the first event, as an object; after it, as an event."""
    late = [event("a"), f"data: {json.dumps(failure)}\n\n"]
    for batches in ([failure], [late]):
        with pytest.raises((InvalidInput, RemoteError)) as caught:
            await answered(Script(*batches), request_)
        assert shown in str(caught.value)
        assert "SECRET" not in str(caught.value) + caplog.text
        assert getattr(caught.value, "status", "INVALID_ARGUMENT") == status


@pytest.mark.parametrize(
    ("lost", "status"),
    [
        (BackPressureError(1, 1), "RESOURCE_EXHAUSTED"),
        (RayActorError(), "UNAVAILABLE"),
        (RayTaskError("chat", "a trace", ValueError("SECRET")), "INTERNAL"),
    ],
)
async def test_what_ray_raises_is_mapped(lost: Exception, status: str) -> None:
    with pytest.raises(RemoteError) as caught:
        await answered(Script([event("a")], then=lost), ChatRequest(QUESTION, 9))
    assert caught.value.status == status
    assert "SECRET" not in str(caught.value)


@pytest.mark.parametrize(
    "batches",
    [
        ["data: {half a JSON\n\n"],
        ["data: []\n\n"],
        ['data: {"choices": null}\n\n'],
        [event("a")],
        [],
    ],
)
async def test_what_is_no_answer_is_no_answer(batches: list[str]) -> None:
    script = Script(batches)
    with pytest.raises(RemoteError, match="failed to answer"):
        await answered(script, ChatRequest(QUESTION, 9))


async def test_closing_the_stream_stops_the_replica() -> None:
    script = Script(*([event("a")] for _ in range(100)))
    stream = engine_over(script).stream(ChatRequest(QUESTION, 100))
    await anext(stream)
    await stream.aclose()
    assert script.cancelled


async def test_a_reset_reaches_vllm() -> None:
    script = Script()
    assert await engine_over(script).reset_prefix_cache() == 0
    assert script.resets == 1
