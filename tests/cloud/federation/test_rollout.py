"""From an approved candidate to the devices, and back: channel, store and sequential test."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cascade.cli import main
from cascade.errors import ClusterError
from cascade.federation import fleet
from cascade.federation.terms import Histogram, MetricsReport
from cascade.policy import Policy
from cascade.release import ReleaseManifest
from cascade.signing import SigningKey, TrustStore
from cascade.testing.tiny import TinyBundle, tiny_bundle
from cloud.federation import leases, rounds
from cloud.federation.adapters import Adapters
from cloud.federation.config import FederationConfig
from cloud.federation.coordinator import Coordinator
from cloud.federation.database import Database
from cloud.federation.gate import judgements
from cloud.federation.gate.comparing import Finding
from cloud.federation.gate.evaluation import Findings
from cloud.federation.gate.gate import publish_policy
from cloud.federation.rollout import counts, rollouts
from cloud.federation.rollout.config import RolloutConfig
from cloud.federation.rollout.deciding import decide, devices_needed
from cloud.federation.rollout.rollout import Rollout
from cloud.federation.rounds import Start
from cloud.federation.schema import migrate
from cloud.federation.seams import NeedsApproval
from cloud.registry import Device, Needs, Registry
from edge.adapter import write_adapter
from tests.cloud.federation.gated import OPTIONS, pairs

FINDING = Finding("accuracy", "colours", "first", 0.9, 0.9, -0.01, -0.02, True, "about as good")
MARGINS = {"escalations": 0.1, "corrections": 0.05}


@dataclasses.dataclass
class Fleet:
    """A channel that serves a bundle with an adapter and its policy, and approved candidates."""

    folder: Path
    registry: Registry
    key: SigningKey
    database: Database
    bundle: TinyBundle
    first: str
    now: float = 1000.0

    @classmethod
    def made(cls, folder: Path, bundle: TinyBundle) -> Fleet:
        key, trust = SigningKey.generate(), TrustStore(folder / "trust")
        trust.pin("bundle", bundle.key.public)
        trust.pin("fleet", key.public)
        registry = Registry(str(folder / "registry"))
        base = registry.publish(bundle.path, trust).artifact
        path = write_adapter(
            folder / "first",
            pairs(bundle, 0.0),
            name="first",
            base_digest=bundle.bundle.manifest.base_digest,
            signing_key=key,
        )
        first = registry.publish(path, trust).artifact
        database = Database(folder / "rounds.sqlite3")
        database.do_now(migrate)
        made = cls(folder, registry, key, database, bundle, first.digest)
        policy = registry.artifact(made.policy(first.digest)).artifact
        channel, known = registry.channel("stable"), {}
        for artifact in (base, first, policy):
            known[artifact.digest] = artifact
            channel, _ = channel.with_artifact(artifact, known, needs=Needs(), percent=None)
        registry.save(channel.as_one_change(0), key)
        return made

    def policy(self, adapter: str, task: str = "colours") -> str:
        base = self.bundle.install_policy(task, OPTIONS, threshold=0.0)
        policy: Policy = dataclasses.replace(base, adapter_digest=adapter)
        return publish_policy(self.registry, self.key, policy.to_bytes())

    def approved(self, number: int, start: str | None = None) -> str:
        """A round whose candidate was let through, with a policy; the candidate's digest."""
        adapters = Adapters(self.registry, self.key)
        begun = adapters.read(start or self.first)
        candidate = adapters.publish(
            begun,
            {name: each + number for name, each in begun.tensors.items() if name.endswith(".b")},
            version=number + 1,
            name=f"round-{number}",
        )
        policy = self.policy(candidate)

        def step(tx: Any) -> None:
            at = Start(begun.digest, begun.manifest.version, b"")
            rounds.open_round(tx, begun.manifest.base_digest, at, "{}", now=0.0, closes_at=None)
            tx.run(
                "UPDATE rounds SET state = 'waiting', candidate_digest = ?, candidate_version = ? "
                "WHERE number = ?",
                candidate,
                number + 1,
                number,
            )
            judgements.put(
                tx,
                judgements.Judgement(
                    number, candidate, "approved", (policy,), Findings((FINDING,), ())
                ),
            )
            rounds.decide(tx, number, approved=True)

        self.database.do_now(step)
        return candidate

    def rollout(self, **given: Any) -> Rollout:
        config = RolloutConfig(
            **{
                "percent": 50,
                "minimum_devices": 5,
                "minimum_s": 0.0,
                "bounds": {**MARGINS, "audit_errors": None, "load_failures": None, "slow": None},
                **given,
            }
        )
        return Rollout(
            config,
            self.database,
            self.registry,
            self.key,
            base_digest=self.bundle.bundle.manifest.base_digest,
            now=lambda: self.now,
        )

    def report(self, adapter: str, devices: int, requests: int, **events: int) -> None:
        """Each of so many devices reports so many requests, with these counts a device."""
        for place in range(devices):
            counters = [(fleet.metric(adapter, fleet.REQUESTS), requests)]
            counters += [(fleet.metric(adapter, name), value) for name, value in events.items()]
            report = MetricsReport(
                f"{fleet.short(adapter)}-{place}",
                np.random.default_rng().bytes(16),
                tuple(counters),
                (),
                b"",
            )
            self.database.do_now(lambda tx, report=report: leases.add_report(tx, report, self.now))

    def compared(self) -> None:
        """Begin a rollout whose parent is the first adapter."""
        self.approved(1)
        self.database.do_now(
            lambda tx: rollouts.begin(
                tx, channel="stable", parent_digest=self.first, percent=50, now=0.0
            )
        )

    def served(self, device: str = "d") -> tuple[str, ...]:
        return self.registry.channel("stable").resolve(Device(device))

    def everybody(self) -> set[tuple[str, ...]]:
        return {self.served(f"device {place}") for place in range(100)}

    def state(self, number: int = 1) -> str:
        found = self.database.do_now(lambda tx: rollouts.of_round(tx, number))
        return "none" if found is None else found.state


@pytest.fixture(scope="module")
def own_tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyBundle:
    return tiny_bundle(tmp_path_factory.mktemp("own"))


@pytest.fixture
def fleet_of(tmp_path: Path, own_tiny: TinyBundle) -> Iterator[Fleet]:
    made = Fleet.made(tmp_path, own_tiny)
    yield made
    made.database.close()


async def test_a_good_candidate_is_promoted_with_its_policy(fleet_of: Fleet) -> None:
    rollout, before = fleet_of.rollout(), fleet_of.served()
    await rollout.tick()
    assert fleet_of.state() == "none"
    assert fleet_of.everybody() == {before}
    candidate = fleet_of.approved(1)
    await rollout.tick()
    await rollout.tick()
    assert fleet_of.state() == "canary"
    releases = fleet_of.everybody()
    assert before in releases
    assert len(releases) == 2, "some devices get it, others do not"
    (canary,) = releases - {before}
    adapter, policy = canary[1], fleet_of.registry.artifact(canary[2]).artifact
    assert adapter == candidate
    assert (policy.kind, policy.adapter_digest) == ("policy", candidate), "together or not at all"
    signed = fleet_of.registry.release("stable", canary)
    TrustStore(fleet_of.folder / "trust").verify(signed.manifest, signed.signature, what="release")
    fleet_of.report(candidate, 10, 200, escalated=40, corrected=2)
    fleet_of.report(fleet_of.first, 20, 200, escalated=44, corrected=2)
    await rollout.tick()
    assert fleet_of.state() == "promoted"
    assert fleet_of.everybody() == {canary}


async def test_a_worse_candidate_goes_back_by_a_new_signed_revision(fleet_of: Fleet) -> None:
    rollout, before = fleet_of.rollout(), fleet_of.served()
    candidate = fleet_of.approved(1)
    child = fleet_of.approved(2, start=candidate)
    fleet_of.database.do_now(
        lambda tx: tx.run("UPDATE rounds SET state = 'waiting' WHERE number = 2")
    )
    await rollout.tick()
    await rollout.tick()
    revision = fleet_of.registry.channel("stable").revision
    fleet_of.report(candidate, 10, 200, escalated=120, corrected=4)
    fleet_of.report(fleet_of.first, 20, 200, escalated=40, corrected=4)
    await rollout.tick()
    assert fleet_of.state() == "rolled_back"
    assert fleet_of.everybody() == {before}, "the old artifacts"
    signed = fleet_of.registry.release("stable", before)
    assert ReleaseManifest.from_bytes(signed.manifest).revision == revision + 1
    found = fleet_of.database.do_now(lambda tx: [rounds.round_numbered(tx, n) for n in (1, 2)])
    assert [each.state for each in found if each] == ["rejected", "rejected"], child
    first = Start(fleet_of.first, 1, b"")
    base = fleet_of.bundle.bundle.manifest.base_digest
    start = fleet_of.database.do_now(lambda tx: rounds.start(tx, base, first, unapproved=True))
    assert start == first, "nothing goes on from what was withdrawn"


async def test_a_restart_anywhere_goes_on(fleet_of: Fleet, monkeypatch) -> None:
    """The coordinator dies after each write, of the store and of the channel."""
    candidate = fleet_of.approved(1)
    fleet_of.now = 0.0

    class Killed(Exception):
        pass

    def dying(target: Any, name: str, *, after: bool) -> None:
        real = getattr(target, name)

        def die(*args: Any, **kwargs: Any) -> Any:
            monkeypatch.setattr(target, name, real)
            if after:
                real(*args, **kwargs)
            raise Killed

        monkeypatch.setattr(target, name, die)

    async def until(state: str) -> None:
        for after in (False, True):
            dying(Registry, "save", after=after)
            for _ in range(4):
                with suppress(Killed):
                    await fleet_of.rollout().tick()
        for _ in range(4):
            await fleet_of.rollout().tick()
        monkeypatch.undo()
        assert fleet_of.state() == state

    await until("canary")
    revision = fleet_of.registry.channel("stable").revision
    fleet_of.report(candidate, 10, 200, escalated=40)
    fleet_of.report(fleet_of.first, 20, 200, escalated=40)
    await until("promoted")
    assert fleet_of.registry.channel("stable").revision == revision + 1, "changed once"
    assert {release[1] for release in fleet_of.everybody()} == {candidate}


async def test_a_channel_that_somebody_else_changes_is_left_alone(fleet_of: Fleet) -> None:
    rollout = fleet_of.rollout()
    fleet_of.approved(1)
    await rollout.tick()
    await rollout.tick()
    channel = fleet_of.registry.channel("stable").rolled_back(Needs())
    fleet_of.registry.save(channel, fleet_of.key)
    fleet_of.database.do_now(lambda tx: rollouts.order(tx, promote=True, note="", now=2.0))
    await rollout.tick()
    assert fleet_of.state() == "superseded"


async def test_a_channel_changed_in_between_is_tried_again(fleet_of: Fleet, monkeypatch) -> None:
    rollout = fleet_of.rollout()
    fleet_of.approved(1)
    await rollout.tick()
    real = Registry.save

    def busy(*_: Any, **__: Any) -> None:
        raise ClusterError("changed by somebody else")

    if fleet_of.state() == "starting":
        monkeypatch.setattr(Registry, "save", busy)
        with pytest.raises(ClusterError):
            await rollout.tick()
        monkeypatch.setattr(Registry, "save", real)
    await rollout.tick()
    assert fleet_of.state() == "canary"


async def test_what_fits_no_channel_has_failed(fleet_of: Fleet) -> None:
    rollout = fleet_of.rollout(channel="beta")
    fleet_of.approved(1)
    for _ in range(3):
        await rollout.tick()
    assert fleet_of.state() == "failed"


async def test_nothing_shown_for_too_long_goes_back(fleet_of: Fleet) -> None:
    rollout, before = fleet_of.rollout(most_s=100.0), fleet_of.served()
    fleet_of.approved(1)
    await rollout.tick()
    await rollout.tick()
    fleet_of.now += 101.0
    await rollout.tick()
    assert fleet_of.state() == "rolled_back"
    assert fleet_of.everybody() == {before}


async def test_older_candidates_are_skipped(fleet_of: Fleet) -> None:
    fleet_of.approved(1)
    newest = fleet_of.approved(2)
    rollout = fleet_of.rollout()
    await rollout.tick()
    await rollout.tick()
    assert (fleet_of.state(1), fleet_of.state(2)) == ("skipped", "canary")
    assert any(newest in release for release in fleet_of.everybody())


def test_one_device_cannot_outweigh_the_others(fleet_of: Fleet) -> None:
    fleet_of.compared()
    fleet_of.report(fleet_of.first, 1, 10**6, escalated=10**6)
    fleet_of.report(fleet_of.first, 1, 10**6, escalated=10**6)
    fleet_of.report(fleet_of.first, 1, 5, escalated=7)
    found = fleet_of.database.do_now(lambda tx: counts.of(tx, fleet_of.first))
    assert found["escalations"] == (counts.MOST_PER_DEVICE, counts.MOST_PER_DEVICE)
    assert fleet_of.database.do_now(lambda tx: counts.devices(tx, fleet_of.first)) == 1


def test_what_no_rollout_compares_fills_no_store(fleet_of: Fleet) -> None:
    fleet_of.report(fleet_of.first, 3, 10)
    fleet_of.compared()
    for name in range(20):
        fleet_of.report(f"{name:064x}", 3, 10)
    fleet_of.report(fleet_of.first, 2, 10)
    rows = fleet_of.database.do_now(
        lambda tx: tx.all("SELECT DISTINCT adapter, device FROM adapter_counts")
    )
    assert {adapter for adapter, _ in rows} == {fleet.short(fleet_of.first)}
    assert len(rows) == 2


def test_a_correction_may_come_in_the_report_after_its_request_s(fleet_of: Fleet) -> None:
    fleet_of.compared()
    fleet_of.report(fleet_of.first, 1, 10)
    fleet_of.report(fleet_of.first, 1, 0, corrected=3)
    fleet_of.report(fleet_of.first, 1, 0, corrected=10**6)
    found = fleet_of.database.do_now(lambda tx: counts.of(tx, fleet_of.first))
    assert found["corrections"] == (10, 10)


def test_corrections_of_requests_that_do_not_count_do_not_count(fleet_of: Fleet) -> None:
    fleet_of.compared()
    for _ in range(20):
        fleet_of.report(fleet_of.first, 1, 100)
        fleet_of.report(fleet_of.first, 1, 0, corrected=5)
    found = fleet_of.database.do_now(lambda tx: counts.of(tx, fleet_of.first))
    assert found["corrections"] == (counts.MOST_PER_DEVICE, 5)


def loads(fleet_of: Fleet, adapter: str, devices: int, failing: int) -> None:
    """Each device tries three times; so many fail at each."""
    for place in range(devices):
        failures = {fleet.LOAD_FAILURES: 3} if place < failing else {}
        counters = {fleet.LOADS: 3, **failures}
        report = MetricsReport(
            f"device {place}",
            np.random.default_rng().bytes(16),
            tuple((fleet.metric(adapter, name), value) for name, value in counters.items()),
            (),
            b"",
        )
        fleet_of.database.do_now(lambda tx, report=report: leases.add_report(tx, report, 0.0))


LOADING = {
    "escalations": None,
    "corrections": None,
    "audit_errors": None,
    "slow": None,
    "load_failures": 0.3,
}


@pytest.mark.parametrize(
    ("devices", "failing", "state"),
    [(10, 10, "rolled_back"), (20, 0, "promoted"), (60, 18, "canary"), (10, 1, "canary")],
)
async def test_a_device_speaks_once_of_whether_it_can_load(
    fleet_of: Fleet, devices: int, failing: int, state: str
) -> None:
    """The parent is applied nowhere meanwhile, so it is compared with nothing."""
    rollout = fleet_of.rollout(bounds=LOADING)
    candidate = fleet_of.approved(1)
    await rollout.tick()
    await rollout.tick()
    loads(fleet_of, candidate, devices, failing)
    await rollout.tick()
    assert fleet_of.state() == state
    found = fleet_of.database.do_now(lambda tx: counts.of(tx, candidate))
    assert found["load_failures"] == (devices, failing)


def test_so_many_devices_as_are_asked_for_by_default_can_show_the_default_bounds() -> None:
    config = RolloutConfig()
    assert devices_needed(config.margins, delta=config.delta) <= config.minimum_devices
    assert devices_needed({**config.margins, "load_failures": 0.05}, delta=0.05) > 100
    assert devices_needed({"escalations": 0.1}, delta=0.05) == 0


async def test_what_was_published_on_top_goes_with_the_adapter(fleet_of: Fleet) -> None:
    rollout, before = fleet_of.rollout(), fleet_of.served()
    candidate = fleet_of.approved(1)
    await rollout.tick()
    await rollout.tick()
    fleet_of.database.do_now(lambda tx: rollouts.order(tx, promote=True, note="", now=2.0))
    await rollout.tick()
    channel = fleet_of.registry.channel("stable")
    policy = fleet_of.policy(candidate, "another")
    named = {each: fleet_of.registry.artifact(each).artifact for each in channel.named}
    of_task = fleet_of.registry.artifact(policy).artifact
    changed, _ = channel.with_artifact(
        of_task, named | {policy: of_task}, needs=Needs(), percent=None
    )
    fleet_of.registry.save(changed, fleet_of.key)
    assert policy in fleet_of.served()
    fleet_of.database.do_now(lambda tx: rollouts.order(tx, promote=False, note="", now=3.0))
    await rollout.tick()
    assert fleet_of.state() == "rolled_back"
    assert fleet_of.everybody() == {before}


async def test_a_rollout_keeps_the_day_on_which_releases_expire(fleet_of: Fleet) -> None:
    channel = fleet_of.registry.channel("stable")
    changed = channel.as_one_change(channel.revision)
    fleet_of.registry.save(changed, fleet_of.key, 4_000_000_000)
    rollout = fleet_of.rollout()
    fleet_of.approved(1)
    await rollout.tick()
    await rollout.tick()
    assert fleet_of.state() == "canary"
    assert fleet_of.registry.expires("stable") == 4_000_000_000


@pytest.mark.parametrize(("expires", "after"), [(1_000, 605_800), (4_000_000_000, 4_000_000_000)])
async def test_devices_may_take_the_way_back_of_a_channel_that_has_expired(
    fleet_of: Fleet, expires: int, after: int
) -> None:
    channel = fleet_of.registry.channel("stable")
    fleet_of.registry.save(channel.as_one_change(channel.revision), fleet_of.key, expires)
    rollout = fleet_of.rollout()
    fleet_of.approved(1)
    await rollout.tick()
    await rollout.tick()
    assert fleet_of.registry.expires("stable") == expires, "only the way back is signed for longer"
    fleet_of.database.do_now(lambda tx: rollouts.order(tx, promote=False, note="", now=3.0))
    await rollout.tick()
    assert fleet_of.state() == "rolled_back"
    assert fleet_of.registry.expires("stable") == after


def test_latencies_are_read_from_the_histogram() -> None:
    bounds = fleet.LATENCY_BOUNDS_S
    histogram = Histogram(bounds, (1,) * (len(bounds) + 1))
    found = fleet.measured((), ((fleet.metric("", fleet.LATENCY), histogram),))
    assert found["base", fleet.slower_than(2.0)] == (9, 4)
    odd = Histogram((1.0,), (3, 4))
    assert not fleet.measured((), ((fleet.metric("", fleet.LATENCY), odd),))


def moves(mine: float, theirs: float, runs: int, looks: int = 10) -> list[str]:
    """What becomes of candidates with this share, their parent's being that, looked at so often."""
    draw, found = np.random.default_rng(0), []
    for _ in range(runs):
        candidate = draw.binomial(250, mine, looks).cumsum()
        parent = draw.binomial(1000, theirs, looks).cumsum()
        for look in range(1, looks + 1):
            standing = decide(
                {"m": (250 * look, int(candidate[look - 1]))},
                {"m": (1000 * look, int(parent[look - 1]))},
                {"m": 0.05},
                delta=0.05,
                devices=9,
                minimum_devices=1,
                age_s=1,
                minimum_s=0,
                most_s=10,
            )
            if standing.move != "wait" or look == looks:
                found.append(standing.move)
                break
    return found


def test_candidates_go_where_they_belong_however_often_one_looks() -> None:
    alike, worse = moves(0.2, 0.2, 20), moves(0.35, 0.2, 20)
    assert alike.count("roll_back") <= 2, alike
    assert alike.count("promote") >= 10, alike
    assert worse.count("promote") <= 2, worse
    assert worse.count("roll_back") >= 15, worse


def test_operators_see_it_and_decide(fleet_of: Fleet, capsys) -> None:
    import asyncio

    store = ["--store", str(fleet_of.folder / "rounds.sqlite3")]
    assert main(["federation", "rollout", "show", *store]) != 0
    assert "no rollout" in capsys.readouterr().err
    candidate = fleet_of.approved(1)
    assert main(["federation", "show", "1", *store]) == 0
    told = capsys.readouterr().out
    assert "passed     accuracy of colours: about as good (against first)" in told
    assert main(["federation", "show", "1", "--json", *store]) == 0
    assert json.loads(capsys.readouterr().out)["findings"] == [FINDING.to_json()]
    rollout = fleet_of.rollout()
    asyncio.run(rollout.tick())
    asyncio.run(rollout.tick())
    fleet_of.report(candidate, 2, 10, escalated=3)
    assert main(["federation", "rollout", "show", *store]) == 0
    told = capsys.readouterr().out
    assert "of round 1 · canary" in told
    assert "6 of 20 (30.0%)" in told
    assert main(["federation", "rollout", "promote", *store, "--note", "tried by hand"]) == 0
    asyncio.run(rollout.tick())
    capsys.readouterr()
    assert main(["federation", "rollout", "show", "--json", *store]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["state"], told["note"]) == ("promoted", "tried by hand")
    assert told["candidate"]["measures"]["escalations"] == {"trials": 20, "events": 6}
    assert main(["federation", "rollout", "rollback", *store]) == 0
    asyncio.run(rollout.tick())
    assert fleet_of.state() == "rolled_back"
    assert {release[1] for release in fleet_of.everybody()} == {fleet_of.first}


async def test_after_a_way_back_devices_start_from_a_version_of_their_own(
    fleet_of: Fleet,
) -> None:
    """They have seen the withdrawn version, and none goes back to a lower one."""
    candidate = fleet_of.approved(1)
    adapters = Adapters(fleet_of.registry, fleet_of.key)
    config = FederationConfig(adapter=fleet_of.first, store="unused", goal=1, minimum=1)
    coordinator = Coordinator(fleet_of.database, adapters, config, NeedsApproval())
    await coordinator.tick()
    second = fleet_of.database.do_now(rounds.collecting)
    assert second is not None
    assert (second.adapter_digest, second.adapter_version) == (candidate, 2)
    fleet_of.database.do_now(lambda tx: rounds.withdraw(tx, candidate, "rolled back", 1.0))
    for _ in range(3):
        await coordinator.tick()
    third = fleet_of.database.do_now(rounds.collecting)
    assert third is not None
    assert (third.number, third.adapter_version) == (3, 3), "one, however often it ticks"
    again = adapters.read(third.adapter_digest)
    first = adapters.read(fleet_of.first)
    assert again.manifest.parent == fleet_of.first
    assert all((again.tensors[name] == first.tensors[name]).all() for name in first.tensors)
