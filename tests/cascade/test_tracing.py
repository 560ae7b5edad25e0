"""Trace context without OpenTelemetry, and with it."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

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
