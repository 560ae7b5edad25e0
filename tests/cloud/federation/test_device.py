"""The participating device against a real gateway: what it sends, what it refuses, and how it goes
on after whatever happened to it."""

from __future__ import annotations

import asyncio
import errno
import hmac
import json
import os
import stat
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cascade.clock import Reading
from cascade.conditions import Conditions, FixedConditions
from cascade.errors import InvalidInput, RemoteError
from cascade.federation.plan import RoundPlan
from cascade.federation.terms import Attestation, CheckIn, CheckInReply
from cascade.wire import ClientProfile, GrpcFederation
from cloud.federation.desk import open_desk
from cloud.federation.refusals import counters
from cloud.federation.seams import attestor_named
from edge.federation import Limits, NoGain, Participant, Paused, StartingPoint, Trained
from edge.federation.counting import AdapterCounts
from edge.federation.state import DeviceBusy, DeviceFolder, DeviceState
from edge.federation.timer import Timer
from edge.training.allowance import TrainingAllowance
from edge.training.policy import TrainingLimits
from tests.cloud.federation.federated import BASE, ROOT, Federation, change, kill
from tests.ports import free_port


class Clock:
    """Two clocks that a test turns."""

    def __init__(self) -> None:
        self.wall_s, self.uptime_s, self.boot = 1_700_000_000.0, 1000.0, "first"

    def read(self) -> Reading:
        return Reading(self.wall_s, self.uptime_s, self.boot)

    def passes(self, seconds: float) -> None:
        self.wall_s += seconds
        self.uptime_s += seconds


class Steady:
    """A trainer that adds one number, and notes what it was given."""

    def __init__(self, value: float = 1.0) -> None:
        self.value = value
        self.given: list[tuple[RoundPlan, StartingPoint]] = []

    def __call__(self, plan: RoundPlan, start: StartingPoint) -> Trained:
        self.given.append((plan, start))
        return Trained(change(self.value), 3)


class World:
    def __init__(self, federation: Federation, port: int) -> None:
        self.federation = federation
        self.port = port
        self.clock = Clock()
        self.opened: list[Participant] = []

    @property
    def profile(self) -> ClientProfile:
        return self.federation.profile(self.port)

    def device(self, trainer: object = None, **given: object) -> Participant:
        made = Participant(
            self.profile,
            **{  # type: ignore[arg-type]
                "base_digest": BASE,
                "trainer": trainer or Steady(),
                "trust": self.federation.trust,
                "clock": self.clock,
                "limits": Limits(clip_norm=1000.0),
                **given,
            },
        )
        self.opened.append(made)
        return made

    def counters(self) -> dict[str, int]:
        database = self.federation.database()
        try:
            return database.do_now(counters)
        finally:
            database.close()

    async def tick(self) -> None:
        async with self.federation.coordinator() as coordinator:
            await coordinator.tick()


@pytest.fixture
async def world(empty_home: Path, tmp_path: Path) -> AsyncIterator[World]:
    federation = Federation.made(tmp_path / "cluster", goal=1, minimum=1, cohort=4)
    async with federation.gateway() as port:
        made = World(federation, port)
        await made.tick()
        yield made
        for device in made.opened:
            await device.close()


async def test_a_device_enrols_trains_and_sends(world: World, empty_home: Path) -> None:
    trainer = Steady()
    device = world.device(trainer)
    done = await device.step()
    assert done.outcome == "sent"
    ((plan, start),) = trainer.given
    assert plan.bits == 32
    assert start.adapter.digest == world.federation.config.adapter
    assert sorted(start.tensors) == ["layers.0.q_proj.a", "layers.0.q_proj.b"]
    assert world.counters()["committed"] == 1
    key = empty_home / "federation" / "device.key"
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    # Nothing of the update is left on the device.
    assert list((empty_home / "federation").rglob("*.update")) == []


async def test_a_device_does_not_call_before_its_time(world: World) -> None:
    device = world.device()
    done = await device.step()
    again = await world.device().step()
    assert (again.outcome, again.wait_s) == ("waiting", done.wait_s)
    await world.tick()
    world.clock.passes(done.wait_s + 1)
    assert (await device.step()).outcome == "sent"


async def test_the_update_is_clipped_to_the_plan(world: World) -> None:
    device = world.device(Steady(1e6))
    await device.step()
    database = world.federation.database()
    (data,) = database.do_now(lambda tx: tx.all("SELECT payload FROM updates"))[0]
    database.close()
    sent = np.frombuffer(bytes(data)[-16 * 4 :], "<f4")
    assert np.linalg.norm(sent) == pytest.approx(1000.0, rel=1e-5)


@pytest.mark.parametrize(
    "limits", [Limits(seconds=1), Limits(steps=1), Limits(upload_bytes=10), Limits(clip_norm=0.5)]
)
async def test_a_plan_beyond_the_device_s_budget_is_declined(world: World, limits: Limits) -> None:
    trainer = Steady()
    given = replace(limits, clip_norm=limits.clip_norm if limits.clip_norm < 1 else 1000.0)
    done = await world.device(trainer, limits=given).step()
    assert (done.outcome, trainer.given) == ("declined", [])
    assert "this device gives" in done.note
    seen = world.counters()
    assert seen["aborted.over_budget"] == 1
    assert "committed" not in seen


async def test_a_device_takes_part_as_often_as_it_may(world: World) -> None:
    device = world.device(limits=Limits(rounds_per_day=1, clip_norm=1000.0))
    assert (await device.step()).outcome == "sent"
    await world.tick()
    world.clock.passes(1000)
    assert (await device.step()).outcome == "spent"
    for change_s in (-3 * 86_400, 4 * 86_400, 3650 * 86_400):  # setting the clock buys nothing
        world.clock.wall_s += change_s
        world.clock.passes(1000)
        assert (await device.step()).outcome == "spent"
    world.clock.wall_s -= 3651 * 86_400  # nor does it lock the device out when it is set right
    world.clock.passes(86_400)
    assert (await device.step()).outcome == "sent"


async def test_what_an_earlier_version_kept_is_read(world: World) -> None:
    device = world.device(limits=Limits(rounds_per_day=1, clip_norm=1000.0))
    await device.step()
    path = DeviceFolder(world.profile.address).path / "state.json"
    state = json.loads(path.read_bytes())
    assert state["usage"].pop("rounds") == 1
    today = int(world.clock.wall_s // 86_400)
    path.write_text(json.dumps({**state, "usage": {"day": today, "rounds": 1}, "wait": None}))
    assert (await device.step()).outcome == "spent"


async def test_a_device_trains_when_its_owner_s_limits_allow_it(
    world: World, tmp_path: Path
) -> None:
    state = FixedConditions(Conditions("unmetered", charging=True, idle=False))
    allowed = TrainingAllowance(
        TrainingLimits(seconds_per_day=600.0, steps_per_day=50, separation_s=3600.0),
        state,
        path=tmp_path / "training.sqlite3",
        clock=world.clock,
    )
    device = world.device(allowance=allowed)
    done = await device.step()
    assert (done.outcome, done.note) == ("not_ready", "not_idle")
    assert "leased" not in world.counters()
    state.set(Conditions("unmetered", charging=True, idle=True))
    assert (await device.step()).outcome == "sent"
    world.clock.passes(1000)
    done = await device.step()
    assert (done.outcome, done.note) == ("not_ready", "too_soon")
    assert done.wait_s >= 2000


async def test_a_plan_beyond_what_is_left_of_the_day_is_declined(
    world: World, tmp_path: Path
) -> None:
    state = FixedConditions(Conditions("unmetered", charging=True, idle=True))
    allowed = TrainingAllowance(
        TrainingLimits(steps_per_day=49), state, path=tmp_path / "training.sqlite3"
    )
    done = await world.device(allowance=allowed).step()
    assert done.outcome == "declined"
    assert "600 and 49 are left" in done.note
    assert world.counters()["aborted.over_budget"] == 1
    # It would decline the next one, too: it comes back when the day's budgets are whole again.
    assert done.wait_s == pytest.approx(allowed.may_train().day_s, abs=5.0)


class Leaving(Steady):
    """Something changes while it trains."""

    def __init__(self, change: Callable[[], None]) -> None:
        super().__init__()
        self._change = change

    def __call__(self, plan: RoundPlan, start: StartingPoint) -> Trained:
        self._change()
        return super().__call__(plan, start)


async def test_nothing_is_sent_over_a_connection_that_became_metered(
    world: World, tmp_path: Path, empty_home: Path
) -> None:
    good = Conditions("unmetered", charging=True, idle=True)
    state = FixedConditions(good)
    allowed = TrainingAllowance(
        TrainingLimits(), state, path=tmp_path / "training.sqlite3", clock=world.clock
    )
    trainer = Leaving(lambda: state.set(Conditions("metered", charging=True, idle=True)))
    device = world.device(trainer, allowance=allowed)
    for _ in range(2):
        done = await device.step()
        assert (done.outcome, done.note) == ("unsent", "not_unmetered")
        assert "committed" not in world.counters()
        world.clock.passes(done.wait_s + 1)
    state.set(Conditions("unmetered", charging=False, idle=False))  # sending needs no more
    assert (await device.step()).outcome == "sent"
    assert len(trainer.given) == 1


@pytest.mark.parametrize("when", ["while it trains", "while it waits"])
async def test_an_update_is_dropped_when_consent_is_withdrawn(
    world: World, tmp_path: Path, empty_home: Path, when: str
) -> None:
    consent = [True]
    state = FixedConditions(Conditions("unmetered", charging=True, idle=True))
    allowed = TrainingAllowance(
        TrainingLimits(), state, path=tmp_path / "training.sqlite3", clock=world.clock
    )

    def meanwhile() -> None:
        if when == "while it trains":
            consent[0] = False
        else:
            state.set(Conditions("metered", charging=True, idle=True))

    trainer = Leaving(meanwhile)
    device = world.device(trainer, allowance=allowed, consented=lambda: consent[0])
    done = await device.step()
    if when == "while it waits":
        assert done.outcome == "unsent"
        assert len(list(empty_home.rglob("*.update"))) == 1
        consent[0] = False
        world.clock.passes(done.wait_s + 1)
        done = await device.step()
    assert (done.outcome, device.unsent) == ("withdrawn", False)
    assert list(empty_home.rglob("*.update")) == []
    assert "committed" not in world.counters()


async def test_an_update_is_dropped_when_what_it_learned_from_is_forgotten(
    world: World, tmp_path: Path, empty_home: Path
) -> None:
    good = Conditions("unmetered", charging=True, idle=True)
    state, word = FixedConditions(good), [""]
    allowed = TrainingAllowance(
        TrainingLimits(), state, path=tmp_path / "training.sqlite3", clock=world.clock
    )
    trainer = Leaving(lambda: state.set(Conditions("metered", charging=True, idle=True)))
    device = world.device(trainer, allowance=allowed, forgotten=lambda: word[0])
    done = await device.step()
    assert done.outcome == "unsent"
    word[0] = "another"
    world.clock.passes(done.wait_s + 1)
    done = await world.device(trainer, allowance=allowed, forgotten=lambda: word[0]).step()
    assert (done.outcome, done.note) == (
        "withdrawn",
        "examples were forgotten, or the terms of consent changed: the update is dropped",
    )
    assert not device.unsent
    assert list(empty_home.rglob("*.update")) == []
    assert "committed" not in world.counters()


SECRET = b"made in the factory"


class FromTheFactory:
    """Believes devices whose key was vouched for."""

    async def accepts(self, public_key: bytes, statement: Attestation | None) -> bool:
        if statement is None or statement.kind != "factory":
            return False
        return hmac.compare_digest(statement.evidence, hmac.digest(SECRET, public_key, "sha256"))


async def test_devices_are_believed_that_the_named_attestor_believes(
    empty_home: Path, tmp_path: Path
) -> None:
    name = f"{__name__}:FromTheFactory"
    federation = Federation.made(tmp_path / "cluster", attestor=name)
    desk = open_desk(federation.config, federation.registry)
    attestor = desk._attestor
    desk.close()
    assert isinstance(attestor, FromTheFactory)
    async with federation.gateway(attestor=attestor) as port:
        world = World(federation, port)
        await world.tick()
        for attest in (None, lambda key: Attestation("factory", b"?" * 32)):
            done = await world.device(attest=attest).step()
            assert done.outcome == "failed"
            assert "PERMISSION_DENIED" in done.note
            assert "attestation" in done.note
            world.clock.passes(done.wait_s + 1)
        believed = world.device(
            attest=lambda key: Attestation("factory", hmac.digest(SECRET, key, "sha256"))
        )
        assert (await believed.step()).outcome == "sent"
        seen = world.counters()
        assert (seen["refused.not_attested"], seen["enrolled"]) == (2, 1)
        for device in world.opened:
            await device.close()


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("no.such.module:Attestor", "ModuleNotFoundError"),
        (f"{__name__}:Nobody", "AttributeError"),
        ("builtins:dict", "gives a dict, which has no `accepts`"),
    ],
)
def test_an_attestor_that_cannot_be_had_is_named(name: str, problem: str) -> None:
    with pytest.raises(InvalidInput, match=r"federation\.attestor") as raised:
        attestor_named(name)
    assert problem in str(raised.value)


class Interrupted(Steady):
    """The first call does not come to its end."""

    def __init__(self, problem: BaseException, meanwhile: Callable[[], None]) -> None:
        super().__init__()
        self._problem: BaseException | None = problem
        self._meanwhile = meanwhile

    def __call__(self, plan: RoundPlan, start: StartingPoint) -> Trained:
        problem, self._problem = self._problem, None
        self._meanwhile()
        if problem is not None:
            raise problem
        return super().__call__(plan, start)


class Killed(BaseException):
    """As a kill leaves the disk: nothing that comes after is done."""


@pytest.mark.parametrize("how", ["paused", "killed"])
async def test_a_round_goes_on_under_its_lease_after_a_pause_and_after_a_kill(
    world: World, tmp_path: Path, how: str
) -> None:
    good = Conditions("unmetered", charging=True, idle=True)
    state = FixedConditions(good)
    allowed = TrainingAllowance(
        TrainingLimits(), state, path=tmp_path / "training.sqlite3", clock=world.clock
    )
    trainer = Interrupted(
        Paused("stopped: not_idle") if how == "paused" else Killed(),
        lambda: world.clock.passes(100),
    )
    given = {"allowance": allowed, "limits": Limits(rounds_per_day=1, clip_norm=1000.0)}
    device = world.device(trainer, **given)
    if how == "paused":
        done = await device.step()
        assert (done.outcome, done.note) == ("paused", "stopped: not_idle")
        state.set(replace(good, idle=False))
        world.clock.passes(done.wait_s + 1)
        assert (await device.step()).outcome == "paused", "it is still in use"
        state.set(good)
    else:
        with pytest.raises(Killed):
            await device.step()
    world.clock.passes(61)
    # Its own participation, of six hours and one round a day, does not stand in the way.
    assert (await world.device(trainer, **given).step()).outcome == "sent"
    ((plan, _),) = trainer.given
    assert plan.max_seconds == (500 if how == "paused" else 600), "what is left of the plan's"
    assert len(allowed.usage().participations) == 1
    assert world.counters()["leased"] == 1
    world.clock.passes(1000)
    assert (await device.step()).outcome == "spent"


@pytest.mark.parametrize("what", ["consent", "forgotten", "killed", "too little"])
async def test_a_round_in_hand_ends_where_nothing_may_come_of_it(
    world: World, tmp_path: Path, what: str
) -> None:
    good = Conditions("unmetered", charging=True, idle=True)
    allowed = TrainingAllowance(
        TrainingLimits(), FixedConditions(good), path=tmp_path / "books", clock=world.clock
    )
    said: dict[str, object] = {"consent": True, "forgotten": "", "ready": ""}
    left: list[int] = []

    def dies(plan: RoundPlan, start: StartingPoint) -> Trained:
        raise Killed if what == "killed" else Paused("stopped: not_idle")

    device = world.device(
        dies,
        allowance=allowed,
        consented=lambda: said["consent"],
        forgotten=lambda: said["forgotten"],
        ready=lambda: said["ready"],
        discard=lambda: left.append(1),
    )
    if what == "killed":
        for _ in range(3):
            with pytest.raises(Killed):
                await device.step()
    else:
        assert (await device.step()).outcome == "paused"
    said |= {
        "consent": {"consent": False},
        "forgotten": {"forgotten": "another"},
        "too little": {"ready": "0 examples"},
        "killed": {},
    }[what]
    world.clock.passes(61)
    done = await device.step()
    if what == "too little":
        assert (done.outcome, done.note) == ("paused", "0 examples")
        assert not left
    else:
        outcome, note = {
            "consent": ("withdrawn", "consent was withdrawn"),
            "forgotten": ("withdrawn", "examples were forgotten, or the terms of consent changed"),
            "killed": ("failed", "3 processes ended while they trained for it"),
        }[what]
        assert (done.outcome, done.note) == (outcome, note)
        reason = "failed" if what == "killed" else "conditions"
        assert world.counters()[f"aborted.{reason}"] == 1
        assert left == [1]
        assert "committed" not in world.counters()


async def test_a_platform_that_does_not_attest_now_is_asked_again(world: World) -> None:
    def away(key: bytes) -> Attestation:
        raise OSError("no network")

    done = await world.device(attest=away).step()
    assert done.outcome == "failed"
    assert "does not attest now: no network" in done.note
    assert done.wait_s > 0


async def test_a_round_is_given_back_when_its_device_stays_in_use(
    world: World, tmp_path: Path
) -> None:
    good = Conditions("unmetered", charging=True, idle=True)
    state = FixedConditions(good)
    allowed = TrainingAllowance(
        TrainingLimits(), state, path=tmp_path / "training.sqlite3", clock=world.clock
    )
    busy = replace(good, idle=False)
    device = world.device(
        Interrupted(Paused("stopped: not_idle"), lambda: state.set(busy)), allowance=allowed
    )
    outcomes = []
    while not outcomes or outcomes[-1] == "paused":
        done = await device.step()
        outcomes.append(done.outcome)
        world.clock.passes(done.wait_s + 1)
    assert len(outcomes) > 2
    assert (done.outcome, done.note) == ("failed", "not_idle")
    assert world.counters()["aborted.conditions"] == 1
    assert (await device.step()).outcome == "not_ready"


async def test_a_round_that_ended_during_a_pause_is_left(world: World, tmp_path: Path) -> None:
    good = Conditions("unmetered", charging=True, idle=True)
    allowed = TrainingAllowance(
        TrainingLimits(),
        FixedConditions(good),
        path=tmp_path / "training.sqlite3",
        clock=world.clock,
    )
    trainer = Interrupted(Paused("stopped: too_hot"), lambda: None)
    device = world.device(trainer, allowance=allowed)
    assert (await device.step()).outcome == "paused"
    world.clock.passes(7 * 3600)  # beyond lease and separation: another round
    assert (await device.step()).outcome == "sent"
    assert len(allowed.usage().participations) == 2


async def test_an_update_waits_for_a_key_that_is_renewed(world: World) -> None:
    class Renewed(GrpcFederation):
        async def upload(self, *_: object, **__: object) -> None:  # type: ignore[override]
            raise RemoteError("UNAUTHENTICATED", "the API key is not known")

    device = world.device(connect=Renewed)
    done = await device.step()
    assert (done.outcome, device.unsent) == ("unsent", True)
    await device.close()
    world.clock.passes(done.wait_s + 1)
    trainer = Steady()
    assert (await world.device(trainer).step()).outcome == "sent"
    assert trainer.given == []


async def test_counts_are_told_while_the_device_trains(world: World, empty_home: Path) -> None:
    counts = AdapterCounts(lambda: "a" * 64)
    counts.applied("a" * 64, failed=False)
    told: list[bool] = []

    class Telling(Steady):
        def __call__(self, plan: RoundPlan, start: StartingPoint) -> Trained:
            told.append(asyncio.run_coroutine_threadsafe(device.report(counts), loop).result(20))
            return super().__call__(plan, start)

    loop, device = asyncio.get_running_loop(), world.device(Telling())
    assert (await device.step()).outcome == "sent"
    assert told == [True]


async def test_a_lower_version_is_refused(world: World) -> None:
    trainer = Steady()
    device = world.device(trainer, adapter=("a" * 64, 5))
    done = await device.step()
    assert (done.outcome, trainer.given) == ("declined", [])
    assert "starts from version 1, and this device has seen 5" in done.note
    # What was seen once stays seen, whatever runs now.
    folder = DeviceFolder(world.profile.address)
    folder.save(replace(folder.load().having_seen(BASE, 3), wait=None))
    done = await world.device(trainer).step()
    assert "this device has seen 3" in done.note
    assert world.counters()["aborted.unfit"] == 2


async def test_a_version_that_nobody_signed_was_not_seen(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = world.device()
    service = device._contact.service()
    honest = service.check_in

    async def lying(asked: CheckIn) -> CheckInReply:
        reply = await honest(asked)
        assert reply.lease is not None
        return replace(reply, lease=replace(reply.lease, adapter_version=10**12))

    with monkeypatch.context() as patch:
        patch.setattr(service, "check_in", lying)
        assert (await device.step()).outcome == "declined"
    world.clock.passes(1000)
    assert (await device.step()).outcome == "sent"


async def test_an_adapter_that_nothing_here_fits_costs_no_participation(
    world: World, tmp_path: Path
) -> None:
    allowed = TrainingAllowance(
        TrainingLimits(),
        FixedConditions(Conditions("unmetered", charging=True, idle=True)),
        path=tmp_path / "training.sqlite3",
        clock=world.clock,
    )
    trainer = Steady()
    device = world.device(trainer, allowance=allowed, fit=lambda plan, start: "all too long")
    done = await device.step()
    assert (done.outcome, done.note, trainer.given) == ("declined", "all too long", [])
    assert done.wait_s >= 3600, "the next one would not fit either"
    assert world.counters()["aborted.no_gain"] == 1
    assert allowed.usage().participations == ()


async def test_another_base_gets_no_lease(world: World) -> None:
    done = await world.device(base_digest="c" * 64).step()
    assert (done.outcome, done.note) == ("not_needed", "other_base")


async def test_a_lease_of_another_coordinator_is_refused(world: World) -> None:
    device = world.device()
    await device.step()
    await world.tick()
    folder = DeviceFolder(world.profile.address)
    folder.save(replace(folder.load(), coordinator_id="0" * 16, wait=None))
    done = await device.step()
    assert (done.outcome, done.note) == ("declined", "the lease is of another coordinator")


async def test_an_adapter_by_an_unknown_publisher_is_refused(world: World, tmp_path: Path) -> None:
    from cascade.signing import TrustStore

    trainer = Steady()
    done = await world.device(trainer, trust=TrustStore(tmp_path / "nobody")).step()
    assert (done.outcome, trainer.given) == ("declined", [])
    assert "signed by none of the publishers" in done.note


async def test_training_without_gain_sends_nothing(world: World) -> None:
    def hopeless(plan: RoundPlan, start: StartingPoint) -> Trained:
        raise NoGain("worse than its parent on what was kept aside")

    done = await world.device(hopeless).step()
    assert (done.outcome, done.note) == ("no_gain", "worse than its parent on what was kept aside")
    seen = world.counters()
    assert (seen["aborted.no_gain"], seen.get("committed")) == (1, None)


async def test_a_full_disk_ends_a_round_and_no_device(world: World) -> None:
    def full(plan: RoundPlan, start: StartingPoint) -> Trained:
        raise OSError(errno.ENOSPC, "No space left on device", "checkpoint")

    device = world.device(full)
    done = await device.step()
    assert (done.outcome, "No space left" in done.note) == ("failed", True)
    assert world.counters()["aborted.failed"] == 1

    def save(state: DeviceState) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "state.json")

    world.clock.passes(1000)
    device._folder.save = save  # type: ignore[method-assign]
    done = await device.step()
    assert (done.outcome, "state.json" in done.note) == ("failed", True)


async def test_a_full_disk_while_the_cluster_is_away_ends_no_device(world: World) -> None:
    device = world.device()

    async def away(asked: CheckIn) -> CheckInReply:
        raise RemoteError("UNAVAILABLE", "away")

    def save(state: DeviceState) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "state.json")

    assert (await device.step()).outcome == "sent"
    world.clock.passes(1000)
    device._contact.service().check_in = away  # type: ignore[method-assign]
    device._folder.save = save  # type: ignore[method-assign]
    assert (await device.step()).outcome == "failed"


async def test_a_round_without_gain_is_given_back_by_a_cancelled_step(world: World) -> None:
    began, stop = threading.Event(), threading.Event()

    def hopeless(plan: RoundPlan, start: StartingPoint) -> Trained:
        began.set()
        assert stop.wait(20)
        raise NoGain("worse than its parent")

    device = world.device(hopeless, stop=stop.set)
    step = asyncio.create_task(device.step())
    assert await asyncio.to_thread(began.wait, 20)
    step.cancel()
    with pytest.raises(asyncio.CancelledError):
        await step
    assert DeviceFolder(world.profile.address).load().training is None
    assert world.counters()["aborted.no_gain"] == 1


@pytest.mark.parametrize("ends", ["paused", "trained"])
async def test_a_step_that_is_cancelled_keeps_what_was_learned(world: World, ends: str) -> None:
    began, stop = threading.Event(), threading.Event()

    class Long(Steady):
        def __call__(self, plan: RoundPlan, start: StartingPoint) -> Trained:
            began.set()
            assert stop.wait(20)
            if ends == "paused" and not self.given:
                self.given.append((plan, start))
                raise Paused("stopped after 8 steps: stopped")
            return super().__call__(plan, start)

    trainer, discarded = Long(), []
    device = world.device(trainer, stop=stop.set, discard=lambda: discarded.append(1))
    step = asyncio.create_task(device.step())
    assert await asyncio.to_thread(began.wait, 20)
    step.cancel()
    with pytest.raises(asyncio.CancelledError):
        await step
    state = DeviceFolder(world.profile.address).load()
    if ends == "paused":
        assert (state.training is not None, state.pending, discarded) == (True, None, [])
        assert state.training is not None
        assert state.training.begun == 0, "no kill"
    else:
        assert (state.training, state.pending is not None, discarded) == (None, True, [1])
    assert (await device.step()).outcome == "sent"
    assert world.counters()["committed"] == 1
    assert len(trainer.given) == (2 if ends == "paused" else 1)


async def test_a_damaged_state_says_what_to_do(world: World) -> None:
    device = world.device()
    await device.step()
    (DeviceFolder(world.profile.address).path / "state.json").write_text("{")
    with pytest.raises(InvalidInput, match=r"state\.json: .* remove that file to start anew"):
        await device.step()


async def test_an_update_that_is_not_finite_never_leaves(world: World) -> None:
    done = await world.device(Steady(float("nan"))).step()
    assert done.outcome == "failed"
    seen = world.counters()
    assert (seen["aborted.failed"], seen.get("committed")) == (1, None)


async def test_an_update_waits_for_the_cluster_over_a_restart(
    empty_home: Path, tmp_path: Path
) -> None:
    federation = Federation.made(tmp_path / "cluster")
    port = free_port()
    world = World(federation, port)
    await world.tick()
    stopping = asyncio.Event()

    class Slow(Steady):
        def __call__(self, plan: RoundPlan, start: StartingPoint) -> Trained:
            loop.call_soon_threadsafe(stopping.set)
            stopped.result(timeout=20)
            return super().__call__(plan, start)

    import concurrent.futures

    loop, stopped = asyncio.get_running_loop(), concurrent.futures.Future[None]()
    device = world.device(Slow())
    async with federation.gateway(port):
        step = asyncio.create_task(device.step())
        await stopping.wait()
    stopped.set_result(None)
    done = await step
    assert done.outcome == "unsent"
    assert len(list(empty_home.rglob("*.update"))) == 1
    await device.close()
    # Another process, so to say: nothing but the folder is left.
    trainer = Steady()
    world.clock.passes(done.wait_s + 1)
    async with federation.gateway(port):
        again = world.device(trainer)
        done = await again.step()
        assert (done.outcome, trainer.given) == ("sent", [])
        await again.close()
    assert world.counters()["committed"] == 1


async def test_a_lost_receipt_does_not_send_twice(world: World) -> None:
    device = world.device()
    folder = DeviceFolder(world.profile.address)
    written: list[tuple[bytes, dict[Path, bytes]]] = []
    save = DeviceFolder.save

    def noting(self: DeviceFolder, state: DeviceState) -> None:
        save(self, state)
        updates = {path: path.read_bytes() for path in self.path.glob("*.update")}
        written.append(((self.path / "state.json").read_bytes(), updates))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DeviceFolder, "save", noting)
        assert (await device.step()).outcome == "sent"
    # As if it had been killed after the server's commit, before it wrote that down.
    state, updates = next(each for each in written if each[1])
    (folder.path / "state.json").write_bytes(state)
    for path, data in updates.items():
        path.write_bytes(data)
    done = await world.device().step()
    assert (done.outcome, done.note) == ("sent", "its receipt had been lost")
    assert world.counters()["committed"] == 1


async def test_clocks_that_jump_do_not_matter(world: World) -> None:
    device = world.device()
    world.clock.wall_s = 0.0  # 1970
    assert (await device.step()).outcome == "sent"
    await world.tick()
    world.clock.wall_s = 4e9
    left = await device.step()
    assert left.outcome == "waiting"
    world.clock.uptime_s += left.wait_s + 1
    assert (await device.step()).outcome == "sent"


def test_a_timer_knows_both_clocks() -> None:
    timer = Timer(100.0, Reading(1000.0, 50.0, "one"))
    assert timer.left_s(Reading(0.0, 80.0, "one")) == 70.0
    assert timer.left_s(Reading(1030.0, 1.0, "two")) == 70.0
    assert timer.left_s(Reading(0.0, 1.0, "two")) == 100.0  # set back: never more than the span
    assert timer.left_s(Reading(1e12, 1.0, "two")) == 0.0
    assert Timer.from_json(timer.to_json(), "timer") == timer


_PROCESS = """
import asyncio, sys, time
from pathlib import Path
from cascade.signing import TrustStore
from cascade.wire import ClientProfile
from edge.federation import Limits, Participant, Trained
from tests.cloud.federation.federated import BASE, change

def train(plan, start):
    print("training", flush=True)
    time.sleep(float(sys.argv[3]))
    return Trained(change(1.0), 3)

async def main():
    profile = ClientProfile.load(Path(sys.argv[1]))
    trust = TrustStore(Path(sys.argv[2]))
    device = Participant(profile, BASE, train, trust=trust, limits=Limits(clip_norm=1000.0))
    print((await device.step()).outcome, flush=True)
    await device.close()

asyncio.run(main())
"""


def process(world: World, tmp_path: Path, seconds: float) -> subprocess.Popen[str]:
    path = tmp_path / "client.json"
    world.profile.save(path)
    return subprocess.Popen(
        [
            sys.executable,
            "-c",
            _PROCESS,
            str(path),
            str(world.federation.folder / "trust"),
            str(seconds),
        ],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    )


@pytest.mark.processes
async def test_two_processes_of_one_device_and_one_that_is_killed(
    world: World, tmp_path: Path
) -> None:
    first = process(world, tmp_path, 60.0)
    assert first.stdout is not None
    assert await asyncio.to_thread(first.stdout.readline) == "training\n"
    with pytest.raises(DeviceBusy):
        await world.device().step()
    await asyncio.to_thread(kill, first)  # type: ignore[arg-type]
    first.stdout.close()
    # In the middle of its training: the next process gets the same lease, and sends one update.
    second = process(world, tmp_path, 0.0)
    told, _ = await asyncio.to_thread(second.communicate)
    assert told.split() == ["training", "sent"]
    seen = world.counters()
    assert (seen["leased"], seen["committed"]) == (1, 1)


def test_the_state_of_a_device_is_read_strictly(empty_home: Path) -> None:
    from cascade.errors import InvalidInput

    folder = DeviceFolder("localhost:1")
    folder.save(folder.load())
    path = folder.path / "state.json"
    path.write_text(path.read_text().replace("request_id", "request"))
    with pytest.raises(InvalidInput, match=r"state\.json"):
        folder.load()
