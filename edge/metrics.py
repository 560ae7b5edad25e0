"""Metrics of a device, in Prometheus' text format, with nothing but the standard library.

What they mean is docs/observability.md. A gateway box lets them be scraped (``MetricsServer``) or
writes them where its node exporter looks (``DeviceMetrics.write``); a phone hands ``text()`` to its
application.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from cascade.decision_record import DecisionRecord
from cascade.errors import CascadeError, ClusterError, RemoteError
from cascade.events import Answer
from cascade.files import write_whole
from cascade.instruments import CONTENT_TYPE, OTHER, Bounded, Instruments, Metric
from cascade.monitor import MonitorStore, State
from cascade.policy import Reason
from cascade.request import Request

_SECONDS: Final = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
_SHARES: Final = tuple(step / 20 for step in range(1, 21))

DECISIONS: Final = Metric(
    "cascade_device_decisions_total",
    "counter",
    "Decisions, by task and outcome: kept (verified), escalated, or unverified (neither).",
    ("task", "outcome"),
)
REASONS: Final = Metric(
    "cascade_device_decision_reasons_total",
    "counter",
    "Reasons of decisions; one decision may have several. Those for a check or a finding are told "
    "without its name.",
    ("reason",),
)
CONFIDENCE: Final = Metric(
    "cascade_device_confidence_ratio",
    "histogram",
    "Calibrated confidence of the device's answers, kept or not.",
    ("task",),
    _SHARES,
)
ANSWERS: Final = Metric(
    "cascade_device_answers_total",
    "counter",
    "Answers, by who gave them (device or cluster) and whether they are verified.",
    ("source", "verified"),
)
FAILURES: Final = Metric(
    "cascade_device_failures_total",
    "counter",
    "Requests that ended without an answer, by gRPC status or kind of error.",
    ("code",),
)
REMOTE_FAILURES: Final = Metric(
    "cascade_device_remote_failures_total",
    "counter",
    "Escalations that failed and left the device's own answer unverified, by gRPC status.",
    ("code",),
)
SECONDS: Final = Metric(
    "cascade_device_answer_seconds",
    "histogram",
    "From a request to its answer, by who gave it.",
    ("source",),
    _SECONDS,
)
LOCAL_SECONDS: Final = Metric(
    "cascade_device_local_seconds",
    "histogram",
    "Reading a prompt and writing an answer on the device.",
    (),
    _SECONDS,
)
REMOTE_SECONDS: Final = Metric(
    "cascade_device_remote_seconds",
    "histogram",
    "From opening a call to the cluster to its last event.",
    (),
    _SECONDS,
)
LOCAL_TOKENS: Final = Metric(
    "cascade_device_local_tokens_total", "counter", "Tokens written on the device, kept or not."
)
CLOUD_TOKENS: Final = Metric(
    "cascade_device_cloud_tokens_total",
    "counter",
    "Tokens that the cluster read or wrote for this device.",
    ("direction",),
)
BYTES: Final = Metric(
    "cascade_device_network_bytes_total",
    "counter",
    "Messages to (up) and from (down) the cluster, without HTTP/2 and TLS framing.",
    ("direction",),
)
COST: Final = Metric(
    "cascade_device_cost_usd_total", "counter", "Money for the cluster's answers, by its prices."
)
POLICY_STATE: Final = Metric(
    "cascade_device_policy_state",
    "gauge",
    "1 for the state in which the monitor has a task's policy: certified, watch or demoted.",
    ("task", "state"),
)
POLICY_RISK: Final = Metric(
    "cascade_device_policy_certified_risk_ratio",
    "gauge",
    "Largest error rate among kept answers that the task's policy certifies (alpha).",
    ("task",),
)
AUDITS: Final = Metric(
    "cascade_device_policy_audits",
    "gauge",
    "Audited answers of a task's policy, by outcome: right, wrong, or lost (never labelled).",
    ("task", "outcome"),
)

DEVICE_METRICS: Final = (
    DECISIONS,
    REASONS,
    CONFIDENCE,
    ANSWERS,
    FAILURES,
    REMOTE_FAILURES,
    SECONDS,
    LOCAL_SECONDS,
    REMOTE_SECONDS,
    LOCAL_TOKENS,
    CLOUD_TOKENS,
    BYTES,
    COST,
    POLICY_STATE,
    POLICY_RISK,
    AUDITS,
)
"""Everything that a device counts."""


class DeviceMetrics:
    """An ``Observer`` that counts: ``Device.open(…, observers=[metrics])``. Several devices may
    share one.

    Arguments:
        tasks: task ids that metrics name, others are ``other``; where none is given, the first 20.
        monitor_file: of the device's monitor, whose word on each task's latest policy is told;
            read when the text is made. By default nothing of it is told.
    """

    def __init__(self, *, tasks: Iterable[str] = (), monitor_file: Path | None = None) -> None:
        self._counts = Instruments(DEVICE_METRICS)
        self._task = Bounded(tasks)
        # The words are fixed, but for new ones of clusters that are newer than this.
        self._reason = Bounded((*Reason, "veto", "pii"))
        # Not the monitor itself, which belongs to one event loop: scrapes come from other threads.
        self._monitors = MonitorStore(monitor_file) if monitor_file else None

    @property
    def escalation_share(self) -> float | None:
        """Share of the decisions so far that went to the cluster; ``None`` before the first."""
        series = self._counts.by_label(DECISIONS, "outcome")
        total = sum(series.values())
        return series.get("escalated", 0.0) / total if total else None

    def decided(self, record: DecisionRecord) -> None:
        """Count a decision."""
        decision, task = record.decision, self._task(record.task_id)
        outcome = "escalated" if decision.escalate else "kept" if decision.accept else "unverified"
        self._counts.add(DECISIONS, 1, task, outcome)
        for reason in decision.reasons:
            self._counts.add(REASONS, 1, self._reason(reason.partition(":")[0]))
        if decision.confidence is not None:
            self._counts.observe(CONFIDENCE, decision.confidence, task)

    def answered(self, request: Request, answer: Answer) -> None:
        """Count an answer."""
        counts, latency = self._counts, answer.latency
        source = "device" if answer.local else "cluster"
        counts.add(ANSWERS, 1, source, "true" if answer.verified else "false")
        counts.observe(SECONDS, latency.total_s, source)
        if local_s := latency.prefill_s + latency.decode_s:
            counts.observe(LOCAL_SECONDS, local_s)
        if latency.remote_s:
            counts.observe(REMOTE_SECONDS, latency.remote_s)
        if answer.remote_status:
            counts.add(REMOTE_FAILURES, 1, answer.remote_status)
        counts.add(LOCAL_TOKENS, answer.local_tokens)
        counts.add(CLOUD_TOKENS, answer.cloud_prompt_tokens, "prompt")
        counts.add(CLOUD_TOKENS, answer.cloud_completion_tokens, "completion")
        counts.add(BYTES, answer.bytes_up, "up")
        counts.add(BYTES, answer.bytes_down, "down")
        counts.add(COST, answer.cost_usd)

    def failed(self, request: Request, problem: CascadeError) -> None:
        """Count a failure."""
        code = problem.status if isinstance(problem, RemoteError) else type(problem).__name__
        self._counts.add(FAILURES, 1, code)

    def text(self) -> str:
        """All of them in Prometheus' text format 0.0.4.

        Raises:
            CascadeError: the monitor's file cannot be read.
        """
        if self._monitors is not None:
            self._read(self._monitors)
        return self._counts.text()

    def write(self, path: Path) -> None:
        """Write the text as a whole, e.g. into the folder of a node exporter's textfile collector,
        which reads files that end with ``.prom``.

        Raises:
            OSError: it cannot be written.
        """
        write_whole(path, self.text().encode())

    def _read(self, monitors: MonitorStore) -> None:
        for metric in (POLICY_STATE, POLICY_RISK, AUDITS):
            self._counts.forget(metric)
        # The last to be opened is the one that is in use.
        latest = {
            kept.key.task: kept
            for kept in sorted(monitors.monitors(), key=lambda kept: kept.health.opened)
        }
        for name, kept in latest.items():
            health, task = kept.health, self._task(name)
            if task == OTHER:  # one series cannot tell of several policies
                continue
            for state in State:
                self._counts.set(POLICY_STATE, float(state is health.state), task, state.value)
            self._counts.set(POLICY_RISK, kept.limits.alpha, task)
            audits = health.audits
            self._counts.set(AUDITS, audits.labels - audits.errors, task, "right")
            self._counts.set(AUDITS, audits.errors, task, "wrong")
            self._counts.set(AUDITS, health.lost, task, "lost")


class MetricsServer:
    """Answers ``GET /metrics`` with a device's metrics, over plain HTTP, until it is closed.

    Arguments:
        port: 0 takes a free one; see ``port``.

    Raises:
        ClusterError: the port cannot be used.
    """

    def __init__(
        self, metrics: DeviceMetrics, *, host: str = "127.0.0.1", port: int = 9475
    ) -> None:
        # Most devices never need it, and it is slow to import.
        from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

        class Reply(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                if self.path.partition("?")[0] != "/metrics":
                    self.send_error(404)
                    return
                try:
                    body = metrics.text().encode()
                except CascadeError:
                    self.send_error(503)
                    return
                self.send_response(200)
                self.send_header("Content-Type", CONTENT_TYPE)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                """Scrapes are not worth a line each."""

        try:
            self._server = ThreadingHTTPServer((host, port), Reply)
        except OSError as problem:
            why = problem.strerror or str(problem)
            raise ClusterError(f"port {port} on {host} cannot be used: {why}") from None
        self._thread = threading.Thread(
            target=self._server.serve_forever, name="device-metrics", daemon=True
        )
        self._thread.start()

    @property
    def port(self) -> int:
        """The port that it listens on."""
        return self._server.server_port

    def close(self) -> None:
        """Stop; frees the port."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
