"""Devices and a gateway over real sockets with TLS: what counts, what does not, and why."""

from __future__ import annotations

import asyncio
import functools
import json
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import grpc
import numpy as np
import pytest

from cascade.cli import main
from cascade.errors import InvalidInput, RemoteError
from cascade.federation import encode, statements
from cascade.federation.terms import (
    Enrolment,
    Histogram,
    MetricsReport,
    UploadHeader,
)
from cascade.files import sha256_bytes
from cascade.wire import KeyRing, new_key
from cloud.errors import Overloaded
from cloud.federation import leases, rounds
from cloud.federation.adapters import Adapters
from cloud.federation.config import AggregationConfig, PlanConfig
from cloud.federation.coordinator import Coordinator
from cloud.federation.database import Transaction
from cloud.federation.refusals import counters
from cloud.federation.seams import Gate, NeedsApproval, Verdict
from edge.adapter import LoraPair, write_adapter
from tests.cloud.federation.federated import (
    BASE,
    RANK,
    WIDE,
    Approves,
    BareDevice,
    Federation,
    change,
    payload,
)

OTHER = "d" * 64


class World:
    """A federation with a gateway, a clock that tests set, and devices."""

    def __init__(self, federation: Federation) -> None:
        self.federation = federation
        self.port = 0
        self.now = 1_000_000.0
        self.devices: list[BareDevice] = []

    def desk_memory(self) -> int:
        """Bytes of the uploads under way."""
        desk = self.federation.desk
        assert desk is not None
        return desk.uploading_bytes

    async def device(self) -> BareDevice:
        made = BareDevice(self.federation.profile(self.port))
        self.devices.append(made)
        await made.enrol()
        return made

    async def tick(self) -> None:
        async with self.federation.coordinator(now=lambda: self.now) as coordinator:
            await coordinator.tick()

    def counters(self) -> dict[str, int]:
        database = self.federation.database()
        try:
            return database.do_now(counters)
        finally:
            database.close()

    def rounds(self) -> list[rounds.Round]:
        database = self.federation.database()
        try:
            return database.do_now(lambda tx: rounds.recent(tx, 10))[::-1]
        finally:
            database.close()

    async def commit(self, value: float) -> BareDevice:
        device = await self.device()
        data = payload(value)
        await device.service.upload(device.header(await device.lease(), data), data)
        return device


@pytest.fixture
async def world(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[World]:
    given = getattr(request, "param", {})
    made = World(Federation.made(tmp_path, **given))
    async with made.federation.gateway(now=lambda: made.now) as port:
        made.port = port
        await made.tick()
        yield made
        for device in made.devices:
            await device.close()


def synchronous(**given: object) -> dict[str, object]:
    return {"mode": "synchronous", "cohort": 4, "round_s": 100.0, **given}


async def refused(call: object) -> tuple[str, str]:
    """Status and reason of a refusal, which also says when to come back."""
    with pytest.raises(RemoteError) as caught:
        await call  # type: ignore[misc]
    assert caught.value.retry_after_s is not None
    return caught.value.status, caught.value.message.partition(":")[0]


async def test_a_round_of_three_updates_ends_in_their_mean(world: World) -> None:
    for value in (1.0, 2.0, 6.0):
        await world.commit(value)
    await world.tick()
    first, second = world.rounds()
    assert (first.state, first.counted) == ("approved", 3)
    assert first.aggregation_error == pytest.approx(0, abs=1e-12)
    assert (second.state, second.number) == ("collecting", 2)
    assert second.adapter_digest == first.candidate_digest
    served = world.federation.adapters().read(second.adapter_digest)
    np.testing.assert_allclose(served.tensors["layers.0.q_proj.b"], 3.0, rtol=1e-6)
    assert served.manifest.version == 2
    assert served.manifest.parent == world.federation.config.adapter
    # On no channel: a candidate is served to nobody.
    assert list(world.federation.registry.channels()) == []


async def test_a_tick_tells_that_the_next_round_may_be_over_too(world: World) -> None:
    for value in range(7):
        await world.commit(float(value))
    async with world.federation.coordinator(now=lambda: world.now) as coordinator:
        assert [await coordinator.tick() for _ in range(4)] == [True, True, False, False]
    assert [each.counted for each in world.rounds()] == [3, 3, 0]


async def test_what_devices_sent_is_gone_once_it_is_counted(world: World) -> None:
    for value in (1.0, 2.0, 6.0):
        await world.commit(value)
    await world.tick()
    database = world.federation.database()
    rows = database.do_now(lambda tx: tx.all("SELECT payload, counted_in FROM updates"))
    database.close()
    assert [tuple(row) for row in rows] == [(None, 1)] * 3


async def test_every_reply_says_when_to_call_again(world: World) -> None:
    device = await world.device()
    reply = await device.check_in()
    assert reply.lease is not None
    assert 0 <= reply.retry.earliest_s <= reply.retry.latest_s
    state = await device.service.upload_state(device.device_id, reply.lease.lease_id)
    assert state.retry.latest_s > 0
    assert (state.offset, state.receipt) == (0, None)


async def test_the_same_check_in_gets_the_same_lease(world: World) -> None:
    device, request = await world.device(), os.urandom(16)
    one, two = await device.check_in(request), await device.check_in(request)
    assert one.lease is not None
    assert two.lease is not None
    assert one.lease.lease_id == two.lease.lease_id
    # And so does a second process of the same device, with a request of its own.
    three = await device.check_in()
    assert three.lease is not None
    assert three.lease.lease_id == one.lease.lease_id


async def test_a_lost_receipt_can_be_asked_for_and_the_update_counts_once(world: World) -> None:
    device, data = await world.device(), payload(1.0)
    lease = await device.lease()
    header = device.header(lease, data)
    done = await device.service.upload(header, data)
    state = await device.service.upload_state(device.device_id, lease.lease_id)
    assert state.receipt == done.receipt
    assert await refused(device.service.upload(header, data)) == ("ALREADY_EXISTS", "replayed")
    other = payload(2.0)
    again = device.service.upload(device.header(lease, other), other)
    assert await refused(again) == ("ALREADY_EXISTS", "used_lease")
    seen = world.counters()
    assert (seen["committed"], seen["refused.replayed"], seen["refused.used_lease"]) == (1, 1, 1)


async def test_an_update_in_one_message_is_whole(world: World) -> None:
    device, data = await world.device(), payload(1.0)
    header = device.header(await device.lease(), data)
    with pytest.raises(RemoteError, match=r"commit"):
        await device.service._upload_whole(header, data[:-1], 5.0)
    with pytest.raises(RemoteError, match=r"header\.offset"):
        await device.service._upload_whole(replace(header, offset=1), data[1:], 5.0)
    call = device.service._upload_whole(header, data + b"x", 5.0)
    assert await refused(call) == ("INVALID_ARGUMENT", "oversized")
    assert "committed" not in world.counters()
    done = await device.service._upload_whole(header, data, 5.0)
    assert done.receipt.payload_sha256 == header.payload_sha256
    assert world.desk_memory() == 0


async def test_a_cluster_that_takes_no_whole_update_is_sent_a_stream(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def unknown(self: object, request: object, context: Any) -> None:
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, "Method not found!")

    monkeypatch.setattr("cascade.wire.federation._Servicer.UploadWhole", unknown)
    federation, data = Federation.made(tmp_path), payload(1.0)
    async with federation.coordinator() as coordinator, federation.gateway() as port:
        await coordinator.tick()
        device = BareDevice(federation.profile(port))
        try:
            await device.enrol()
            done = await device.service.upload(device.header(await device.lease(), data), data)
            assert done.receipt.payload_sha256 == sha256_bytes(data)
        finally:
            await device.close()


async def test_devices_begin_while_updates_are_aggregated(world: World) -> None:
    for value in (1.0, 1.0, 1.0):
        await world.commit(value)
    database = world.federation.database()
    claim = functools.partial(
        rounds.claim, goal=3, minimum=2, synchronous=False, token="gone", now=0.0, claim_s=0.0
    )
    claimed = await database.do(claim)
    database.close()
    assert claimed is not None
    device, data = await world.device(), payload(1.0)
    lease = await device.lease()
    assert lease.round == claimed.number
    await device.service.upload(device.header(lease, data), data)
    for _ in range(2):
        await world.commit(1.0)
    await world.tick()
    await world.tick()
    assert [(each.state, each.counted) for each in world.rounds()][:2] == [
        ("approved", 3),
        ("approved", 3),
    ]


async def test_an_upload_goes_on_where_it_broke_off(world: World) -> None:
    device, data = await world.device(), payload(1.0)
    lease = await device.lease()
    header = device.header(lease, data)
    # A stream that ends without its commit: to the server it may look complete.
    with pytest.raises(RemoteError, match="CANCELLED"):
        await _without_commit(device, header, data[:40])
    state = await device.service.upload_state(device.device_id, lease.lease_id)
    assert (state.offset, state.payload_sha256) == (40, header.payload_sha256)
    assert world.counters().get("committed") is None
    done = await device.service.upload(replace(header, offset=40), data)
    assert done.receipt.payload_sha256 == header.payload_sha256
    assert world.counters()["committed"] == 1


async def test_an_upload_cannot_go_on_where_nothing_is_kept(world: World) -> None:
    device, data = await world.device(), payload(1.0)
    header = device.header(await device.lease(), data, offset=7)
    with pytest.raises(RemoteError, match=r"header\.offset"):
        await device.service.upload(header, data)


async def _without_commit(device: BareDevice, header: object, data: bytes) -> None:
    import grpc

    from cascade.federation.v1alpha1 import federation_pb2 as pb
    from cascade.federation.v1alpha1 import federation_pb2_grpc
    from cascade.wire import federation_convert as convert

    connection = device.service._connection
    stub = federation_pb2_grpc.FederationServiceStub(connection.channel)
    call = stub.Upload(metadata=connection.metadata)
    await call.write(pb.UploadRequest(header=convert.header_message(header)))  # type: ignore[arg-type]
    await call.write(pb.UploadRequest(chunk=data))
    await call.done_writing()
    try:
        await call
    except grpc.aio.AioRpcError as error:
        raise connection.error(error, 1.0) from None


@pytest.mark.parametrize("whole", [True, False])
async def test_refusals_before_a_byte_is_taken(world: World, whole: bool) -> None:
    device, other, data = await world.device(), await world.device(), payload(1.0)
    device.service._takes_whole = whole
    lease = await device.lease()
    good = device.header(lease, data)
    foreign = f"{'0' * 16}.{lease.lease_id.partition('.')[2]}"
    unknown = lease.lease_id[:-4] + "0000"
    stranger = BareDevice(world.federation.profile(world.port))
    world.devices.append(stranger)
    cases = [
        (replace(good, device_id=stranger.device_id), "NOT_FOUND", "unknown_device"),
        (replace(good, lease_id=foreign), "PERMISSION_DENIED", "foreign_lease"),
        (replace(good, lease_id=unknown), "NOT_FOUND", "unknown_lease"),
        (other.header(lease, data), "PERMISSION_DENIED", "other_device"),
        (replace(good, base_digest="c" * 64), "FAILED_PRECONDITION", "wrong_base"),
        (replace(good, adapter_version=9), "FAILED_PRECONDITION", "wrong_adapter"),
        (replace(good, signature=bytes(64)), "PERMISSION_DENIED", "bad_signature"),
        (replace(good, payload_bytes=1_000_001), "INVALID_ARGUMENT", "oversized"),
    ]
    for header, status, reason in cases:
        assert await refused(device.service.upload(header, data)) == (status, reason)
    long = data + b"\0"  # signed properly, and of another size than this plan's updates
    assert await refused(device.service.upload(device.header(lease, long), long)) == (
        "INVALID_ARGUMENT",
        "wrong_shape",
    )
    seen = world.counters()
    for reason in [*(reason for _, _, reason in cases), "wrong_shape"]:
        assert seen[f"refused.{reason}"] == 1, reason
    assert "committed" not in seen
    # None of it spoilt the lease.
    await device.service.upload(good, data)


@pytest.mark.parametrize("whole", [True, False])
async def test_refusals_of_what_a_payload_holds(world: World, whole: bool) -> None:
    device = await world.device()
    device.service._takes_whole = whole
    lease = await device.lease()
    nan = bytearray(payload(1.0))
    nan[-4:] = np.float32(np.nan).tobytes()
    transposed = encode(
        {"layers.0.q_proj.b": np.ones((WIDE, 2), np.float32)}, 32, np.random.default_rng(0)
    )
    garbage = b"x" * len(payload(1.0))
    for data, reason in (
        (bytes(nan), "not_finite"),
        (transposed, "wrong_shape"),
        (garbage, "malformed"),
    ):
        call = device.service.upload(device.header(lease, data), data)
        assert await refused(call) == ("INVALID_ARGUMENT", reason)
    data = payload(1.0)
    changed = bytes([data[0] ^ 1]) + data[1:]
    call = device.service.upload(device.header(lease, data), changed)
    assert await refused(call) == ("INVALID_ARGUMENT", "wrong_digest")
    assert "committed" not in world.counters()


async def test_a_lease_that_was_given_back_is_void(world: World) -> None:
    device, data = await world.device(), payload(1.0)
    lease = await device.lease()
    await device.give_back(lease)
    await device.give_back(lease)  # the reply may have been lost
    call = device.service.upload(device.header(lease, data), data)
    assert await refused(call) == ("FAILED_PRECONDITION", "aborted_lease")
    assert world.counters()["aborted.unsaid"] == 1


async def test_an_expired_lease_is_void_and_its_bytes_are_gone(world: World) -> None:
    device, data = await world.device(), payload(1.0)
    lease = await device.lease()
    header = device.header(lease, data)
    with pytest.raises(RemoteError):
        await _without_commit(device, header, data[:40])
    world.now += world.federation.config.lease_s + 1
    call = device.service.upload(header, data)
    assert await refused(call) == ("FAILED_PRECONDITION", "expired_lease")
    await world.tick()
    database = world.federation.database()
    assert database.do_now(lambda tx: leases.kept(tx, lease.lease_id)) == leases.Partial()
    database.close()
    assert world.counters()["expired"] == 1


@pytest.mark.parametrize("world", [{"min_separation_s": 60.0}], indirect=True)
async def test_a_device_does_not_take_part_too_often(world: World) -> None:
    device = await world.commit(1.0)
    reply = await device.check_in()
    assert (reply.lease, reply.no_lease) == (None, "too_soon")
    assert reply.retry.earliest_s == 60.0
    world.now += 61
    # Goal and minimum count devices: as long as its update waits, it has no second one.
    assert (await device.check_in()).no_lease == "too_soon"
    for _ in range(2):
        await world.commit(1.0)
    await world.tick()
    assert (await device.check_in()).lease is not None


async def test_a_device_of_another_base_is_not_needed(world: World) -> None:
    device = await world.device()
    reply = await device.check_in(base="c" * 64)
    assert (reply.lease, reply.no_lease) == (None, "other_base")


async def test_another_base_begins_anew_and_takes_nothing_of_the_one_before(world: World) -> None:
    for value in (1.0, 1.0, 1.0):
        await world.commit(value)
    await world.tick()  # approved: the old base has an adapter of its own
    late, waiting = await world.device(), await world.commit(2.0)
    lease, data = await late.lease(), payload(3.0)
    made = world.federation
    database = made.database()
    part = {"sha256": sha256_bytes(data), "start": 0, "data": data[:40], "now": world.now}
    assert database.do_now(lambda tx: leases.keep(tx, lease.lease_id, **part))
    pair = LoraPair(np.ones((WIDE, RANK), np.float32), np.zeros((RANK, WIDE), np.float32))
    path = write_adapter(
        made.folder / "other",
        {"layers.0.q_proj": pair},
        name="other",
        base_digest=OTHER,
        signing_key=made.publisher,
    )
    digest = made.registry.publish(path, made.trust).artifact.digest
    made.config = made.config.model_copy(update={"adapter": digest})
    await world.tick()
    last = world.rounds()[-2:]
    assert [(each.state, each.base_digest) for each in last] == [
        ("abandoned", BASE),
        ("collecting", OTHER),
    ]
    assert "another base" in last[0].note
    call = late.service.upload(late.header(lease, data), data)
    assert await refused(call) == ("FAILED_PRECONDITION", "expired_lease")
    assert database.do_now(lambda tx: leases.pieces(tx, lease.lease_id)) == b""
    assert database.do_now(counters)["expired"] == 1
    database.close()
    assert (await waiting.check_in()).no_lease == "other_base"
    reply = await waiting.check_in(base=OTHER)
    assert reply.lease is not None
    assert Adapters(made.registry).read(reply.lease.adapter_digest).manifest.base_digest == OTHER
    await world.tick()
    assert world.rounds()[-1].state == "collecting", "what the old base's devices sent is gone"


@pytest.mark.parametrize(
    "world", [synchronous(aggregation=AggregationConfig(noise_multiplier=1.0))], indirect=True
)
async def test_a_coordinator_that_dies_before_it_ends_a_round_tells_its_sum_once(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under other noise it would tell it twice, and ε knows of one."""
    for value in (1.0, 2.0, 3.0):
        await world.commit(value)

    def dies(*_: object, **__: object) -> bool:
        raise OSError("killed")

    made = world.federation
    for _ in range(2):
        with monkeypatch.context() as patch:
            patch.setattr(rounds, "finish", dies)
            with pytest.raises(RemoteError, match="UNAVAILABLE"):
                await world.tick()
            world.now += 301  # its claim is over
    await world.tick()
    ended, after = world.rounds()
    assert (ended.state, after.state) == ("approved", "collecting")
    database = made.database()
    seeds = database.do_now(lambda tx: tx.all("SELECT noise_seed FROM rounds"))
    database.close()
    assert [row[0] for row in seeds] == ["", ""]
    assert len(list(made.registry.artifacts())) == 2, "the one before, and what came of it"


@pytest.mark.parametrize("world", [synchronous()], indirect=True)
async def test_a_device_has_one_update_in_a_synchronous_round(world: World) -> None:
    """However short ``min_separation_s`` is: noise hides what one update changes."""
    device = await world.commit(1.0)
    world.now += 10
    reply = await device.check_in()
    assert (reply.lease, reply.no_lease) == (None, "too_soon")
    assert reply.retry.earliest_s == 90.0
    await world.commit(2.0)
    world.now += 91
    await world.tick()
    assert (await device.check_in()).lease is not None


@pytest.mark.parametrize("world", [synchronous()], indirect=True)
async def test_a_synchronous_round_takes_its_goal_and_no_more(world: World) -> None:
    devices = [await world.device() for _ in range(5)]
    given = [await device.check_in() for device in devices]
    assert [reply.no_lease for reply in given] == [None] * 4 + ["cohort_full"]
    data = payload(1.0)
    calls = [
        device.service.upload(device.header(reply.lease, data), data)
        for device, reply in zip(devices, given, strict=True)
        if reply.lease is not None
    ]
    for call in calls[:3]:
        await call
    assert await refused(calls[3]) == ("ABORTED", "goal_met")
    await world.tick()
    assert [(each.state, each.counted) for each in world.rounds()] == [
        ("approved", 3),
        ("collecting", 0),
    ]


@pytest.mark.parametrize("world", [synchronous()], indirect=True)
async def test_a_synchronous_round_ends_at_its_deadline(world: World) -> None:
    late = await world.device()
    lease = await late.lease()
    for value in (1.0, 3.0):
        await world.commit(value)
    world.now += 101
    await world.tick()
    data = payload(5.0)
    call = late.service.upload(late.header(lease, data), data)
    assert await refused(call) == ("ABORTED", "late")
    first = world.rounds()[0]
    assert (first.state, first.counted) == ("approved", 2)


@pytest.mark.parametrize("world", [synchronous()], indirect=True)
async def test_too_small_a_cohort_is_never_aggregated(world: World) -> None:
    await world.commit(1.0)
    world.now += 101
    await world.tick()
    first, second = world.rounds()
    assert (first.state, first.candidate_digest) == ("abandoned", None)
    assert "1 updates at the deadline, 2 are needed" in first.note
    assert (second.number, second.adapter_version) == (2, 1)


@pytest.mark.parametrize("world", [{"max_gap": 1, "cohort": 10}], indirect=True)
async def test_an_update_counts_less_the_older_it_is_and_nothing_beyond_the_gap(
    world: World,
) -> None:
    slow, slower = await world.device(), await world.device()
    old, older = await slow.lease(), await slower.lease()
    for value in (0.0, 0.0, 0.0):
        await world.commit(value)
    await world.tick()
    data = payload(3.0)
    await slow.service.upload(slow.header(old, data), data)
    for value in (0.0, 0.0):
        await world.commit(value)
    await world.tick()
    third = world.rounds()[-1]
    served = world.federation.adapters().read(third.adapter_digest)
    # One of three, a version behind: 3 · 1/3 · 1/(1 + √1).
    np.testing.assert_allclose(served.tensors["layers.0.q_proj.b"], 0.5, rtol=1e-6)
    call = slower.service.upload(slower.header(older, data), data)
    assert await refused(call) == ("FAILED_PRECONDITION", "stale")


@pytest.mark.parametrize("world", [{"max_gap": 0, "cohort": 10}], indirect=True)
async def test_a_lease_that_has_grown_too_old_is_replaced(world: World) -> None:
    slow = await world.device()
    old = await slow.lease()
    for value in (0.0, 0.0, 0.0):
        await world.commit(value)
    await world.tick()
    new = await slow.lease()
    assert (old.round, new.round) == (1, 2)
    data = payload(1.0)
    await slow.service.upload(slow.header(new, data), data)


async def test_what_has_ended_is_forgotten_after_a_month(world: World) -> None:
    device, data = await world.device(), payload(1.0)
    lease = await device.lease()
    header = device.header(lease, data)
    await device.service.upload(header, data)
    for value in (2.0, 3.0):
        await world.commit(value)
    await world.tick()
    world.now += 40 * 86_400
    await world.tick()
    database = world.federation.database()
    left = database.do_now(lambda tx: tx.all("SELECT id FROM leases"))
    database.close()
    assert left == []
    # Forgotten, and no good for anything all the same.
    assert await refused(device.service.upload(header, data)) == ("NOT_FOUND", "unknown_lease")
    assert world.rounds()[0].counted == 3


async def test_a_stolen_lease_needs_the_device_s_key_to_be_given_back(world: World) -> None:
    device, thief = await world.device(), await world.device()
    lease = await device.lease()
    thief.device_id = device.device_id
    with pytest.raises(RemoteError, match="bad_signature"):
        await thief.give_back(lease)
    assert (await device.check_in()).lease is not None


async def test_a_challenge_is_for_one_key_and_one_time(world: World) -> None:
    device = BareDevice(world.federation.profile(world.port))
    world.devices.append(device)
    other = BareDevice(world.federation.profile(world.port))
    world.devices.append(other)
    given = await device.service.challenge(device.key.public.raw)
    proof = other.key.sign_raw(statements.enrolment(given.challenge))
    stolen = Enrolment(other.key.public.raw, given.challenge, proof)
    assert await refused(other.service.enrol(stolen)) == ("PERMISSION_DENIED", "bad_proof")
    mine = device.key.sign_raw(statements.enrolment(given.challenge))
    world.now += given.valid_s + 1
    aged = Enrolment(device.key.public.raw, given.challenge, mine)
    assert await refused(device.service.enrol(aged)) == ("PERMISSION_DENIED", "bad_proof")


@pytest.mark.parametrize("world", [{"enrolments_per_hour": 4}], indirect=True)
async def test_one_key_does_not_bring_any_number_of_devices(world: World) -> None:
    first = await world.device()
    for _ in range(3):
        await world.device()
    with pytest.raises(RemoteError, match="too_many_enrolments") as caught:
        await world.device()
    assert caught.value.status == "RESOURCE_EXHAUSTED"
    assert caught.value.retry_after_s == pytest.approx(900.0)
    await first.enrol()  # who is known costs nothing
    # Another key has an hour of its own; the same one may go on when it was told to.
    other = new_key()
    ring = KeyRing.load(world.federation.files.api_keys).with_key("others", other)
    ring.save(world.federation.files.api_keys)
    profile = replace(world.federation.profile(world.port), api_key=other)
    stranger = BareDevice(profile)
    world.devices.append(stranger)
    await stranger.enrol()
    world.now += 901
    await world.device()
    with pytest.raises(RemoteError, match="too_many_enrolments"):
        await world.device()
    assert world.counters()["refused.too_many_enrolments"] == 2
    assert world.counters()["enrolled"] == 6


async def test_a_defect_shows_nothing_of_the_inside(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def broken(public_key: bytes) -> None:
        raise ZeroDivisionError("a secret of the inside")

    device = await world.device()
    monkeypatch.setattr(world.federation.desk, "challenge", broken)
    with pytest.raises(RemoteError, match="INTERNAL: the cluster failed to answer") as caught:
        await device.service.challenge(device.key.public.raw)
    assert "secret" not in str(caught.value)
    assert "a call of the federation service failed" in caplog.text


@pytest.mark.parametrize(
    ("changed", "field"),
    [
        ({"payload_bytes": 0}, "header.payload_bytes"),
        ({"payload_sha256": "x" * 64}, "header.payload_sha256"),
        ({"examples": 0}, "header.examples"),
        ({"examples": 2_000_000}, "header.examples"),
        ({"lease_id": "a lease"}, "header.lease_id"),
        ({"signature": b"short"}, "header.signature"),
        ({"offset": 10_000}, "header.offset"),
    ],
)
async def test_a_header_out_of_range_is_named(
    world: World, changed: dict[str, object], field: str
) -> None:
    device, data = await world.device(), payload(1.0)
    header = device.header(await device.lease(), data, **changed)
    with pytest.raises(RemoteError, match=f"INVALID_ARGUMENT: {field}"):
        await device.service.upload(header, data)


async def test_counts_of_a_fleet_are_added_up_once_a_report(world: World) -> None:
    device = await world.device()
    counts = (("answers.local", 7),)
    times = (("train.step_seconds", Histogram((0.1, 1.0), (1, 2, 0))),)
    report_id = os.urandom(16)
    signature = device.key.sign_raw(statements.metrics(device.device_id, report_id, counts, times))
    report = MetricsReport(device.device_id, report_id, counts, times, signature)
    await device.service.report(report)
    await device.service.report(report)
    database = world.federation.database()
    told = database.do_now(leases.reported)
    database.close()
    assert told == {
        "answers.local": {"": 7},
        "train.step_seconds": {"0.1": 1, "1": 2, "inf": 0},
    }
    most = (("answers.local", 2**53 - 1),) * 3  # more than a store's integers, were it added up
    for _ in range(2):
        report_id = os.urandom(16)
        signed = statements.metrics(device.device_id, report_id, most, ())
        await device.service.report(
            MetricsReport(device.device_id, report_id, most, (), device.key.sign_raw(signed))
        )
    database = world.federation.database()
    assert database.do_now(leases.reported)["answers.local"] == {"": 2**53}
    database.close()
    forged = replace(report, report_id=os.urandom(16))
    assert await refused(device.service.report(forged)) == ("PERMISSION_DENIED", "bad_signature")


@pytest.mark.parametrize(
    "world",
    [{"plan": PlanConfig(layers=1, bits=32), "upload_memory_bytes": 150, "max_payload_bytes": 150}],
    indirect=True,
)
async def test_memory_for_uploads_is_bounded(world: World) -> None:
    one, two, data = await world.device(), await world.device(), payload(1.0)
    first, second = await one.lease(), await two.lease()
    hanging = asyncio.Event()

    async def slow() -> None:
        from cascade.federation.v1alpha1 import federation_pb2 as pb
        from cascade.federation.v1alpha1 import federation_pb2_grpc
        from cascade.wire import federation_convert as convert

        stub = federation_pb2_grpc.FederationServiceStub(one.service._connection.channel)
        call = stub.Upload(metadata=one.service._connection.metadata)
        await call.write(pb.UploadRequest(header=convert.header_message(one.header(first, data))))
        await call.write(pb.UploadRequest(chunk=data[:10]))
        await hanging.wait()
        call.cancel()

    task = asyncio.create_task(slow())
    # Until the first upload has begun, the second one would be taken.
    await until(lambda: world.desk_memory() > 0)
    with pytest.raises(RemoteError, match="RESOURCE_EXHAUSTED"):
        await two.service.upload(two.header(second, data), data)
    hanging.set()
    await task
    await until(lambda: world.desk_memory() == 0)
    await two.service.upload(two.header(second, data), data)
    assert world.counters()["committed"] == 1


@pytest.mark.parametrize(
    "world",
    [{"plan": PlanConfig(layers=1, bits=32), "upload_memory_bytes": 150, "max_payload_bytes": 150}],
    indirect=True,
)
async def test_memory_is_taken_before_an_upload_that_goes_on_is_read(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two, data = await world.device(), await world.device(), payload(1.0)
    headers = [replace(each.header(await each.lease(), data), offset=10) for each in (one, two)]
    desk, reading = world.federation.desk, asyncio.Event()
    assert desk is not None

    async def slow(header: UploadHeader) -> bytes:
        await reading.wait()
        raise InvalidInput("header.offset", "is beyond what is kept")

    monkeypatch.setattr(desk, "_begun", slow)
    first = asyncio.create_task(desk.upload(headers[0]))
    await until(lambda: world.desk_memory() > 0)
    with pytest.raises(Overloaded):
        await desk.upload(headers[1])
    reading.set()
    with pytest.raises(InvalidInput):
        await first
    assert world.desk_memory() == 0


async def until(what: Callable[[], bool], within_s: float = 10.0) -> None:
    async with asyncio.timeout(within_s):
        while not what():
            await asyncio.sleep(0.01)


async def test_the_gate_decides_what_the_next_round_starts_from(tmp_path: Path) -> None:
    world = World(Federation.made(tmp_path))
    async with world.federation.gateway() as world.port:
        async with world.federation.coordinator(gate=NeedsApproval()) as coordinator:
            await coordinator.tick()
            for value in (1.0, 1.0, 1.0):
                await world.commit(value)
            await coordinator.tick()
            assert [each.state for each in world.rounds()] == ["waiting"]
            reply = await world.devices[0].check_in()
            assert (reply.lease, reply.no_lease) == (None, "no_round")
            database = world.federation.database()
            database.do_now(lambda tx: rounds.decide(tx, 1, approved=False, note="worse"))
            database.close()
            await coordinator.tick()
        first, second = world.rounds()
        assert (first.state, first.note) == ("rejected", "worse")
        assert (second.adapter_version, second.adapter_digest) == (
            1,
            world.federation.config.adapter,
        )
        # The version of the rejected one is never used again.
        async with world.federation.coordinator(gate=Approves()) as coordinator:
            for value in (1.0, 1.0, 1.0):
                await world.commit(value)
            await coordinator.tick()
        assert world.rounds()[1].candidate_version == 3
        for device in world.devices:
            await device.close()


@asynccontextmanager
async def two_candidates(tmp_path: Path, gate: Gate) -> AsyncIterator[tuple[World, Coordinator]]:
    """Two rounds have ended, of which the second started from the first one's candidate."""
    world = World(Federation.made(tmp_path, start_from="candidate"))
    async with (
        world.federation.gateway(now=lambda: world.now) as world.port,
        world.federation.coordinator(gate=gate, now=lambda: world.now) as coordinator,
    ):
        await coordinator.tick()
        for _ in range(2):
            for value in (1.0, 1.0, 1.0):
                await world.commit(value)
            await coordinator.tick()
        yield world, coordinator
        for device in world.devices:
            await device.close()


async def test_nothing_goes_on_from_a_candidate_that_is_rejected(tmp_path: Path) -> None:
    async with two_candidates(tmp_path, NeedsApproval()) as (world, coordinator):
        holder = await world.device()
        held = await holder.lease()
        states = [each.state for each in world.rounds()]
        assert states == ["waiting", "waiting", "collecting"]
        database = world.federation.database()
        database.do_now(lambda tx: rounds.decide(tx, 1, approved=False, note="poisoned"))
        database.close()
        await coordinator.tick()
        told = [(each.state, each.note) for each in world.rounds()]
        why = "round 1, which it goes back to, was rejected"
        assert told[:3] == [("rejected", "poisoned"), ("rejected", why), ("abandoned", why)]
        assert (told[3][0], len(told)) == ("collecting", 4)
        # What its devices learn from it yet counts in no other round.
        data = payload(5.0)
        with pytest.raises(RemoteError):
            await holder.service.upload(holder.header(held, data), data)
        lease = await holder.lease()
        assert lease.lease_id != held.lease_id
        # What devices began with anew has a version above all that they have seen.
        adapters = world.federation.adapters()
        assert lease.adapter_version > held.adapter_version
        assert not adapters.read(lease.adapter_digest).tensors["layers.0.q_proj.b"].any()


async def test_the_gate_is_not_asked_of_what_has_gone_with_another(tmp_path: Path) -> None:
    class Rejects:
        asked: ClassVar[list[int]] = []

        async def judge(self, candidate: rounds.Round) -> tuple[Verdict, str]:
            self.asked.append(candidate.number)
            return ("undecided" if len(self.asked) == 1 else "rejected"), "a test says so"

    async with two_candidates(tmp_path, Rejects()) as (world, coordinator):
        await coordinator.tick()
        assert Rejects.asked == [1, 1]
        assert [each.state for each in world.rounds()][:2] == ["rejected", "rejected"]


async def late_for_another_plan(world: World) -> None:
    """One update of a plan of the last layer, and two of a plan of both that were late."""
    made, wide, narrow = world.federation, payload(3.0, layers=2), change(7.0, layers=2)
    devices = [await world.device() for _ in range(6)]
    held = [await each.lease() for each in devices[:5]]
    for device, lease in zip(devices[:3], held, strict=False):
        await device.service.upload(device.header(lease, wide), wide)
    plan = PlanConfig(layers=1, bits=32, clip_norm=1000.0)
    made.config = made.config.model_copy(update={"plan": plan})
    await world.tick()
    for device, lease in zip(devices[3:5], held[3:], strict=True):
        await device.service.upload(device.header(lease, wide), wide)
    del narrow["layers.0.q_proj.b"]
    data = encode(narrow, 32, np.random.default_rng(0))
    await devices[5].service.upload(devices[5].header(await devices[5].lease(), data), data)


@pytest.mark.parametrize("world", [{"layers": 2, "cohort": 10}], indirect=True)
async def test_fewer_than_the_minimum_that_can_be_read_are_not_aggregated(world: World) -> None:
    await late_for_another_plan(world)
    await world.tick()
    second, third = world.rounds()[1:]
    assert (second.state, second.candidate_digest) == ("abandoned", None)
    assert "updates: of this plan are 1, 2 are needed" in second.note
    assert third.adapter_digest == second.adapter_digest
    assert world.counters()["dropped"] == 3


@pytest.mark.parametrize("world", [{"layers": 2, "cohort": 10, "minimum": 1}], indirect=True)
async def test_what_a_round_left_out_is_counted_once(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    await late_for_another_plan(world)
    finish = rounds.finish

    def taken_over(tx: Transaction, number: int, **given: Any) -> bool:
        return finish(tx, number, **{**given, "token": "another's"})

    with monkeypatch.context() as patch:
        patch.setattr(rounds, "finish", taken_over)
        await world.tick()
    assert world.rounds()[1].state == "aggregating"
    assert "dropped" not in world.counters()
    await world.tick()
    assert world.rounds()[1].state == "approved"
    assert world.counters()["dropped"] == 2


@pytest.mark.parametrize("world", [{"goal": 2, "minimum": 1}], indirect=True)
async def test_a_goal_above_the_fleet_is_said(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    store = ["--store", world.federation.config.store_url]

    def shown() -> str:
        assert main(["federation", "rounds", *store]) == 0
        return capsys.readouterr().out

    await world.commit(1.0)
    told = shown()
    assert "    1 of 2 updates so far" in told
    assert "round 1 ends with the updates of 2 devices, and 1 are enrolled" in told
    assert main(["federation", "rounds", *store, "--json"]) == 0
    value = json.loads(capsys.readouterr().out)
    assert (value["rounds"][0]["goal"], value["devices"], value["uncounted"]) == (2, 1, 1)
    await world.device()
    assert "are enrolled" not in shown()
    # A cluster that is started with another goal waits for that.
    world.federation.config = world.federation.config.model_copy(update={"goal": 3})
    async with world.federation.coordinator(now=lambda: world.now):
        assert "1 of 3 updates so far" in shown()
