"""A real device and the in-process cluster over gRPC: money, licences, privacy, failures."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from cascade import home, testing
from cascade.breaker import CircuitBreaker
from cascade.decision_record import replay_decision
from cascade.errors import InvalidInput
from cascade.latency import LatencyBook
from cascade.policy import Reason
from cascade.privacy import PiiSpan, Privacy
from cascade.testing import Cluster, Fault, Script, TinyBundle
from cloud.config import ClusterConfig, PriceList, TierConfig
from edge import Checks, Constraints, DecisionRecord, Device, Egress, Final, MoneyLimits
from edge.bundle import seal

MOODS = ("good", "bad")
# A token of answer costs a tenth of a cent.
PRICED = ClusterConfig(
    tiers=(
        TierConfig(name="lab", model="m", commercial_use=False),
        TierConfig(
            name="shop",
            model="m",
            commercial_use=True,
            price=PriceList(output_usd_per_million_tokens=1000.0),
        ),
    )
)


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    with testing.cluster({"lab": Script(), "shop": Script()}, config=PRICED) as cluster:
        yield cluster


def device(tiny: TinyBundle, cluster: Cluster, **parts: object) -> Device:
    return Device.open(
        tiny.path,
        trust=tiny.trust,
        policies=tiny.policies,
        cloud=cluster.profile,
        **parts,  # type: ignore[arg-type]
    )


def test_the_days_money_bounds_what_the_cluster_may_charge(
    tiny: TinyBundle, cluster: Cluster, empty_home: Path
) -> None:
    money = MoneyLimits(per_day_usd=0.003, per_request_usd=0.006)
    shop = Constraints(allowed_tiers=frozenset({"shop"}))
    with device(tiny, cluster, egress=Egress.usual("c", money=money)) as opened:
        dear = opened.choose("What a day.", MOODS, constraints=shop)
        assert dear.reasons == (Reason.UNCERTIFIED_TASK, Reason.BUDGET_DAY)
    # An answer of this set may have 5 tokens, which cost half a cent; one token was charged.
    money = MoneyLimits(per_day_usd=0.008, per_request_usd=0.006)
    with device(tiny, cluster, egress=Egress.usual("c", money=money)) as opened:
        answers = [opened.choose("What a day.", MOODS, constraints=shop) for _ in range(4)]
    assert [answer.source for answer in answers] == ["shop", "shop", "shop", "device"]
    assert answers[0].cost_usd == pytest.approx(0.001)
    assert answers[3].reasons[-1] == Reason.BUDGET_DAY
    # Another process, so to speak: the file remembers.
    with device(tiny, cluster, egress=Egress.usual("c", money=money)) as opened:
        assert opened.choose("What a day.", MOODS, constraints=shop).source == "device"
    assert home.budget_path().parent == empty_home
    assert home.latency_path().exists()


def test_a_call_that_the_clusters_price_list_forbids_costs_nothing(
    tiny: TinyBundle, cluster: Cluster, empty_home: Path
) -> None:
    money = MoneyLimits(per_day_usd=1.0, per_request_usd=0.002)
    limits = Constraints(allowed_tiers=frozenset({"shop"}))
    with device(tiny, cluster, egress=Egress.usual("c", money=money)) as opened:
        for _ in range(3):
            answer = opened.choose("What a day.", MOODS, constraints=limits)
            assert answer.remote_status == "FAILED_PRECONDITION"
            assert "shop:cost" in (answer.remote_error or "")


def test_commercial_requests_pass_over_research_models(tiny: TinyBundle, cluster: Cluster) -> None:
    with device(tiny, cluster) as opened:
        assert opened.choose("What a day.", MOODS).source == "lab"
        paid = opened.choose("What a day.", MOODS, constraints=Constraints(commercial=True))
        assert (paid.source, paid.reasons[1:]) == ("shop", ("lab:licence", "lowest_allowed_tier"))
    with device(tiny, cluster, egress=Egress(commercial=True)) as opened:
        assert opened.choose("What a day.", MOODS).source == "shop"
        only = Constraints(allowed_tiers=frozenset({"lab"}))
        refused = opened.choose("What a day.", MOODS, constraints=only)
    assert refused.remote_status == "FAILED_PRECONDITION"
    assert "lab:licence" in (refused.remote_error or "")


def test_a_commercial_device_opens_no_bundle_whose_licence_forbids_it(
    tiny: TinyBundle, tmp_path: Path
) -> None:
    copy = tmp_path / "research"
    shutil.copytree(tiny.path, copy)
    manifest = replace(tiny.bundle.manifest, licence="CC-BY-NC-4.0", commercial_use=False)
    seal(copy, manifest, tiny.key)
    Device.open(copy, trust=tiny.trust, policies=tiny.policies).close()
    with pytest.raises(InvalidInput, match=r"commercial: CC-BY-NC-4\.0"):
        Device.open(copy, trust=tiny.trust, egress=Egress(commercial=True))


class Mail:
    """Finds one address."""

    def find(self, text: str) -> list[PiiSpan]:
        at = text.find("ann@b.c")
        return [PiiSpan(at, at + 7, "EMAIL", 1.0)] if at >= 0 else []


def test_an_address_stays_here_and_is_in_the_streamed_answer(tiny: TinyBundle) -> None:
    echo = Script(lambda request: f"Dear {request.messages[-1].content} , hello")
    with testing.cluster({"tier1": echo}) as cluster:
        with device(tiny, cluster, egress=Egress(privacy=Privacy(Mail()))) as opened:
            talk = opened.conversation()
            *tokens, final = talk.ask("ann@b.c", max_tokens=9)
            list(talk.ask("Again: ann@b.c", max_tokens=9))
        first, second = cluster.asked("tier1")
    assert isinstance(final, Final)
    assert final.answer.text == "Dear ann@b.c , hello"
    assert "".join(token.text for token in tokens) == final.answer.text
    assert "ann" not in repr(first) + repr(second)
    assert second.messages[0] == first.messages[0]


def test_a_cluster_that_fails_is_left_alone_until_it_may_be_looked_at(tiny: TinyBundle) -> None:
    now = [0.0]
    breaker = CircuitBreaker(2, 10.0, now=lambda: now[0])
    failing = Script(fault=Fault("UNAVAILABLE"))
    with testing.cluster({"tier1": failing}) as cluster:
        egress = Egress(breaker=breaker)
        with device(tiny, cluster, egress=egress) as opened:
            ends = [opened.choose("What a day.", MOODS).reasons[-1] for _ in range(3)]
            assert ends == [Reason.REMOTE_FAILED, Reason.REMOTE_FAILED, Reason.CIRCUIT_OPEN]
            cluster.play("tier1", Script())
            assert opened.choose("What a day.", MOODS).reasons[-1] == Reason.CIRCUIT_OPEN
            now[0] = 10.0
            assert opened.choose("What a day.", MOODS).source == "tier1"


def test_a_slow_tier_is_not_waited_for_again(tiny: TinyBundle) -> None:
    slow = Script(pause_s=5.0)
    with testing.cluster({"tier1": slow}) as cluster:
        egress = Egress(latency=LatencyBook(), cluster="c")
        hasty = Constraints(deadline_s=0.4, allowed_tiers=frozenset({"tier1"}))
        with device(tiny, cluster, egress=egress) as opened:
            answers = [opened.choose("What a day.", MOODS, constraints=hasty) for _ in range(7)]
            assert len(cluster.asked("tier1")) < 7
            assert answers[0].remote_status == "DEADLINE_EXCEEDED"
            assert answers[-1].reasons[-1] == Reason.DEADLINE_TOO_SHORT
            cluster.play("tier1", Script())
            assert opened.choose("What a day.", MOODS).source == "tier1"


def test_checks_and_records_reach_the_device(tiny: TinyBundle) -> None:
    records: list[DecisionRecord] = []
    with Device.open(
        tiny.path,
        trust=tiny.trust,
        policies=tiny.policies,
        checks=Checks({"never": lambda text: False}),
        on_decision=records.append,
    ) as opened:
        answer = opened.choose("What a day.", MOODS, checks=["never"])
        with pytest.raises(InvalidInput, match="no check is called 'nope'"):
            opened.choose("What a day.", MOODS, checks=["nope"])
    assert answer.reasons == (Reason.UNCERTIFIED_TASK, "veto:never", Reason.NO_CLUSTER)
    (record,) = records
    assert record.decision.reasons == answer.reasons
    assert replay_decision(record) == record.decision
