"""Every metric of a cluster, and how they are counted and shown to Prometheus.

Labels are bounded: tiers and channels are the operator's own, codes are gRPC's, tasks are named up
to a limit (``Bounded``), and who called is never told.

Why ``prometheus_client`` in each gateway and not ``ray.util.metrics``: Ray's metrics leave through
the dashboard's agent of every node, which a local cluster does not run, and each series carries the
worker's id, so that counters of replaced replicas never end. What is inside of Serve (replicas,
queues of handles) is Ray's own business and stays with its own endpoint.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from threading import Thread
from typing import Final, cast
from wsgiref.simple_server import WSGIServer

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    start_http_server,
)

from cascade.errors import ClusterError
from cascade.instruments import Labels, Metric
from cloud.config import METRIC_PORTS, MetricsConfig

_SECONDS: Final = (0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
_SHARES: Final = tuple(step / 20 for step in range(1, 21))

REQUESTS: Final = Metric(
    "cascade_gateway_requests_total",
    "counter",
    "Requests that have ended, by gRPC status and task.",
    ("code", "task"),
)
REQUEST_SECONDS: Final = Metric(
    "cascade_gateway_request_seconds",
    "histogram",
    "From a request's arrival to its end, by gRPC status.",
    ("code",),
    _SECONDS,
)
UNDER_WAY: Final = Metric(
    "cascade_gateway_requests_under_way", "gauge", "Requests that are being answered now."
)
CAPACITY: Final = Metric(
    "cascade_gateway_requests_limit",
    "gauge",
    "Requests that this gateway answers or queues at one time (gateway.max_concurrent_requests).",
)
ESCALATIONS: Final = Metric(
    "cascade_gateway_escalations_total",
    "counter",
    "Requests that devices sent, by task and by how the device had judged its own answer: "
    "certified (by a policy), uncertified (it had none that was valid) or untried (no answer).",
    ("task", "judged"),
)
KEPT: Final = Metric(
    "cascade_gateway_kept_total",
    "counter",
    "Requests that devices have answered themselves, accepted by a policy, by task: told with the "
    "next request of the task that they send.",
    ("task",),
)
CONFIDENCE: Final = Metric(
    "cascade_gateway_device_confidence_ratio",
    "histogram",
    "Calibrated confidence that devices reported of the answers that they did not keep.",
    ("task",),
    _SHARES,
)
TIER_CALLS: Final = Metric(
    "cascade_tier_calls_total",
    "counter",
    "Calls to a tier that have ended, climbs and hedges among them, by gRPC status.",
    ("tier", "code"),
)
TIER_WAITING: Final = Metric(
    "cascade_tier_calls_waiting",
    "gauge",
    "Calls that a tier has not begun to answer: they queue, or their model is being loaded.",
    ("tier",),
)
TIER_ANSWERING: Final = Metric(
    "cascade_tier_calls_answering", "gauge", "Calls that a tier is answering now.", ("tier",)
)
TIER_FIRST_TOKEN: Final = Metric(
    "cascade_tier_first_token_seconds",
    "histogram",
    "From handing a call to a tier to the first token, its queue included.",
    ("tier",),
    _SECONDS,
)
TIER_SECONDS: Final = Metric(
    "cascade_tier_answer_seconds",
    "histogram",
    "From handing a call to a tier to its whole answer, its queue included.",
    ("tier",),
    _SECONDS,
)
TIER_PROMPT: Final = Metric(
    "cascade_tier_prompt_tokens_total", "counter", "Tokens read by a tier.", ("tier",)
)
TIER_CACHED: Final = Metric(
    "cascade_tier_cached_prompt_tokens_total",
    "counter",
    "Those of them that did not have to be computed.",
    ("tier",),
)
TIER_COMPLETION: Final = Metric(
    "cascade_tier_completion_tokens_total", "counter", "Tokens written by a tier.", ("tier",)
)
TIER_DRAFTS: Final = Metric(
    "cascade_tier_drafts_total",
    "counter",
    "Drafts that came with what a tier was asked, by what became of them: all, some or none of it "
    "kept, ignored (the tier makes no use of drafts, or may not be paid for reading one) or "
    "unjudged (the call ended before).",
    ("tier", "outcome"),
)
TIER_DRAFT_SENT: Final = Metric(
    "cascade_tier_draft_tokens_total",
    "counter",
    "Tokens of drafts that a tier looked at, as devices count them.",
    ("tier",),
)
TIER_DRAFT_KEPT: Final = Metric(
    "cascade_tier_draft_kept_tokens_total",
    "counter",
    "Those of them that became a part of the answer.",
    ("tier",),
)
TIER_COST: Final = Metric(
    "cascade_tier_cost_usd_total",
    "counter",
    "Money for a tier's answers, broken off ones among them, by its price list.",
    ("tier",),
)
TIER_UP: Final = Metric(
    "cascade_tier_up",
    "gauge",
    "1 while a tier answers, or may sleep; else 0.",
    ("tier",),
)
TIER_REPLICAS: Final = Metric(
    "cascade_tier_replicas", "gauge", "Replicas of a tier that run.", ("tier",)
)
POLICY_RISK: Final = Metric(
    "cascade_policy_certified_risk_ratio",
    "gauge",
    "Largest error rate among kept answers that a served policy certifies (alpha).",
    ("channel", "task"),
)
POLICY_DELTA: Final = Metric(
    "cascade_policy_certified_delta_ratio",
    "gauge",
    "Probability with which that certificate may be wrong (delta).",
    ("channel", "task"),
)
POLICY_COVERAGE: Final = Metric(
    "cascade_policy_certified_coverage_ratio",
    "gauge",
    "Share of the certify rows that a served policy let the device answer.",
    ("channel", "task"),
)
POLICIES: Final = Metric(
    "cascade_policies_served",
    "gauge",
    "Policies on a channel, by whether a threshold is certified; without one everything escalates.",
    ("channel", "certified"),
)
REGISTRY_READ: Final = Metric(
    "cascade_registry_read_timestamp_seconds",
    "gauge",
    "When the registry's policies were last read; 0 where there is no registry.",
)

FEDERATION_DEVICES: Final = Metric(
    "cascade_federation_devices", "gauge", "Devices that are enrolled for federated rounds."
)
FEDERATION_ROUNDS: Final = Metric(
    "cascade_federation_rounds", "gauge", "Federated rounds by state.", ("state",)
)
FEDERATION_LEASES: Final = Metric(
    "cascade_federation_leases", "gauge", "Leases of the last month by state.", ("state",)
)
FEDERATION_UPDATES: Final = Metric(
    "cascade_federation_updates",
    "gauge",
    "Updates so far, by what became of them: committed, dropped with their round, refused or given "
    "back, the latter two with the reason. Every gateway tells the total of all.",
    ("outcome", "reason"),
)
FEDERATION_BYTES: Final = Metric(
    "cascade_federation_update_bytes", "gauge", "Of all updates that were committed so far."
)
FEDERATION_ERROR: Final = Metric(
    "cascade_federation_aggregation_error_ratio",
    "gauge",
    "Relative error of the last aggregation; 0 before there was one.",
)
FEDERATION_EPSILON: Final = Metric(
    "cascade_federation_epsilon",
    "gauge",
    "Spent of differential privacy before the last opened round, and after it. None without noise.",
    ("when",),
)

CLUSTER_METRICS: Final = (
    REQUESTS,
    REQUEST_SECONDS,
    UNDER_WAY,
    CAPACITY,
    ESCALATIONS,
    KEPT,
    CONFIDENCE,
    TIER_CALLS,
    TIER_WAITING,
    TIER_ANSWERING,
    TIER_FIRST_TOKEN,
    TIER_SECONDS,
    TIER_PROMPT,
    TIER_CACHED,
    TIER_COMPLETION,
    TIER_DRAFTS,
    TIER_DRAFT_SENT,
    TIER_DRAFT_KEPT,
    TIER_COST,
    TIER_UP,
    TIER_REPLICAS,
    POLICY_RISK,
    POLICY_DELTA,
    POLICY_COVERAGE,
    POLICIES,
    REGISTRY_READ,
    FEDERATION_DEVICES,
    FEDERATION_ROUNDS,
    FEDERATION_LEASES,
    FEDERATION_UPDATES,
    FEDERATION_BYTES,
    FEDERATION_ERROR,
    FEDERATION_EPSILON,
)
"""What a gateway exposes, beside ``prometheus_client``'s own ``process_*``."""

_log = logging.getLogger("ray.serve")


class Meters:
    """Counts metrics in a registry of its own."""

    def __init__(self, metrics: Iterable[Metric] = CLUSTER_METRICS) -> None:
        self.registry = CollectorRegistry()
        self._instruments = {metric: _instrument(metric, self.registry) for metric in metrics}
        self._known: dict[tuple[str, Labels], Counter | Gauge | Histogram] = {}

    def add(self, metric: Metric, amount: float = 1.0, /, *labels: str) -> None:
        """Count ``amount``; of a gauge it may be below 0."""
        cast("Counter | Gauge", self._series(metric, labels)).inc(amount)

    def set(self, metric: Metric, value: float, /, *labels: str) -> None:
        """Set a gauge."""
        cast(Gauge, self._series(metric, labels)).set(value)

    def observe(self, metric: Metric, value: float, /, *labels: str) -> None:
        """Put a value into a histogram."""
        cast(Histogram, self._series(metric, labels)).observe(value)

    def replace(self, metric: Metric, values: Mapping[Labels, float]) -> None:
        """Set all series of a gauge with labels; those that are not named any longer go."""
        gauge = cast(Gauge, self._instruments[metric])
        gauge.clear()
        self._known = {key: each for key, each in self._known.items() if key[0] != metric.name}
        for labels, value in values.items():
            gauge.labels(*labels).set(value)

    def _series(self, metric: Metric, labels: Labels) -> Counter | Gauge | Histogram:
        # By name: the hash of a metric is that of all its fields. `labels` takes a lock each time.
        key = (metric.name, labels)
        known = self._known.get(key)
        if known is None:
            instrument = self._instruments[metric]
            known = instrument.labels(*labels) if metric.labels else instrument
            self._known[key] = known
        return known


class Exposition:
    """Answers ``GET /metrics`` over plain HTTP until it is closed.

    Several gateways may run on one node: each takes the first free port of the range that begins
    with ``config.port``, so that Prometheus sees every one of them as a target of its own. Sharing
    one port would let the kernel pick another gateway for every scrape.

    Raises:
        ClusterError: no port of the range is free.
    """

    def __init__(self, config: MetricsConfig, registry: CollectorRegistry) -> None:
        # A second series for each one, which nobody reads.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        ProcessCollector(registry=registry)
        self._config = config
        self._registry = registry
        last = config.port + METRIC_PORTS - 1
        if not self._open(last):
            raise ClusterError(
                f"gateway.metrics: no port of {config.port}-{last} on {config.host} is free; set "
                "another port"
            )

    def settle(self) -> None:
        """Move to a lower port that has become free, as after a redeploy, where the new gateway
        begins beside the old one."""
        server, thread = self._server, self._thread
        if self._open(self.port - 1):
            _close(server, thread)

    def close(self) -> None:
        """Stop; frees the port."""
        _close(self._server, self._thread)

    def _open(self, last: int) -> bool:
        """Take the first port that is free, up to the last; whether there was one."""
        for port in range(self._config.port, last + 1):
            try:
                self._server, self._thread = start_http_server(
                    port, self._config.host, self._registry
                )
            except OSError as problem:
                _log.info("metrics: port %d cannot be used (%s)", port, problem.strerror)
                continue
            self.port: int = self._server.server_port
            return True
        return False


def _close(server: WSGIServer, thread: Thread) -> None:
    server.shutdown()
    server.server_close()
    thread.join()


def _instrument(metric: Metric, registry: CollectorRegistry) -> Counter | Gauge | Histogram:
    match metric.kind:
        case "counter":
            return Counter(metric.name, metric.help, metric.labels, registry=registry)
        case "gauge":
            return Gauge(metric.name, metric.help, metric.labels, registry=registry)
        case "histogram":
            return Histogram(
                metric.name, metric.help, metric.labels, registry=registry, buckets=metric.buckets
            )
