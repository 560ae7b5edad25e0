"""Rounds under masks over real sockets: participants, a gateway and a coordinator, of which the
last two learn the sum alone. Whoever drops out, is late, or says something else."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cascade.errors import RemoteError
from cascade.federation import flatten, statements
from cascade.federation.masking import Delivered, Member, Roster, Survivors
from cascade.federation.plan import RoundPlan
from cascade.federation.terms import Lease, Phase, PhaseMessage, PhaseReply
from cloud.federation import masked_rounds, rounds
from cloud.federation.config import AggregationConfig, PlanConfig
from cloud.federation.coordinator import Coordinator
from cloud.federation.masked_desk import MaskedDesk
from cloud.federation.phases import speakers, standing
from cloud.federation.refusals import counters
from edge.federation import Limits, Participant, StartingPoint, Step, Trained
from tests.cloud.federation.federated import (
    BASE,
    RANK,
    WIDE,
    Approves,
    BareDevice,
    Federation,
    kill,
)
from tests.ports import free_port

DEVICES = 5
NAME = "layers.0.q_proj.b"
MASKED = {
    "mode": "synchronous",
    "goal": DEVICES,
    "minimum": 3,
    "cohort": DEVICES + 1,
    "round_s": 100.0,
    "plan": PlanConfig(layers=1, clip_norm=4.0),
    "secure_aggregation": {"phase_s": 20.0},
}


class Learner:
    """A device with an update of its own, and its state in a folder of its own."""

    def __init__(self, world: World, number: int) -> None:
        self.world, self.number = world, number
        self.update = np.random.default_rng(number).normal(size=(RANK, WIDE)).astype(np.float32)
        self.trained = 0
        self.participant = self.opened()

    def opened(self) -> Participant:
        """The device, as after a restart."""

        def train(plan: RoundPlan, start: StartingPoint) -> Trained:
            self.trained += 1
            return Trained({NAME: self.update}, 10 * (1 + self.number))

        return Participant(
            self.world.federation.profile(self.world.port),
            BASE,
            train,
            trust=self.world.federation.trust,
            limits=Limits(clip_norm=100.0, rounds_per_day=100),
            root=self.world.federation.folder / f"device-{self.number}",
        )

    @property
    def folder(self) -> Path:
        return self.world.federation.folder / f"device-{self.number}"

    async def step(self) -> Step:
        """A step at once, however long the cluster said to wait."""
        for path in self.folder.glob("*/state.json"):
            state = json.loads(path.read_bytes())
            path.write_text(json.dumps({**state, "wait": None}))
        return await self.participant.step()

    async def restarted(self) -> None:
        await self.participant.close()
        self.participant = self.opened()


class World:
    def __init__(self, federation: Federation) -> None:
        self.federation = federation
        self.port = 0
        self.now = 1_000_000.0
        self.learners: list[Learner] = []
        self.bare: list[BareDevice] = []

    async def tick(self) -> None:
        """Of a coordinator that was there all the time: none that starts gives phases more time."""
        database = self.federation.database()
        try:
            coordinator = Coordinator(
                database,
                self.federation.adapters(),
                self.federation.config,
                Approves(),
                now=lambda: self.now,
            )
            await coordinator.start(alone=False)
            await coordinator.tick()
        finally:
            database.close()

    def read(self, step):  # type: ignore[no-untyped-def]
        database = self.federation.database()
        try:
            return database.do_now(step)
        finally:
            database.close()

    def rounds(self) -> list[rounds.Round]:
        return self.read(lambda tx: rounds.recent(tx, 10))[::-1]

    def served(self, number: int) -> np.ndarray:
        """What a round made of B."""
        digest = self.rounds()[number - 1].candidate_digest
        assert digest is not None
        return self.federation.adapters().read(digest).tensors[NAME]

    async def all_step(self, but: tuple[int, ...] = ()) -> list[str]:
        present = [each for each in self.learners if each.number not in but]
        return [(await each.step()).outcome for each in present]

    async def all_sent(self, but: tuple[int, ...] = ()) -> None:
        """Step each device until its update is in a sum that was unmasked."""
        left = [each for each in self.learners if each.number not in but]
        for _ in range(12):
            told = {each.number: await each.step() for each in left}
            assert {each.outcome for each in told.values()} <= {"masking", "sent"}, told
            left = [each for each in left if told[each.number].outcome != "sent"]
            if not left:
                return
        raise AssertionError(f"still masking: {[each.number for each in left]}")

    async def device(self) -> tuple[BareDevice, Lease]:
        made = BareDevice(self.federation.profile(self.port))
        self.bare.append(made)
        await made.enrol()
        return made, await made.lease()


@pytest.fixture
async def world(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[World]:
    made = World(Federation.made(tmp_path, **{**MASKED, **getattr(request, "param", {})}))
    async with made.federation.gateway(now=lambda: made.now) as made.port:
        await made.tick()
        made.learners = [Learner(made, number) for number in range(DEVICES)]
        yield made
        for learner in made.learners:
            await learner.participant.close()
        for device in made.bare:
            await device.close()


def mean(world: World, numbers: tuple[int, ...]) -> np.ndarray:
    """Of the updates that should be in the sum, each shortened to the norm of the plan."""
    clip = world.federation.config.plan.clip_norm
    kept = [world.learners[number].update for number in numbers]
    return np.mean([each * min(1.0, clip / np.linalg.norm(each)) for each in kept], axis=0)


def step_of(world: World) -> float:
    plan = world.federation.config.round_plan
    assert plan.masked is not None
    return plan.masked.fixed(plan.clip_norm).step


async def test_the_sum_is_exact_and_every_device_counts_alike(world: World) -> None:
    await world.all_sent()
    await world.tick()
    (first, second) = (*world.rounds(), None)[:2]
    assert (first.state, first.counted) == ("approved", DEVICES)
    assert second is None or second.state == "collecting"
    # Each number was rounded once, by less than a step, and the mean is of them.
    difference = np.abs(world.served(1) - mean(world, tuple(range(DEVICES))))
    assert difference.max() < step_of(world)
    assert [each.trained for each in world.learners] == [1] * DEVICES
    # Neither side keeps what masks or unmasks.
    assert world.read(lambda tx: tx.one("SELECT COUNT(*) FROM exchanges"))[0] == 0
    sizes = world.read(lambda tx: tx.all("SELECT payload FROM updates"))
    assert [row[0] for row in sizes] == [None] * DEVICES
    for learner in world.learners:
        (state,) = learner.folder.glob("*/state.json")
        assert "masking" not in json.loads(state.read_bytes())
        assert list(state.parent.glob("*.vector")) == list(state.parent.glob("*.update")) == []
    assert len({*world.read(lambda tx: tx.all("SELECT examples FROM updates"))}) == 1


@pytest.mark.processes
async def test_the_sum_is_the_same_on_postgresql(tmp_path: Path, postgresql_url: str) -> None:
    made = World(Federation.made(tmp_path, store=postgresql_url, **MASKED))
    async with made.federation.gateway(now=lambda: made.now) as made.port:
        await made.tick()
        made.learners = [Learner(made, number) for number in range(DEVICES)]
        await made.all_sent()
        await made.tick()
        for learner in made.learners:
            await learner.participant.close()
    assert made.rounds()[0].counted == DEVICES
    difference = np.abs(made.served(1) - mean(made, tuple(range(DEVICES))))
    assert difference.max() < step_of(made)


async def test_what_the_cluster_sees_of_a_device_says_nothing_of_its_update(
    tmp_path: Path,
) -> None:
    """At 8,192 numbers, the stored words are as even as random ones, and go with nothing."""
    from tests.cloud.federation import federated

    wide = 4096
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(federated, "WIDE", wide)
        made = World(Federation.made(tmp_path, **MASKED))
    async with made.federation.gateway(now=lambda: made.now) as made.port:
        await made.tick()
        made.learners = [Learner(made, number) for number in range(DEVICES)]
        for learner in made.learners:
            learner.update = np.full((RANK, wide), 0.01 * (1 + learner.number), np.float32)
        for _ in range(3):
            await made.all_step()
        plan = made.federation.config.round_plan
        assert plan.masked is not None
        fixed = plan.masked.fixed(plan.clip_norm)
        rows = made.read(lambda tx: tx.all("SELECT payload FROM updates ORDER BY device"))
        for learner in made.learners:
            await learner.participant.close()
    words = [fixed.from_bytes(bytes(row[0]), RANK * wide) for row in rows]
    assert len(words) == DEVICES
    for each in words:
        # 256 bins of the high bytes: chi-squared, 255 degrees of freedom, one in a million is 377.
        counts = np.bincount(each >> (fixed.bits - 8), minlength=256)
        assert ((counts - counts.mean()) ** 2 / counts.mean()).sum() < 377
        # A constant update would show in the mean at once: ± 5 standard errors of uniform words.
        error = 2**fixed.bits / np.sqrt(12 * each.size)
        assert abs(float(each.astype(np.float64).mean()) - 2 ** (fixed.bits - 1)) < 5 * error
    one, other = (each.astype(np.float64) for each in words[:2])
    assert abs(np.corrcoef(one, other)[0, 1]) < 5 / np.sqrt(one.size)


@pytest.mark.parametrize("at", ["keys", "shares", "vectors", "reveals"])
async def test_who_drops_out_costs_the_round_nothing(world: World, at: str) -> None:
    """One device is gone from a phase on; the sum is of the others, or has its update in it."""
    gone = 0 if at == "shares" else 4
    if at == "keys":
        await world.all_step(but=(gone,))
        world.now += 101  # the round's deadline
        await world.all_sent(but=(gone,))
    else:
        # The last one's keys complete the roster, so that it deals its shares in the same step.
        for _ in range(3 if at == "reveals" else 1):
            await world.all_step()
    for _ in range(8):
        await world.all_step(but=(gone,))
        await world.all_step(but=(gone,))
        world.now += 21  # whoever has not spoken has dropped out
        await world.tick()
        if world.rounds()[0].state != "collecting":
            break
    first, counted = world.rounds()[0], 5 if at == "reveals" else 4
    assert (first.state, first.counted) == ("approved", counted), first
    kept = tuple(each for each in range(DEVICES) if each != gone or at == "reveals")
    difference = np.abs(world.served(1) - mean(world, kept))
    assert difference.max() < step_of(world)


async def test_too_few_survivors_end_the_round_and_reveal_nothing(world: World) -> None:
    await world.all_step()
    await world.all_step(but=(4,))  # the last of them to deal sends its update at once
    await world.learners[0].step()  # another one
    assert world.read(lambda tx: tx.one("SELECT COUNT(*) FROM updates"))[0] == 2
    world.now += 21
    await world.tick()
    first = world.rounds()[0]
    assert first.state == "abandoned"
    assert "2 devices in the phase of vectors, 3 are needed; nothing was unmasked" in first.note
    left = world.read(
        lambda tx: (
            tx.one("SELECT COUNT(*) FROM exchanges"),
            tx.one("SELECT COUNT(*) FROM updates WHERE payload IS NOT NULL"),
        )
    )
    assert [int(row[0]) for row in left] == [0, 0]
    assert world.read(counters)["dropped"] == 2
    # The devices hear of it, keep nothing, and take part in the next round.
    assert set(await world.all_step(but=(1, 2, 4))) == {"failed"}
    assert world.rounds()[1].state == "collecting"
    assert (await world.learners[0].step()).outcome == "masking"


async def test_a_device_goes_on_after_a_restart_in_every_phase(world: World) -> None:
    left = list(world.learners)
    for _ in range(12):
        outcomes = {each.number: (await each.step()).outcome for each in left}
        assert set(outcomes.values()) <= {"masking", "sent"}
        left = [each for each in left if outcomes[each.number] != "sent"]
        for learner in world.learners:
            await learner.restarted()
    assert left == []
    await world.tick()
    assert world.rounds()[0].counted == DEVICES
    assert [each.trained for each in world.learners] == [1] * DEVICES


@pytest.mark.parametrize(
    "world",
    [{"aggregation": AggregationConfig(noise_multiplier=0.5)}],
    indirect=True,
)
async def test_noise_is_added_to_the_sum(world: World) -> None:
    drawn: list[np.random.Generator] = []

    def noise(of: rounds.Round) -> np.random.Generator:
        drawn.append(np.random.default_rng(7))
        return drawn[-1]

    await world.all_sent()
    async with world.federation.coordinator(now=lambda: world.now, noise=noise) as coordinator:
        await coordinator.tick()
    plan = world.federation.config.round_plan
    assert plan.masked is not None
    fixed = plan.masked.fixed(plan.clip_norm)
    spread = 0.5 * fixed.norm_after(plan.clip_norm, RANK * WIDE)
    wanted = np.random.default_rng(7).normal(0.0, spread, RANK * WIDE).reshape(RANK, WIDE)
    difference = world.served(1) - mean(world, tuple(range(DEVICES))) - wanted / DEVICES
    assert np.abs(difference).max() < step_of(world)
    assert len(drawn) == 1


def said(device: BareDevice, lease: Lease, phase: Phase, payload: bytes) -> PhaseMessage:
    statement = statements.exchange(device.device_id, lease.lease_id, phase, payload)
    return PhaseMessage(
        device.device_id, lease.lease_id, phase, payload, device.key.sign_raw(statement)
    )


async def refused(call: object) -> tuple[str, str]:
    with pytest.raises(RemoteError) as caught:
        await call  # type: ignore[misc]
    assert caught.value.retry_after_s is not None
    return caught.value.status, caught.value.message.partition(":")[0]


class Cast:
    """Bare devices of one round, of which each can say anything."""

    def __init__(self, world: World, devices: list[tuple[BareDevice, Lease]]) -> None:
        self.devices = devices
        self.members = [Member(3) for _ in devices]
        self.keys = [member.keys().to_bytes() for member in self.members]
        self.deals: list[bytes] = []
        plan = world.federation.config.round_plan
        assert plan.masked is not None
        self.fixed = plan.masked.fixed(plan.clip_norm)

    @classmethod
    async def made(cls, world: World) -> Cast:
        return cls(world, [await world.device() for _ in range(DEVICES)])

    async def say(self, place: int, phase: Phase, payload: bytes, **changed: object) -> PhaseReply:
        device, lease = self.devices[place]
        message = replace(said(device, lease, phase, payload), **changed)  # type: ignore[arg-type]
        return await device.service.exchange(message)

    async def four_deal(self, world: World) -> None:
        """The fifth one is late with its keys."""
        for place in range(4):
            await self.say(place, "advertise_keys", self.keys[place])
        world.now += 101
        told = [(await self.say(n, "advertise_keys", self.keys[n])).result for n in range(4)]
        (roster,) = map(Roster.from_bytes, set(told))
        self.deals = [member.deal(roster).to_bytes() for member in self.members[:4]]
        for place in range(4):
            await self.say(place, "share_keys", self.deals[place])

    async def vector(self, place: int) -> bytes:
        delivered = (await self.say(place, "share_keys", self.deals[place])).result
        values, rng = np.zeros(RANK * WIDE), np.random.default_rng(0)
        return self.members[place].masked(Delivered.from_bytes(delivered), values, self.fixed, rng)

    async def upload(self, place: int, payload: bytes) -> None:
        device, lease = self.devices[place]
        await device.service.upload(device.header(lease, payload), payload)


async def test_what_is_said_before_its_phase_or_by_somebody_else_is_refused(
    world: World,
) -> None:
    cast = await Cast.made(world)
    keys = cast.keys
    assert await refused(cast.say(0, "share_keys", b"D")) == ("INVALID_ARGUMENT", "malformed")
    early = Member(3)
    numbered = {n + 1: m.keys() for n, m in enumerate([early, *cast.members])}
    dealt = early.deal(Roster(bytes(32), 4, numbered)).to_bytes()
    wrong = ("FAILED_PRECONDITION", "wrong_phase")
    assert await refused(cast.say(0, "share_keys", dealt)) == wrong
    assert await refused(cast.say(0, "survivors", b"")) == wrong
    assert await refused(cast.upload(0, bytes(RANK * WIDE * 2))) == wrong
    forged = cast.say(0, "advertise_keys", keys[0], signature=bytes(64))
    assert await refused(forged) == ("PERMISSION_DENIED", "bad_signature")
    (device, lease), (other, theirs) = cast.devices[:2]
    moved = cast.say(0, "advertise_keys", keys[0], lease_id=theirs.lease_id)
    assert await refused(moved) == ("PERMISSION_DENIED", "bad_signature")
    stolen = other.service.exchange(said(other, lease, "advertise_keys", keys[1]))
    assert await refused(stolen) == ("PERMISSION_DENIED", "other_device")
    weak = b"K\1" + bytes(32) + keys[0][34:]
    assert await refused(cast.say(0, "advertise_keys", weak)) == ("INVALID_ARGUMENT", "malformed")
    assert not (await cast.say(0, "advertise_keys", keys[0])).complete
    assert not (await cast.say(0, "advertise_keys", keys[0])).complete  # again is the same
    differs = cast.say(0, "advertise_keys", Member(3).keys().to_bytes())
    assert await refused(differs) == ("ALREADY_EXISTS", "said_otherwise")
    taken = cast.say(1, "advertise_keys", keys[0])
    assert await refused(taken) == ("INVALID_ARGUMENT", "malformed")
    await device.give_back(lease)
    given_back = cast.say(0, "advertise_keys", keys[0])
    assert await refused(given_back) == ("FAILED_PRECONDITION", "aborted_lease")
    told = world.read(counters)
    assert (told["refused.wrong_phase"], told["refused.malformed"]) == (3, 3)


async def test_what_comes_too_late_or_again_is_refused(world: World) -> None:
    cast = await Cast.made(world)
    await cast.four_deal(world)
    late = ("ABORTED", "dropped_out")
    assert await refused(cast.say(4, "advertise_keys", cast.keys[4])) == late
    assert await refused(cast.say(4, "share_keys", cast.deals[0])) == late
    payloads = [await cast.vector(place) for place in range(4)]
    short = cast.upload(0, payloads[0][:-2])
    assert await refused(short) == ("INVALID_ARGUMENT", "wrong_shape")
    for place in range(3):
        await cast.upload(place, payloads[place])
    assert await refused(cast.upload(0, payloads[0])) == ("ALREADY_EXISTS", "replayed")
    assert await refused(cast.upload(0, payloads[1])) == ("ALREADY_EXISTS", "used_lease")
    world.now += 21  # the fourth has dropped out
    assert await refused(cast.upload(3, payloads[3])) == ("ABORTED", "late")
    assert await refused(cast.say(3, "survivors", b"")) == late
    assert world.read(counters)["refused.dropped_out"] == 3


async def test_only_the_shares_that_unmask_the_sum_are_taken(world: World) -> None:
    cast = await Cast.made(world)
    await cast.four_deal(world)
    for place in range(3):
        await cast.upload(place, await cast.vector(place))
    early = cast.members[0]
    guessed = Member.from_bytes(early.to_bytes()).reveal(Survivors((1, 2, 3, 4))).to_bytes()
    world.now += 21
    # Nobody has closed the phase yet, so that nothing could check what comes for the next one.
    assert await refused(cast.say(0, "unmask", guessed)) == ("FAILED_PRECONDITION", "wrong_phase")
    survivors = Survivors.from_bytes((await cast.say(0, "survivors", b"")).result)
    assert len(survivors.numbers) == 3
    revealed = cast.members[0].reveal(survivors)
    malformed = ("INVALID_ARGUMENT", "malformed")
    assert await refused(cast.say(0, "unmask", guessed)) == malformed
    swapped = replace(revealed, seeds={}, mask_keys={**revealed.seeds, **revealed.mask_keys})
    assert await refused(cast.say(0, "unmask", swapped.to_bytes())) == malformed
    lied = replace(revealed, seeds=dict.fromkeys(revealed.seeds, bytes(33)))
    assert await refused(cast.say(0, "unmask", lied.to_bytes())) == malformed
    assert (await cast.say(0, "unmask", revealed.to_bytes())).complete
    for place in (1, 2):
        await cast.say(place, "unmask", cast.members[place].reveal(survivors).to_bytes())
    await world.tick()
    assert (world.rounds()[0].state, world.rounds()[0].counted) == ("approved", 3)
    np.testing.assert_array_equal(world.served(1), np.zeros((RANK, WIDE)))
    # Of a round that is over: what was said and counted is done, anything else is late.
    assert (await cast.say(0, "unmask", revealed.to_bytes())).complete
    assert await refused(cast.say(3, "share_keys", cast.deals[3])) == ("ABORTED", "late")


async def test_shares_that_came_before_they_could_be_checked_are_not_taken(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The phase before is closed by somebody else, between the look and the taking."""
    cast = await Cast.made(world)
    await cast.four_deal(world)
    for place in range(3):
        await cast.upload(place, await cast.vector(place))
    guessed = cast.members[0].reveal(Survivors((1, 2, 3, 4))).to_bytes()
    look = MaskedDesk._check_reveal

    async def then_it_closes(desk: MaskedDesk, message: PhaseMessage) -> bool:
        checked = await look(desk, message)
        world.now += 21
        world.read(lambda tx: masked_rounds.advance(tx, rounds.collecting(tx), world.now))
        return checked

    with monkeypatch.context() as patch:
        patch.setattr(MaskedDesk, "_check_reveal", then_it_closes)
        wrong = ("FAILED_PRECONDITION", "wrong_phase")
        assert await refused(cast.say(0, "unmask", guessed)) == wrong
    assert world.read(lambda tx: standing(tx, 1)).phase == "reveals"
    assert world.read(lambda tx: speakers(tx, 1, "unmask")) == []


async def test_a_device_has_a_floor_of_its_own(world: World) -> None:
    learner = world.learners[0]
    learner.participant = Participant(
        world.federation.profile(world.port),
        BASE,
        lambda plan, start: Trained({NAME: learner.update}, 1),
        trust=world.federation.trust,
        limits=Limits(clip_norm=100.0, cohort=4),
        root=learner.folder,
    )
    done = await learner.step()
    assert (done.outcome, done.note) == (
        "declined",
        "the plan sums as few as 3 devices, this one wants 4",
    )


@pytest.mark.parametrize("world", [{"secure_aggregation": False}], indirect=True)
async def test_a_device_may_want_masks_and_a_round_in_the_clear_has_no_phases(
    world: World,
) -> None:
    learner = world.learners[0]
    learner.participant = Participant(
        world.federation.profile(world.port),
        BASE,
        lambda plan, start: Trained({NAME: learner.update}, 1),
        trust=world.federation.trust,
        limits=Limits(clip_norm=100.0, masked_only=True),
        root=learner.folder,
    )
    assert (await learner.step()).outcome == "declined"
    device, lease = await world.device()
    keys = Member().keys().to_bytes()
    reply = device.service.exchange(said(device, lease, "advertise_keys", keys))
    assert await refused(reply) == ("FAILED_PRECONDITION", "not_masked")


async def test_who_comes_when_the_masks_are_agreed_is_not_needed(world: World) -> None:
    await world.all_step()
    late = BareDevice(world.federation.profile(world.port))
    world.bare.append(late)
    await late.enrol()
    assert (await late.check_in()).no_lease == "cohort_full"


async def test_an_outage_of_the_coordinator_makes_nobody_late(world: World) -> None:
    await world.all_step()
    world.now += 1000  # everything stood still
    async with world.federation.coordinator(now=lambda: world.now):
        pass  # it starts again
    await world.all_sent()
    await world.tick()
    assert world.rounds()[0].counted == DEVICES


async def test_a_round_whose_plan_is_not_carried_out_any_more_is_abandoned(world: World) -> None:
    """An older version asked for the counts of a head's rows under masks, too."""
    plan = json.loads(world.rounds()[0].plan) | {"rows": True}
    world.read(lambda tx: tx.run("UPDATE rounds SET plan = ?", json.dumps(plan)))
    await world.tick()
    first, second = world.rounds()
    assert first.state == "abandoned"
    assert "plan.rows: must be left out under masks" in first.note
    assert second.state == "collecting"
    await world.all_sent()


@pytest.mark.processes
async def test_killed_between_phases_a_round_comes_to_the_same_sum(tmp_path: Path) -> None:
    """SIGKILL of gateway and coordinator, by turns, after every step of every device."""
    federation = Federation.made(
        tmp_path, **{**MASKED, "secure_aggregation": {"phase_s": 600.0}, "round_s": 600.0}
    )
    made = World(federation)
    made.port = free_port()
    parts = {part: federation.process(part, made.port) for part in ("gateway", "coordinator")}
    made.learners = [Learner(made, number) for number in range(DEVICES)]
    kills = 0
    try:
        async with asyncio.timeout(120):
            done: set[int] = set()
            while len(done) < DEVICES:
                for learner in made.learners:
                    if learner.number in done:
                        continue
                    outcome = (await learner.step()).outcome
                    if outcome == "sent":
                        done.add(learner.number)
                if kills < 8:
                    part = ("coordinator", "gateway")[kills % 2]
                    await asyncio.to_thread(kill, parts[part])
                    parts[part] = federation.process(part, made.port)
                    kills += 1
                await asyncio.sleep(0.1)
            while not (ended := [each for each in made.rounds() if each.state == "approved"]):
                await asyncio.sleep(0.1)
    finally:
        for process in parts.values():
            kill(process)
        for learner in made.learners:
            await learner.participant.close()
    assert kills >= 4
    assert ended[0].counted == DEVICES
    difference = np.abs(made.served(ended[0].number) - mean(made, tuple(range(DEVICES))))
    assert difference.max() < step_of(made)
    assert [each.trained for each in made.learners] == [1] * DEVICES


def test_a_participant_kept_on_disk_says_the_same_again() -> None:
    member = Member(3)
    others = [Member(3) for _ in range(3)]
    keys = {n + 1: each.keys() for n, each in enumerate([member, *others])}
    roster = Roster(bytes(range(32)), 3, keys)
    deals = {n + 1: each.deal(roster) for n, each in enumerate([member, *others])}
    again = Member.from_bytes(member.to_bytes())
    assert again.keys() == member.keys()
    with pytest.raises(Exception, match="dealt for already"):
        again.deal(roster)
    delivered = Delivered({dealer: dealt.parcels[1] for dealer, dealt in deals.items()})
    plan = RoundPlan.from_bytes(
        json.dumps(
            {
                **json.loads(RoundPlan(clip_norm=4.0).to_bytes()),
                "masked": {"cohort": 4, "threshold": 3, "levels": 1023, "phase_s": 1.0},
            }
        ).encode()
    )
    assert plan.masked is not None
    fixed = plan.masked.fixed(plan.clip_norm)
    values = flatten({NAME: np.ones((RANK, WIDE), np.float32)})
    masked = again.masked(delivered, values, fixed, np.random.default_rng(0))
    assert masked == member.masked(delivered, values, fixed, np.random.default_rng(0))
    once = Member.from_bytes(again.to_bytes())
    survivors = Survivors((1, 2, 3))
    assert once.reveal(survivors) == member.reveal(survivors)
    with pytest.raises(Exception, match="may be asked for once"):
        Member.from_bytes(once.to_bytes()).reveal(survivors)


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        ({"mode": "asynchronous"}, "secure_aggregation needs mode: synchronous"),
        ({"plan": PlanConfig(trained="both")}, "secure_aggregation needs"),
        ({"aggregation": AggregationConfig(rule="median")}, "secure_aggregation needs"),
        ({"secure_aggregation": {"threshold": 2}}, "threshold must be 3 to 5"),
        ({"secure_aggregation": {"threshold": 6}}, "threshold must be 3 to 5"),
    ],
)
def test_only_what_is_linear_can_be_masked(
    tmp_path: Path, changed: dict[str, object], problem: str
) -> None:
    with pytest.raises(ValueError, match=problem):
        Federation.made(tmp_path, **{**MASKED, **changed})


def test_the_section_may_be_a_switch(tmp_path: Path) -> None:
    on = Federation.made(tmp_path / "on", **{**MASKED, "secure_aggregation": True}).config
    assert on.round_plan.masked is not None
    assert (on.round_plan.masked.threshold, on.round_plan.payload_format) == (
        3,
        "cascade-masked-1",
    )
    off = Federation.made(tmp_path / "off", **{**MASKED, "secure_aggregation": False}).config
    assert off.round_plan == off.plan.plan()
    assert "masked" not in json.loads(off.round_plan.to_bytes())


def test_the_store_says_what_was_said_until_it_is_unmasked(tmp_path: Path) -> None:
    federation = Federation.made(tmp_path, **MASKED)
    database = federation.database()
    try:
        from cloud.federation.schema import migrate

        database.do_now(migrate)
        assert database.do_now(lambda tx: masked_rounds.everything(tx, 1)) is None
    finally:
        database.close()
