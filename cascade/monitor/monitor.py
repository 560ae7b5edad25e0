"""Watches the policies of a device while they are used: draws which answers are audited, has them
labelled in the background, and takes users' and graders' words.

What labels mean is ``health``'s business, where they are written down ``ledger``'s. Nothing here
delays a request or makes one fail.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Self

from cascade.monitor.health import (
    Health,
    Label,
    Outcome,
    Source,
    State,
    after_answer,
    after_audit,
    after_feedback,
)
from cascade.monitor.ledger import Ledger, default_path, promised_risk
from cascade.monitor.opinion import Ask, Opinions, Unlabelled
from cascade.monitor.recent import Accepted, Recent
from cascade.monitor.settings import Settings
from cascade.monitor.store import Entry, Evidence, Kept, MonitorStore
from cascade.policy import Policy
from cascade.request import Request

_AT_ONCE = 4  # audits on their way to the cluster
_WAITING = 64  # audits begun and not ended; beyond that they are lost


class Monitor:
    """Monitors every policy that it is asked about, each by itself.

    Use it from one event loop; ``close`` it there. Several processes may share the file.

    Arguments:
        store: where states and log are kept.
        passive: only tells what others found; writes nothing.
        clock: seconds since the epoch, for the log alone: nothing is decided by it.

    Raises:
        InvalidInput: the settings' grader cannot be used.
    """

    def __init__(
        self,
        store: MonitorStore,
        settings: Settings,
        *,
        passive: bool = False,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._ledger = Ledger(store, settings, clock)
        self._settings = settings
        self._passive = passive
        seed = settings.seed
        self._random = random.SystemRandom() if seed is None else random.Random(seed)
        self._opinions = Opinions(settings.grader)
        self._recent = Recent()
        self._audits: set[asyncio.Task[None]] = set()
        self._room = asyncio.Semaphore(_AT_ONCE)

    @classmethod
    def open(
        cls,
        path: Path | None = None,
        *,
        tier_error: float,
        share: float = 0.05,
        watch_share: float = 0.2,
        ask_tier: bool = True,
        grader: str = "",
        false_alarm: float = 0.01,
        seed: int | None = None,
    ) -> Self:
        """A monitor on a file, by default the one under ``CASCADE_HOME``; see ``Settings``.

        Raises:
            InvalidInput: a setting is out of range; it is named.
        """
        settings = Settings(
            tier_error=tier_error,
            share=share,
            watch_share=max(watch_share, share),
            ask_tier=ask_tier,
            grader=grader,
            false_alarm=false_alarm,
            seed=seed,
        )
        return cls(MonitorStore(path or default_path()), settings)

    @classmethod
    def obeying(cls, path: Path | None = None) -> Self | None:
        """A monitor that audits nothing and keeps to what others found, or ``None`` where there is
        no file of theirs."""
        store = MonitorStore(path or default_path())
        if not store.exists:
            return None
        return cls(store, Settings(tier_error=0.0), passive=True)

    def demoted(self, policy: Policy) -> bool:
        """Whether ``policy`` was withdrawn.

        Raises:
            InvalidInput: ``tier_error`` is too large for this policy's certificate.
        """
        if promised_risk(policy) is None:
            return False
        self._ledger.limits(policy)
        return self._ledger.look(policy) is State.DEMOTED

    def answered(self, policy: Policy, *, score: float, accepted: bool) -> None:
        """Take note of one answer of the device, whatever becomes of it, once the event loop is
        free.

        Arguments:
            score: its raw score in [0, 1].
            accepted: the policy let the device keep it.
        """
        if promised_risk(policy) is None or self._passive:
            return
        limits = self._ledger.limits(policy)

        def step(health: Health) -> Outcome:
            return after_answer(
                health,
                limits,
                accepted=accepted,
                score=score,
                reference=policy.scores,
                now=self._ledger.now(),
            )

        self._ledger.defer(lambda: self._ledger.change(policy, step))

    def accepted(self, policy: Policy, request: Request, text: str, ask: Ask | None) -> None:
        """Draw whether an accepted answer is audited, and begin to. Call it behind ``Final``.

        Arguments:
            text: the answer.
            ask: asks the cluster the same; ``None`` where the request may not leave the device.
        """
        if promised_risk(policy) is None or self._passive:
            return
        state, generation = self._ledger.standing(policy)
        share = self._settings.watch_share if state is State.WATCH else self._settings.share
        waits = not self._settings.ask_tier
        source = None if waits else self._opinions.source(request, can_ask=ask is not None)
        # Without a way to label it, drawing an answer would only thin out the others.
        drawn = (waits or source is not None) and self._random.random() < share
        answer = Accepted(policy, generation, share if drawn else None, graded=not waits)
        self._recent.add(request.request_id, answer)
        if not drawn or source is None:
            return
        if len(self._audits) >= _WAITING:
            self._ledger.defer(lambda: self._lose(policy, request.request_id, "too many under way"))
            return
        audit = self._audit(answer, request, text, ask, source)
        task = asyncio.get_running_loop().create_task(audit)
        self._audits.add(task)
        task.add_done_callback(self._audits.discard)

    def feedback(self, request_id: str, *, correct: bool) -> None:
        """A user's word on a recent accepted answer, once each.

        Raises:
            NotFound: no such answer is remembered: not accepted, reported already, or too long ago.
        """
        self._ledger.settle()
        answer = self._recent.report(request_id)
        limits = self._ledger.limits(answer.policy)

        def step(health: Health) -> Outcome:
            if answer.generation != health.generation:
                return health, None
            return after_feedback(health, limits, correct=correct, now=self._ledger.now())

        said: Evidence = {"request": request_id, "wrong": int(not correct)}
        self._ledger.change(answer.policy, step, kind="feedback", note="user", said=said)

    def to_grade(self) -> list[str]:
        """Request ids of answers that were drawn for a grader and wait for one, oldest first. Grade
        all of them: leaving out the hard ones makes the estimate worthless."""
        return self._recent.waiting()

    def grade(self, request_id: str, *, correct: bool) -> None:
        """A grader's word on an answer of ``to_grade``.

        Raises:
            NotFound: it does not wait for one.
        """
        answer, probability = self._recent.grade(request_id)
        self._ledger.settle()
        self._label(answer, request_id, Label(not correct, "grader", probability))

    def kept(self) -> list[Kept]:
        """All monitors in the file.

        Raises:
            CascadeError: the file cannot be read.
        """
        return self._ledger.kept()

    def log(self) -> list[Entry]:
        """What happened, oldest first.

        Raises:
            CascadeError: the file cannot be read.
        """
        return self._ledger.log()

    async def settled(self) -> None:
        """Wait until all audits that were begun have ended, for tests and orderly ends."""
        self._ledger.settle()
        while self._audits:
            await asyncio.gather(*self._audits, return_exceptions=True)

    async def close(self) -> None:
        """Cancel the audits under way and close the file."""
        for task in self._audits:
            task.cancel()
        await self.settled()
        self._ledger.close()

    async def _audit(
        self, answer: Accepted, request: Request, text: str, ask: Ask | None, source: Source
    ) -> None:
        policy, request_id = answer.policy, request.request_id
        try:
            async with self._room:
                wrong = await self._opinions.wrong(request, text, ask)
        except Unlabelled as why:
            self._lose(policy, request_id, str(why))
        except asyncio.CancelledError:
            self._lose(policy, request_id, "closed")
            raise
        else:
            assert answer.drawn is not None  # or else there was no audit
            self._label(answer, request_id, Label(wrong, source, answer.drawn))

    def _label(self, answer: Accepted, request_id: str, label: Label) -> None:
        limits = self._ledger.limits(answer.policy)

        def step(health: Health) -> Outcome:
            if answer.generation != health.generation:
                return health, None
            return after_audit(health, limits, label, self._ledger.now())

        said: Evidence = {
            "request": request_id,
            "wrong": int(label.wrong),
            "probability": label.probability,
        }
        self._ledger.change(answer.policy, step, kind="audit", note=label.source, said=said)

    def _lose(self, policy: Policy, request_id: str, why: str) -> None:
        self._ledger.change(
            policy,
            lambda health: (replace(health, lost=health.lost + 1), None),
            kind="audit_lost",
            note=why,
            said={"request": request_id},
        )
