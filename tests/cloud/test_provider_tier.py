"""A provider's tier as devices meet it: through the gateway, its ladder, its quotas and its audit.

What the engine makes of a provider's words is said in ``test_providers`` and
``test_openai_server``; here a device asks, and the audit tells afterwards what has left for whom.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest
import xllamacpp

from cascade import testing
from cascade.confidence import ConfidenceModel, Platt
from cascade.errors import RemoteError
from cascade.ladder import Ladder, LadderPolicy
from cascade.records import TierInfo
from cascade.remote import Chunk, DeviceReport, Finished, RemoteEvent, Transfer
from cascade.request import Constraints, Message, Request
from cascade.task import generic
from cascade.testing import Script, TinyBundle
from cascade.wire import GrpcRemote
from cloud.config import ClusterConfig
from cloud.engines import make_engine
from edge import Device
from tests.cloud.provider_server import KEY, ProviderServer, serving

MODEL = "qwen2.5-coder-0.5b-instruct-q4_k_m"
MOODS = ("positive", "negative")
QUESTION = "I hate this awful film."
PRICE = {"input_usd_per_million_tokens": 1000.0, "output_usd_per_million_tokens": 2000.0}


@pytest.fixture(scope="module")
def llama(model_path: Callable[[str], Path]) -> Iterator[str]:
    """llama.cpp's own OpenAI-compatible server."""
    params = xllamacpp.CommonParams()
    params.model.path = str(model_path(MODEL))
    params.n_ctx, params.n_parallel = 512, 1
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    params.fit_params, params.verbosity, params.ui = False, -1, False
    params.hostnames, params.port, params.api_keys = ["127.0.0.1"], 0, [KEY]
    server = xllamacpp.Server(params)
    yield f"{server.listening_address}/v1"
    del server


@pytest.fixture(scope="module")
def faults() -> Iterator[ProviderServer]:
    """A server that breaks in the ways that providers do; the model's name says in which."""
    with serving() as running:
        yield running


def ladder(*names: str, model: str = "m") -> LadderPolicy:
    """A ladder that climbs below a score of 0.8; ``model`` is the provider's."""
    same = ConfidenceModel(Platt(1.0, 0.0))
    return LadderPolicy(
        task_id="mood",
        tiers=tuple(TierInfo(name, model if name == "theirs" else "m", "cloud") for name in names),
        objective="",
        ladder=Ladder(names, "climb", (0.8,) * (len(names) - 1)),
        confidence=dict.fromkeys(names, same),
        certificate=None,
        wording=generic(MOODS),
    )


@contextmanager
def cluster(
    folder: Path,
    url: str,
    *,
    model: str = "m",
    engine: str = "openai",
    order: tuple[str, ...] = ("own", "theirs"),
    ladders: tuple[LadderPolicy, ...] = (),
    quota: int | None = None,
    **provider: object,
) -> Iterator[testing.Cluster]:
    """An open model and a provider's; the audit is ``audit.jsonl`` in ``folder``."""
    (folder / "key").write_text(KEY)
    given = {"base_url": url, "api_key_file": folder / "key", **provider}
    described = {
        "own": {"name": "own", "model": "m"},
        "theirs": {
            "name": "theirs",
            "engine": engine,
            "model": model,
            "provider": given,
            "price": PRICE,
        },
    }
    config = ClusterConfig.model_validate(
        {
            "gateway": {
                "audit": {"file": folder / "audit.jsonl", "required": True},
                "quotas": {"default": {"tokens_per_day": quota}},
            },
            "tiers": [described[name] for name in order],
        }
    )
    theirs = next(tier for tier in config.tiers if tier.name == "theirs")
    behind = {"own": Script("positive", score=0.5), "theirs": make_engine(theirs, "")}
    tiers = {name: behind[name] for name in order}
    with testing.cluster(tiers, config=config, ladders=ladders) as running:
        yield running


def ask(
    running: testing.Cluster, *tiers: str, task: str = "", within_s: float = 30.0
) -> tuple[str, Finished]:
    async def once() -> list[RemoteEvent]:
        remote = GrpcRemote(running.profile)
        limits = Constraints(allowed_tiers=frozenset(tiers) or None, max_remote_calls=2)
        request = Request((Message("user", QUESTION),), MOODS, task_id=task, constraints=limits)
        try:
            events = remote.answer(
                request, DeviceReport(), deadline_s=within_s, transfer=Transfer()
            )
            return [event async for event in events]
        finally:
            await remote.close()

    events = asyncio.run(once())
    finished = events[-1]
    assert isinstance(finished, Finished)
    return "".join(event.text for event in events if isinstance(event, Chunk)), finished


def audit(folder: Path) -> list[Mapping[str, object]]:
    return [json.loads(line) for line in (folder / "audit.jsonl").read_text().splitlines()]


@pytest.mark.models
def test_a_devices_request_climbs_to_a_provider_and_the_audit_says_who_why_what_and_no_text(
    llama: str, tiny: TinyBundle, tmp_path: Path
) -> None:
    rungs = ladder("own", "theirs")
    with cluster(tmp_path, llama, ladders=(rungs,)) as running:
        with Device.open(tiny.path, trust=tiny.trust, cloud=running.profile) as device:
            answer = device.choose(QUESTION, MOODS, task="mood", prefer="cloud")
        assert (answer.source, answer.verified) == ("theirs", True)
        assert answer.reasons == ("cloud_preferred", "own:unsure", "theirs:last")
        assert answer.text in MOODS
        (asked,) = running.asked("theirs")
        record = running.records[-1]
    sent, ended = audit(tmp_path)
    for entry in (sent, ended):
        assert (entry["request_id"], entry["caller"], entry["auth"]) == (
            record.request_id,
            "testing",
            "api_key",
        )
        assert (entry["task_id"], entry["tier"], entry["host"]) == ("mood", "theirs", "127.0.0.1")
        assert entry["reasons"] == ["lowest_tier", "own:not_enough"]
        assert entry["bytes_up"] == sum(
            len(text.encode()) for text in (*(turn.content for turn in asked.messages), *MOODS)
        )
        told = json.dumps(entry)
        assert not any(text in told for text in (QUESTION, *MOODS, KEY))
    assert (sent["event"], ended["event"], ended["status"]) == ("sent", "ended", "OK")
    assert ended["bytes_down"] == len(answer.text)
    # Their count of tokens, at the tier's prices; the open model below cost nothing.
    read, written = int(str(ended["prompt_tokens"])), int(str(ended["completion_tokens"]))
    assert read > 10
    assert written > 1
    assert ended["cost_usd"] == pytest.approx((1000 * read + 2000 * written) / 1e6)
    assert answer.cost_usd == pytest.approx(ended["cost_usd"])


# What the provider does, and what the device is told: its status and a text that is ours.
FAULTS = {
    "html": "UNAVAILABLE",
    "html502": "UNAVAILABLE",
    "half": "UNAVAILABLE",
    "inside": "UNAVAILABLE",
    "cut": "UNAVAILABLE",
    "broken": "UNAVAILABLE",
    "unknown": "UNAVAILABLE",
    "poor": "UNAVAILABLE",
    "busy": "RESOURCE_EXHAUSTED",
    "wrong": "INTERNAL",
    "strict": "INTERNAL",
}
# Refused before there was anything to pay for.
BEFORE = ("html502", "broken", "unknown", "poor", "busy", "strict")
OURS = (
    "the provider behind this tier does not answer now",
    "the provider behind this tier is busy",
    "the model failed to answer; the operator's log says why",
)


@pytest.mark.parametrize("engine", ["openai", "anthropic"])
def test_whatever_a_provider_sends_the_device_gets_a_status_and_none_of_it(
    faults: ProviderServer, tmp_path: Path, engine: str
) -> None:
    url = f"{faults.url}/v1" if engine == "openai" else faults.url
    # An error inside of Anthropic's stream says by its type what is wrong: busy.
    expected = FAULTS | ({"inside": "RESOURCE_EXHAUSTED"} if engine == "anthropic" else {})
    found = {}
    for fault in expected:
        folder = tmp_path / fault
        folder.mkdir()
        with cluster(folder, url, model=fault, engine=engine) as running:
            with pytest.raises(RemoteError) as refusal:
                ask(running, "theirs")
            # Nothing is held: the next one is answered.
            assert ask(running, "own")[1].tier == "own"
        assert refusal.value.message in OURS
        found[fault] = refusal.value.status
        sent, ended = audit(folder)[::2], audit(folder)[1::2]
        assert [entry["call"] for entry in sent] == [entry["call"] for entry in ended]
        assert {entry["status"] for entry in ended} == {refusal.value.status}
        if fault in BEFORE:
            # Asked once more is what is unavailable; paid is nothing.
            assert len(sent) == (2 if refusal.value.status == "UNAVAILABLE" else 1)
            assert all(entry["cost_usd"] == 0 for entry in ended)
        if fault == "busy":
            assert refusal.value.retry_after_s == 7.0
    assert found == expected


def test_what_a_provider_refuses_takes_nothing_of_a_quota(
    faults: ProviderServer, tmp_path: Path
) -> None:
    with cluster(tmp_path, f"{faults.url}/v1", model="busy", quota=200) as running:
        for _ in range(5):  # each of them sets about 80 tokens aside
            with pytest.raises(RemoteError, match="the provider behind this tier is busy"):
                ask(running, "theirs")


@pytest.mark.parametrize("fault", sorted(FAULTS))
def test_a_ladder_goes_on_where_a_provider_fails(
    faults: ProviderServer, tmp_path: Path, fault: str
) -> None:
    """Below: the next rung is asked. Above: the answer at hand is given."""
    word = FAULTS[fault].lower()
    for order in (("theirs", "own"), ("own", "theirs")):
        folder = tmp_path / order[0]
        folder.mkdir()
        rungs = ladder(*order, model=fault)
        with cluster(
            folder, f"{faults.url}/v1", model=fault, order=order, ladders=(rungs,)
        ) as running:
            answer, finished = ask(running, task="mood")
        assert (answer, finished.tier) == ("positive", "own")
        assert f"theirs:{word}" in finished.reasons
        assert ("own:best_there_is" in finished.reasons) == (order[0] == "own")
        assert audit(folder)[-1]["status"] == FAULTS[fault]


def test_a_provider_that_hangs_is_left_at_the_deadline_and_told_so(
    faults: ProviderServer, tmp_path: Path
) -> None:
    before = faults.left.count("slow")
    with cluster(tmp_path, f"{faults.url}/v1", model="slow") as running:
        with pytest.raises(RemoteError) as refusal:
            ask(running, "theirs", within_s=1.0)
        assert refusal.value.status == "DEADLINE_EXCEEDED"
        assert ask(running, "own")[1].tier == "own"
    sent, ended = audit(tmp_path)
    assert (sent["event"], ended["status"]) == ("sent", "CANCELLED")
    # Sent it was, and may be charged: an upper bound, and not nothing.
    assert float(str(ended["cost_usd"])) > 0
    assert faults.left.count("slow") == before + 1
