"""Trace context without OpenTelemetry, and with it."""

from __future__ import annotations

import gzip
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from cascade.tracing import is_traceparent, start_span, trace_id

PARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
ALONE = """
import sys
sys.modules.pop("opentelemetry", None)
from cascade.tracing import is_traceparent, start_span, trace_id
span = start_span("device.answer")
child = start_span("cascade.call", span.traceparent)
assert is_traceparent(span.traceparent) and is_traceparent(child.traceparent)
assert trace_id(span.traceparent) == trace_id(child.traceparent)
assert span.traceparent != child.traceparent
assert start_span("other").traceparent[3:35] != trace_id(span.traceparent)
assert child.traceparent.endswith("-01")
import os, random
random.seed(0)  # as applications do
seeded = start_span("a").traceparent
random.seed(0)
assert start_span("a").traceparent != seeded
reader, writer = os.pipe()
if os.fork() == 0:
    os.write(writer, start_span("a").traceparent.encode())
    os._exit(0)
assert os.read(reader, 100).decode() != start_span("a").traceparent
span.note({"a": 1}); span.event("b"); span.end("UNAVAILABLE"); span.end()
assert not any(name.startswith("opentelemetry") for name in sys.modules)
"""
API_ALONE = """
import opentelemetry.trace
from cascade.tracing import is_traceparent, start_span, trace_id
span = start_span("device.answer")
child = start_span("cascade.call", span.traceparent)
assert is_traceparent(span.traceparent) and is_traceparent(child.traceparent)
assert trace_id(span.traceparent) == trace_id(child.traceparent)
assert span.traceparent != child.traceparent
"""


SENDS = """
from cascade.tracing import export_spans, flush_spans, start_span
export_spans("cascade-gateway")
span = start_span("gateway.answer", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")
span.note({"cascade.tier": "tier1", "cascade.confidence": None})
span.end("UNAVAILABLE")
span.end()
flush_spans()
"""


def sent(environment: dict[str, str]) -> list[ExportTraceServiceRequest]:
    """What a process that makes one span sends to a receiver on the loopback."""
    received: list[ExportTraceServiceRequest] = []

    class Receiver(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            assert self.path == "/v1/traces"
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.headers.get("Content-Encoding") == "gzip":
                body = gzip.decompress(body)
            received.append(ExportTraceServiceRequest.FromString(body))
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Receiver) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        endpoint = f"http://127.0.0.1:{server.server_port}"
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", SENDS],
            check=False,
            capture_output=True,
            text=True,
            env={**os.environ, "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint, **environment},
        )
        server.shutdown()
        thread.join()
    assert done.returncode == 0, done.stderr
    return received


def test_spans_go_where_the_environment_says() -> None:
    (request,) = sent({})
    (resource,) = request.resource_spans
    names = {item.key: item.value.string_value for item in resource.resource.attributes}
    assert names["service.name"] == "cascade-gateway"
    (span,) = resource.scope_spans[0].spans
    assert (span.name, span.trace_id.hex()) == ("gateway.answer", trace_id(PARENT))
    assert span.parent_span_id.hex() == PARENT[36:52]
    told = {item.key: item.value.string_value for item in span.attributes}
    assert told == {"cascade.tier": "tier1", "error.type": "UNAVAILABLE"}


@pytest.mark.parametrize(
    "environment",
    [
        {"OTEL_TRACES_EXPORTER": "none"},
        {"OTEL_SDK_DISABLED": "true"},
        {"OTEL_TRACES_SAMPLER": "always_off"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": ""},
    ],
    ids=lambda environment: next(iter(environment)),
)
def test_spans_stay_where_the_environment_says_so(environment: dict[str, str]) -> None:
    assert sent(environment) == []


@pytest.mark.parametrize("program", [ALONE, API_ALONE], ids=["nothing loaded", "api alone"])
def test_ids_are_made_and_handed_on_where_nobody_records(program: str) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program], check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "text",
    [
        "",
        PARENT[:-1],
        PARENT + "-extra",
        PARENT.upper(),
        "ff" + PARENT[2:],
        "00-" + "0" * 32 + PARENT[35:],
        PARENT[:36] + "0" * 16 + PARENT[52:],
        PARENT.replace("4", "g"),
    ],
)
def test_a_malformed_context_begins_a_trace_of_its_own(text: str) -> None:
    assert not is_traceparent(text)
    assert trace_id(text) == ""
    own = start_span("x", text).traceparent
    assert is_traceparent(own)
    assert trace_id(own) != trace_id(PARENT)


@given(st.text())
def test_any_text_is_told_from_a_context(text: str) -> None:
    assert is_traceparent(start_span("x", text).traceparent)


def test_an_unsampled_trace_stays_unsampled() -> None:
    assert start_span("x", PARENT[:-2] + "00").traceparent.endswith("-00")
