"""How far a simulated fleet is, on standard error."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Literal

from cascade.cli.progress import ProgressLine

if TYPE_CHECKING:
    from cloud.fleet import RoundFigures


class FleetProgress:
    """A line for the start, and one for each round."""

    def __init__(self, rounds: int) -> None:
        self._rounds = rounds
        self._line: ProgressLine | None = None
        self._starting = False

    def watch(
        self,
        stage: Literal["starting", "judge", "devices"],
        round_number: int,
        done: int,
        total: int,
    ) -> None:
        """See ``cloud.fleet.simulation.Watcher``."""
        if stage == "starting":
            self._start(done, total)
            return
        self._started()
        if self._line is None:
            self._line = ProgressLine(f"round {round_number} of {self._rounds}", total, "devices")
        if stage == "judge":
            self._line.note(f"judging, {done:,} of {total:,} rows", again=done > 0)
        else:
            self._line.resize(total)
            self._line.update(done)

    def say(self, text: str) -> None:
        """Say something between two lines."""
        self._started()
        print(text, file=sys.stderr)

    def _start(self, done: int, total: int) -> None:
        if self._line is None:
            self._line, self._starting = ProgressLine("starting"), True
            self._line.note("processes, coordinator and first adapter")
        else:
            self._line.resize(total)
            self._line.update(done, "first adapter")

    def _started(self) -> None:
        if self._starting and self._line is not None:
            self._line.done()
            self._line, self._starting = None, False

    def round(self, found: RoundFigures) -> None:
        """End a round's line."""
        self._started()
        if self._line is not None:
            verdict = f" · {found.verdict}" if found.verdict else ""
            self._line.done(
                f"escalated {found.escalation:.1%} · accuracy {found.accuracy:.1%}{verdict}"
            )
        self._line = None

    def abandon(self) -> None:
        """End a line without a verdict."""
        if self._line is not None:
            self._line.abandon()
