"""What a caller may use is checked before a tier is asked, over restarts and several gateways."""

from __future__ import annotations

import asyncio
import multiprocessing
import sqlite3
from pathlib import Path

import pytest

from cascade import testing
from cascade.clock import Reading
from cascade.errors import RemoteError
from cascade.remote import DeviceReport, Finished, Transfer
from cascade.request import Message, Request
from cascade.testing import Cluster, Fault, Script
from cascade.wire import GrpcRemote
from cloud.access_config import Quota, Quotas
from cloud.config import ClusterConfig
from cloud.errors import QuotaExceeded
from cloud.quotas import QuotaBook
from tests.cloud.access.workers import take_money

PRICE = {"input_usd_per_million_tokens": 1000.0, "output_usd_per_million_tokens": 1000.0}


def config(file: Path | None = None, callers: object = None, **default: float) -> ClusterConfig:
    """One tier at a tenth of a cent a token."""
    quotas = {"default": default, "callers": callers or {}, "file": file}
    tier = {"name": "tier1", "model": "a/m.gguf", "price": PRICE, "max_output_tokens": 4}
    return ClusterConfig.model_validate({"gateway": {"quotas": quotas}, "tiers": [tier]})


def ask(cluster: Cluster, prompt: str = "hello", max_tokens: int = 4) -> Finished:
    async def once() -> Finished:
        remote = GrpcRemote(cluster.profile)
        try:
            request = Request((Message("user", prompt),), max_tokens=max_tokens)
            events = remote.answer(request, DeviceReport(), deadline_s=10.0, transfer=Transfer())
            *_, last = [event async for event in events]
            assert isinstance(last, Finished)
            return last
        finally:
            await remote.close()

    return asyncio.run(once())


def refused(cluster: Cluster, prompt: str = "hello", max_tokens: int = 4) -> RemoteError:
    with pytest.raises(RemoteError) as refusal:
        ask(cluster, prompt, max_tokens)
    assert refusal.value.status == "RESOURCE_EXHAUSTED"
    return refusal.value


def test_requests_beyond_a_minutes_are_told_when_to_come_back() -> None:
    with testing.cluster(config=config(requests_per_minute=2)) as cluster:
        ask(cluster)
        ask(cluster)
        refusal = refused(cluster)
        assert "2 times a minute" in refusal.message
        assert refusal.retry_after_s is not None
        assert 0 < refusal.retry_after_s <= 30
        assert len(cluster.asked("tier1")) == 2
        assert cluster.records[-1].quota == "requests_per_minute"
        assert [record.quota for record in cluster.records[:2]] == ["", ""]


def test_a_callers_own_quota_takes_the_place_of_the_default() -> None:
    own = {"testing": {"requests_per_minute": 1}, "other": {"requests_per_minute": 60}}
    with testing.cluster(config=config(callers=own, requests_per_minute=50)) as cluster:
        ask(cluster)
        refused(cluster)


def test_tokens_are_set_aside_by_an_upper_bound_and_settled_by_what_was_used() -> None:
    # At most 5 + 32 + 8 prompt tokens and 4 of answer: 49; used: 1 and 1.
    with testing.cluster(config=config(tokens_per_day=53)) as cluster:
        for _ in range(2):
            done = ask(cluster)
            assert (done.prompt_tokens, done.completion_tokens) == (1, 1)
        assert ask(cluster).completion_tokens == 1  # 49 of the 49 that are left
        refusal = refused(cluster)
        assert "53 tokens a day" in refusal.message
        assert refusal.retry_after_s is not None
        assert 0 < refusal.retry_after_s <= 86_400
        assert len(cluster.asked("tier1")) == 3


def test_a_request_larger_than_a_whole_day_is_told_so() -> None:
    with testing.cluster(config=config(tokens_per_day=20)) as cluster:
        refusal = refused(cluster)
        assert "this request alone could take more" in refusal.message
        assert refusal.retry_after_s is None
        assert cluster.asked("tier1") == ()


def test_money_is_counted_over_a_restart(tmp_path: Path) -> None:
    # 0.049 is set aside for a call; after one that cost 0.002 there is less left.
    limited = config(tmp_path / "q.sqlite", usd_per_day=0.0505)
    with testing.cluster(config=limited) as cluster:
        assert ask(cluster).cost_usd == pytest.approx(0.002)
    with testing.cluster(config=limited) as cluster:
        assert "$0.05 a day" in refused(cluster).message
        assert cluster.asked("tier1") == ()


def test_what_fails_before_it_begins_costs_nothing_and_what_is_cut_off_does(tmp_path: Path) -> None:
    limited = config(tmp_path / "q.sqlite", tokens_per_day=53)
    lost = Script("a b c d", fault=Fault("UNAVAILABLE"))
    with testing.cluster({"tier1": lost}, config=limited) as cluster:
        for _ in range(3):
            with pytest.raises(RemoteError, match="UNAVAILABLE"):
                ask(cluster)
        cluster.play("tier1", Script("a b c d", fault=Fault("UNAVAILABLE", after=3)))
        with pytest.raises(RemoteError, match="UNAVAILABLE"):
            ask(cluster)
        cluster.play("tier1", Script())
        ask(cluster)  # 49 of the 49 that 1 + 3 tokens have left
        refused(cluster)


def test_nobody_is_let_in_where_quotas_cannot_be_looked_up(tmp_path: Path) -> None:
    file = tmp_path / "q.sqlite"
    file.write_text("no database, but long enough to be taken for one that is spoilt")
    with testing.cluster(config=config(file, requests_per_minute=5)) as cluster:
        with pytest.raises(RemoteError, match="UNAVAILABLE") as refusal:
            ask(cluster)
        assert str(tmp_path) not in refusal.value.message
        assert cluster.asked("tier1") == ()


def test_without_quotas_nothing_is_counted(tmp_path: Path) -> None:
    file = tmp_path / "q.sqlite"
    with testing.cluster(config=config(file)) as cluster:
        ask(cluster)
    assert not file.exists()


class Clock:
    """One that a test sets."""

    def __init__(self) -> None:
        self.now_s = 86_400.0 * 20_000 + 3600

    def read(self) -> Reading:
        return Reading(self.now_s, self.now_s, "boot")


@pytest.fixture
def clock() -> Clock:
    return Clock()


def book(tmp_path: Path, clock: Clock, **limits: float) -> QuotaBook:
    quotas = Quotas(default=Quota(**limits))
    return QuotaBook(quotas, tmp_path / "q.sqlite", clock=clock, wall_s=lambda: clock.now_s)


def test_requests_flow_in_again(tmp_path: Path, clock: Clock) -> None:
    quotas = book(tmp_path, clock, requests_per_minute=2)
    quotas.admit("a")
    quotas.admit("a")
    with pytest.raises(QuotaExceeded) as refusal:
        quotas.admit("a")
    assert refusal.value.retry_after_s == pytest.approx(30)
    quotas.admit("b")
    clock.now_s += 29
    with pytest.raises(QuotaExceeded) as refusal:
        quotas.admit("a")
    assert refusal.value.retry_after_s == pytest.approx(1)
    clock.now_s += 1
    quotas.admit("a")


def test_a_day_ends_at_midnight(tmp_path: Path, clock: Clock) -> None:
    quotas = book(tmp_path, clock, tokens_per_day=100, usd_per_day=1.0)
    hold = quotas.reserve("a", tokens=60, usd=0.9)
    with pytest.raises(QuotaExceeded) as refusal:
        quotas.reserve("a", tokens=60, usd=0.0)
    assert (refusal.value.quota, refusal.value.retry_after_s) == ("tokens_per_day", 82_800)
    with pytest.raises(QuotaExceeded) as refusal:
        quotas.reserve("a", tokens=10, usd=0.5)
    assert refusal.value.quota == "usd_per_day"
    # The tokens that the refused call had set aside are there again.
    quotas.settle(hold, tokens=10, usd=0.1)
    quotas.settle(quotas.reserve("a", tokens=90, usd=0.9), tokens=90, usd=0.9)
    with pytest.raises(QuotaExceeded):
        quotas.reserve("a", tokens=1, usd=0.0)
    clock.now_s += 82_800
    quotas.reserve("a", tokens=100, usd=1.0)


def test_what_a_dead_gateway_set_aside_stays_spent(tmp_path: Path, clock: Clock) -> None:
    book(tmp_path, clock, usd_per_day=1.0).reserve("a", tokens=1, usd=0.7)
    with pytest.raises(QuotaExceeded):
        book(tmp_path, clock, usd_per_day=1.0).reserve("a", tokens=1, usd=0.7)


def test_a_call_that_costs_nothing_needs_no_money(tmp_path: Path, clock: Clock) -> None:
    quotas = book(tmp_path, clock, usd_per_day=1.0)
    quotas.settle(quotas.reserve("a", tokens=1, usd=1.0), tokens=1, usd=1.0)
    assert quotas.reserve("a", tokens=1, usd=0.0).usd is None


def test_several_processes_share_a_limit(tmp_path: Path) -> None:
    file = str(tmp_path / "q.sqlite")
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        taken = pool.starmap(take_money, [(file, 10), (file, 10)])
    assert sum(taken) == 10
    with sqlite3.connect(file) as rows:
        assert rows.execute("SELECT COUNT(*) FROM reservation").fetchone() == (10,)
    rows.close()
