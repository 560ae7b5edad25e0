"""Channels are followed while a cluster runs: what is believed, what is served, and what is not."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest

from cascade import home
from cascade.errors import ClusterError, RemoteError
from cascade.request import Constraints
from cascade.signing import SigningKey, TrustStore
from cascade.testing import TinyBundle, tiny_bundle
from cascade.wire import OpenRequest
from cloud import replica_adapters
from cloud.adapter_watch import AdapterWatch, by_digest
from cloud.config import ClusterConfig
from cloud.engines import ChatRequest, Piece, make_engine
from cloud.engines.onnx import OnnxBundle
from cloud.errors import NoTierAllowed
from cloud.ladder import choose_tier
from cloud.replica_adapters import ReplicaAdapters
from cloud.served_adapters import ServedAdapters
from cloud.tier import Refused, TierMessage, messages
from cloud.tier_adapters import checked
from tests.cloud.test_adapters import ASKED, answer
from tests.cloud.test_tier_adapters import RESEARCH, World


@pytest.fixture
def world(tiny: TinyBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setenv("CASCADE_HOME", str(tmp_path / "home"))
    return World(tiny, tmp_path, str(tmp_path / "registry"))


class Running:
    """A cluster with the adapter ``tax`` of the channel ``stable``, as a gateway sees it."""

    def __init__(self, world: World, more: str = "", *, top: str = "") -> None:
        self.config: ClusterConfig = world.config(more, top=top, tax="tax@stable")
        self.served = checked(self.config)
        self.watch = AdapterWatch(self.config, self.served)
        self.watch.look()

    @property
    def digest(self) -> str:
        return self.served.digests("tuned").get("tax", "")

    def refusal(self) -> str:
        with pytest.raises(NoTierAllowed, match="tuned:adapter_withheld") as refused:
            choose_tier(self.config.tiers, OpenRequest("r", ASKED, adapter="tax"), self.served)
        assert refused.value.status == "FAILED_PRECONDITION"
        return refused.value.message


def channel_file(world: World) -> Path:
    return Path(world.registry.url) / "channels" / "stable.json"


def test_a_gateway_follows_what_everybody_gets_and_no_canary(world: World) -> None:
    first = world.put(world.lesson("tax", 1)).artifact
    running = Running(world)
    assert running.digest == first.digest
    second = world.registry.publish(world.lesson("tax", 2, version=2), world.trust).artifact
    known = {each.artifact.digest: each.artifact for each in world.registry.artifacts()}
    needs = world.registry.channel("stable").variants[0].needs
    canary, _ = world.registry.channel("stable").with_artifact(
        second, known, needs=needs, percent=10
    )
    world.registry.save(canary, world.tiny.key)
    running.watch.look()
    assert running.digest == first.digest
    world.registry.save(canary.promoted(needs), world.tiny.key)
    running.watch.look()
    assert running.digest == second.digest
    world.roll_back()
    running.watch.look()
    assert running.digest == first.digest


def test_what_the_channel_no_longer_names_is_not_served(world: World) -> None:
    first = world.put(world.lesson("tax", 1)).artifact
    running = Running(world)
    world.put(world.lesson("legal", 2, version=2))  # a release has one adapter
    running.watch.look()
    assert "channel stable serves no adapter called tax; adapters: legal" in running.refusal()
    without = OpenRequest("r", ASKED)
    assert choose_tier(running.config.tiers, without, running.served).tier.name == "tuned"
    world.roll_back()
    running.watch.look()
    assert running.digest == first.digest


def test_a_research_licence_that_comes_by_promotion_is_named_to_the_device(world: World) -> None:
    world.put(world.lesson("tax", 1))
    sold = Running(world, ", commercial_use: true", top="commercial: true")
    free = Running(world, ", commercial_use: true")
    digest = world.put(world.lesson("tax", 2, version=2, licence=RESEARCH)).artifact.digest
    sold.watch.look()
    assert f"commercial is true, but {RESEARCH}, the licence of the adapter tax" in sold.refusal()
    free.watch.look()
    assert free.digest == digest
    request = OpenRequest("r", ASKED, adapter="tax", constraints=Constraints(commercial=True))
    with pytest.raises(NoTierAllowed, match=f"{RESEARCH}, the licence of the adapter tax"):
        choose_tier(free.config.tiers, request, free.served)


def test_an_adapter_of_another_base_is_not_served(world: World, tmp_path: Path) -> None:
    world.put(world.lesson("tax", 1))
    running = Running(world)
    other = tiny_bundle(tmp_path / "other", seed=5)
    world.trust.pin("other", other.key.public)
    world.put(other.path)
    base = other.bundle.manifest.base_digest
    world.put(world.lesson("tax", 2, version=2, base=base))
    running.watch.look()
    assert f"adapter tax: is for the base {base[:12]}…" in running.refusal()


def test_a_word_that_is_not_believed_changes_nothing(world: World) -> None:
    first = world.put(world.lesson("tax", 1)).artifact
    old = channel_file(world).read_bytes()
    second = world.put(world.lesson("tax", 2, version=2)).artifact
    running = Running(world)
    new = channel_file(world).read_bytes()
    assert running.digest == second.digest

    def after(content: bytes) -> str:
        channel_file(world).write_bytes(content)
        running.watch.look()
        return running.digest

    assert after(old) == second.digest  # put back with all its signatures
    assert after(b"{") == second.digest
    stripped = json.loads(new) | {"releases": []}
    assert after(json.dumps(stripped).encode()) == second.digest
    channel_file(world).write_bytes(new)
    world.put(world.lesson("tax", 3, version=3), key=SigningKey.generate())
    assert after(channel_file(world).read_bytes()) == second.digest
    channel_file(world).write_bytes(new)
    world.put(world.lesson("tax", 4, version=3), expires=int(time.time()) - 1)
    assert after(channel_file(world).read_bytes()) == second.digest
    registry = Path(world.registry.url)
    registry.rename(registry.with_name("away"))
    running.watch.look()
    assert running.digest == second.digest
    registry.with_name("away").rename(registry)
    channel_file(world).write_bytes(new)
    world.roll_back()  # the publisher's own word
    running.watch.look()
    assert running.digest == first.digest


def test_a_restarted_cluster_believes_no_older_state(world: World) -> None:
    world.put(world.lesson("tax", 1))
    old = channel_file(world).read_bytes()
    second = world.put(world.lesson("tax", 2, version=2)).artifact
    assert Running(world).digest == second.digest
    channel_file(world).write_bytes(old)
    told = world.problem("tax@stable")
    assert "channel stable: is at revision 2, and was at 3 before: an old state was put" in told
    with pytest.raises(ClusterError, match="was at 3 before"):
        Running(world)
    # What was seen while it ran counts, and each registry has its own count.
    kept = json.loads((home.cluster_dir() / "channels.json").read_text())
    assert kept == {world.registry.url: {"stable": 3}}
    (home.cluster_dir() / "channels.json").write_text("spoilt")
    assert Running(world).digest != second.digest


def test_a_gateway_that_comes_back_serves_nothing_that_it_knows_to_be_old(world: World) -> None:
    world.put(world.lesson("tax", 1))
    running = Running(world)
    known = running.served.find("tuned", "tax")
    assert known is not None
    built = ServedAdapters({"tuned": [known]})
    second = world.put(world.lesson("tax", 2, version=2)).artifact
    running.watch.look()
    away = channel_file(world).rename(world.folder / "away.json")
    again = AdapterWatch(running.config, built)
    again.look()
    withheld = built.find("tuned", "tax")
    assert withheld is not None
    assert "channel stable cannot be read, and has changed since" in withheld.problem
    away.rename(channel_file(world))
    again.look()
    assert built.digests("tuned") == {"tax": second.digest}


def test_what_is_wrong_is_looked_at_again_without_a_new_revision(world: World) -> None:
    key = SigningKey.generate()
    world.put(world.lesson("tax", 1))
    running = Running(world)
    trusting = TrustStore(world.folder / "trusting")
    trusting.pin("maker", world.tiny.key.public)
    trusting.pin("new", key.public)
    ours, world.trust = world.trust, trusting
    second = world.put(world.lesson("tax", 2, version=2, key=key)).artifact
    running.watch.look()
    assert "signed by the unknown publisher" in running.refusal()
    ours.pin("new", key.public)
    running.watch.look()
    assert running.digest == second.digest


async def test_a_request_keeps_the_adapter_that_it_was_handed_with(world: World) -> None:
    first = world.put(world.lesson("tax", 1)).artifact.digest
    running = Running(world)
    second_path = world.lesson("tax", 2, version=2)
    engine = make_engine(
        running.config.tiers[0].model_copy(update={"adapters": {}}), str(world.tiny.path)
    )
    assert isinstance(engine, OnnxBundle)
    await engine.start()
    adapters = ReplicaAdapters(engine, (), world.registry.url, world.folder)
    handed: list[str] = []

    async def tier(request: ChatRequest) -> AsyncGenerator[TierMessage]:
        handed.append(request.adapter_digest)
        async for message in messages(engine, request, adapters):
            yield message

    stream = by_digest({"tuned": tier}, running.served)["tuned"]

    async def said(answering: AsyncGenerator[TierMessage]) -> str:
        batches = [batch async for batch in answering if not isinstance(batch, Refused)]
        return "".join(each.text for batch in batches for each in batch if isinstance(each, Piece))

    request = ChatRequest(ASKED, 8, adapter="tax")
    under_way = stream(request)
    begun = await anext(under_way)
    assert not isinstance(begun, Refused)
    second = world.put(second_path).artifact.digest
    running.watch.look()
    later, rest = await asyncio.gather(said(stream(request)), said(under_way))
    early = "".join(each.text for each in begun if isinstance(each, Piece)) + rest
    assert handed == [first, second]
    alone = [await answer(engine, digest) for digest in (first, second, "")]
    assert [early, later] == alone[:2]
    assert len(set(alone)) == 3
    await engine.close()


async def test_a_call_that_is_too_late_is_refused(world: World) -> None:
    world.put(world.lesson("tax", 1))
    running = Running(world)

    async def tier(request: ChatRequest) -> AsyncGenerator[TierMessage]:
        raise AssertionError("it is asked")
        yield []

    stream = by_digest({"tuned": tier}, running.served)["tuned"]
    world.put(world.lesson("legal", 2, version=2))
    running.watch.look()  # between the choice of the tier and its call
    with pytest.raises(NoTierAllowed, match="no adapter called tax"):
        await anext(stream(ChatRequest(ASKED, 8, adapter="tax")))


async def test_a_replica_says_what_it_cannot_have_and_what_it_must_not_use(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    fine = world.registry.publish(world.lesson("tax", 1), world.trust).artifact.digest
    far = world.registry.publish(world.lesson("far", 2, base="0" * 64), world.trust).artifact.digest
    engine = OnnxBundle(world.tiny.path, trust=world.trust, context_tokens=256)
    await engine.start()
    adapters = ReplicaAdapters(engine, (), world.registry.url, world.folder)

    async def refused(name: str, digest: str) -> RemoteError:
        request = ChatRequest(ASKED, 8, adapter=name, adapter_digest=digest)
        with pytest.raises(RemoteError) as problem:
            await adapters.known(request)
        return problem.value

    gone = await refused("tax", "a" * 64)
    assert (gone.status, gone.message) == (
        "UNAVAILABLE",
        "the adapter tax cannot be fetched now; try again",
    )
    foreign = await refused("far", far)
    assert foreign.status == "FAILED_PRECONDITION"
    assert "adapter far: was made for base 000000000000…" in foreign.message
    fetches: list[str] = []
    fetch = replica_adapters.fetched

    def noted(digest: str, registry: str, scratch: Path) -> Path:
        fetches.append(digest)
        return fetch(digest, registry, scratch)

    monkeypatch.setattr(replica_adapters, "fetched", noted)
    assert (await refused("far", far)).message == foreign.message  # without reading it again
    asked = ChatRequest(ASKED, 8, adapter="tax", adapter_digest=fine)
    together = await asyncio.gather(*(adapters.known(asked) for _ in range(4)))
    assert {request.adapter for request in together} == {fine}
    assert fetches == [fine]
    assert await answer(engine, fine) != await answer(engine)
    await engine.close()
