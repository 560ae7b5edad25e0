"""Several gateways on one port: what one of them loses, the others take; what they count is one."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.cluster.engine import Script
from benchmarks.cluster.subject import Cluster
from cascade.wire import editing_keys
from cloud import deployment
from cloud.access_config import Quota, Quotas
from cloud.config import ClusterConfig, GatewayConfig, TierConfig, parse_config
from cloud.errors import ConfigError, QuotaExceeded
from cloud.quotas import QuotaBook
from cloud.tls import TlsPaths, ensure_local_tls
from tests.cloud.access.gate import gate

PER_MINUTE = 12


@pytest.fixture(scope="module")
def pair() -> Iterator[Cluster]:
    """Two gateways in processes of their own, over an engine that answers at once."""
    with Cluster() as cluster:
        cluster.deploy(
            Script(), tier={"parallel": 8}, gateway={"replicas": 2, "max_concurrent_requests": 64}
        )
        cluster.until_answered()
        yield cluster


def until_both_run(cluster: Cluster) -> set[int]:
    end = time.monotonic() + 60
    while True:
        pids = {int(state["pid"]) for state in cluster.gateways()["states"]}
        if len(pids) == 2:
            return pids
        assert time.monotonic() < end
        time.sleep(0.2)


@pytest.mark.processes
def test_of_two_gateways_one_is_killed_and_every_following_request_succeeds(pair: Cluster) -> None:
    before = until_both_run(pair)
    seen = pair.ask("count", callers=4, requests=40, deadline_s=10.0, anew=True)
    assert seen["statuses"] == {"OK": 40}
    assert all(calls > 0 for calls in pair.gateways()["calls"])  # both took connections
    pair.kill("gateway")
    time.sleep(0.2)  # the kernel has to close its sockets
    seen = pair.ask("count", callers=4, requests=200, deadline_s=10.0, anew=True)
    assert seen["statuses"] == {"OK": 200}, seen["problem"]
    assert len(until_both_run(pair) & before) == 1  # and another one takes its place


@pytest.mark.processes
def test_a_quota_is_not_twice_as_large_with_two_gateways(pair: Cluster, tmp_path: Path) -> None:
    quotas = {
        "default": {"requests_per_minute": PER_MINUTE},
        "file": str(tmp_path / "quotas.sqlite"),
    }
    pair.deploy(Script(), tier={"parallel": 8}, gateway={"replicas": 2, "quotas": quotas})
    until_both_run(pair)
    began = time.monotonic()
    seen = pair.ask("count", callers=2, requests=3 * PER_MINUTE, deadline_s=10.0, anew=True)
    flowed_in = math.ceil((time.monotonic() - began) * PER_MINUTE / 60)
    assert PER_MINUTE <= seen["statuses"]["OK"] <= PER_MINUTE + flowed_in
    assert set(seen["statuses"]) == {"OK", "RESOURCE_EXHAUSTED"}


async def test_a_rotated_key_is_rotated_at_every_gateway(tmp_path: Path) -> None:
    tls: TlsPaths = ensure_local_tls(tmp_path / "tls", "127.0.0.1")
    async with gate(tls, tmp_path) as one, gate(tls, tmp_path) as other:
        assert [await each.ask() for each in (one, other)] == ["tests by api_key"] * 2
        with editing_keys(one.files.api_keys) as ring:
            ring.with_key("tests", "a-new-key").save(one.files.api_keys)
        for each in (one, other):
            assert (await each.refused()).status == "UNAUTHENTICATED"
            assert await each.ask(each.profile("a-new-key")) == "tests by api_key"


def test_on_several_nodes_each_has_its_part_of_a_quota(tmp_path: Path) -> None:
    quotas = Quotas(default=Quota(requests_per_minute=9, tokens_per_day=300, usd_per_day=3.0))
    nodes = [QuotaBook(quotas, tmp_path / f"{node}.sqlite", shares=3) for node in range(3)]
    for book in nodes:
        for _ in range(3):
            book.admit("a")
        with pytest.raises(QuotaExceeded, match=r"3 times a minute at each of 3 nodes"):
            book.admit("a")
    for book in nodes:
        book.reserve("a", tokens=100, usd=1.0)
        with pytest.raises(QuotaExceeded, match=r"100 tokens a day at each of 3 nodes"):
            book.reserve("a", tokens=1, usd=0.0)


@pytest.mark.parametrize(
    ("replicas", "per_node", "nodes"), [(1, None, 1), (4, None, 1), (4, 4, 1), (4, 1, 4), (5, 2, 3)]
)
def test_files_are_counted_by_node(replicas: int, per_node: int | None, nodes: int) -> None:
    assert GatewayConfig(replicas=replicas, replicas_per_node=per_node).nodes == nodes


def test_single_use_tokens_need_one_memory() -> None:
    text = """
gateway:
  replicas: 2
  replicas_per_node: 1
  jwt: {issuer: i, audience: a, jwks: keys.json, single_use: true}
tiers: [{name: tier1, model: a/m.gguf}]
"""
    with pytest.raises(ConfigError, match=r"single_use needs all replicas on one node"):
        parse_config(text, "c.yaml")


def test_who_counts_on_a_ray_cluster_says_on_how_many_nodes() -> None:
    quotas = Quotas(default=Quota(requests_per_minute=1), file=Path("/var/q.sqlite"))
    tls = {"certificate": Path("c.pem"), "key": Path("k.pem")}
    gateway = GatewayConfig.model_validate(
        {"replicas": 2, "quotas": quotas, "tls": tls, "api_keys_file": Path("keys")}
    )
    config = ClusterConfig(gateway=gateway, tiers=(TierConfig(name="tier1", model="a/m.gguf"),))
    with pytest.raises(ConfigError, match=r"gateway\.replicas_per_node is missing"):
        deployment.gateway_files(config)
