"""What rounds with noise have cost, before the next one and after it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cascade.cli import main
from cloud.config import parse_config
from cloud.federation import budget, rounds
from cloud.federation.account import _cost, account
from cloud.federation.adapters import Adapters
from cloud.federation.budget import rounds_within
from cloud.federation.config import AggregationConfig, FederationConfig, PlanConfig
from cloud.federation.coordinator import Coordinator
from cloud.federation.planned import FederationPlan, plan_federation
from cloud.federation.privacy import NoisedRounds, epsilon
from cloud.federation.refusals import counters
from cloud.federation.rollout.config import RolloutConfig
from tests.cloud.federation.federated import BareDevice, Federation, payload

NOISE, DELTA = 2.0, 1e-4


def noised(folder: Path) -> Federation:
    return Federation.made(
        folder,
        mode="synchronous",
        round_s=100.0,
        goal=2,
        minimum=2,
        plan=PlanConfig(layers=1, bits=32, clip_norm=1.0),
        aggregation=AggregationConfig(noise_multiplier=NOISE, delta=DELTA),
    )


def after(number: int) -> float:
    history = [NoisedRounds(number, NOISE)] if number else []
    return epsilon(history, DELTA)


async def test_it_is_known_before_a_round_and_after_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    federation, now = noised(tmp_path), [1_000_000.0]
    store = ["--store", federation.config.store_url]

    def shown(*words: str) -> str:
        assert main(["federation", *words, *store]) == 0
        return capsys.readouterr().out

    async with (
        federation.gateway(now=lambda: now[0]) as port,
        federation.coordinator(now=lambda: now[0]) as coordinator,
    ):
        devices = [BareDevice(federation.profile(port)) for _ in range(2)]
        for device in devices:
            await device.enrol()
        await coordinator.tick()
        assert f"ε 0 before, {after(1):.3g} once it has ended · δ 0.0001" in shown("show", "1")
        for device in devices:
            data = payload(1.0)
            await device.service.upload(device.header(await device.lease(), data), data)
        await coordinator.tick()
        assert f"ε 0 before, {after(1):.3g} after" in shown("show", "1")
        assert f"ε {after(1):.3g} before, {after(2):.3g} once" in shown("show", "2")
        # The second round has nobody: it spends nothing, and the third begins where it began.
        now[0] += 101
        await coordinator.tick()
        assert f"ε {after(1):.3g}, of which this round has spent nothing" in shown("show", "2")
        await coordinator.tick()
        assert f"ε {after(1):.3g} before, {after(2):.3g} once" in shown("show", "3")
        told = json.loads(shown("rounds", "--json"))
        for device in devices:
            await device.close()
    assert [each["state"] for each in told["rounds"]] == ["collecting", "abandoned", "approved"]
    assert told["rounds"][2]["epsilon_after"] == pytest.approx(after(1))
    assert told["privacy"] == {
        "delta": DELTA,
        "noise_multiplier": NOISE,
        "epsilon": pytest.approx(after(1)),
        "epsilon_after_next": pytest.approx(after(2)),
        "rounds_without_noise": 0,
    }
    assert f"ε {after(1):.3g} spent, {after(2):.3g} after one more · δ 0.0001" in shown("rounds")


async def test_a_round_that_is_withdrawn_when_its_sum_is_told_has_spent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    federation = noised(tmp_path)
    publish = Adapters.publish

    def withdrawn(*args: Any, **given: Any) -> str:
        digest = publish(*args, **given)
        database.do_now(lambda tx: rounds.abandon(tx, 1, "rolled back", 1.0))
        return digest

    database = federation.database()
    async with federation.gateway() as port, federation.coordinator() as coordinator:
        await coordinator.tick()
        for _ in range(2):
            device = BareDevice(federation.profile(port))
            await device.enrol()
            data = payload(1.0)
            await device.service.upload(device.header(await device.lease(), data), data)
            await device.close()
        monkeypatch.setattr(Adapters, "publish", withdrawn)
        await coordinator.tick()
    history = database.do_now(account)
    database.close()
    assert history.noised == (NoisedRounds(1, NOISE),)
    assert history.spent() == pytest.approx(after(1))
    assert main(["federation", "show", "1", "--store", federation.config.store_url]) == 0
    assert f"ε 0 before, {after(1):.3g} after" in capsys.readouterr().out


async def test_a_budget_stops_rounds_and_a_restart_does_not_forget_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exactly as many rounds are opened and counted as it is good for."""
    federation = noised(tmp_path)
    kept = federation.config
    store = ["--store", kept.store_url]

    def allow(most: float) -> None:
        how = kept.aggregation.model_copy(update={"most_epsilon": most})
        federation.config = kept.model_copy(update={"aggregation": how})

    async def a_round(coordinator: Coordinator) -> None:
        await coordinator.tick()
        for place, device in enumerate(devices):
            assert main(["federation", "rounds", *store]) == 0
            assert f"  {place} of 2 updates so far" in capsys.readouterr().out
            data = payload(1.0)
            await device.service.upload(device.header(await device.lease(), data), data)
        await coordinator.tick()

    allow((after(2) + after(3)) / 2)
    async with federation.gateway() as port:
        devices = [BareDevice(federation.profile(port)) for _ in range(2)]
        for device in devices:
            await device.enrol()
        async with federation.coordinator() as coordinator:
            await a_round(coordinator)
        async with federation.coordinator() as coordinator:  # started again
            await a_round(coordinator)
        for _ in range(2):
            async with federation.coordinator() as coordinator:
                await coordinator.tick()
                await coordinator.tick()
        reply = await devices[0].check_in()
        assert (reply.lease, reply.no_lease) == (None, "budget_spent")
        assert reply.retry.earliest_s >= 3600.0, "nobody has to ask every minute"
        assert main(["federation", "rounds", *store, "--json"]) == 0
        told = json.loads(capsys.readouterr().out)
        assert [(each["state"], each["counted"]) for each in told["rounds"]] == [
            ("approved", 2)
        ] * 2
        assert "most_epsilon is" in told["no_round"]
        assert main(["federation", "rounds", *store]) == 0
        shown = capsys.readouterr().out
        assert f"no further round: one more round would make ε {after(3):.3g}" in shown
        assert "raise federation.aggregation.most_epsilon" in shown
        allow(after(3))
        async with federation.coordinator() as coordinator:
            await a_round(coordinator)
            await coordinator.tick()
        assert (await devices[0].check_in()).no_lease == "budget_spent"
        for device in devices:
            await device.close()
    database = federation.database()
    try:
        assert [each.state for each in database.do_now(lambda tx: rounds.recent(tx, 9))] == [
            "approved"
        ] * 3
    finally:
        database.close()


def test_a_budget_is_good_for_as_many_rounds_as_its_account_says() -> None:
    for number in (1, 2, 5, 12):
        assert rounds_within(after(number), NOISE, DELTA) == number
    assert rounds_within(0.9 * after(1), NOISE, DELTA) == 0


def test_what_a_budget_allows_is_said_before_anything_starts(tmp_path: Path) -> None:
    federation = noised(tmp_path)

    def planned(most: float | None) -> FederationPlan:
        how = federation.config.aggregation.model_copy(update={"most_epsilon": most})
        text = "tiers: [{name: a, model: a/m.gguf}]"
        config = parse_config(text, "cluster.yaml")
        rounds_of = federation.config.model_copy(update={"aggregation": how})
        gateway = config.gateway.model_copy(update={"registry": federation.registry.url})
        found = plan_federation(
            config.model_copy(update={"federation": rounds_of, "gateway": gateway})
        )
        assert found is not None
        return found

    assert planned(None).privacy.startswith("any number of rounds")
    assert planned(after(5)).privacy.startswith("5 rounds in all, until ε")
    assert planned(after(5)).problems == ()
    (problem,) = planned(0.1).problems
    assert "allows no round: the first one makes ε" in problem


def test_where_approved_adapters_will_go_is_said_before_anything_starts(tmp_path: Path) -> None:
    federation = noised(tmp_path)
    config = parse_config("tiers: [{name: a, model: a/m.gguf}]", "cluster.yaml")
    gateway = config.gateway.model_copy(update={"registry": federation.registry.url})

    def planned(rollout: RolloutConfig | None) -> str:
        with_it = federation.config.model_copy(update={"rollout": rollout})
        found = plan_federation(
            config.model_copy(update={"federation": with_it, "gateway": gateway})
        )
        assert found is not None
        return found.rollout

    assert planned(None).startswith("none: what is approved reaches devices by `cascade registry")
    told = planned(RolloutConfig(percent=7, minimum_s=7200.0))
    assert told.startswith("on the channel stable, 7 % first; to all when 20 devices or more")
    assert "7,200 s" in told
    assert told.endswith("it serves no bundle of this base yet")


async def test_an_account_that_fails_stops_no_coordinator(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rounds go on with an ε that nobody knows; where there is a budget, none is opened."""

    def fails(*_: object) -> float:
        raise MemoryError("too much")

    monkeypatch.setattr("dp_accounting.get_epsilon_gaussian", fails)
    monkeypatch.setattr("cloud.federation.account._cost", _cost.__wrapped__)
    federation = noised(tmp_path)
    async with federation.coordinator() as coordinator:
        await coordinator.tick()
        database = federation.database()
        opened = database.do_now(rounds.collecting)
        assert opened is not None
        assert (opened.noise_multiplier, opened.epsilon_after) == (NOISE, None)
        database.do_now(lambda tx: rounds.abandon(tx, 1, "a test says so", 1.0))
        how = federation.config.aggregation.model_copy(update={"most_epsilon": 5.0})
        federation.config = federation.config.model_copy(update={"aggregation": how})
    async with federation.coordinator() as coordinator:
        await coordinator.tick()
        assert database.do_now(rounds.collecting) is None
        why = database.do_now(budget.standing_still)
        database.close()
    assert why is not None
    assert why.startswith("ε cannot be told")


def test_noise_that_hides_nothing_is_none() -> None:
    with pytest.raises(ValueError, match=r"noise_multiplier\n.* greater than or equal to 0\.01"):
        AggregationConfig(noise_multiplier=0.001)


def test_a_budget_needs_noise() -> None:
    with pytest.raises(ValueError, match=r"most_epsilon needs aggregation\.noise_multiplier"):
        FederationConfig(adapter="a" * 64, aggregation=AggregationConfig(most_epsilon=1.0))


async def test_rounds_without_noise_are_told_apart(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    federation = Federation.made(tmp_path, goal=1, minimum=1)
    store = ["--store", federation.config.store_url]
    async with federation.gateway() as port, federation.coordinator() as coordinator:
        await coordinator.tick()
        device = BareDevice(federation.profile(port))
        await device.enrol()
        data = payload(1.0)
        await device.service.upload(device.header(await device.lease(), data), data)
        await coordinator.tick()
        await device.close()
    assert main(["federation", "rounds", *store, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["privacy"], told["rounds"][0]["noise_multiplier"]) == (None, None)
    # Then noise is turned on over the same store.
    after_all = noised(tmp_path / "second").config
    federation.config = after_all.model_copy(
        update={"store": federation.config.store, "adapter": federation.config.adapter}
    )
    database = federation.database()
    try:
        assert database.do_now(counters)["committed"] == 1
        database.do_now(lambda tx: rounds.abandon(tx, 2, "the configuration changes", 0.0))
    finally:
        database.close()
    async with federation.coordinator() as coordinator:
        await coordinator.tick()
    assert main(["federation", "rounds", *store]) == 0
    assert "1 rounds without noise promise nothing" in capsys.readouterr().out


async def test_rounds_are_told_to_prometheus(tmp_path: Path) -> None:
    from prometheus_client import generate_latest

    from cascade.errors import RemoteError
    from cloud.observer import Observer

    federation = noised(tmp_path)
    async with federation.gateway() as port, federation.coordinator() as coordinator:
        devices = [BareDevice(federation.profile(port)) for _ in range(3)]
        await coordinator.tick()
        for device in devices:
            await device.enrol()
        leased, data = [await device.lease() for device in devices], payload(1.0)
        for device, lease in zip(devices[:2], leased, strict=False):
            await device.service.upload(device.header(lease, data), data)
        await devices[2].give_back(leased[2])
        with pytest.raises(RemoteError, match="replayed"):
            await devices[0].service.upload(devices[0].header(leased[0], data), data)
        await coordinator.tick()
        assert federation.desk is not None
        observer = Observer(parse_config("tiers: [{name: a, model: a/m.gguf}]", "cluster.yaml"))
        observer.federation(await federation.desk.figures())
        for device in devices:
            await device.close()
    told = generate_latest(observer.meters.registry).decode().splitlines()
    for line in (
        "cascade_federation_devices 3.0",
        'cascade_federation_rounds{state="approved"} 1.0',
        'cascade_federation_rounds{state="collecting"} 1.0',
        'cascade_federation_leases{state="used"} 2.0',
        'cascade_federation_leases{state="aborted"} 1.0',
        'cascade_federation_updates{outcome="committed",reason=""} 2.0',
        'cascade_federation_updates{outcome="refused",reason="replayed"} 1.0',
        'cascade_federation_updates{outcome="given_back",reason="unsaid"} 1.0',
        f"cascade_federation_update_bytes {2.0 * len(data)}",
    ):
        assert line in told
    (before,) = [x for x in told if x.startswith('cascade_federation_epsilon{when="before"}')]
    assert float(before.split()[1]) == pytest.approx(after(1))
