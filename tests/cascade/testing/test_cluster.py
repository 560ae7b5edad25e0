"""Devices meet the in-process cluster over gRPC, TLS and its key, as they would a real one."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cascade import testing
from cascade.errors import InvalidInput, RemoteError
from cascade.events import Answer, Final, Superseded, Token
from cascade.policy import Reason
from cascade.request import Constraints
from cascade.testing import Cluster, Fault, Script, TinyBundle
from cloud.config import ClusterConfig, PriceList, TierConfig
from edge import ClientProfile, Device

MOODS = ("good", "bad")


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    with testing.cluster({"tier1": Script("bad")}) as cluster:
        yield cluster


def device(tiny: TinyBundle, profile: ClientProfile) -> Device:
    return Device.open(tiny.path, trust=tiny.trust, policies=tiny.policies, cloud=profile)


def choose(tiny: TinyBundle, cluster: Cluster, **limits: object) -> Answer:
    constraints = Constraints(**limits)  # type: ignore[arg-type]
    with device(tiny, cluster.profile) as opened:
        return opened.choose("What a day.", MOODS, constraints=constraints)


def test_an_escalation_comes_back_from_the_tier(tiny: TinyBundle, cluster: Cluster) -> None:
    answer = choose(tiny, cluster)
    assert (answer.text, answer.source, answer.model) == ("bad", "tier1", "scripted")
    assert answer.verified
    assert answer.bytes_up > 0
    (asked,) = cluster.asked("tier1")
    assert asked.options == MOODS
    (record,) = cluster.records
    assert (record.request_id, record.caller, record.status) == (
        answer.request_id,
        "testing",
        "OK",
    )


def test_free_text_streams_word_by_word(tiny: TinyBundle, cluster: Cluster) -> None:
    cluster.play("tier1", Script("  one two\nthree "))
    with device(tiny, cluster.profile) as opened:
        *tokens, final = opened.ask("Count.", max_tokens=4)
    assert [token.text for token in tokens if isinstance(token, Token)] == [
        "  one",
        " two",
        "\nthree ",
    ]
    assert isinstance(final, Final)
    assert final.answer.text == "  one two\nthree "


def test_an_answer_can_be_computed_from_the_request(tiny: TinyBundle, cluster: Cluster) -> None:
    cluster.play("tier1", Script(lambda request: request.options[-1]))
    assert choose(tiny, cluster).text == MOODS[-1]


@pytest.mark.parametrize("status", ["UNAVAILABLE", "RESOURCE_EXHAUSTED", "INTERNAL"])
def test_a_refusal_leaves_the_local_answer(tiny: TinyBundle, cluster: Cluster, status: str) -> None:
    cluster.play("tier1", Script(fault=Fault(status)))
    answer = choose(tiny, cluster)
    assert (answer.source, answer.verified, answer.remote_status) == ("device", False, status)
    assert answer.reasons == (Reason.UNCERTIFIED_TASK, Reason.REMOTE_FAILED)


def test_a_tier_recovers_after_so_many_faults(tiny: TinyBundle, cluster: Cluster) -> None:
    cluster.play("tier1", Script("bad", fault=Fault("UNAVAILABLE", times=1)))
    assert choose(tiny, cluster).source == "tier1"
    assert len(cluster.asked("tier1")) == 2


def test_a_stream_that_breaks_is_superseded_by_the_device(
    tiny: TinyBundle, cluster: Cluster
) -> None:
    cluster.play("tier1", Script("one two three", fault=Fault("UNAVAILABLE", after=2)))
    with device(tiny, cluster.profile) as opened:
        events = list(opened.ask("Count.", max_tokens=4))
    assert [e.text for e in events if isinstance(e, Token)][:2] == ["one", " two"]
    assert Superseded("device") in events
    assert isinstance(events[-1], Final)
    assert events[-1].answer.local


def test_a_slow_tier_misses_the_deadline(tiny: TinyBundle, cluster: Cluster) -> None:
    cluster.play("tier1", Script("bad", pause_s=60.0))
    began = time.monotonic()
    answer = choose(tiny, cluster, deadline_s=0.5)
    assert time.monotonic() - began < 30.0
    assert (answer.source, answer.remote_status) == ("device", "DEADLINE_EXCEEDED")


def test_a_wrong_key_is_refused(tiny: TinyBundle, cluster: Cluster) -> None:
    wrong = dataclasses.replace(cluster.profile, api_key="wrong")
    with device(tiny, wrong) as opened:
        answer = opened.choose("What a day.", MOODS)
    assert (answer.source, answer.remote_status) == ("device", "UNAUTHENTICATED")
    assert cluster.asked("tier1") == ()


def test_it_goes_away_and_comes_back_at_the_same_address(
    tiny: TinyBundle, cluster: Cluster
) -> None:
    with device(tiny, cluster.profile) as opened:
        assert opened.choose("What a day.", MOODS).source == "tier1"
        cluster.stop()
        assert opened.choose("What a day.", MOODS).remote_status == "UNAVAILABLE"
        cluster.start()
        assert opened.choose("What a day.", MOODS).source == "tier1"


def test_a_bundle_can_be_a_tier(tiny: TinyBundle, tmp_path: Path) -> None:
    larger = testing.tiny_bundle(tmp_path, seed=1)
    with testing.cluster({"tier1": larger}) as cluster:
        with device(tiny, cluster.profile) as opened:
            *tokens, final = opened.ask("Count.", max_tokens=6)
            chosen = opened.choose("What a day.", MOODS)
        assert len(cluster.asked("tier1")) == 2
    assert isinstance(final, Final)
    assert (final.answer.source, final.answer.model) == ("tier1", "tiny")
    assert len(final.answer.text.split()) == final.answer.tokens == len(tokens) == 6
    assert chosen.text in MOODS


def test_the_ladder_is_the_real_one(tiny: TinyBundle) -> None:
    dear = PriceList(output_usd_per_million_tokens=1e6)
    config = ClusterConfig(
        tiers=(
            TierConfig(name="near", model="m", data_classes=("public",)),
            TierConfig(name="far", model="m", price=dear),
        )
    )
    with testing.cluster({"near": Script(), "far": Script()}, config=config) as cluster:
        answer = choose(tiny, cluster)
        assert (answer.source, answer.cost_usd) == ("far", pytest.approx(1.0))
        assert answer.reasons[1:] == ("near:data_class", "lowest_allowed_tier")
        assert choose(tiny, cluster, max_cost_usd=0.1).remote_status == "FAILED_PRECONDITION"


def test_without_a_device_the_refusal_is_the_apps(tiny: TinyBundle, cluster: Cluster) -> None:
    cluster.play("tier1", Script(fault=Fault("RESOURCE_EXHAUSTED", retry_after_s=2.5)))
    with device(tiny, cluster.profile) as opened, pytest.raises(RemoteError) as refused:
        list(opened.ask("Hello?", prefer="cloud"))
    assert refused.value.retry_after_s == 2.5


def test_unusable_scripts_are_refused(tiny: TinyBundle, cluster: Cluster) -> None:
    with pytest.raises(InvalidInput, match="status: 'BROKEN' is not one of"):
        Fault("BROKEN")
    with pytest.raises(InvalidInput, match="times"):
        Fault("INTERNAL", times=0)
    with pytest.raises(InvalidInput, match="after"):
        Fault("INTERNAL", after=-1)
    with pytest.raises(InvalidInput, match="tier9"):
        cluster.play("tier9", Script())
    other = ClusterConfig(tiers=(TierConfig(name="other", model="m"),))
    with pytest.raises(InvalidInput, match="config"), testing.cluster(config=other):
        pass


@pytest.mark.parametrize(
    ("program", "said"),
    [
        ("from cascade import testing; testing.cluster; testing.tiny_bundle", ""),
        ("sys.modules['pydantic'] = None; from cascade import testing; testing.Script", "[cloud]"),
        (
            "sys.modules['onnx'] = None; import pathlib; from cascade import testing;"
            " testing.tiny_bundle(pathlib.Path('never-made'))",
            "[bundle]",
        ),
    ],
)
def test_it_loads_no_cluster_and_says_which_extra_is_missing(program: str, said: str) -> None:
    code = f"import sys; {program}; assert not sys.modules.keys() & {{'ray', 'xllamacpp', 'torch'}}"
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    last = done.stderr.strip().rpartition("\n")[2]
    assert said in last
    assert (done.returncode == 0) == (not said), done.stderr
