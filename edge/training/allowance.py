"""A device's allowance for training: the books, kept across restarts, and one session at a time.

What was used lies in one SQLite file under ``CASCADE_HOME``; a lock beside it, which a killed
process cannot leave behind, keeps two processes of one device from training at once.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Final

from cascade import home, lock
from cascade.clock import Clock, SystemClock
from cascade.conditions import ConditionsSource
from cascade.errors import CascadeError
from edge.training.policy import Hold, Permission, TrainingLimits, Usage, may_train

_WAIT_S: Final = 5.0
_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS usage (
  one INTEGER PRIMARY KEY CHECK (one = 1), now_s REAL NOT NULL, uptime_s REAL NOT NULL,
  boot TEXT NOT NULL, seconds REAL NOT NULL, steps INTEGER NOT NULL, joules REAL NOT NULL,
  participations TEXT NOT NULL);
"""
_POLL_S: Final = 1.0


class TrainingAllowance:
    """What a device may still train.

    Arguments:
        conditions: tells whether the device is idle, charging, connected, warm.
        path: of the books; by default under ``CASCADE_HOME``.
        cpu_s: CPU seconds that this process has used, all its threads together: who does other
            things meanwhile pays for them too.
    """

    def __init__(
        self,
        limits: TrainingLimits,
        conditions: ConditionsSource,
        *,
        path: Path | None = None,
        clock: Clock | None = None,
        cpu_s: Callable[[], float] = time.process_time,
    ) -> None:
        self.limits = limits
        self.conditions = conditions
        self._path = path or home.training_path()
        self._clock = clock or SystemClock()
        self._cpu_s = cpu_s

    def usage(self) -> Usage:
        """What was used, as of now.

        Raises:
            CascadeError: the books cannot be read.
        """
        return self._change(lambda usage: usage)

    def may_train(self, *, participate: bool = False, joined: bool = False) -> Permission:
        """Whether training may begin now, and for how long; never raises.

        Arguments:
            participate: for a round, and not for itself alone.
            joined: the round was joined already: its own participation does not end it.
        """
        try:
            usage = self.usage()
        except CascadeError:
            return Permission((Hold.BOOKS_UNREADABLE,), 0.0, 0, 0.0)
        if joined:
            usage = replace(usage, participations=())
        return may_train(self.limits, usage, self.conditions.read(), participate=participate)

    def may_send(self) -> bool:
        """Whether the connection is one that an update may take now."""
        return not self.limits.unmetered or self.conditions.read().connectivity == "unmetered"

    def participated(self) -> None:
        """Note that a round was joined: its lease was accepted.

        Raises:
            CascadeError: the books cannot be written; leave the round.
        """
        self._change(lambda usage: usage.participated())

    @contextlib.contextmanager
    def session(
        self, *, participate: bool = False, stopped: Callable[[], bool] = lambda: False
    ) -> Iterator[TrainingSession]:
        """Train, if it may: look at ``session.permission`` first, and poll ``session.stop`` before
        every step. What was used is booked about once a second and at the end.

        Arguments:
            participate: for a round that was joined and noted as such (``participated``).
            stopped: whether to stop whatever the allowance says.
        """
        with _alone(self._path.with_suffix(".lock")) as alone:
            permission, _ = self._judge(seconds=0.0, steps=0, joules=0.0, participate=participate)
            if not alone:
                permission = Permission((Hold.ALREADY_TRAINING,), 0.0, 0, 0.0)
            session = TrainingSession(self, permission, participate, stopped)
            try:
                yield session
            finally:
                session.end()

    def _judge(
        self, *, seconds: float, steps: int, joules: float, participate: bool
    ) -> tuple[Permission, bool]:
        """Book what was used; the verdict after it, and whether it could be booked."""
        try:
            usage = self._change(
                lambda before: before.after(seconds=seconds, steps=steps, joules=joules)
            )
        except CascadeError:
            return Permission((Hold.BOOKS_UNREADABLE,), 0.0, 0, 0.0), False
        if participate:  # what was joined is joined: its own participation must not end it
            usage = replace(usage, participations=())
        conditions = self.conditions.read()
        return may_train(self.limits, usage, conditions, participate=participate), True

    def _change(self, step: Callable[[Usage], Usage]) -> Usage:
        """Bring the books up to now and change them, in one transaction."""
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with closing(
                sqlite3.connect(self._path, timeout=_WAIT_S, isolation_level=None)
            ) as file:
                file.executescript(_SCHEMA)
                file.execute("BEGIN IMMEDIATE")
                try:
                    usage = step(self._read(file))
                    file.execute(
                        "INSERT OR REPLACE INTO usage VALUES (1, ?, ?, ?, ?, ?, ?, ?)",
                        (
                            usage.now_s,
                            usage.uptime_s,
                            usage.boot,
                            usage.seconds,
                            usage.steps,
                            usage.joules,
                            json.dumps(usage.participations),
                        ),
                    )
                except BaseException:
                    file.execute("ROLLBACK")
                    raise
                file.execute("COMMIT")
                return usage
        except (sqlite3.Error, OSError, ValueError, TypeError) as problem:
            raise CascadeError(
                f"the training budget in {self._path} cannot be used ({problem}); mend or remove "
                "that file"
            ) from None

    def _read(self, file: sqlite3.Connection) -> Usage:
        reading = self._clock.read()
        row = file.execute(
            "SELECT now_s, uptime_s, boot, seconds, steps, joules, participations FROM usage"
        ).fetchone()
        if row is None:
            return Usage.opened(reading)
        now_s, uptime_s, boot, seconds, steps, joules, joined = row
        before = Usage(  # SQLite takes anything in any column
            float(now_s),
            float(uptime_s),
            str(boot),
            float(seconds),
            int(steps),
            float(joules),
            tuple(float(at) for at in json.loads(joined)),
        )
        return before.at(reading)


class TrainingSession:
    """One stretch of training. Made by ``TrainingAllowance.session``.

    Attributes:
        permission: the verdict, when the session began and whenever it was looked at since.
    """

    def __init__(
        self,
        allowance: TrainingAllowance,
        permission: Permission,
        participate: bool,
        stopped: Callable[[], bool],
    ) -> None:
        self.permission = permission
        self._allowance = allowance
        self._participate = participate
        self._stopped = stopped
        self._since_s = self._uptime_s()
        self._since_cpu_s = allowance._cpu_s()
        self._steps = 0
        self._ended = not permission.allowed

    @property
    def reasons(self) -> tuple[Hold, ...]:
        """Why it stopped; empty while it goes on. Those of conditions mean a pause: keep what there
        is, and begin another session when ``may_train`` allows it."""
        return self.permission.reasons

    def stop(self) -> bool:
        """Whether to stop. Poll it before every step: each time it says no, a step is counted.

        Conditions are looked at about once a second, budgets of steps and time each time.
        """
        if self.over():
            return True
        self._steps += 1
        return False

    def over(self) -> bool:
        """The same for work that is no step, such as reading examples: none is counted."""
        if self._ended:
            return True
        if self._stopped():
            self.end()
            self.permission = Permission((Hold.STOPPED,), 0.0, 0, 0.0)
            return True
        used_s = self._uptime_s() - self._since_s
        spent = (
            self._steps >= self.permission.steps
            or used_s >= self.permission.seconds
            or self._used_j() >= self.permission.joules
        )
        if spent or used_s >= _POLL_S:
            self._book()
        return self._ended

    def end(self) -> None:
        """Book what was used since the last look."""
        if not self._ended:
            self._book()
            self._ended = True

    def _book(self) -> None:
        now_s, joules = self._uptime_s(), self._used_j()
        seconds, steps = max(0.0, now_s - self._since_s), self._steps
        self._since_s, self._since_cpu_s, self._steps = now_s, self._allowance._cpu_s(), 0
        self.permission, booked = self._allowance._judge(
            seconds=seconds, steps=steps, joules=joules, participate=self._participate
        )
        self._ended = self._ended or not booked or not self.permission.allowed

    def _used_j(self) -> float:
        cpu_s = max(0.0, self._allowance._cpu_s() - self._since_cpu_s)
        return cpu_s * self._allowance.limits.watts

    def _uptime_s(self) -> float:
        return self._allowance._clock.read().uptime_s


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[bool]:
    """Hold the lock of this device's training; says whether that worked."""
    with contextlib.ExitStack() as stack:
        try:
            held = stack.enter_context(lock.alone(path))
        except OSError:  # then the books cannot be written either, and say so
            held = True
        yield held
