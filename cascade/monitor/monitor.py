"""Watches the policies of a device while they are used, and withdraws those that fail.

The shell around ``cascade.monitor.health``: it draws which answers are audited, asks the cluster
about them in the background, takes users' and graders' words, and keeps states and log in a file.
Nothing here delays a request or makes one fail: what the file refuses is logged as a warning.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from cascade import home
from cascade.errors import CascadeError, NotFound, RemoteError
from cascade.files import sha256_bytes
from cascade.monitor.evidence import evidence, opening
from cascade.monitor.health import (
    Change,
    Health,
    Label,
    Limits,
    Outcome,
    State,
    after_answer,
    after_audit,
    after_feedback,
)
from cascade.monitor.settings import Settings
from cascade.monitor.store import Entry, Evidence, Kept, Key, MonitorStore
from cascade.policy import Policy
from cascade.request import Request

RECENT = 1024
"""Accepted answers that are remembered, for ``feedback`` and ``grade``."""

_AT_ONCE = 4  # audits on their way to the cluster
_WAITING = 64  # audits begun and not ended; beyond that they are lost

_log = logging.getLogger(__name__)

Ask = Callable[[], Awaitable[str]]


class Monitor:
    """Monitors every policy that it is asked about, each by itself.

    Use it from one event loop; ``close`` it there. Several processes may share the file.

    Arguments:
        store: where states and log are kept.
        passive: only tells what others found; writes nothing.
        clock: seconds since the epoch, for the log alone: nothing is decided by it.
    """

    def __init__(
        self,
        store: MonitorStore,
        settings: Settings,
        *,
        passive: bool = False,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._settings = settings
        self._passive = passive
        self._clock = clock
        seed = settings.seed
        self._random = random.SystemRandom() if seed is None else random.Random(seed)
        self._known: dict[int, tuple[Policy, Key]] = {}
        self._standing: dict[Key, tuple[State, int]] = {}
        self._recent: OrderedDict[str, _Recent] = OrderedDict()
        self._later: list[Callable[[], None]] = []
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
        key = self._key(policy)
        self._limits(policy)
        try:
            standing = self._store.standing(key)
        except CascadeError as problem:
            _log.warning("monitor: %s", problem)
        else:
            if standing is not None:
                self._standing[key] = standing
        return self._stands(policy)[0] is State.DEMOTED

    def answered(self, policy: Policy, *, score: float, accepted: bool) -> None:
        """Take note of one answer of the device, whatever becomes of it, once the event loop is
        free.

        Arguments:
            score: its raw score in [0, 1].
            accepted: the policy let the device keep it.
        """
        if promised_risk(policy) is None or self._passive:
            return
        limits = self._limits(policy)

        def step(health: Health) -> Outcome:
            now = self._clock()
            return after_answer(
                health,
                limits,
                accepted=accepted,
                score=score,
                reference=policy.scores,
                now=now,
            )

        self._defer(lambda: self._change(policy, step))

    def accepted(self, policy: Policy, request: Request, text: str, ask: Ask | None) -> None:
        """Draw whether an accepted answer is audited, and begin to. Call it behind ``Final``.

        Arguments:
            text: the answer.
            ask: asks the cluster the same; ``None`` where the request may not leave the device.
        """
        if promised_risk(policy) is None or self._passive:
            return
        state, generation = self._stands(policy)
        share = self._settings.watch_share if state is State.WATCH else self._settings.share
        by_tier = self._settings.ask_tier
        # Without a way to label it, drawing an answer would only thin out the others.
        drawn = (ask is not None or not by_tier) and self._random.random() < share
        entry = _Recent(policy, generation, share if drawn else None, graded=by_tier)
        self._remember(request.request_id, entry)
        if drawn and by_tier and ask is not None:
            if len(self._audits) >= _WAITING:
                self._defer(lambda: self._lose(policy, request.request_id, "too many under way"))
                return
            audit = self._audit(entry, request, text, ask, share)
            task = asyncio.get_running_loop().create_task(audit)
            self._audits.add(task)
            task.add_done_callback(self._audits.discard)

    def feedback(self, request_id: str, *, correct: bool) -> None:
        """A user's word on a recent accepted answer, once each.

        Raises:
            NotFound: no such answer is remembered: not accepted, reported already, or too long ago.
        """
        self._settle()
        entry = self._recent.get(request_id)
        if entry is None or entry.reported:
            raise NotFound(
                f"request {request_id}: none of the last {RECENT} answers that this device kept "
                "under a policy, or reported already"
            )
        limits = self._limits(entry.policy)
        self._recent[request_id] = replace(entry, reported=True)

        def step(health: Health) -> Outcome:
            if entry.generation != health.generation:
                return health, None
            return after_feedback(health, limits, correct=correct, now=self._clock())

        said: Evidence = {"request": request_id, "wrong": int(not correct)}
        self._change(entry.policy, step, kind="feedback", note="user", said=said)

    def to_grade(self) -> list[str]:
        """Request ids of answers that were drawn for a grader and wait for one, oldest first. Grade
        all of them: leaving out the hard ones makes the estimate worthless."""
        return [name for name, entry in self._recent.items() if entry.waits]

    def grade(self, request_id: str, *, correct: bool) -> None:
        """A grader's word on an answer of ``to_grade``.

        Raises:
            NotFound: it does not wait for one.
        """
        entry = self._recent.get(request_id)
        if entry is None or entry.drawn is None or not entry.waits:
            raise NotFound(f"request {request_id}: does not wait for a grader (Monitor.to_grade)")
        self._settle()
        self._recent[request_id] = replace(entry, graded=True)
        label = Label(not correct, "grader", entry.drawn)
        self._label(entry, request_id, label)

    def kept(self) -> list[Kept]:
        """All monitors in the file.

        Raises:
            CascadeError: the file cannot be read.
        """
        self._settle()
        return self._store.monitors()

    def log(self) -> list[Entry]:
        """What happened, oldest first.

        Raises:
            CascadeError: the file cannot be read.
        """
        self._settle()
        return self._store.log()

    async def settled(self) -> None:
        """Wait until all audits that were begun have ended, for tests and orderly ends."""
        self._settle()
        while self._audits:
            await asyncio.gather(*self._audits, return_exceptions=True)

    async def close(self) -> None:
        """Cancel the audits under way and close the file."""
        for task in self._audits:
            task.cancel()
        await self.settled()
        self._store.close()

    def _key(self, policy: Policy) -> Key:
        known = self._known.get(id(policy))
        if known is None:
            digest = sha256_bytes(policy.to_bytes())
            key = Key(policy.task.task_id, policy.base_digest, policy.adapter_digest, digest)
            # Holding the policy keeps its id from being given to another.
            known = self._known[id(policy)] = (policy, key)
        return known[1]

    def _limits(self, policy: Policy) -> Limits:
        alpha = promised_risk(policy)
        assert alpha is not None  # others are turned away where they come in
        return Limits(
            alpha=alpha,
            tier_error=self._settings.tier_error,
            false_alarm=self._settings.false_alarm,
        )

    def _stands(self, policy: Policy) -> tuple[State, int]:
        """State and generation, as far as this process knows."""
        return self._standing.get(self._key(policy), (State.CERTIFIED, 0))

    def _remember(self, request_id: str, entry: _Recent) -> None:
        self._recent[request_id] = entry
        self._recent.move_to_end(request_id)
        while len(self._recent) > RECENT:
            self._recent.popitem(last=False)

    async def _audit(
        self, entry: _Recent, request: Request, text: str, ask: Ask, share: float
    ) -> None:
        policy = entry.policy
        try:
            async with self._room:
                other = await ask()
        except CascadeError as problem:
            # Not the message, which may quote the input.
            why = problem.status if isinstance(problem, RemoteError) else type(problem).__name__
            self._lose(policy, request.request_id, why)
        except asyncio.CancelledError:
            self._lose(policy, request.request_id, "closed")
            raise
        else:
            if other not in request.options:
                self._lose(policy, request.request_id, "the tier gave none of the options")
                return
            self._label(entry, request.request_id, Label(other != text, "tier", share))

    def _label(self, entry: _Recent, request_id: str, label: Label) -> None:
        limits = self._limits(entry.policy)

        def step(health: Health) -> Outcome:
            if entry.generation != health.generation:
                return health, None
            return after_audit(health, limits, label, self._clock())

        said: Evidence = {
            "request": request_id,
            "wrong": int(label.wrong),
            "probability": label.probability,
        }
        self._change(entry.policy, step, kind="audit", note=label.source, said=said)

    def _lose(self, policy: Policy, request_id: str, why: str) -> None:
        self._change(
            policy,
            lambda health: (replace(health, lost=health.lost + 1), None),
            kind="audit_lost",
            note=why,
            said={"request": request_id},
        )

    def _change(
        self,
        policy: Policy,
        step: Callable[[Health], Outcome],
        *,
        kind: str = "",
        note: str = "",
        said: Evidence | None = None,
    ) -> None:
        """Apply ``step`` in the file; log it under ``kind``, if it has one, and what it changed."""
        key, limits = self._key(policy), self._limits(policy)

        def apply(found: Health | None, before: Key | None) -> tuple[Health, list[Entry]]:
            now = self._clock()
            entries = []
            health = found
            if health is None:
                health = Health(opened=now, since=now)
                entries.append(opening(key, before, health, limits))
            health, change = step(health)
            if kind:
                entries.append(Entry(now, key, kind, health.state, note, said or {}))
            if change is not None:
                numbers = evidence(health, limits)
                entries.append(Entry(now, key, change.kind, health.state, change.why, numbers))
                _tell(key, change, health)
            return health, entries

        try:
            health = self._store.update(key, limits, apply)
            self._standing[key] = health.state, health.generation
        except CascadeError as problem:
            _log.warning("monitor: %s", problem)

    def _defer(self, work: Callable[[], None]) -> None:
        """Do ``work`` when the loop is free; at once where no loop runs."""
        self._later.append(work)
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            self._settle()
        else:
            # Behind what is ready by then: among that is whoever waits for the answer.
            loop.call_later(0, self._settle)

    def _settle(self) -> None:
        later, self._later = self._later, []
        for work in later:
            work()


@dataclass(frozen=True, slots=True)
class _Recent:
    """An accepted answer.

    Arguments:
        generation: of the monitor when it was accepted.
        drawn: the probability with which it was drawn for an audit, or ``None`` where it was not.
        graded: needs no grader any more.
        reported: a user has spoken.
    """

    policy: Policy
    generation: int
    drawn: float | None
    graded: bool
    reported: bool = False

    @property
    def waits(self) -> bool:
        return self.drawn is not None and not self.graded


def promised_risk(policy: Policy) -> float | None:
    """The risk of kept answers that ``policy`` is certified for; ``None`` where there is nothing to
    hold it to."""
    promises = policy.certificate.promises if policy.certificate else ()
    return next((p.alpha for p in promises if p.kind == "selective_risk"), None)


def default_path() -> Path:
    """The file under ``CASCADE_HOME``."""
    return home.monitor_dir() / "monitor.sqlite"


def _tell(key: Key, change: Change, health: Health) -> None:
    level = logging.WARNING if change.kind == "demoted" else logging.INFO
    audits = health.audits
    _log.log(
        level,
        "monitor: task %s is %s: %s (%d of %d audits wrong)",
        key.task,
        health.state.value,
        change.why,
        audits.errors,
        audits.labels,
    )
