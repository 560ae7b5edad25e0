"""The seam at which an application watches its device: every decision, every answer, every failure,
and one span a request.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Protocol

from cascade.decision_record import DecisionRecord
from cascade.errors import CascadeError, RemoteError
from cascade.events import Answer, Event, Final
from cascade.request import Request
from cascade.tracing import Attribute, start_span


class Observer(Protocol):
    """What is told of requests, on the event loop that answers them: be quick. ``DeviceMetrics`` is
    one."""

    def decided(self, record: DecisionRecord) -> None:
        """A decision was made, with all that it was made from."""
        ...

    def answered(self, request: Request, answer: Answer) -> None:
        """A request has ended with an answer, escalated or not."""
        ...

    def failed(self, request: Request, problem: CascadeError) -> None:
        """A request has ended without one."""
        ...


def deciding(
    on_decision: Callable[[DecisionRecord], None] | None, observers: Sequence[Observer]
) -> Callable[[DecisionRecord], None] | None:
    """What to tell of decisions, for ``Controller``; ``None`` where nobody listens."""
    listeners = [*([on_decision] if on_decision else ()), *(each.decided for each in observers)]
    if not listeners:
        return None

    def tell(record: DecisionRecord) -> None:
        for listen in listeners:
            listen(record)

    return tell


async def observed(
    request: Request,
    run: Callable[[Request], AsyncGenerator[Event, None]],
    observers: Sequence[Observer],
) -> AsyncGenerator[Event, None]:
    """The events of ``run(request)``, the request then being a part of a span ``device.answer``."""
    span = start_span("device.answer", request.traceparent)
    request = dataclasses.replace(request, traceparent=span.traceparent)
    status = "CANCELLED"
    try:
        async with contextlib.aclosing(run(request)) as events:
            async for event in events:
                if isinstance(event, Final):
                    status = ""
                    span.note(_told(request, event.answer))
                    for each in observers:
                        each.answered(request, event.answer)
                yield event
    except CascadeError as problem:
        status = problem.status if isinstance(problem, RemoteError) else type(problem).__name__
        for each in observers:
            each.failed(request, problem)
        raise
    finally:
        span.end(status)


def _told(request: Request, answer: Answer) -> dict[str, Attribute | None]:
    """What the span of a request says: nothing of what was asked or answered."""
    return {
        "cascade.request_id": answer.request_id,
        "cascade.task_id": request.task_id or None,
        "cascade.source": answer.source,
        "cascade.model": answer.model,
        "cascade.verified": answer.verified,
        "cascade.reasons": answer.reasons,
        "cascade.confidence": answer.device_confidence,
        "cascade.local_tokens": answer.local_tokens,
        "cascade.prefill_s": answer.latency.prefill_s,
        "cascade.decode_s": answer.latency.decode_s,
        "cascade.cost_usd": answer.cost_usd,
        "cascade.remote_status": answer.remote_status,
    }
