"""What a channel serves: releases that fit together, canaries, and the way back."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cascade.errors import InvalidInput, NotFound
from cloud.registry import Artifact, Channel, Device, Needs

ANY = Needs()
BASE, OTHER = "a" * 64, "b" * 64


def bundle(name: str, base: str = BASE) -> Artifact:
    return Artifact("bundle", name, base)


def adapter(name: str, version: int, base: str = BASE) -> Artifact:
    return Artifact("adapter", name, base, version=version)


def policy(name: str, task: str = "mood", active: str = "", base: str = BASE) -> Artifact:
    return Artifact("policy", name, base, active, task)


class Publisher:
    """A channel and the artifacts that were published to it."""

    def __init__(self) -> None:
        self.channel = Channel("stable")
        self.known: dict[str, Artifact] = {}
        self.dropped: tuple[str, ...] = ()

    def put(self, item: Artifact, percent: int | None = None, needs: Needs = ANY) -> None:
        self.known[item.digest] = item
        self.channel, self.dropped = self.channel.with_artifact(
            item, self.known, needs=needs, percent=percent
        )

    def stable(self) -> tuple[str, ...]:
        return self.channel.variants[0].stable


def test_a_release_grows_by_what_fits_it() -> None:
    at = Publisher()
    at.put(bundle("b1"))
    at.put(policy("p1"))
    at.put(policy("p2", "topic"))
    assert at.stable() == ("b1", "p1", "p2")
    at.put(policy("p3"))  # in the place of p1: the same task
    assert at.stable() == ("b1", "p2", "p3")
    assert at.dropped == ("p1",)


def test_an_adapter_drops_the_policies_that_were_certified_without_it() -> None:
    at = Publisher()
    for item in (bundle("b1"), policy("p1"), adapter("a1", 1)):
        at.put(item)
    assert (at.stable(), at.dropped) == (("b1", "a1"), ("p1",))
    at.put(policy("p2", active="a1"))
    at.put(adapter("a2", 2))
    assert (at.stable(), at.dropped) == (("b1", "a2"), ("a1", "p2"))


def test_a_bundle_of_another_base_drops_all_that_was_for_the_old_one() -> None:
    at = Publisher()
    for item in (bundle("b1"), adapter("a1", 1), policy("p1", active="a1"), bundle("b2", OTHER)):
        at.put(item)
    assert at.stable() == ("b2",)
    assert set(at.dropped) == {"b1", "a1", "p1"}


@pytest.mark.parametrize(
    ("item", "problem"),
    [
        (policy("p", base=OTHER), "policy: is for the base bbbbbbbbbbbb…, and the channel serves"),
        (policy("p", active="zz"), r"policy: is for the adapter zz, and .* serves a1; tune it"),
        (
            adapter("a0", 1),
            "adapter: has version 1, and the channel serves 1; raise it .train with --version",
        ),
        (adapter("a0", 9, OTHER), "adapter: is for the base bbbbbbbbbbbb…"),
    ],
)
def test_what_does_not_fit_is_refused(item: Artifact, problem: str) -> None:
    at = Publisher()
    for each in (bundle("b1"), adapter("a1", 1)):
        at.put(each)
    with pytest.raises(InvalidInput, match=problem):
        at.put(item)


def test_nothing_is_served_before_a_bundle() -> None:
    with pytest.raises(InvalidInput, match="no bundle; publish the bundle first"):
        Publisher().put(policy("p"))


def test_a_canary_is_built_on_what_is_served_and_promoted_or_withdrawn() -> None:
    at = Publisher()
    at.put(bundle("b1"))
    at.put(adapter("a1", 1), percent=10)
    at.put(policy("p1", active="a1"), percent=20)
    (variant,) = at.channel.variants
    assert (variant.stable, variant.canary, variant.percent) == (("b1",), ("b1", "a1", "p1"), 20)
    withdrawn = at.channel.rolled_back(ANY)
    assert withdrawn.variants[0].canary == ()
    assert withdrawn.variants[0].stable == ("b1",)
    promoted = at.channel.promoted(ANY)
    assert promoted.variants[0].stable == ("b1", "a1", "p1")
    back = promoted.rolled_back(ANY)
    assert back.variants[0].stable == ("b1",)
    assert back.revision == at.channel.revision + 2  # going back is going on


def test_there_has_to_be_something_to_promote_or_go_back_to() -> None:
    at = Publisher()
    with pytest.raises(NotFound, match="nothing is published in channel"):
        at.channel.promoted(ANY)
    at.put(bundle("b1"))
    with pytest.raises(NotFound, match="no canary to promote"):
        at.channel.promoted(ANY)
    with pytest.raises(NotFound, match="no earlier release"):
        at.channel.rolled_back(ANY)
    with pytest.raises(NotFound, match="no variant for such devices"):
        at.channel.promoted(Needs(("aarch64",)))


@given(percent=st.integers(1, 99), more=st.integers(0, 98))
@settings(max_examples=30)
def test_canaries_are_about_the_share_that_was_asked_for_and_stay_canaries(
    percent: int, more: int
) -> None:
    at = Publisher()
    at.put(bundle("b1"))
    at.put(bundle("b2", OTHER), percent=percent)
    devices = [Device(f"device-{i}") for i in range(2000)]
    first = {d.device_id for d in devices if at.channel.resolve(d) == ("b2",)}
    # Four standard deviations of a binomial share.
    assert abs(len(first) / 2000 - percent / 100) < 4 * (0.25 / 2000) ** 0.5
    at.put(bundle("b2", OTHER), percent=min(99, percent + more))
    assert first <= {d.device_id for d in devices if at.channel.resolve(d) == ("b2",)}


def test_a_device_gets_the_most_demanding_variant_that_it_meets() -> None:
    at = Publisher()
    at.put(bundle("small"))
    at.put(bundle("large"), needs=Needs(memory_bytes=2_000_000_000))
    at.put(bundle("arm"), needs=Needs(("aarch64",)))
    resolve = at.channel.resolve
    assert resolve(Device("d", "x86_64")) == ("small",)
    assert resolve(Device("d", "x86_64", 4_000_000_000)) == ("large",)
    assert resolve(Device("d", "aarch64", 4_000_000_000)) == ("large",)
    assert resolve(Device("d", "aarch64", 1_000_000_000)) == ("arm",)
    assert Channel("empty").resolve(Device()) == ()


def test_a_canary_takes_1_to_99_of_a_hundred() -> None:
    with pytest.raises(InvalidInput, match=r"canary: 100 is not in 1 … 99"):
        Publisher().put(bundle("b1"), percent=100)


def test_a_channel_reads_back_from_its_json() -> None:
    at = Publisher()
    at.put(bundle("b1"))
    at.put(bundle("b3"), needs=Needs(("aarch64", "x86_64"), 5))
    at.put(bundle("b2", OTHER), percent=5)
    assert Channel.from_json(json.loads(json.dumps(at.channel.to_json()))) == at.channel
    with pytest.raises(InvalidInput, match=r"channel\.variants"):
        Channel.from_json({"name": "x", "revision": 1, "variants": 3})
