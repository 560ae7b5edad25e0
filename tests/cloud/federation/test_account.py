"""What rounds with noise have cost, before the next one and after it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cascade.cli import main
from cloud.federation import rounds
from cloud.federation.config import AggregationConfig, PlanConfig
from cloud.federation.privacy import NoisedRounds, epsilon
from cloud.federation.refusals import counters
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
    from cloud.config import parse_config
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
