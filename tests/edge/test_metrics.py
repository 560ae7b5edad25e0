"""What a device counts of its requests, from the seam to the text that Prometheus reads."""

from __future__ import annotations

import urllib.error
import urllib.request
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from cascade import testing
from cascade.errors import CascadeError, ClusterError
from cascade.monitor import Health, Key, Limits, MonitorStore, RiskSequence, State
from cascade.testing import Fault, Script, TinyBundle
from edge import ClientProfile, Constraints, Device, DeviceMetrics, MetricsServer
from edge.metrics import DEVICE_METRICS

MOODS = ("good", "bad")
Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def opened(tiny: TinyBundle, metrics: DeviceMetrics, cloud: ClientProfile | None = None) -> Device:
    return Device.open(
        tiny.path, trust=tiny.trust, policies=tiny.policies, cloud=cloud, observers=[metrics]
    )


def read(metrics: DeviceMetrics) -> Samples:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(metrics.text())
        for sample in family.samples
    }


def test_an_escalation_is_counted_with_its_reasons_tokens_and_money(tiny: TinyBundle) -> None:
    metrics = DeviceMetrics(tasks=["mood"])
    with (
        testing.cluster({"tier1": Script("bad")}) as cluster,
        opened(tiny, metrics, cluster.profile) as device,
    ):
        answer = device.choose("What a day.", MOODS, task="mood")
    samples = read(metrics)
    assert (
        samples[("cascade_device_decisions_total", (("outcome", "escalated"), ("task", "mood")))]
        == 1
    )
    assert metrics.escalation_share == 1.0
    reason = answer.reasons[0]
    assert samples[("cascade_device_decision_reasons_total", (("reason", reason),))] == 1
    assert (
        samples[("cascade_device_answers_total", (("source", "cluster"), ("verified", "true")))]
        == 1
    )
    assert samples[("cascade_device_network_bytes_total", (("direction", "up"),))] > 0
    assert samples[("cascade_device_remote_seconds_count", ())] == 1
    assert samples[("cascade_device_local_seconds_count", ())] == 1
    assert samples[("cascade_device_answer_seconds_count", (("source", "cluster"),))] == 1


def test_a_cluster_that_fails_and_a_device_that_falls_back(tiny: TinyBundle) -> None:
    metrics = DeviceMetrics()
    with (
        testing.cluster({"tier1": Script(fault=Fault("RESOURCE_EXHAUSTED"))}) as cluster,
        opened(tiny, metrics, cluster.profile) as device,
    ):
        device.choose("What a day.", MOODS)
        with pytest.raises(CascadeError):
            device.choose("What a day.", MOODS, prefer="cloud")
    samples = read(metrics)
    failed = (("code", "RESOURCE_EXHAUSTED"),)
    assert samples[("cascade_device_remote_failures_total", failed)] == 1
    assert samples[("cascade_device_failures_total", failed)] == 1
    assert (
        samples[("cascade_device_answers_total", (("source", "device"), ("verified", "false")))]
        == 1
    )


def test_a_request_that_may_not_leave_is_neither_kept_nor_escalated(tiny: TinyBundle) -> None:
    metrics = DeviceMetrics()
    with opened(tiny, metrics) as device:
        device.choose("What a day.", MOODS, constraints=Constraints(max_remote_calls=0))
    assert metrics.escalation_share == 0.0
    samples = read(metrics)
    assert (
        samples[("cascade_device_decisions_total", (("outcome", "unverified"), ("task", "none")))]
        == 1
    )


def test_the_monitors_word_on_the_latest_policy_is_told(tmp_path: Path) -> None:
    file = tmp_path / "monitor.sqlite"
    metrics = DeviceMetrics(monitor_file=file)
    assert not [name for name, _ in read(metrics) if "policy" in name]
    assert not file.exists()
    store = MonitorStore(file)
    for opened_at, state in ((2.0, State.WATCH), (1.0, State.DEMOTED)):
        key = Key("mood", "b" * 64, "", f"{opened_at:064.0f}")
        health = Health(
            opened=opened_at, since=3.0, state=state, audits=RiskSequence(20, 3), lost=1
        )
        store.update(key, Limits(alpha=0.2), lambda found, before, new=health: (new, []))
    store.close()
    samples = read(metrics)
    name = "cascade_device_policy_state"
    told = {state: samples[name, (("state", state), ("task", "mood"))] for state in State}
    assert told == {"certified": 0, "watch": 1, "demoted": 0}
    assert samples["cascade_device_policy_certified_risk_ratio", (("task", "mood"),)] == 0.2
    audits = "cascade_device_policy_audits"
    for outcome, count in (("right", 17), ("wrong", 3), ("lost", 1)):
        assert samples[audits, (("outcome", outcome), ("task", "mood"))] == count


def test_every_metric_is_in_the_text_and_no_other() -> None:
    families = text_string_to_metric_families(DeviceMetrics().text())
    told = {family.name for family in families}
    assert told == {metric.name.removesuffix("_total") for metric in DEVICE_METRICS}


def test_it_is_served_and_written(tmp_path: Path) -> None:
    metrics = DeviceMetrics()
    with MetricsServer(metrics, port=0) as server:
        address = f"http://127.0.0.1:{server.port}"
        with urllib.request.urlopen(f"{address}/metrics") as reply:
            assert reply.headers["Content-Type"].startswith("text/plain; version=0.0.4")
            assert reply.read().decode() == metrics.text()
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(f"{address}/secrets")
        with pytest.raises(ClusterError, match=f"port {server.port} on 127.0.0.1 cannot be used"):
            MetricsServer(metrics, port=server.port)
    path = tmp_path / "cascade.prom"
    metrics.write(path)
    assert path.read_text() == metrics.text()
