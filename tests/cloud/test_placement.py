"""Tiers run on the nodes that they ask for, and where there is none, that is said beforehand."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

import cloud
from cascade.errors import ClusterError
from cloud.config import parse_config
from cloud.engines.vllm_config import llm_config
from cloud.errors import ConfigError
from cloud.placement import Node, actor_options, placement_problems, ray_nodes, told
from cloud.plan import plan_cluster
from cloud.served_adapters import ServedAdapters
from tests.cloud.ray_nodes import SEEN

ROOT = Path(cloud.__file__).parent.parent
PLACED = """
tiers:
  - name: t
    model: ./m.gguf
    threads: 2
    placement: {resources: {near: 1.5}, labels: {zone: "in(a,b)", disk: "!slow"}}
"""


@pytest.fixture(scope="module")
def seen() -> Iterator[Mapping[str, Any]]:
    """What a Ray cluster of three nodes did."""
    # Short: Ray's socket names must fit into 107 bytes.
    folder = Path(tempfile.mkdtemp(prefix="cc-", dir="/tmp"))
    try:
        command = [sys.executable, "-m", "tests.cloud.ray_nodes", str(folder)]
        done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=ROOT)
        assert done.returncode == 0, done.stderr
        yield json.loads((folder / SEEN).read_text())
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.processes
def test_replicas_run_on_nodes_with_the_resources_and_labels(seen: Mapping[str, Any]) -> None:
    assert seen["zones"] == {"near": "a", "far": "b", "asleep": "b"}


@pytest.mark.processes
def test_a_tier_that_no_node_of_the_cluster_could_run_is_named(seen: Mapping[str, Any]) -> None:
    assert seen["check"] == ClusterError.exit_code
    (line,) = seen["plan"]["placement_problems"]
    assert line.startswith("tier nowhere: no node has CPU 1, near 2, zone=b (")
    for why in ("has CPU 0", "has near 1", "has near 0"):
        assert why in line
    assert [tier["placement"] for tier in seen["plan"]["tiers"]] == [
        "near 1",
        "zone=in(b,c), disk=!slow",
        "zone=in(b,c), disk=!slow",
        "near 2, zone=b",
    ]


@pytest.mark.processes
def test_a_sleeping_tier_holds_a_request_for_its_deadline_and_no_longer(
    seen: Mapping[str, Any],
) -> None:
    assert (seen["early"], seen["woken"]) == ("DEADLINE_EXCEEDED", "OK")


def test_what_ray_is_asked_for() -> None:
    (tier,) = parse_config(PLACED, "f.yaml").tiers
    assert actor_options(tier) == {
        "num_cpus": 2,
        "resources": {"near": 1.5},
        "label_selector": {"zone": "in(a,b)", "disk": "!slow"},
    }
    assert told(tier) == "near 1.5, zone=in(a,b), disk=!slow"


@pytest.mark.parametrize(
    ("cpus", "near", "labels", "fits"),
    [
        (2, 1.5, {"zone": "a"}, True),
        (2, 1.5, {"zone": "b", "disk": "fast"}, True),
        (1, 1.5, {"zone": "a"}, False),
        (2, 1.0, {"zone": "a"}, False),
        (2, 1.5, {"zone": "c"}, False),
        (2, 1.5, {}, False),
        (2, 1.5, {"zone": "a", "disk": "slow"}, False),
    ],
)
def test_a_node_must_have_all_of_it(
    cpus: float, near: float, labels: Mapping[str, str], fits: bool
) -> None:
    config = parse_config(PLACED, "f.yaml")
    nodes = [Node("n1", {"CPU": cpus, "near": near}, labels)]
    assert (list(placement_problems(config, nodes)) == []) == fits


def test_one_machine_has_no_such_nodes_and_check_and_up_say_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    config = parse_config(PLACED, "f.yaml")
    notes = "\n".join(plan_cluster(config, cores=4).notes)
    assert "tier t: no node has CPU 2, near 1.5" in notes
    assert "`cascade cluster up` cannot start it" in notes
    from cloud import startup

    monkeypatch.setenv("CASCADE_HOME", str(tmp_path))
    with pytest.raises(ClusterError, match=r"tier t: no node has .*this machine has near 0"):
        startup.start(config, {}, ServedAdapters(), tmp_path, print)


def test_no_cluster_to_look_at_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(ClusterError, match=r"no Ray cluster at auto: ") as refusal:
        ray_nodes("auto")
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("placement", "problem"),
    [
        ("{resources: {CPU: 1}}", "CPU cannot be asked for here"),
        ("{resources: {near: 0}}", "greater than 0"),
        ("{labels: {zone: in(a}}", "none of a, !a, in"),
        ("{label: {zone: a}}", "did you mean labels"),
    ],
)
def test_what_cannot_be_asked_for_is_refused(placement: str, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        parse_config(f"tiers: [{{name: t, model: ./m.gguf, placement: {placement}}}]", "f.yaml")


def test_vllms_workers_are_placed_by_resources() -> None:
    text = "tiers: [{name: t, model: a/m, engine: vllm, vllm: {}, placement: %s}]"
    (tier,) = parse_config(text % "{resources: {near: 1}}", "f.yaml").tiers
    group = llm_config(tier, name="d", drain_s=1.0)["placement_group_config"]
    assert isinstance(group, dict)
    assert group["bundle_per_worker"] == {"CPU": 1.0, "GPU": 1.0, "near": 1.0}
    with pytest.raises(ConfigError, match=r"placement\.labels is not offered by ray\.serve\.llm"):
        parse_config(text % "{labels: {zone: a}}", "f.yaml")
