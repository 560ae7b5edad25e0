"""The device SDK for applications with an event loop: open a bundle, ask, choose, classify.

``edge.device`` is the same for all other programs.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from numpy.typing import ArrayLike

from cascade import home
from cascade.checks import Checks
from cascade.controller import Controller, Show
from cascade.decision_record import DecisionRecord
from cascade.draft import Drafting
from cascade.egress import Egress
from cascade.errors import CascadeError, InvalidInput, NotFound
from cascade.events import Answer, Event, Final
from cascade.local import ModelInfo
from cascade.monitor import Monitor
from cascade.policy import PolicyStore
from cascade.remote import Remote
from cascade.request import Constraints, Message, Request
from cascade.sampling import GREEDY, Sampling
from cascade.signals import ScoreMode
from cascade.signing import TrustStore
from cascade.tensor import pack
from cascade.wire import ClientProfile
from edge.adapter import Adapter
from edge.bundle import Bundle
from edge.classifier import OnnxClassifier
from edge.conversation import AsyncConversation, Overflow
from edge.delivered import DEFAULT_CHANNEL, Delivered
from edge.examples import Learning
from edge.model import OnnxModel
from edge.observing import Observer, deciding, observed
from edge.profile import recommended_threads
from edge.renewal import Renewal, SelfCheck, renew, start

DEFAULT_BUNDLE = "smollm2-135m-instruct-int4"

Prefer = Literal["device", "cloud"]

Ask = str | Iterable[Message]
"""A question, or a conversation whose last message is the user's."""


class AsyncDevice:
    """Answers on the device, and by the cluster where a policy says so. Make one with ``open``.

    Open it inside of the event loop that uses it.
    """

    def __init__(
        self,
        model: OnnxModel | OnnxClassifier | None,
        remote: Remote | None = None,
        policies: PolicyStore | None = None,
        monitor: Monitor | None = None,
        *,
        egress: Egress | None = None,
        checks: Checks | None = None,
        on_decision: Callable[[DecisionRecord], None] | None = None,
        observers: Iterable[Observer] = (),
        learn: Learning | None = None,
    ) -> None:
        self._model = model
        self._policies = policies
        self._monitor = monitor
        self._learn = learn
        self._observers = tuple(observers)
        self._controller = Controller(
            model,
            remote,
            policies,
            monitor,
            egress=egress,
            checks=checks,
            on_decision=deciding(on_decision, self._observers),
            on_answer=learn.answered if learn else None,
        )

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
        """Verify and load a bundle.

        Arguments:
            bundle: a bundle's folder, or the name of one under ``CASCADE_HOME``; by default what
                ``cascade setup`` got, adapter included where it can be used, or else the one that
                ``cascade bundle build`` makes.
            cloud: address, certificate authority and key of a cluster; ``None`` works offline.
            trust: pinned publisher keys; by default those under ``CASCADE_HOME``.
            policies: installed policies; by default those under ``CASCADE_HOME``.
            monitor: audits accepted answers, ``Monitor.open(…)``; closed with the device. By
                default nothing is audited, and policies that a monitor under ``CASCADE_HOME``
                withdrew stay withdrawn.
            threads: threads of the local model, ≥ 1; by default what this machine's profile
                recommends (``cascade bundle bench``), or 1 without one.
            egress: money, privacy, conditions of the device: what a request passes on its way to
                the cluster; by default ``Egress.usual``.
            checks: what the device's answers have to pass, whatever their confidence.
            on_decision: told about every decision, with all that it was made from.
            observers: told about every decision, answer and failure, e.g. ``DeviceMetrics``.
            learn: keeps answers as examples to learn from, ``Learning.open(…)``; closed with the
                device. By default nothing is kept.

        Raises:
            NotFound: there is no such bundle.
            InvalidInput: the device is used commercially, and the bundle's licence forbids it.
            UnknownPublisher, Tampered, BundleError: the bundle must not or cannot be used.
        """
        trust = trust or TrustStore(home.trust_dir())
        # Read once: a delivery that comes in between must not pair its adapter with another bundle.
        delivered = Delivered.load() if bundle is None else Delivered()
        verified = Bundle.open(bundle_path(bundle or delivered.bundle or DEFAULT_BUNDLE), trust)
        egress = egress or Egress.usual(cloud.address if cloud else "")
        if egress.commercial and not verified.manifest.commercial_use:
            raise InvalidInput(
                "commercial",
                f"{verified.manifest.licence}, the licence of {verified.manifest.name}, does not "
                "allow commercial use; take another bundle",
            )
        if threads is None:
            threads = recommended_threads(verified.manifest.name)
        model = load_model(verified, threads=threads)
        if bundle is None and isinstance(model, OnnxModel):
            start(model, delivered, trust)
        return cls(
            model,
            remote_to(cloud),
            policies or PolicyStore(home.policies_dir(), trust),
            monitor or Monitor.obeying(),
            egress=egress,
            checks=checks,
            on_decision=on_decision,
            observers=observers,
            learn=learn,
        )

    @property
    def info(self) -> ModelInfo | None:
        """What answers on this device, or ``None`` where everything goes to the cluster."""
        return self._model.info if self._model else None

    @property
    def labels(self) -> tuple[str, ...]:
        """The classes of the classifier on this device; none where there is no classifier."""
        return self._model.labels if isinstance(self._model, OnnxClassifier) else ()

    async def run(self, request: Request, *, show: Show = "final") -> AsyncGenerator[Event, None]:
        """Answer ``request``; see ``cascade.Controller.run``."""
        run = functools.partial(self._controller.run, show=show)
        async with contextlib.aclosing(observed(request, run, self._observers)) as events:
            async for event in events:
                yield event

    def ask(
        self,
        prompt: Ask,
        *,
        max_tokens: int = 256,
        stop: Iterable[str] = (),
        temperature: float = 0.0,
        top_p: float = 1.0,
        top_k: int = 0,
        min_p: float = 0.0,
        repetition_penalty: float = 1.0,
        seed: int | None = None,
        json_schema: str | Mapping[str, object] | None = None,
        regex: str | None = None,
        task: str = "",
        constraints: Constraints | None = None,
        prefer: Prefer = "device",
        show: Show = "final",
        checks: Iterable[str] = (),
        drafting: Drafting | None = None,
    ) -> AsyncGenerator[Event, None]:
        """Ask for free text: ``Token`` and ``Superseded`` events, then one ``Final``.

        Arguments:
            max_tokens: upper bound on the tokens of the answer.
            stop: strings before which the answer ends.
            temperature, top_p, top_k, min_p, repetition_penalty, seed: how tokens are drawn, here
                and in the cluster; see ``Sampling``. By default the most probable one is taken.
            json_schema: the answer is a JSON document that satisfies this schema, given as JSON
                text or as the object itself; as a whole where ``answer.finish`` is ``"stop"``.
            regex: the answer matches this expression, likewise; see ``cascade.structured``. Both
                need the extra ``structured`` where the device answers.
            task: the task id whose policy judges the answer; without one it is uncertified.
            prefer: ``"cloud"`` asks the cluster at once, without a local attempt.
            show: ``"final"`` streams accepted text only; ``"provisional"`` streams local text at
                once, which a later ``Superseded`` may take back.
            checks: names of checks that the device's answer has to pass, beside its task's.
            drafting: whether an answer that is not kept is proposed to the cluster as a draft; by
                default what the task's policy says, and without one it is not.
        """
        request = Request(
            _messages(prompt),
            task_id=task,
            max_tokens=max_tokens,
            stop=tuple(stop),
            sampling=Sampling(temperature, top_p, top_k, min_p, repetition_penalty, seed),
            json_schema=_json_text(json_schema),
            regex=regex,
            prefer=prefer,
            constraints=constraints or Constraints(),
            checks=tuple(checks),
            drafting=drafting,
        )
        return self.run(request, show=show)

    async def choose(
        self,
        text: str,
        options: Iterable[str],
        *,
        task: str = "",
        constraints: Constraints | None = None,
        prefer: Prefer = "device",
        mode: ScoreMode | None = None,
        checks: Iterable[str] = (),
    ) -> Answer:
        """Ask for one of a closed set of answers.

        Arguments:
            text: the bare input, e.g. the review to be judged.
            options: at least two different answers; one may be a prefix of another.
            task: the task id whose policy words the question and judges the answer.
            mode: ``"exact"`` scores every option on the device, ``"search"`` proves the best one
                and bounds its score; by default the mode that the task's policy was fitted for, or
                exact for small sets and search for large ones. ``Answer.bounds`` says which it was.
            checks: names of checks that the device's answer has to pass, beside its task's.
        """
        request = Request(
            (Message("user", text),),
            options=tuple(options),
            task_id=task,
            prefer=prefer,
            mode=mode,
            constraints=constraints or Constraints(),
            checks=tuple(checks),
        )
        if not request.options:
            raise InvalidInput("options", "is empty; give at least two different answers")
        return await self._answer(request)

    async def classify(
        self,
        tensors: Mapping[str, ArrayLike],
        *,
        labels: Iterable[str] = (),
        task: str = "",
        constraints: Constraints | None = None,
        prefer: Prefer = "device",
        checks: Iterable[str] = (),
    ) -> Answer:
        """Ask which class one example belongs to; the answer's text is its label.

        Arguments:
            tensors: the classifier's inputs by name, raw as the sensor gives them, in the types and
                shapes of the bundle; a batch axis may be left out.
            labels: the classes; by default those of the bundle on this device.
            task: the task id whose policy judges the answer.
            checks: names of checks that the device's answer has to pass, beside its task's.

        Raises:
            InvalidInput: an input is missing, of another type or shape, or holds NaN; it is named.
        """
        request = Request(
            (),
            options=tuple(labels) or self.labels,
            task_id=task,
            prefer=prefer,
            constraints=constraints or Constraints(),
            tensors=pack(tensors),
            checks=tuple(checks),
        )
        if not request.tensors:
            raise InvalidInput("tensors", "is empty; give the classifier's inputs by name")
        return await self._answer(request)

    async def _answer(self, request: Request) -> Answer:
        # Closed at once, so that an audit of the answer has begun before its reader goes on.
        async with contextlib.aclosing(self.run(request)) as events:
            async for event in events:
                if isinstance(event, Final):
                    return event.answer
        raise AssertionError("a request ended without Final")  # the controller's promise

    def conversation(
        self,
        *,
        system: str = "",
        overflow: Overflow = "drop_oldest",
        sampling: Sampling = GREEDY,
        task: str = "",
        constraints: Constraints | None = None,
        show: Show = "final",
    ) -> AsyncConversation:
        """Start a conversation: its turns build on each other, and its beginning is read once.

        Arguments:
            system: what the model is told before the first turn.
            overflow: when the turns outgrow the context, ``"drop_oldest"`` leaves the oldest out
                (never the system message), ``"refuse"`` raises ``InvalidInput``.
            sampling, task, constraints, show: of every turn; see ``ask``.
        """

        def ask(messages: tuple[Message, ...], max_tokens: int) -> AsyncGenerator[Event, None]:
            request = Request(
                messages,
                task_id=task,
                max_tokens=max_tokens,
                sampling=sampling,
                constraints=constraints or Constraints(),
            )
            return self.run(request, show=show)

        model = self._model if isinstance(self._model, OnnxModel) else None
        return AsyncConversation(
            ask,
            model.count_tokens if model else None,
            model.info.context_tokens if model else 0,
            system=system,
            overflow=overflow,
        )

    async def load_adapter(self, path: Path, *, trust: TrustStore | None = None) -> str:
        """Verify an adapter, keep it ready, and return its digest; several may be loaded.

        Raises:
            NotFound: there is no such adapter, or no model on this device.
            UnknownPublisher, Tampered, BundleError: it must not or cannot be used here.
        """
        adapter = Adapter.open(path, trust or TrustStore(home.trust_dir()))
        return await asyncio.to_thread(self._own_model().load_adapter, adapter)

    async def use_adapter(self, digest: str) -> None:
        """Apply a loaded adapter from the next request on; "" goes back to the base.

        Policies name the adapter for which they were certified; with another one active they do
        not apply.

        Raises:
            NotFound: it is not loaded.
        """
        await asyncio.to_thread(self._own_model().use_adapter, digest)

    async def unload_adapter(self, digest: str) -> None:
        """Free a loaded adapter; the active one is deactivated first.

        Raises:
            NotFound: it is not loaded.
        """
        await asyncio.to_thread(self._own_model().unload_adapter, digest)

    async def renew(
        self,
        profile: ClientProfile,
        *,
        channel: str = DEFAULT_CHANNEL,
        trust: TrustStore | None = None,
        check: SelfCheck | None = None,
    ) -> Renewal:
        """Take what the cluster's channel has now: adapter and policies together, from the next
        request on. One that fails here is left, and what ran before goes on.

        Arguments:
            check: whether the model still answers as it must, with the new adapter applied; by
                default a few tokens, of which the probabilities must be numbers.

        Raises:
            NotFound: there is no model on this device that takes adapters.
            RemoteError, UnknownPublisher, Tampered, BundleError, InvalidInput: as ``set_up``;
                nothing has changed then.
        """
        model = self._own_model()
        return await renew(
            model, self._policies, profile, channel=channel, trust=trust, check=check
        )

    async def feedback(
        self, answer: Answer | str, *, correct: bool, correction: str | None = None
    ) -> None:
        """Tell what a user says of an answer: to the monitor, of a recent one that this device
        kept; and to what it learns from, of any that is there, also from before a restart.

        Arguments:
            answer: the answer, or its ``request_id``.
            correction: what would have been right, to learn from; one of the options where there
                were any. It stays on this device.

        Raises:
            NotFound: neither the monitor nor the store of examples knows that answer, or there is
                neither.
            InvalidInput: ``correction`` is none of the options, or comes with a right answer.
            CascadeError: the store of examples cannot be written. The monitor has heard it.
        """
        request_id = answer if isinstance(answer, str) else answer.request_id
        unknown: NotFound | None = None
        failed: CascadeError | None = None
        heard = False
        if self._learn is not None:
            judged = self._learn.judged(request_id, correct=correct, correction=correction)
            try:
                await asyncio.wrap_future(judged)
                heard = True
            except NotFound as problem:
                unknown = problem
            except InvalidInput:  # nobody has heard it: the call can be made again, put right
                raise
            except CascadeError as problem:
                failed = problem
        elif correction is not None:
            raise InvalidInput(
                "correction", "is to learn from; open the device with learn=Learning.open()"
            )
        if self._monitor is not None or self._learn is None:
            try:
                self._own_monitor().feedback(request_id, correct=correct)
                heard = True
            except NotFound as problem:
                unknown = problem
        if failed is not None:
            raise failed
        if not heard and unknown is not None:
            raise unknown

    async def to_grade(self) -> list[str]:
        """Request ids of answers that were drawn for a grader of yours, oldest first; see
        ``Monitor.to_grade``.

        Raises:
            NotFound: there is no monitor.
        """
        return self._own_monitor().to_grade()

    async def grade(self, request_id: str, *, correct: bool) -> None:
        """Tell the monitor what a grader, who knows the truth, says of an answer of ``to_grade``.

        Raises:
            NotFound: there is no monitor, or the answer does not wait for a grader.
        """
        self._own_monitor().grade(request_id, correct=correct)
        if self._learn is not None:
            with contextlib.suppress(NotFound):  # the store need not know what the monitor does
                await asyncio.wrap_future(self._learn.judged(request_id, correct=correct))

    async def audited(self) -> None:
        """Wait until the audits under way have ended; ``close`` cancels them. One takes at most
        the deadline of its request.

        Raises:
            NotFound: there is no monitor.
        """
        await self._own_monitor().settled()

    async def close(self) -> None:
        """Close the connection to the cluster, the monitor with its audits under way, and the store
        of examples once everything is written."""
        await self._controller.close()
        if self._learn is not None:
            await asyncio.to_thread(self._learn.close)

    def _own_monitor(self) -> Monitor:
        if self._monitor is None:
            raise NotFound("this device has no monitor; open it with monitor=Monitor.open(…)")
        return self._monitor

    def _own_model(self) -> OnnxModel:
        if self._model is None:
            raise NotFound("this device has no model of its own, so it takes no adapter")
        if not isinstance(self._model, OnnxModel):
            raise NotFound(f"{self._model.info.name} is a classifier, which takes no adapter")
        return self._model

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()


def load_model(bundle: Bundle, *, threads: int = 1) -> OnnxModel | OnnxClassifier:
    """The model of a verified bundle, by the kind that its manifest says.

    Raises:
        BundleError: onnxruntime cannot load it.
    """
    if bundle.manifest.kind == "classifier":
        return OnnxClassifier(bundle, threads=threads)
    return OnnxModel(bundle, threads=threads)


def remote_to(cloud: ClientProfile | None) -> Remote | None:
    """The cluster of a profile; ``None`` stays offline."""
    if cloud is None:
        return None
    from cascade.wire import GrpcRemote  # gRPC is slow to import, and not needed offline

    return GrpcRemote(cloud)


def bundle_path(bundle: str | Path | None = None) -> Path:
    """Folder of a bundle given by path, by name under ``CASCADE_HOME``, or by default."""
    if isinstance(bundle, Path):
        return bundle
    name = bundle or Delivered.load().bundle or DEFAULT_BUNDLE
    if "/" in name or name.startswith("."):
        return Path(name).expanduser()
    return home.bundles_dir() / name


def _json_text(schema: str | Mapping[str, object] | None) -> str | None:
    if schema is None or isinstance(schema, str):
        return schema
    try:
        return json.dumps(schema)
    except (TypeError, ValueError, RecursionError) as problem:
        raise InvalidInput("json_schema", f"cannot be written as JSON ({problem})") from None


def _messages(prompt: Ask) -> tuple[Message, ...]:
    return (Message("user", prompt),) if isinstance(prompt, str) else tuple(prompt)
