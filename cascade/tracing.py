"""One trace a request, from the device to the replica: W3C trace context, and spans where there is
OpenTelemetry.

Without the package, or with nothing that configured it, spans only have ids, so that a gateway that
records does so under the device's trace id. Spans carry numbers and fixed words, never content.
"""

from __future__ import annotations

import logging
import os
import random
import re
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final, Literal, Protocol

if TYPE_CHECKING:
    from opentelemetry.trace import Span as OtelSpan

TRACEPARENT_HEADER: Final = "traceparent"
_TRACEPARENT = re.compile(
    r"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})"
)
_API: Final = "opentelemetry.trace"
_SCOPE: Final = "cascade"
_EXPORTS: Final = (
    "OTEL_TRACES_EXPORTER",
    "OTEL_EXPORTER_OTLP_ENDPOINT",
    "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
)

_log = logging.getLogger(__name__)

# Ids have to be different, not secret. Not the module's own generator: an application may seed it.
_ids = random.Random()
os.register_at_fork(after_in_child=_ids.seed)

Kind = Literal["internal", "client", "server"]
Attribute = str | int | float | bool | tuple[str, ...]


class Span(Protocol):
    """A part of a request's way, begun by ``start_span``."""

    @property
    def traceparent(self) -> str:
        """What to hand on, so that what follows becomes a part of this one."""
        ...

    def note(self, attributes: Mapping[str, Attribute | None]) -> None:
        """Say something about it; ``None`` says nothing."""
        ...

    def event(self, name: str) -> None:
        """Something happened now."""
        ...

    def end(self, error: str = "") -> None:
        """It is over. A second call does nothing.

        Arguments:
            error: the gRPC status name, or another fixed word; empty where it went well.
        """
        ...


def start_span(name: str, parent: str = "", *, kind: Kind = "internal") -> Span:
    """Begin a span.

    Arguments:
        parent: a ``traceparent``; an empty or malformed one begins a trace, or a part of what the
            application has under way.
    """
    match = _TRACEPARENT.fullmatch(parent)
    # Nobody can have configured what nobody has imported, and a device need not wait for it.
    if sys.modules.get(_API) is None:
        return _Ids(match)
    if match and not _configured():  # a span would be its parent again
        return _Ids(match)
    return _recorded(name, match, kind)


def is_traceparent(text: str) -> bool:
    """Whether ``text`` is a usable W3C trace context, level 1."""
    return _TRACEPARENT.fullmatch(text) is not None


def trace_id(traceparent: str) -> str:
    """The trace that a ``traceparent`` belongs to, 32 hex digits; empty for a malformed one."""
    match = _TRACEPARENT.fullmatch(traceparent)
    return match[1] if match else ""


def export_spans(service: str) -> None:
    """Send this process's spans where the environment says (``OTEL_TRACES_EXPORTER``,
    ``OTEL_EXPORTER_OTLP_ENDPOINT``, …); without such a variable nothing happens, nor where a tracer
    is configured already.

    Arguments:
        service: its name there, unless ``OTEL_SERVICE_NAME`` says another.
    """
    wanted = os.environ.get("OTEL_TRACES_EXPORTER", "otlp")
    off = os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true" or wanted == "none"
    if off or not any(os.environ.get(name) for name in _EXPORTS):
        return
    try:
        from opentelemetry import trace
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import SERVICE_NAME, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError:
        _log.warning("no spans are sent: pip install 'edge-cloud-cascade[otel]'")
        return
    if isinstance(trace.get_tracer_provider(), TracerProvider):
        return
    name = os.environ.get("OTEL_SERVICE_NAME") or service
    provider = TracerProvider(resource=Resource.create({SERVICE_NAME: name}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(provider)


def flush_spans(timeout_s: float = 2.0) -> None:
    """Send what ``export_spans`` still holds back, before a process ends."""
    if _API not in sys.modules:
        return
    from opentelemetry import trace

    flush = getattr(trace.get_tracer_provider(), "force_flush", None)  # the SDK's alone have it
    if flush is not None:
        flush(round(timeout_s * 1000))


class _Ids:
    """A span that nobody records. Its trace is flagged as sampled: whether a gateway records it is
    the gateway's own choice (``OTEL_TRACES_SAMPLER``)."""

    def __init__(self, parent: re.Match[str] | None) -> None:
        trace, flags = (parent[1], parent[3]) if parent else (_new_id(128), "01")
        self._traceparent = f"00-{trace}-{_new_id(64)}-{flags}"

    @property
    def traceparent(self) -> str:
        return self._traceparent

    def note(self, attributes: Mapping[str, Attribute | None]) -> None: ...

    def event(self, name: str) -> None: ...

    def end(self, error: str = "") -> None: ...


class _Recorded:
    """A span of OpenTelemetry."""

    def __init__(self, span: OtelSpan) -> None:
        self._span = span

    @property
    def traceparent(self) -> str:
        context = self._span.get_span_context()
        return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags & 1:02x}"

    def note(self, attributes: Mapping[str, Attribute | None]) -> None:
        for name, value in attributes.items():
            if value is not None:
                self._span.set_attribute(name, value)

    def event(self, name: str) -> None:
        self._span.add_event(name)

    def end(self, error: str = "") -> None:
        from opentelemetry.trace import Status, StatusCode

        if error and self._span.is_recording():
            self._span.set_attribute("error.type", error)
            self._span.set_status(Status(StatusCode.ERROR, error))
        if self._span.is_recording():
            self._span.end()


def _new_id(bits: int) -> str:
    return f"{_ids.getrandbits(bits) or 1:0{bits // 4}x}"  # all zeros are no id


def _configured() -> bool:
    from opentelemetry import trace

    return not isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider)


def _recorded(name: str, match: re.Match[str] | None, kind: Kind) -> Span:
    from opentelemetry import trace

    within = None  # what the application has under way
    if match:
        above = trace.SpanContext(
            int(match[1], 16), int(match[2], 16), True, trace.TraceFlags(int(match[3], 16) & 1)
        )
        within = trace.set_span_in_context(trace.NonRecordingSpan(above))
    span = trace.get_tracer(_SCOPE).start_span(name, within, trace.SpanKind[kind.upper()])
    # With the API alone a span is its parent again, or has no ids at all.
    own = span.get_span_context()
    if not own.is_valid or (match is not None and own.span_id == int(match[2], 16)):
        return _Ids(match)
    return _Recorded(span)
