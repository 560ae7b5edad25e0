"""An adapter that ends the process that tries it is left for what ran before."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from cascade import home, testing
from cascade.wire import ClientProfile
from edge import AsyncDevice, Delivered, Device, delivery, renewal, set_up
from edge.delivered import alone
from edge.trial import TRIES, AdapterRefused, Trial
from tests.edge.test_delivery import Shop, device, shop  # noqa: F401 (fixtures)
from tests.edge.test_renewal import publish, verified

DIES = """
import os, signal
from edge import Device, renewal
renewal.answers = lambda model: os.kill(os.getpid(), signal.SIGKILL)
Device.open()
"""


class Killed(BaseException):
    """As a kill leaves the disk: nothing that comes after is done."""


@pytest.fixture
def delivered(shop: Shop, device: Path):  # noqa: F811
    """A device that ran the first adapter, and the cluster that it has it from."""
    shop.publish(shop.tiny.path)
    first = publish(shop, 1)
    with testing.cluster(artifacts=shop.source) as cluster:
        asyncio.run(set_up(cluster.profile))
        Device.open().close()
        yield first, cluster.profile


def dies(times: int = TRIES) -> None:
    """Open the device in processes that its adapter ends."""
    for _ in range(times):
        done = subprocess.run([sys.executable, "-c", DIES], check=False, env=dict(os.environ))
        assert done.returncode == -signal.SIGKILL


def runs() -> tuple[str, bool]:
    """What a device that is opened now runs, and whether its policy is the adapter's."""
    with Device.open() as running:
        assert running.info is not None
        return running.info.adapter_digest, verified(running)


def test_an_adapter_that_answers_is_proved_once(
    delivered: tuple[str, ClientProfile], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, _ = delivered
    assert not home.trial_path().exists()

    def asked(model: object) -> bool:
        raise AssertionError("was proved already")

    monkeypatch.setattr(renewal, "answers", asked)
    assert runs() == (first, True)


def test_an_adapter_that_ends_processes_is_left_for_the_one_before(
    shop: Shop,  # noqa: F811
    delivered: tuple[str, ClientProfile],
    caplog: pytest.LogCaptureFixture,
) -> None:
    first, profile = delivered
    second = publish(shop, 2)
    asyncio.run(set_up(profile))
    dies()
    with caplog.at_level(logging.WARNING):
        assert runs() == (first, True)
    assert f"{TRIES} processes ended while it was tried here" in caplog.text
    # The channel still has it, and nobody takes it again; neither does who is told to.
    with Device.open() as running:
        done = running.renew(profile)
        assert (done.outcome, done.refused, done.adapter) == ("kept", second, first)
        assert str(home.trial_path()) in done.why
        assert verified(running)
    with pytest.raises(AdapterRefused, match="publish another, or delete"):
        asyncio.run(set_up(profile))
    third = publish(shop, 3)
    with Device.open() as running:
        assert running.renew(profile).outcome == "applied"
    assert runs() == (third, True)
    assert not home.trial_path().exists()


def test_one_kill_is_no_verdict(
    shop: Shop,  # noqa: F811
    delivered: tuple[str, ClientProfile],
) -> None:
    second = publish(shop, 2)
    asyncio.run(set_up(delivered[1]))
    dies(1)
    assert runs() == (second, True)
    assert not home.trial_path().exists()


def test_a_device_that_runs_goes_back_too(
    shop: Shop,  # noqa: F811
    delivered: tuple[str, ClientProfile],
) -> None:
    """The one that was opened under the adapter before, and asks for an update."""
    first, profile = delivered
    with Device.open() as running:
        second = publish(shop, 2)
        asyncio.run(set_up(profile))
        dies()
        done = running.renew(profile)
        assert (done.outcome, done.refused) == ("kept", second)
        assert verified(running)
    assert runs() == (first, True)


def test_a_second_adapter_on_trial_goes_back_to_what_was_proved(
    shop: Shop,  # noqa: F811
    delivered: tuple[str, ClientProfile],
) -> None:
    first, profile = delivered
    for version in (2, 3):
        publish(shop, version)
        asyncio.run(set_up(profile))
    dies()
    assert runs() == (first, True)


def test_the_first_adapter_of_all_goes_back_to_none(
    shop: Shop,  # noqa: F811
    device: Path,  # noqa: F811
) -> None:
    shop.publish(shop.tiny.path)
    publish(shop, 1)
    with testing.cluster(artifacts=shop.source) as cluster:
        asyncio.run(set_up(cluster.profile))
    dies()
    assert runs() == ("", False)
    assert Delivered.load().bundle == "tiny"


def test_what_comes_after_one_that_ended_processes_goes_back_beyond_it(
    shop: Shop,  # noqa: F811
    delivered: tuple[str, ClientProfile],
) -> None:
    """Nobody has opened the device in between."""
    first, profile = delivered
    for version in (2, 3):
        publish(shop, version)
        asyncio.run(set_up(profile))
        dies()
    assert runs() == (first, True)


def test_an_adapter_on_trial_that_is_taken_out_is_gone(
    shop: Shop,  # noqa: F811
    delivered: tuple[str, ClientProfile],
) -> None:
    _, profile = delivered
    publish(shop, 2)
    asyncio.run(set_up(profile))
    channel = shop.registry.channel("stable")
    (variant,) = channel.variants
    bare = dataclasses.replace(variant, stable=variant.stable[:1])
    shop.registry.save(
        dataclasses.replace(channel, revision=channel.revision + 1, variants=(bare,)), shop.key
    )
    revision = asyncio.run(set_up(profile)).revision
    assert runs()[0] == ""
    assert (Delivered.load().revision, Delivered.load().adapter) == (revision, "")
    assert not home.trial_path().exists()


def test_an_error_of_the_runtime_is_a_failed_try(
    shop: Shop,  # noqa: F811
    delivered: tuple[str, ClientProfile],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first, profile = delivered

    def broken(model: object) -> bool:
        raise RuntimeError("bad node")

    with Device.open() as running:
        second = publish(shop, 2)
        done = running.renew(profile, check=broken)
        assert (done.outcome, done.refused, done.why) == ("kept", second, "bad node")
    asyncio.run(set_up(profile))
    with monkeypatch.context() as patch:
        patch.setattr(renewal, "answers", broken)
        assert runs() == (first, True)
    assert runs() == (first, True)


def test_ctrl_c_is_no_try(
    shop: Shop,  # noqa: F811
    delivered: tuple[str, ClientProfile],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def interrupted(model: object) -> bool:
        raise KeyboardInterrupt

    second = publish(shop, 2)
    asyncio.run(set_up(delivered[1]))
    with monkeypatch.context() as patch:
        patch.setattr(renewal, "answers", interrupted)
        for _ in range(TRIES + 1):
            with pytest.raises(KeyboardInterrupt):
                AsyncDevice.open()
    assert runs() == (second, True)


@pytest.mark.parametrize("instant", ["policy", "word", "try", "proved"])
def test_killed_at_any_instant_of_a_swap_a_device_opens_with_what_belongs_together(
    shop: Shop,  # noqa: F811
    delivered: tuple[str, ClientProfile],
    monkeypatch: pytest.MonkeyPatch,
    instant: str,
) -> None:
    first, profile = delivered

    def killed(*args: object) -> None:
        raise Killed

    with Device.open() as running:
        second = publish(shop, 2)
        with monkeypatch.context() as patch:
            place: tuple[object, str] = {
                "policy": (delivery, "_put_policy"),
                "word": (Delivered, "save"),
                "try": (renewal, "_apply"),
                "proved": (renewal, "passed"),
            }[instant]
            patch.setattr(*place, killed)
            with pytest.raises(Killed):
                running.renew(profile)
    cut_off = instant in ("policy", "word")
    assert runs() == (first if cut_off else second, True)
    assert not home.trial_path().exists()
    assert Delivered.load().adapter == (first if cut_off else second)


@pytest.mark.parametrize("what", ["another process", "no room"])
def test_where_no_try_can_be_noted_what_was_proved_runs(
    shop: Shop,  # noqa: F811
    delivered: tuple[str, ClientProfile],
    monkeypatch: pytest.MonkeyPatch,
    what: str,
) -> None:
    first, profile = delivered
    second = publish(shop, 2)
    asyncio.run(set_up(profile))
    before: Callable[[Trial], None] = Trial.save

    def full(trial: Trial) -> None:
        raise OSError(28, "No space left on device")

    if what == "no room":
        monkeypatch.setattr(Trial, "save", full)
        assert runs()[0] == first
        monkeypatch.setattr(Trial, "save", before)
    else:
        with alone():
            assert runs()[0] == first
    assert runs() == (second, True)
