"""A device that runs takes new adapters with their policies, or goes on as before."""

from __future__ import annotations

import asyncio
import dataclasses
import threading
from pathlib import Path

import pytest

from cascade import home, testing
from cascade.errors import Tampered
from cascade.policy import PolicyStore
from cascade.release import ReleaseManifest
from cascade.signing import TrustStore
from edge import Adapter, Delivered, Device, Renewal
from edge.adapter import write_adapter
from tests.edge.test_delivery import ANY, Shop, device, shop  # noqa: F401 (fixtures)

QUESTION, OPTIONS = "Nice.", ["good", "bad"]


def publish(shop: Shop, version: int) -> str:  # noqa: F811
    """An adapter with a policy of its own, as one release."""
    adapter = shop.publish(shop.adapter(version))
    shop.publish(shop.policy(adapter))
    return adapter


@pytest.fixture
def opened(shop: Shop, device: Path):  # noqa: F811
    """A device that runs the first adapter, and the cluster that it has it from."""
    shop.publish(shop.tiny.path)
    publish(shop, 1)
    with testing.cluster(artifacts=shop.source) as cluster:
        from edge import set_up

        asyncio.run(set_up(cluster.profile))
        with Device.open() as running:
            yield running, cluster.profile


def verified(running: Device) -> bool:
    return running.choose(QUESTION, OPTIONS, task="mood").verified


def test_adapter_and_policy_change_together(shop: Shop, opened) -> None:  # noqa: F811
    running, profile = opened
    assert verified(running)
    assert running.renew(profile).outcome == "unchanged"
    second = publish(shop, 2)
    assert verified(running), "nothing changes by itself"
    done = running.renew(profile)
    assert (done.outcome, done.adapter, running.info.adapter_digest) == ("applied", second, second)
    assert verified(running), "its own policy applies"


def test_a_new_policy_alone_is_taken_too(shop: Shop, opened) -> None:  # noqa: F811
    running, profile = opened
    assert verified(running)
    first = running.info.adapter_digest
    strict = shop.policy(first)
    policy = strict.read_bytes().replace(b'"threshold": 0.0', b'"threshold": 1.0')
    strict.write_bytes(policy)
    strict.with_suffix(".sig").write_bytes(shop.key.sign(policy))
    shop.publish(strict)
    assert running.renew(profile).outcome == "applied"
    assert not verified(running)


def test_a_withdrawn_adapter_goes_back_with_its_policy(shop: Shop, opened) -> None:  # noqa: F811
    running, profile = opened
    first = running.info.adapter_digest
    publish(shop, 2)
    running.renew(profile)
    channel = shop.registry.channel("stable").rolled_back(ANY)  # the policy of the second
    channel = channel.rolled_back(ANY)  # the second
    shop.registry.save(channel.as_one_change(channel.revision - 2), shop.key)
    sent = shop.source.sent
    done = running.renew(profile)
    assert (done.outcome, running.info.adapter_digest) == ("applied", first)
    assert shop.source.sent == sent, "it was still here"
    assert verified(running)


@pytest.mark.parametrize("how", ["self check", "altered"])
def test_an_adapter_that_fails_here_is_left_and_told(
    shop: Shop,  # noqa: F811
    opened,
    how: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    running, profile = opened
    first = running.info.adapter_digest
    second = publish(shop, 2)
    if how == "altered":
        from edge import renewal

        def spoiled(*args: object) -> None:
            (home.adapters_dir() / second / "adapter.safetensors").write_bytes(b"spoiled")
            return real(*args)

        real = renewal._apply
        monkeypatch.setattr(renewal, "_apply", spoiled)
    done = running.renew(profile, check=(lambda _: how != "self check"))
    assert (done.outcome, done.refused) == ("kept", second)
    assert ("no longer answers" if how == "self check" else "altered after signing") in done.why
    assert running.info.adapter_digest == first
    assert verified(running), "under the policy of before"
    assert Delivered.load().adapter == first, "also after a restart"
    fresh = PolicyStore(home.policies_dir(), TrustStore(home.trust_dir()))
    found = fresh.find("mood", running.info)
    assert found is not None
    assert found.adapter_digest == first


def test_a_device_whose_adapter_was_spoiled_opens_without_it(
    shop: Shop,  # noqa: F811
    device: Path,  # noqa: F811
) -> None:
    shop.publish(shop.tiny.path)
    adapter = publish(shop, 1)
    with testing.cluster(artifacts=shop.source) as cluster:
        from edge import set_up

        asyncio.run(set_up(cluster.profile))
    (home.adapters_dir() / adapter / "adapter.safetensors").write_bytes(b"spoiled")
    with Device.open() as running:
        assert running.info.adapter_digest == ""
        assert not verified(running), "no policy of the adapter's applies"


def test_a_lower_release_changes_nothing(shop: Shop, opened) -> None:  # noqa: F811
    running, profile = opened
    old = shop.registry.channel("stable").resolve(a_profile())
    signed = shop.registry.release("stable", old)
    second = publish(shop, 2)
    running.renew(profile)
    from cascade.wire import SignedBytes
    from cloud.registry.delivery import _raw

    stale = SignedBytes(signed.manifest, _raw(signed.signature))
    assert ReleaseManifest.from_bytes(stale.data).revision < Delivered.load().revision
    shop.source.offer = lambda offer: dataclasses.replace(offer, release=stale)
    with pytest.raises(Tampered, match="has seen"):
        running.renew(profile)
    assert running.info.adapter_digest == second


def test_requests_under_way_end_with_what_they_began(shop: Shop, opened) -> None:  # noqa: F811
    """A thread asks all the time; no answer is verified but under the policy of its adapter, and
    none fails."""
    running, profile = opened
    seen: list[bool] = []
    stop, problems = threading.Event(), []

    def ask() -> None:
        while not stop.is_set():
            try:
                seen.append(verified(running))
            except Exception as problem:
                problems.append(problem)

    asking = threading.Thread(target=ask)
    asking.start()
    outcomes: list[Renewal] = []
    try:
        for version in (2, 3):
            publish(shop, version)
            outcomes.append(running.renew(profile))
    finally:
        stop.set()
        asking.join()
    assert [each.outcome for each in outcomes] == ["applied", "applied"]
    assert not problems
    assert seen
    assert verified(running)


def test_an_adapter_of_another_base_is_left(
    shop: Shop,  # noqa: F811
    opened,
    tmp_path: Path,
) -> None:
    """The channel's publisher was fooled, and the release is signed all the same."""
    running, profile = opened
    first = running.info.adapter_digest
    folder = shop.adapter(2)
    write_adapter(
        folder,
        Adapter.open(folder, shop.tiny.trust).pairs,
        name="foreign",
        base_digest="c" * 64,
        signing_key=shop.key,
        version=2,
    )
    foreign = shop.registry.publish(folder, shop.tiny.trust).artifact.digest
    channel = shop.registry.channel("stable")
    (variant,) = channel.variants
    release = (variant.stable[0], foreign)
    changed = dataclasses.replace(
        channel,
        revision=channel.revision + 1,
        variants=(dataclasses.replace(variant, stable=release),),
    )
    shop.registry.save(changed, shop.key)
    done = running.renew(profile)
    assert (done.outcome, done.refused) == ("kept", foreign)
    assert "was made for base" in done.why
    assert running.info.adapter_digest == first
    assert verified(running)


def a_profile():
    from cloud.registry import Device as Profile

    return Profile()
