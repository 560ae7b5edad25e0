"""What a gateway counts and which spans it makes, of requests that came over real gRPC."""

from __future__ import annotations

import asyncio
import datetime
import json
import socket
import urllib.error
import urllib.request
from collections.abc import AsyncGenerator, Iterator
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from cascade import testing
from cascade.draft import DraftProposal
from cascade.errors import ClusterError, RemoteError
from cascade.policy import PolicyStore
from cascade.remote import DeviceReport, Transfer, whole_answer
from cascade.request import Constraints, Message, Request
from cascade.signing import SigningKey, TrustStore
from cascade.testing import Cluster, Fault, Script, TinyBundle
from cascade.wire import GrpcRemote, OpenRequest
from cloud.config import (
    METRIC_PORTS,
    ClusterConfig,
    GatewayConfig,
    Hedge,
    MetricsConfig,
    PriceList,
    TierConfig,
)
from cloud.engines import ChatRequest, Done, Piece, Started, Verified
from cloud.errors import TierUnavailable
from cloud.figures import Figures, Recent, together
from cloud.metrics import CLUSTER_METRICS, POLICY_RISK, Exposition, Meters
from cloud.observer import Observer
from cloud.policy_state import PolicyState, policy_state
from cloud.registry import Needs, Registry
from cloud.routing import Router
from cloud.tier import TierMessage
from edge import Device
from tests.cascade.scripted import policy
from tests.ports import free_port

MOODS = ("good", "bad")
PARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
PRICE = PriceList(input_usd_per_million_tokens=1e6, output_usd_per_million_tokens=2e6)
CONFIG = ClusterConfig(
    gateway=GatewayConfig(metrics=MetricsConfig(tasks=("mood",))),
    tiers=(TierConfig(name="tier1", model="scripted", price=PRICE),),
)
Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def read(text: str) -> Samples:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def labels(**values: str) -> tuple[tuple[str, str], ...]:
    return tuple(sorted(values.items()))


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    with testing.cluster({"tier1": Script("very bad")}, config=CONFIG) as cluster:
        yield cluster


async def ask(cluster: Cluster, task: str = "mood", **report: float) -> None:
    remote = GrpcRemote(cluster.profile)
    request = Request((Message("user", "What a day."),), task_id=task)
    try:
        await whole_answer(
            remote.answer(request, DeviceReport(**report), deadline_s=30, transfer=Transfer())  # type: ignore[arg-type]
        )
    finally:
        await remote.close()


async def test_an_answer_is_counted_in_the_gateway_and_in_its_tier(cluster: Cluster) -> None:
    await ask(cluster, confidence=0.33)
    samples = read(cluster.metrics)
    assert samples["cascade_gateway_requests_total", labels(code="OK", task="mood")] == 1
    assert samples["cascade_gateway_request_seconds_count", labels(code="OK")] == 1
    assert samples["cascade_gateway_requests_under_way", ()] == 0
    judged = labels(task="mood", judged="certified")
    assert samples["cascade_gateway_escalations_total", judged] == 1
    name = "cascade_gateway_device_confidence_ratio_bucket"
    assert samples[name, labels(task="mood", le="0.3")] == 0
    assert samples[name, labels(task="mood", le="0.35")] == 1
    tier = labels(tier="tier1")
    assert samples["cascade_tier_calls_total", labels(tier="tier1", code="OK")] == 1
    assert samples["cascade_tier_first_token_seconds_count", tier] == 1
    assert samples["cascade_tier_answer_seconds_count", tier] == 1
    assert samples["cascade_tier_prompt_tokens_total", tier] == 3
    assert samples["cascade_tier_completion_tokens_total", tier] == 2
    assert samples["cascade_tier_cost_usd_total", tier] == 3 * 1 + 2 * 2
    assert samples["cascade_tier_calls_waiting", tier] == 0
    assert samples["cascade_tier_calls_answering", tier] == 0


async def test_the_share_of_escalations_can_be_told(cluster: Cluster) -> None:
    await ask(cluster, confidence=0.33, kept=3)
    await ask(cluster, confidence=0.33)
    samples = read(cluster.metrics)
    escalated = samples[
        "cascade_gateway_escalations_total", labels(task="mood", judged="certified")
    ]
    kept = samples["cascade_gateway_kept_total", labels(task="mood")]
    assert (kept, escalated / (kept + escalated)) == (3, 0.4)


async def test_a_task_that_is_not_listed_has_no_series(cluster: Cluster) -> None:
    await ask(cluster, task="somebody-elses")
    await ask(cluster, task="")
    text = cluster.metrics
    assert "somebody-elses" not in text
    samples = read(text)
    judged = "cascade_gateway_escalations_total"
    assert samples[judged, labels(task="other", judged="untried")] == 1
    assert samples[judged, labels(task="none", judged="untried")] == 1


@pytest.mark.parametrize(
    ("fault", "code"),
    [(Fault("UNAVAILABLE"), "UNAVAILABLE"), (Fault("INTERNAL", after=1), "INTERNAL")],
)
async def test_a_failure_is_counted_by_its_code(cluster: Cluster, fault: Fault, code: str) -> None:
    cluster.play("tier1", Script("a b", fault=fault))
    with pytest.raises(RemoteError):
        await ask(cluster, raw_score=0.5)
    samples = read(cluster.metrics)
    assert samples["cascade_tier_calls_total", labels(tier="tier1", code=code)] >= 1
    assert samples["cascade_gateway_requests_total", labels(code=code, task="mood")] >= 1
    judged = labels(task="mood", judged="uncertified")
    assert samples["cascade_gateway_escalations_total", judged] >= 1
    for state in ("waiting", "answering"):
        assert samples[f"cascade_tier_calls_{state}", labels(tier="tier1")] == 0


async def answer(request: ChatRequest) -> AsyncGenerator[TierMessage]:
    yield [Started(7)]
    yield [Piece("yes", 1)]
    yield [Done("stop", 7, 3, 2)]


async def silent(request: ChatRequest) -> AsyncGenerator[TierMessage]:
    await asyncio.sleep(60)
    yield []


async def test_a_call_that_waits_is_told_from_one_that_is_answered() -> None:
    observer = Observer(CONFIG)
    streams = observer.tiers({"tier1": silent})
    request = ChatRequest((Message("user", "hello"),), 10)
    waiting = asyncio.ensure_future(anext(streams["tier1"](request)))
    await asyncio.sleep(0)
    assert observer.figures()["tier1"].waiting == 1
    waiting.cancel()
    await asyncio.wait({waiting})
    figures = observer.figures()["tier1"]
    assert (figures.waiting, figures.calls, figures.failed) == (0, 1, 0)
    samples = read(generate_latest(observer.meters.registry).decode())
    assert samples["cascade_tier_calls_total", labels(tier="tier1", code="CANCELLED")] == 1

    messages = observer.tiers({"tier1": answer})["tier1"](request)
    await anext(messages)
    assert observer.figures()["tier1"].answering == 1
    assert [message async for message in messages][-1] == [Done("stop", 7, 3, 2)]
    observer.serving({"tier1": 2}, {"tier1": True})
    figures = observer.figures()["tier1"]
    assert (figures.replicas, figures.answering, figures.completion_tokens) == (2, 0, 3)
    assert figures.cost_today_usd == 7 + 2 * 3
    samples = read(generate_latest(observer.meters.registry).decode())
    assert samples["cascade_tier_cached_prompt_tokens_total", labels(tier="tier1")] == 2
    assert samples["cascade_tier_replicas", labels(tier="tier1")] == 2
    assert samples["cascade_tier_up", labels(tier="tier1")] == 1


@pytest.mark.parametrize(
    ("kept", "outcome", "sent"),
    [(3, "all", 3), (1, "some", 3), (0, "none", 3), (None, "unjudged", 0)],
)
async def test_a_draft_is_counted_by_what_became_of_it(
    kept: int | None, outcome: str, sent: int
) -> None:
    async def scorer(request: ChatRequest) -> AsyncGenerator[TierMessage]:
        yield [Started(7)]
        if kept is None:
            raise TierUnavailable("tier1")
        yield [Verified(kept), Piece("yes", 1)]
        yield [Done("stop", 7, 3, 2)]

    observer = Observer(CONFIG)
    draft = DraftProposal((1, 2, 3), (1, 1, 1), "abc", complete=True)
    stream = observer.tiers({"tier1": scorer})["tier1"]
    for proposed in (draft, None):
        request = ChatRequest((Message("user", "hello"),), 10, draft=proposed)
        with suppress(TierUnavailable):
            async for _ in stream(request):
                pass
    samples = read(generate_latest(observer.meters.registry).decode())
    drafts = {key: value for key, value in samples.items() if key[0] == "cascade_tier_drafts_total"}
    tier = labels(tier="tier1")
    assert drafts == {("cascade_tier_drafts_total", labels(tier="tier1", outcome=outcome)): 1}
    assert samples.get(("cascade_tier_draft_tokens_total", tier), 0) == sent
    assert samples.get(("cascade_tier_draft_kept_tokens_total", tier), 0) == (kept or 0)


async def test_a_prompt_that_is_read_ahead_is_no_call_of_its_own() -> None:
    observer = Observer(CONFIG)
    before = generate_latest(observer.meters.registry)
    request = ChatRequest((Message("user", "hello"),), 1, prefill=True)
    stream = observer.tiers({"tier1": answer})["tier1"]
    assert len([message async for message in stream(request)]) == 3
    assert generate_latest(observer.meters.registry) == before
    assert observer.figures()["tier1"].calls == 0


async def test_a_draft_that_a_tier_ignores_is_counted_as_ignored() -> None:
    observer = Observer(CONFIG)
    router = observer.answerer(Router(CONFIG, observer.tiers({"tier1": answer})))
    for drafting in (0.0, None):
        request = OpenRequest("r", (Message("user", "?"),), drafting=drafting)
        async for _ in router.answer(request):
            pass
    samples = read(generate_latest(observer.meters.registry).decode())
    ignored = labels(tier="tier1", outcome="ignored")
    assert samples["cascade_tier_drafts_total", ignored] == 1


async def test_a_hedge_is_a_call_of_its_own_and_the_loser_is_cancelled(
    exporter: InMemorySpanExporter,
) -> None:
    slow = asyncio.Event()

    async def first(request: ChatRequest) -> AsyncGenerator[TierMessage]:
        yield [Started(3)]
        if slow.is_set():
            await asyncio.sleep(60)
        yield [Piece("yes", 1)]
        yield [Done("stop", 3, 2, 0)]

    config = ClusterConfig(
        tiers=(
            TierConfig(name="tier1", model="m", price=PRICE, hedge=Hedge(to="tier2", least_s=0.0)),
            TierConfig(name="tier2", model="m", price=PRICE),
        )
    )
    observer = Observer(config)
    streams = observer.tiers({"tier1": first, "tier2": answer})
    router = observer.answerer(Router(config, streams))
    for number in range(8):  # after some, the tier's p95 is known
        if number == 7:
            slow.set()
            exporter.clear()
        request = OpenRequest(f"r{number}", (Message("user", "?"),), traceparent=PARENT)
        async for _ in router.answer(request):
            pass
    samples = read(generate_latest(observer.meters.registry).decode())
    calls = "cascade_tier_calls_total"
    assert samples[calls, labels(tier="tier1", code="OK")] == 7
    assert samples[calls, labels(tier="tier1", code="CANCELLED")] == 1
    assert samples[calls, labels(tier="tier2", code="OK")] == 1
    # What was broken off was read, and is paid for.
    assert samples["cascade_tier_prompt_tokens_total", labels(tier="tier1")] == 8 * 3
    assert samples["cascade_tier_answer_seconds_count", labels(tier="tier1")] == 7
    for state in ("waiting", "answering"):
        assert samples[f"cascade_tier_calls_{state}", labels(tier="tier1")] == 0
    spans = exporter.get_finished_spans()
    assert sorted(span.name for span in spans) == ["ladder.decide", "tier.call", "tier.call"]
    assert {span.parent.span_id for span in spans if span.parent} == {int(PARENT[36:52], 16)}


def test_the_weakest_of_what_a_channel_serves_is_told(tiny: TinyBundle, tmp_path: Path) -> None:
    key, registry = SigningKey.generate(), Registry(str(tmp_path / "registry"))
    assert policy_state(registry) == PolicyState()
    trust = TrustStore(tmp_path / "trust")
    trust.pin("me", key.public)
    base = tiny.bundle.manifest.base_digest
    known = {}
    bundle = registry.publish(tiny.path, tiny.trust).artifact
    known[bundle.digest] = bundle
    channel, _ = registry.channel("stable").with_artifact(
        bundle, known, needs=Needs(), percent=None
    )
    served = ((policy(0.8), None), (policy(None), 10))
    for number, (each, percent) in enumerate(served):
        folder = tmp_path / f"policies{number}"
        path = PolicyStore(folder, trust).install(replace(each, base_digest=base), key)
        artifact = registry.publish(path, trust).artifact
        known[artifact.digest] = artifact
        channel, _ = channel.with_artifact(artifact, known, needs=Needs(), percent=percent)
    registry.save(channel.as_one_change(0), key)
    state = policy_state(registry)
    place = ("stable", policy(0.8).task.task_id)
    assert (state.risk[place], state.delta[place]) == (0.25, 0.1)
    assert state.coverage[place] == 0.0  # the canary certifies nothing
    assert state.served == {("stable", "true"): 1, ("stable", "false"): 1}


def test_policies_that_are_no_longer_served_are_no_longer_told_of() -> None:
    observer = Observer(CONFIG)
    place = ("stable", "mood")
    observer.policies(PolicyState({place: 0.1}, {place: 0.05}, {place: 0.6}))
    samples = read(generate_latest(observer.meters.registry).decode())
    told = labels(channel="stable", task="mood")
    assert samples["cascade_policy_certified_risk_ratio", told] == 0.1
    assert samples["cascade_registry_read_timestamp_seconds", ()] > 1e9
    observer.policies(PolicyState())
    assert "stable" not in generate_latest(observer.meters.registry).decode()


def test_every_metric_of_the_module_is_exposed_under_its_own_name() -> None:
    families = text_string_to_metric_families(generate_latest(Meters().registry).decode())
    told = {family.name for family in families}
    assert told == {metric.name.removesuffix("_total") for metric in CLUSTER_METRICS}


def test_gateways_on_one_node_take_a_port_each() -> None:
    config = MetricsConfig(port=free_port())
    first = Exposition(config, Meters().registry)
    second = Exposition(config, Meters().registry)
    try:
        assert config.port <= first.port < second.port < config.port + METRIC_PORTS
        for each in (first, second):
            with urllib.request.urlopen(f"http://127.0.0.1:{each.port}/metrics") as reply:
                assert "cascade_gateway_requests_under_way 0.0" in reply.read().decode()
        taken = second.port
        second.settle()
        assert second.port == taken
        first.close()
        second.settle()  # the old gateway of a redeploy has gone
        assert second.port == first.port
        with urllib.request.urlopen(f"http://127.0.0.1:{second.port}/metrics") as reply:
            assert "cascade_gateway_requests_limit" in reply.read().decode()
        with pytest.raises(urllib.error.URLError):
            urllib.request.urlopen(f"http://127.0.0.1:{taken}/metrics")
    finally:
        second.close()


def test_no_port_at_all_is_an_error_that_names_the_setting() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        config = MetricsConfig.model_construct(port=taken.getsockname()[1], host="127.0.0.1")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("cloud.metrics.METRIC_PORTS", 1)
            with pytest.raises(ClusterError, match=r"gateway\.metrics: no port"):
                Exposition(config, Meters().registry)


# -- the last minute --------------------------------------------------------------------------


def test_figures_of_the_last_minute() -> None:
    now, day = [100.0], [datetime.date(2026, 1, 1)]
    recent = Recent(clock=lambda: now[0], today=lambda: day[0])
    now[0] += 30
    recent.ended(failed=False, seconds=1.0, tokens=10, cost_usd=0.5)
    recent.ended(failed=True)
    figures = recent.figures(1)
    assert (figures.window_s, figures.calls, figures.failed) == (30, 2, 1)
    assert figures.requests_per_s == pytest.approx(2 / 30)
    assert figures.tokens_per_s == pytest.approx(1 / 3)
    now[0] += 61
    day[0] = datetime.date(2026, 1, 2)
    figures = recent.figures(1)
    assert (figures.calls, figures.window_s, figures.cost_today_usd) == (0, 60, 0.0)
    assert figures.quantile_s(0.5) is None


def test_figures_of_a_busy_minute_are_those_of_the_calls_that_are_kept() -> None:
    now = [0.0]
    recent = Recent(clock=lambda: now[0])
    for _ in range(4000):
        now[0] += 0.01
        recent.ended(failed=False, seconds=0.5, tokens=1)
    assert recent.figures(1).requests_per_s == pytest.approx(100, rel=0.01)


def test_quantiles_are_nearest_ranks_and_survive_the_way() -> None:
    figures = Figures(2, 1, 3, 60.0, 20, 1, tuple(float(n) for n in range(1, 21)), 5, 0.25)
    assert (figures.quantile_s(0.5), figures.quantile_s(0.95)) == (10.0, 19.0)
    sent = json.loads(json.dumps(figures.to_json()))
    assert Figures.from_json(sent) == figures
    both = together([figures, figures])
    assert (both.calls, both.replicas, both.cost_today_usd) == (40, 2, 0.5)
    assert both.quantile_s(0.95) == 19.0


# -- traces -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def exporter() -> InMemorySpanExporter:
    """Where every span of this process ends."""
    provider = trace.get_tracer_provider()
    if not isinstance(provider, TracerProvider):
        provider = TracerProvider()
        trace.set_tracer_provider(provider)
    memory = InMemorySpanExporter()
    provider.add_span_processor(SimpleSpanProcessor(memory))
    return memory


def tree(spans: tuple[ReadableSpan, ...]) -> dict[str, str]:
    """The name of each span's parent."""
    names = {span.context.span_id: span.name for span in spans if span.context}
    return {span.name: names.get(span.parent.span_id, "?") if span.parent else "" for span in spans}


def test_one_request_is_one_tree_of_spans_from_the_device_to_the_engine(
    tiny: TinyBundle, cluster: Cluster, exporter: InMemorySpanExporter
) -> None:
    exporter.clear()
    with Device.open(tiny.path, trust=tiny.trust, cloud=cluster.profile) as device:
        answer = device.choose("My secret day.", MOODS)
    spans = exporter.get_finished_spans()
    assert tree(spans) == {
        "device.answer": "",
        "cascade.call": "device.answer",
        "gateway.answer": "cascade.call",
        "ladder.decide": "gateway.answer",
        "tier.call": "gateway.answer",
        "tier.answer": "tier.call",
        "engine.first_token": "tier.answer",
    }
    ids = {span.context.trace_id for span in spans if span.context}
    assert len(ids) == 1
    (record,) = cluster.records
    assert record.trace_id == f"{ids.pop():032x}"
    assert record.request_id == answer.request_id
    by_name = {span.name: dict(span.attributes or {}) for span in spans}
    assert by_name["device.answer"]["cascade.request_id"] == answer.request_id
    assert by_name["gateway.answer"]["cascade.request_id"] == answer.request_id
    assert by_name["gateway.answer"]["cascade.reasons"] == ("lowest_tier",)
    assert by_name["ladder.decide"]["cascade.tier"] == "tier1"
    assert by_name["tier.call"]["cascade.completion_tokens"] == 2
    told = json.dumps([by_name, [event.name for span in spans for event in span.events]])
    assert "secret" not in told
    assert "very bad" not in told
    assert "testing" not in told  # the caller
    assert all(span.status.is_ok or not span.status.description for span in spans)


def test_a_request_joins_the_trace_of_its_application(
    tiny: TinyBundle, cluster: Cluster, exporter: InMemorySpanExporter
) -> None:
    exporter.clear()
    request = Request((Message("user", "What a day."),), options=MOODS, traceparent=PARENT)
    with Device.open(tiny.path, trust=tiny.trust, cloud=cluster.profile) as device:
        list(device.run(request))
    assert cluster.records[0].trace_id == PARENT[3:35]
    assert cluster.asked("tier1")[0].traceparent[3:35] == PARENT[3:35]


def test_a_request_that_no_tier_may_answer_is_a_decision_alone(
    tiny: TinyBundle, cluster: Cluster, exporter: InMemorySpanExporter
) -> None:
    exporter.clear()
    limits = Constraints(residency="eu")
    with Device.open(tiny.path, trust=tiny.trust, cloud=cluster.profile) as device:
        device.choose("What a day.", MOODS, constraints=limits)
    errors = {
        span.name: (span.attributes or {}).get("error.type")
        for span in exporter.get_finished_spans()
    }
    assert errors == {
        "device.answer": None,
        "cascade.call": "FAILED_PRECONDITION",
        "gateway.answer": "FAILED_PRECONDITION",
        "ladder.decide": "REFUSED",
    }


def test_a_retry_and_its_failure_are_seen(
    tiny: TinyBundle, cluster: Cluster, exporter: InMemorySpanExporter
) -> None:
    exporter.clear()
    cluster.play("tier1", Script("bad", fault=Fault("UNAVAILABLE", times=1)))
    with Device.open(tiny.path, trust=tiny.trust, cloud=cluster.profile) as device:
        device.choose("What a day.", MOODS)
    spans = exporter.get_finished_spans()
    calls = [span for span in spans if span.name == "cascade.call"]
    assert [(span.attributes or {}).get("error.type") for span in calls] == ["UNAVAILABLE", None]
    assert len({span.context.trace_id for span in spans if span.context}) == 1
    assert sum(span.name == "gateway.answer" for span in spans) == 2


def test_without_a_context_the_gateway_begins_the_trace(cluster: Cluster) -> None:
    record = cluster.records
    assert record == ()
    asyncio.run(ask(cluster))
    (mine,) = cluster.records
    assert len(mine.trace_id) == 32
    assert asdict(mine)["trace_id"] == mine.trace_id  # as the access log has it


def test_a_series_that_was_replaced_counts_again() -> None:
    meters = Meters()
    meters.set(POLICY_RISK, 0.1, "stable", "mood")
    meters.replace(POLICY_RISK, {})
    assert "mood" not in generate_latest(meters.registry).decode()
    meters.set(POLICY_RISK, 0.2, "stable", "mood")
    samples = read(generate_latest(meters.registry).decode())
    assert samples[POLICY_RISK.name, labels(channel="stable", task="mood")] == 0.2
