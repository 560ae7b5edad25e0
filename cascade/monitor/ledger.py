"""Where each policy stands: the file's states and log, and the steps that labels cause in them.

Nothing here makes a request fail: what the file refuses is logged as a warning, and a policy of
which nothing can be read stands as certified.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from pathlib import Path

from cascade import home
from cascade.errors import CascadeError
from cascade.files import sha256_bytes
from cascade.monitor.evidence import evidence, opening
from cascade.monitor.health import Change, Health, Limits, Outcome, State
from cascade.monitor.settings import Settings
from cascade.monitor.store import Entry, Evidence, Kept, Key, MonitorStore
from cascade.policy import Policy

_log = logging.getLogger(__name__)

Step = Callable[[Health], Outcome]


class Ledger:
    """The monitors of policies, kept in a file that several processes may share.

    Arguments:
        settings: what policies are held to; how they are audited is not decided here.
        clock: seconds since the epoch, for the log alone: nothing is decided by it.
    """

    def __init__(
        self, store: MonitorStore, settings: Settings, clock: Callable[[], float] = time.time
    ) -> None:
        self._store = store
        self._settings = settings
        self._clock = clock
        self._known: dict[int, tuple[Policy, Key]] = {}
        self._standing: dict[Key, tuple[State, int]] = {}
        self._later: list[Callable[[], None]] = []

    def now(self) -> float:
        """Seconds since the epoch."""
        return self._clock()

    def limits(self, policy: Policy) -> Limits:
        """What a policy with a promise is held to.

        Raises:
            InvalidInput: ``tier_error`` is too large for this policy's certificate.
        """
        alpha = promised_risk(policy)
        assert alpha is not None  # others are turned away where they come in
        return Limits(
            alpha=alpha,
            tier_error=self._settings.tier_error,
            false_alarm=self._settings.false_alarm,
        )

    def standing(self, policy: Policy) -> tuple[State, int]:
        """State and generation, as far as this process knows."""
        return self._standing.get(self._key(policy), (State.CERTIFIED, 0))

    def look(self, policy: Policy) -> State:
        """The state that the file tells, which other processes may have changed."""
        key = self._key(policy)
        try:
            found = self._store.standing(key)
        except CascadeError as problem:
            _log.warning("monitor: %s", problem)
        else:
            if found is not None:
                self._standing[key] = found
        return self.standing(policy)[0]

    def change(
        self,
        policy: Policy,
        step: Step,
        *,
        kind: str = "",
        note: str = "",
        said: Evidence | None = None,
    ) -> None:
        """Apply ``step`` in the file; log it under ``kind``, if it has one, and what it changed."""
        key, limits = self._key(policy), self.limits(policy)

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

    def defer(self, work: Callable[[], None]) -> None:
        """Do ``work`` when the event loop is free; at once where none runs."""
        self._later.append(work)
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            self.settle()
        else:
            # Behind what is ready by then: among that is whoever waits for the answer.
            loop.call_later(0, self.settle)

    def settle(self) -> None:
        """Do what was deferred."""
        later, self._later = self._later, []
        for work in later:
            work()

    def kept(self) -> list[Kept]:
        """All monitors in the file.

        Raises:
            CascadeError: the file cannot be read.
        """
        self.settle()
        return self._store.monitors()

    def log(self) -> list[Entry]:
        """What happened, oldest first.

        Raises:
            CascadeError: the file cannot be read.
        """
        self.settle()
        return self._store.log()

    def close(self) -> None:
        """Close the file."""
        self._store.close()

    def _key(self, policy: Policy) -> Key:
        known = self._known.get(id(policy))
        if known is None:
            digest = sha256_bytes(policy.to_bytes())
            key = Key(policy.task.task_id, policy.base_digest, policy.adapter_digest, digest)
            # Holding the policy keeps its id from being given to another.
            known = self._known[id(policy)] = (policy, key)
        return known[1]


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
