"""The device SDK for programs without an event loop: ``Device`` does what ``AsyncDevice`` does.

Methods that differ in nothing but the waiting are made from its own.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Concatenate, ParamSpec, Self, TypeVar

from cascade.checks import Checks
from cascade.controller import Show
from cascade.decision_record import DecisionRecord
from cascade.egress import Egress
from cascade.events import Event
from cascade.local import ModelInfo
from cascade.monitor import Monitor
from cascade.policy import PolicyStore
from cascade.request import Constraints
from cascade.sampling import GREEDY, Sampling
from cascade.signing import TrustStore
from cascade.wire import ClientProfile
from edge.async_device import AsyncDevice, remote_to
from edge.classifier import OnnxClassifier
from edge.conversation import Conversation, Overflow
from edge.examples import Learning
from edge.model import OnnxModel
from edge.observing import Observer
from edge.portal import Portal

P = ParamSpec("P")
R = TypeVar("R")
F = TypeVar("F", bound=Callable[..., object])


def _iterates(
    method: Callable[Concatenate[AsyncDevice, P], AsyncGenerator[Event, None]],
) -> Callable[Concatenate[Device, P], Iterator[Event]]:
    """``method`` of a ``Device``: the same arguments, an ordinary iterator, which cancels the
    answer when it is left early."""

    @functools.wraps(method)
    def iterate(self: Device, /, *args: P.args, **kwargs: P.kwargs) -> Iterator[Event]:
        return self._portal.iterate(method(self._device, *args, **kwargs))

    return _returning(iterate, "Iterator[Event]")


def _waits(
    method: Callable[Concatenate[AsyncDevice, P], Coroutine[object, object, R]],
) -> Callable[Concatenate[Device, P], R]:
    """``method`` of a ``Device``: the same arguments, the result itself."""

    @functools.wraps(method)
    def wait(self: Device, /, *args: P.args, **kwargs: P.kwargs) -> R:
        return self._portal.call(method(self._device, *args, **kwargs))

    return wait


def _returning(function: F, result: str) -> F:
    """``function`` with the result that ``help`` and editors are to show."""
    signature = inspect.signature(function).replace(return_annotation=result)
    function.__signature__ = signature  # type: ignore[attr-defined]
    return function


class Device:
    """``AsyncDevice`` for programs without an event loop. Make one with ``open``; safe to share
    between threads."""

    def __init__(self, portal: Portal, device: AsyncDevice) -> None:
        self._portal = portal
        self._device = device

    @classmethod
    def open(
        cls,
        bundle: str | Path | None = None,
        *,
        cloud: ClientProfile | None = None,
        trust: TrustStore | None = None,
        policies: PolicyStore | None = None,
        monitor: Monitor | None = None,
        threads: int | None = None,
        egress: Egress | None = None,
        checks: Checks | None = None,
        on_decision: Callable[[DecisionRecord], None] | None = None,
        observers: Iterable[Observer] = (),
        learn: Learning | None = None,
    ) -> Self:
        """Verify and load a bundle; see ``AsyncDevice.open``."""

        async def open_inside() -> AsyncDevice:
            return AsyncDevice.open(
                bundle,
                cloud=cloud,
                trust=trust,
                policies=policies,
                monitor=monitor,
                threads=threads,
                egress=egress,
                checks=checks,
                on_decision=on_decision,
                observers=observers,
                learn=learn,
            )

        portal = Portal()
        try:
            return cls(portal, portal.call(open_inside()))
        except BaseException:
            portal.close()
            raise

    @classmethod
    def with_model(
        cls,
        model: OnnxModel | OnnxClassifier,
        *,
        cloud: ClientProfile | None = None,
        policies: PolicyStore | None = None,
        monitor: Monitor | None = None,
        egress: Egress | None = None,
        checks: Checks | None = None,
        on_decision: Callable[[DecisionRecord], None] | None = None,
        observers: Iterable[Observer] = (),
        learn: Learning | None = None,
    ) -> Self:
        """A device around a model that is loaded already; several may share it."""

        async def open_inside() -> AsyncDevice:
            return AsyncDevice(
                model,
                remote_to(cloud),
                policies,
                monitor,
                egress=egress,
                checks=checks,
                on_decision=on_decision,
                observers=observers,
                learn=learn,
            )

        portal = Portal()
        return cls(portal, portal.call(open_inside()))

    @property
    def info(self) -> ModelInfo | None:
        """What answers on this device."""
        return self._device.info

    @property
    def labels(self) -> tuple[str, ...]:
        """The classes of the classifier on this device; none where there is no classifier."""
        return self._device.labels

    run = _iterates(AsyncDevice.run)
    ask = _iterates(AsyncDevice.ask)
    choose = _waits(AsyncDevice.choose)
    load_adapter = _waits(AsyncDevice.load_adapter)
    use_adapter = _waits(AsyncDevice.use_adapter)
    unload_adapter = _waits(AsyncDevice.unload_adapter)
    renew = _waits(AsyncDevice.renew)
    classify = _waits(AsyncDevice.classify)
    feedback = _waits(AsyncDevice.feedback)
    to_grade = _waits(AsyncDevice.to_grade)
    grade = _waits(AsyncDevice.grade)
    audited = _waits(AsyncDevice.audited)

    def conversation(
        self,
        *,
        system: str = "",
        overflow: Overflow = "drop_oldest",
        sampling: Sampling = GREEDY,
        task: str = "",
        constraints: Constraints | None = None,
        show: Show = "final",
    ) -> Conversation:
        """Start a conversation; see ``AsyncDevice.conversation``."""
        started = self._device.conversation(
            system=system,
            overflow=overflow,
            sampling=sampling,
            task=task,
            constraints=constraints,
            show=show,
        )
        return Conversation(self._portal, started)

    def close(self) -> None:
        """Close the connection and end the background thread. May be called again."""
        if self._portal.closed:
            return
        self._portal.call(self._device.close())
        self._portal.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
