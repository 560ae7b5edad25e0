"""What a device does with its answers when learning is switched on: keeps them as examples.

It is told of every answer and writes in a thread of its own, in the order of the answers. Nothing
here delays an answer or makes one fail: what cannot be kept is counted and logged, without texts.
"""

from __future__ import annotations

import dataclasses
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Final, Self

from cascade.errors import CascadeError, InvalidInput
from cascade.events import DEVICE, Answer
from cascade.local import LocalAnswer
from cascade.privacy import Privacy
from cascade.request import Request
from edge.examples.cipher import Cipher
from edge.examples.consent import Consent
from edge.examples.example import Example, Source
from edge.examples.retention import Retention
from edge.examples.store import ExampleStore

_WAITING: Final = 256  # answers not yet written; beyond that they are lost
_PII: Final = "pii:"

_log = logging.getLogger(__name__)


class Learning:
    """Keeps examples of one device. ``Device.open(…, learn=Learning.open())`` switches it on, and
    closes it with the device.

    Arguments:
        store: on which consent was given.
        privacy: finds personal data; of requests with what may not leave, nothing is kept. Without
            it, that is known of those alone that were to escalate.
    """

    def __init__(
        self,
        store: ExampleStore,
        *,
        privacy: Privacy | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.store = store
        self._privacy = privacy
        self._clock = clock
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="cascade-examples")
        self._waiting = 0
        self._lost: Counter[str] = Counter()
        self._lock = threading.Lock()

    @classmethod
    def open(
        cls,
        path: Path | None = None,
        *,
        consent: Consent | None = None,
        retention: Retention | None = None,
        cipher: Cipher | None = None,
        privacy: Privacy | None = None,
    ) -> Self:
        """Opt in: note the consent in the store, and keep examples from now on.

        Arguments:
            path: of the store; by default under ``CASCADE_HOME``.
            consent: what may be kept; by default the terms that stand, at first all but what may
                not leave the device. A withdrawal stands until somebody gives terms again.
            cipher: how texts lie in the file; by default in clear, readable by the owner alone.
            privacy: see ``Learning``.

        A store that cannot be written stops no device: a warning is logged, and nothing is kept.

        Raises:
            InvalidInput: the store was written with another cipher or key, or by another program.
        """
        store = ExampleStore(path, retention=retention, cipher=cipher)
        try:
            if store.grant(consent) is None:
                _log.warning("examples: consent was withdrawn; nothing is kept")
        except CascadeError as problem:
            if isinstance(problem, ValueError):  # a mistake in the call, which nobody else will see
                raise
            _log.warning("examples: %s", problem)
        return cls(store, privacy=privacy)

    @property
    def lost(self) -> dict[str, int]:
        """How many answers were not kept, by why: what consent forbids by its word, ``store`` where
        the file could not be written, ``busy`` where too many waited for it, ``closed`` where the
        device was closed before its answer was there."""
        with self._lock:
            return dict(self._lost)

    def answered(self, request: Request, local: LocalAnswer | None, answer: Answer) -> None:
        """Take note of one answer, whoever gave it. Quick; written later.

        Arguments:
            local: the device's own, if it tried.
        """
        example = example_of(request, local, answer, at_s=self._clock())
        if example is None:
            return
        with self._lock:
            if self._waiting >= _WAITING:
                self._lost["busy"] += 1
                return
            try:
                self._writer.submit(self._add, request, example)
            except RuntimeError:  # closed, while this request was under way
                self._lost["closed"] += 1
                return
            self._waiting += 1

    def judged(
        self, request_id: str, *, correct: bool, correction: str | None = None
    ) -> Future[Example]:
        """Keep a user's word, behind the answers that came before it; see ``ExampleStore.judge``
        for arguments and errors.

        Raises:
            InvalidInput: this was closed.
        """
        try:
            return self._writer.submit(
                self.store.judge, request_id, correct=correct, correction=correction
            )
        except RuntimeError:
            raise InvalidInput("device", "is closed; open another one") from None

    def settled(self) -> None:
        """Wait until all that came in so far is written."""
        self._writer.submit(lambda: None).result()

    def close(self) -> None:
        """Write what waits, and close the store."""
        self._writer.shutdown()
        self.store.close()

    def _add(self, request: Request, example: Example) -> None:
        try:
            if self._privacy is not None and self._privacy.inspect(request).forbidden:
                example = dataclasses.replace(example, never_train=True)
            refusal = self.store.add(example)
        except CascadeError as problem:
            refusal = "store"
            if not self.lost.get(refusal):
                _log.warning("examples: %s; answers are not kept", problem)
        finally:
            with self._lock:
                self._waiting -= 1
        if refusal is not None:
            with self._lock:
                self._lost[refusal] += 1


def example_of(
    request: Request, local: LocalAnswer | None, answer: Answer, *, at_s: float
) -> Example | None:
    """What an answer is as an example: the cluster's is a lesson, the device's own waits for a
    user's word. ``None`` for what cannot be learned at all: tensors, a part of the cluster's
    answer, one outside of the closed set."""
    by_device = answer.source == DEVICE
    if not request.messages or (request.options and answer.text not in request.options):
        return None
    if not by_device and (answer.finish != "stop" or not answer.text.strip()):
        return None
    whole = local is not None and local.whole
    return Example(
        request.request_id,
        request.messages,
        answer.text,
        Source.DEVICE if by_device else Source.CLOUD,
        at_s,
        options=request.options,
        task_id=request.task_id,
        data_class=request.constraints.data_class,
        tier=answer.source,
        model=answer.model,
        confidence=answer.device_confidence,
        weight=1.0 if by_device or answer.confidence is None else max(answer.confidence, 1e-3),
        device_answer=local.text if local is not None and whole else "",
        probabilities=_probabilities(request, local) if whole else (),
        # Where personal data was found that may not leave, no update may be made of it either.
        never_train=request.constraints.never_train
        or any(reason.startswith(_PII) for reason in answer.reasons),
    )


def _probabilities(request: Request, local: LocalAnswer | None) -> tuple[float, ...]:
    """Of the request's options in its order; the device may have scored them in the task's."""
    scores = local.options if local is not None else None
    if scores is None or set(scores.options) != set(request.options):
        return ()
    of = dict(zip(scores.options, scores.probabilities.tolist(), strict=True))
    return tuple(min(1.0, max(0.0, of[option])) for option in request.options)
