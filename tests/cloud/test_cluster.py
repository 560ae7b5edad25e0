"""A real cluster on this machine: Ray, gateway and model in processes of their own, over TLS."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

import cloud
from cascade.errors import ClusterError, RemoteError
from cascade.home import trust_dir
from cascade.remote import Accepted, Chunk, DeviceReport, Finished, RemoteEvent, Transfer
from cascade.request import Constraints, Message, Request
from cascade.signing import TrustStore
from cascade.testing import TinyBundle, tiny_bundle
from cascade.wire import ClientProfile, GrpcRemote
from cloud import processes, session
from cloud.config import ClusterConfig, GatewayConfig, MetricsConfig, TierConfig
from edge import Adapter, OnnxModel
from tests.cloud import other_clients
from tests.cloud.test_tier_adapters import RESEARCH, World
from tests.ports import free_port

pytestmark = [pytest.mark.models, pytest.mark.processes]

ROOT = Path(cloud.__file__).parent.parent
STARTER = """
import pathlib, sys
import cloud
from cascade.errors import Cancelled

config = cloud.load_config(pathlib.Path(sys.argv[1]))
try:
    cloud.up_detached(config, on_progress=lambda line: print(line, flush=True))
except Cancelled as error:
    print(error, flush=True)
"""


def configured(model: Path, port: int) -> ClusterConfig:
    tier = TierConfig(
        name="tier1", model=str(model), context_tokens=512, parallel=1, max_queued_requests=1
    )
    # Of the ten ports from there on, one is free.
    metrics = MetricsConfig(port=port + 1)
    return ClusterConfig(gateway=GatewayConfig(port=port, metrics=metrics), tiers=(tier,))


@pytest.fixture(scope="module")
def home() -> Iterator[Path]:
    """A CASCADE_HOME of this module's own."""
    with pytest.MonkeyPatch.context() as patch:
        path = Path(tempfile.mkdtemp(prefix="cascade-home-"))
        patch.setenv("CASCADE_HOME", str(path))
        yield path
        shutil.rmtree(path)


@pytest.fixture(scope="module")
def config(model_path: Callable[[str], Path]) -> ClusterConfig:
    return configured(model_path("qwen2.5-coder-0.5b-instruct-q4_k_m"), free_port())


@pytest.fixture(scope="module")
def world(home: Path, tiny: TinyBundle, tmp_path_factory: pytest.TempPathFactory) -> World:
    """A registry whose publisher is pinned in this module's home."""
    folder = tmp_path_factory.mktemp("world")
    return World(tiny, folder, str(folder / "registry"))


@pytest.fixture(scope="module")
def cluster(home: Path, config: ClusterConfig, world: World) -> Iterator[cloud.ClusterStatus]:
    """Beside the tier of ``config`` one over the tiny bundle, with adapters of ``world``."""
    world.put(world.lesson("tax", 1))
    adapters = {"tax": "tax@stable"}
    for name, licence in (("legal", "Apache-2.0"), ("study", RESEARCH)):
        path = world.lesson(name, 2, licence=licence)
        adapters[name] = world.registry.publish(path, world.trust).artifact.digest
    tuned = TierConfig(
        name="tuned",
        engine="onnx",
        model=str(world.tiny.path),
        context_tokens=256,
        adapters=adapters,
        most_adapters=1,
        commercial_use=True,
    )
    gateway = config.gateway.model_copy(update={"registry": world.registry.url})
    both = config.model_copy(update={"gateway": gateway, "tiers": (*config.tiers, tuned)})
    lines: list[str] = []
    try:
        yield cloud.up_detached(both, on_progress=lines.append)
        assert [line.split()[0] for line in lines[:3]] == ["starting", "loading", "warming"]
    finally:
        cloud.down()


def asking(prompt: str, *options: str, **limits: object) -> Request:
    constraints = Constraints(**limits)  # type: ignore[arg-type]
    messages = (Message("user", prompt),)
    return Request(messages, options, max_tokens=200, constraints=constraints)


async def ask(request: Request) -> list[RemoteEvent]:
    remote = GrpcRemote(ClientProfile.load())
    try:
        events = remote.answer(request, DeviceReport(), deadline_s=60, transfer=Transfer())
        return [event async for event in events]
    finally:
        await remote.close()


async def test_a_running_cluster_says_so(cluster: cloud.ClusterStatus) -> None:
    assert cluster.running
    assert (cluster.stage, cluster.health) == ("ready", "SERVING")
    assert {tier.name: tier.health for tier in cluster.tiers} == {
        "tier1": "SERVING",
        "tuned": "SERVING",
    }
    assert await asyncio.to_thread(cloud.status) == cluster


async def test_an_option_comes_back_over_tls(cluster: cloud.ClusterStatus) -> None:
    events = await ask(asking("Is fire hot or cold?", "hot", "cold"))
    model = cluster.tiers[0].model
    assert events[0] == Accepted("tier1", model)
    assert "".join(event.text for event in events if isinstance(event, Chunk)) == "hot"
    finish = events[-1]
    assert isinstance(finish, Finished)
    assert (finish.tier, finish.model, finish.reason) == ("tier1", model, "stop")
    assert finish.prompt_tokens > 0
    assert finish.cost_usd == 0.0


async def test_what_happens_is_seen_in_the_status_the_metrics_and_the_log(
    cluster: cloud.ClusterStatus,
) -> None:
    parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    request = replace(asking("Is fire hot or cold?", "hot", "cold"), traceparent=parent)
    await ask(request)
    status = await asyncio.to_thread(cloud.status)
    figures = status.tiers[0].figures
    assert figures is not None
    assert (figures.replicas, figures.waiting, figures.failed) == (1, 0, 0)
    assert figures.calls == len(figures.seconds) > 0
    (address,) = status.metrics

    def scrape() -> str:
        with urllib.request.urlopen(f"http://{address}/metrics") as reply:
            return str(reply.read().decode())

    text = await asyncio.to_thread(scrape)
    assert 'cascade_tier_up{tier="tier1"} 1.0' in text
    assert 'cascade_gateway_requests_total{code="OK",task="none"}' in text
    lines = session.request_log_path().read_text().splitlines()
    (mine,) = [json.loads(line) for line in lines if request.request_id in line]
    assert mine["trace_id"] == parent[3:35]


def test_a_client_in_another_language_learns_the_contract_by_reflection_and_is_answered(
    cluster: cloud.ClusterStatus, tmp_path: Path
) -> None:
    services, events = other_clients.by_node(ClientProfile.load(), tmp_path)
    ours = [
        "cascade.v1.ArtifactService",
        "cascade.v1.InferenceService",
        "grpc.health.v1.Health",
    ]
    assert services == [*ours, "grpc.reflection.v1alpha.ServerReflection"]
    kinds = [next(kind for kind in event if kind != "request_id") for event in events]
    assert kinds == ["accepted", "tokens", "finish"]
    assert events[1] == {"request_id": "from-node-1", "tokens": {"text": "hot", "count": 1}}
    finish = events[-1]["finish"]
    assert isinstance(finish, dict)
    assert (finish["tier"], finish["reason"]) == ("tier1", "FINISH_REASON_STOP")
    # Without a key not even the contract is told.
    nobody = replace(ClientProfile.load(), api_key="")
    with pytest.raises(AssertionError, match="UNAUTHENTICATED"):
        other_clients.by_node(nobody, tmp_path)


def test_buf_lists_the_services_and_reads_an_answer(
    cluster: cloud.ClusterStatus, tmp_path: Path
) -> None:
    profile = ClientProfile.load()
    assert "cascade.v1.InferenceService" in other_clients.by_buf(profile, tmp_path).split()
    message = {"role": "ROLE_USER", "content": "Is fire hot or cold?"}
    opened = {
        "requestId": "r1",
        "messages": {"messages": [message]},
        "options": {"options": ["hot", "cold"]},
    }
    method = "cascade.v1.InferenceService/Answer"
    told = other_clients.by_buf(profile, tmp_path, method, json.dumps({"open": opened}))
    assert '"text": "hot"' in told
    assert '"tier": "tier1"' in told


async def test_free_text_arrives_in_pieces(cluster: cloud.ClusterStatus) -> None:
    request = replace(asking("Count from 1 to 10."), max_tokens=12)
    events = await ask(request)
    assert sum(isinstance(event, Chunk) for event in events) > 3
    finish = events[-1]
    assert isinstance(finish, Finished)
    assert (finish.reason, finish.completion_tokens) == ("length", 12)


@pytest.mark.parametrize(
    ("request_", "status", "message"),
    [
        (asking("word " * 800), "INVALID_ARGUMENT", "at most 512"),
        (
            asking("hello", allowed_tiers=frozenset({"tier9"})),
            "INVALID_ARGUMENT",
            "no tier is called 'tier9'; tiers: tier1",
        ),
        (asking("hello", residency="eu"), "FAILED_PRECONDITION", "tier1:residency"),
    ],
)
async def test_a_refusal_reaches_the_device(
    cluster: cloud.ClusterStatus, request_: Request, status: str, message: str
) -> None:
    with pytest.raises(RemoteError, match=message) as refused:
        await ask(request_)
    assert refused.value.status == status


async def test_another_key_does_not_get_in(cluster: cloud.ClusterStatus) -> None:
    remote = GrpcRemote(replace(ClientProfile.load(), api_key="another"))
    events = remote.answer(asking("hello"), DeviceReport(), deadline_s=10.0, transfer=Transfer())
    with pytest.raises(RemoteError, match="UNAUTHENTICATED"):
        await anext(events)
    await remote.close()


async def with_adapter(name: str, **limits: object) -> tuple[str, str]:
    """Model and text of the tiny bundle's answer with an adapter, or status and message."""
    limits = {"allowed_tiers": frozenset({"tuned"}), **limits}
    request = replace(asking("Count from 1 to 10.", **limits), max_tokens=8, adapter=name)
    try:
        events = await ask(request)
    except RemoteError as refused:
        return refused.status, refused.message
    finished = events[-1]
    assert isinstance(finished, Finished)
    return finished.model, "".join(event.text for event in events if isinstance(event, Chunk))


async def until(name: str, condition: Callable[[str, str], bool]) -> set[tuple[str, str]]:
    """Ask until ``condition`` holds of what comes; returns what came before."""
    before: set[tuple[str, str]] = set()
    end = time.monotonic() + 60
    while not condition(*(answer := await with_adapter(name))):
        assert time.monotonic() < end, answer
        before.add(answer)
        await asyncio.sleep(0.2)
    return before


def alone(world: World, *lessons: Path | None) -> list[str]:
    """What the bundle says in this process with each of these adapters."""
    told = []
    for lesson in lessons:
        model = OnnxModel(world.tiny.bundle)
        if lesson is not None:
            model.use_adapter(model.load_adapter(Adapter.open(lesson, world.trust)))
        told.append(model.generate(asking("Count from 1 to 10.").messages, max_tokens=8).text)
    return told


async def test_adapters_of_the_registry_answer_as_they_do_on_a_device(
    cluster: cloud.ClusterStatus, world: World
) -> None:
    lessons = (None, world.folder / "tax-1-1", world.folder / "legal-2-1")
    expected = await asyncio.to_thread(alone, world, *lessons)
    assert len(set(expected)) == 3
    # Every one with another one before it, as only one is kept at hand.
    for name, text in (*zip(("", "tax", "legal"), expected, strict=True), ("tax", expected[1])):
        model = f"{world.tiny.path.name}:{name}" if name else world.tiny.path.name
        assert await with_adapter(name) == (model, text)
    assert (await with_adapter("tax", commercial=True))[1] == expected[1]


@pytest.mark.parametrize(
    ("name", "limits", "status", "message"),
    [
        ("odd", {}, "INVALID_ARGUMENT", "no tier has 'odd'; adapters: tuned: tax, legal, study"),
        (
            "study",
            {"commercial": True},
            "FAILED_PRECONDITION",
            f"{RESEARCH}, the licence of the adapter study of tuned, does not allow commercial",
        ),
        ("tax", {"allowed_tiers": frozenset({"tier1"})}, "FAILED_PRECONDITION", "tier1:adapter"),
    ],
)
async def test_an_adapter_that_cannot_answer_is_refused_with_the_reason(
    cluster: cloud.ClusterStatus, name: str, limits: dict[str, object], status: str, message: str
) -> None:
    refused = await with_adapter(name, **limits)
    assert refused[0] == status
    assert message in refused[1]


async def test_promotions_and_rollbacks_are_followed_while_it_runs(
    cluster: cloud.ClusterStatus, world: World
) -> None:
    model = f"{world.tiny.path.name}:tax"
    second = world.lesson("tax", 3, version=2)
    old, new = await asyncio.to_thread(alone, world, world.folder / "tax-1-1", second)
    world.put(second)
    assert await until("tax", lambda _, text: text == new) <= {(model, old)}
    world.roll_back()
    assert await until("tax", lambda _, text: text == old) <= {(model, new)}
    # Another bundle takes the channel, with an adapter of its own.
    other = await asyncio.to_thread(tiny_bundle, world.folder / "other", seed=5)
    TrustStore(trust_dir()).pin("other", other.key.public)
    world.put(other.path)
    base = other.bundle.manifest.base_digest
    world.put(world.lesson("tax", 4, version=3, base=base))
    refusals = await until("tax", lambda _, text: f"is for the base {base[:12]}…" in text)
    ((told,),) = (
        [each for each in gateway.adapters if each.name == "tax"]
        for gateway in (await asyncio.to_thread(cloud.status)).gateways
    )
    assert (told.source, told.digest) == ("tax@stable", "")
    assert "is for the base" in told.problem
    assert {status for status, _ in refusals} <= {model, "FAILED_PRECONDITION"}
    world.roll_back(2)
    await until("tax", lambda _, text: text == old)


async def test_a_cancelled_answer_frees_the_model(cluster: cloud.ClusterStatus) -> None:
    remote = GrpcRemote(ClientProfile.load())
    story = asking("Write a very long story about a ship.")
    events = remote.answer(story, DeviceReport(), deadline_s=60.0, transfer=Transfer())
    async for event in events:
        if isinstance(event, Chunk):
            break
    await events.aclose()
    await remote.close()
    # The only slot of the only replica: left running, the 200 tokens would take some 20 s.
    began = time.monotonic()
    await ask(asking("Is ice hot or cold?", "hot", "cold"))
    assert time.monotonic() - began < 10.0


async def test_the_prefix_cache_can_be_reset_from_outside(cluster: cloud.ClusterStatus) -> None:
    await ask(asking("Is the sun hot or cold?", "hot", "cold"))
    assert await asyncio.to_thread(cloud.reset_prefix_caches) > 10
    assert await asyncio.to_thread(cloud.reset_prefix_caches) == 0


async def test_the_log_has_a_line_for_each_request_and_nothing_of_its_content(
    cluster: cloud.ClusterStatus,
) -> None:
    request = asking("Is my secret hot or cold?", "hot", "cold")
    await ask(request)
    text = session.request_log_path().read_text()
    records = [json.loads(line) for line in text.splitlines()]
    (mine,) = [record for record in records if record["request_id"] == request.request_id]
    assert (mine["status"], mine["caller"], mine["tier"]) == ("OK", "local", "tier1")
    assert "secret" not in text


def test_a_second_cluster_is_refused(cluster: cloud.ClusterStatus, config: ClusterConfig) -> None:
    with pytest.raises(ClusterError, match=rf"pid {cluster.pid}.*`cascade cluster down`"):
        cloud.up_detached(config, on_progress=print)
    with pytest.raises(ClusterError, match=rf"pid {cluster.pid}.*`cascade cluster down`"):
        cloud.up(config, on_progress=print)


async def test_one_request_too_many_is_told_when_to_come_back(
    cluster: cloud.ClusterStatus,
) -> None:
    # One is answered, one waits, and no more.
    request = replace(asking("Count from 1 to 10."), max_tokens=20)
    outcomes = await asyncio.gather(
        *(ask(replace(request, request_id=f"r-{n}")) for n in range(4)), return_exceptions=True
    )
    refused = [error for error in outcomes if isinstance(error, RemoteError)]
    assert 1 <= len(refused) <= 3
    assert {error.status for error in refused} == {"RESOURCE_EXHAUSTED"}
    # As long as those that wait will take, once it is known how long an answer takes.
    assert all(1.0 <= (error.retry_after_s or 0.0) <= 60.0 for error in refused)


async def test_a_lost_replica_is_unavailable_and_comes_back(
    cluster: cloud.ClusterStatus,
) -> None:
    remote = GrpcRemote(ClientProfile.load())
    story = asking("Write a very long story about a ship.")
    events = remote.answer(story, DeviceReport(), deadline_s=60.0, transfer=Transfer())
    await anext(events)
    assert cluster.pid is not None
    (replica,) = (
        pid
        for pid in processes.descendants(cluster.pid)
        if b"ServeReplica:cascade:tier-tier1" in Path(f"/proc/{pid}/cmdline").read_bytes()
    )
    os.kill(replica, signal.SIGKILL)
    with pytest.raises(RemoteError) as lost:
        _ = [event async for event in events]
    assert lost.value.status == "UNAVAILABLE"
    end = time.monotonic() + 60
    seen: list[str] = []
    while seen[-1:] != ["SERVING"] or "NOT_SERVING" not in seen:
        assert time.monotonic() < end, seen
        await asyncio.sleep(0.1)
        seen.append(await remote.health("tier/tier1"))
    await ask(asking("Is ice hot or cold?", "hot", "cold"))
    await remote.close()


async def test_a_signal_lets_an_answer_finish_and_ends_everything(
    cluster: cloud.ClusterStatus,
) -> None:
    assert cluster.pid is not None
    family = {pid: processes.start_time(pid) for pid in processes.descendants(cluster.pid)}
    state = session.running_state()
    assert state is not None
    assert len(family) > 4
    assert Path(state.folder).is_dir()
    answer = asyncio.create_task(ask(replace(asking("Count from 1 to 10."), max_tokens=12)))
    await asyncio.sleep(0.3)
    os.kill(cluster.pid, signal.SIGTERM)
    assert isinstance((await answer)[-1], Finished)
    await asyncio.to_thread(wait_until, lambda: processes.start_time(cluster.pid or 0) is None)
    assert [pid for pid, begun in family.items() if processes.start_time(pid) == begun] == []
    assert not session.state_path().exists()
    assert not Path(state.folder).exists()
    assert await asyncio.to_thread(cloud.status) == cloud.ClusterStatus("stopped")
    assert cloud.down() is False


def test_ctrl_c_while_starting_leaves_nothing(home: Path, config: ClusterConfig) -> None:
    file = home / "config.yaml"
    file.write_text(config.yaml())
    starter = subprocess.Popen(
        [sys.executable, "-c", STARTER, str(file)], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    assert starter.stdout is not None
    for line in starter.stdout:
        if line.startswith("loading"):
            break
    state = session.running_state()
    assert state is not None
    family = {pid: processes.start_time(pid) for pid in processes.descendants(state.pid)}
    starter.send_signal(signal.SIGINT)
    rest, _ = starter.communicate(timeout=60)
    assert "interrupted" in rest
    assert starter.returncode == 0
    assert processes.start_time(state.pid) is None
    assert [pid for pid, begun in family.items() if processes.start_time(pid) == begun] == []
    assert not session.state_path().exists()
    assert not Path(state.folder).exists()


@pytest.mark.parametrize(
    ("line", "later_s"),
    [("starting", 0.3), ("starting", 1.5), ("starting", 4.0), ("loading", 0.0), ("warming", 0.0)],
)
def test_ctrl_c_in_the_foreground_is_one_line_whenever_it_comes(
    home: Path, config: ClusterConfig, line: str, later_s: float
) -> None:
    file = home / "config.yaml"
    file.write_text(config.yaml())
    up = subprocess.Popen(
        [sys.executable, "-m", "cascade.cli", "cluster", "up", "--config", str(file)],
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    assert up.stderr is not None
    for said in up.stderr:
        if said.startswith(line):
            break
    time.sleep(later_s)
    state = session.running_state()
    assert state is not None
    up.send_signal(signal.SIGINT)
    _, rest = up.communicate(timeout=60)
    # What it had said by then, and one line about the interruption.
    words = [said.split()[0] for said in rest.splitlines() if said]
    assert [word for word in words if word not in ("loading", "warming")] == ["cascade"]
    assert "interrupted" in rest
    assert up.returncode == 130
    assert processes.with_variable(session.FOLDER_VARIABLE, state.folder) == frozenset()
    assert not session.state_path().exists()
    assert not Path(state.folder).exists()


def test_what_a_killed_supervisor_leaves_is_ended_by_the_next_command(
    home: Path, config: ClusterConfig
) -> None:
    cloud.up_detached(config, on_progress=print)
    state = session.running_state()
    assert state is not None
    os.kill(state.pid, signal.SIGKILL)
    wait_until(lambda: session.running_state() is None)
    session.remove_remains(state)
    assert processes.with_variable(session.FOLDER_VARIABLE, state.folder) == frozenset()
    assert not Path(state.folder).exists()
    assert not session.state_path().exists()


def test_a_supervisor_does_not_outlive_a_killed_starter(home: Path, config: ClusterConfig) -> None:
    file = home / "config.yaml"
    file.write_text(config.yaml())
    starter = subprocess.Popen([sys.executable, "-c", STARTER, str(file)], cwd=ROOT)
    wait_until(lambda: session.running_state() is not None)
    starter.kill()
    starter.wait()
    wait_until(lambda: session.running_state() is None)


def test_a_port_in_use_is_named(home: Path, config: ClusterConfig) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        taken = config.model_copy(
            update={"gateway": GatewayConfig.model_construct(port=port)},
        )
        with pytest.raises(ClusterError, match=rf"port {port} on 127.0.0.1 cannot be used"):
            cloud.up(taken, on_progress=print)
    assert not session.state_path().exists()


def test_a_missing_model_says_how_to_get_it(empty_home: Path) -> None:
    with pytest.raises(ClusterError, match="cascade models pull qwen2"):
        cloud.up(cloud.default_config(), on_progress=print)


def test_a_missing_bundle_is_named(empty_home: Path) -> None:
    tier = TierConfig(name="tier1", engine="onnx", model="no-such-bundle")
    with pytest.raises(ClusterError, match=r"tier1: there is no bundle .*/bundles/no-such-bundle"):
        cloud.up(ClusterConfig(tiers=(tier,)), on_progress=print)


def test_a_reason_in_the_background_reaches_the_one_who_asked(empty_home: Path) -> None:
    with pytest.raises(ClusterError, match="cascade models pull qwen2"):
        cloud.up_detached(cloud.default_config(), on_progress=print)


def test_a_spoilt_model_is_refused_and_leaves_nothing(empty_home: Path, tmp_path: Path) -> None:
    spoilt = tmp_path / "spoilt.gguf"
    spoilt.write_bytes(b"GGUF" + bytes(100))
    with pytest.raises(ClusterError, match=r"llama.cpp cannot load .*spoilt.gguf"):
        cloud.up_detached(configured(spoilt, free_port()), on_progress=print)
    assert session.running_state() is None


def test_a_file_left_by_a_killed_supervisor_is_no_cluster(empty_home: Path) -> None:
    state = session.SessionState(os.getpid(), "another time", "ready", "h:1", "/nowhere", ())
    state.save()
    assert cloud.status() == cloud.ClusterStatus("stopped")
    assert cloud.down() is False
    with pytest.raises(ClusterError, match="no cluster runs"):
        cloud.reset_prefix_caches()


def wait_until(condition: Callable[[], bool], *, timeout_s: float = 60.0) -> None:
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.1)
