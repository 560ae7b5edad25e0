"""One run of a benchmark: which groups, how long, and what becomes of their rows.

``python -m benchmarks.NAME --json FILE [--quick] [--only GROUP]``. Standard error shows progress,
standard output the table. Exit code 0; 1 where a group failed or a full run left a row without a
value (what was measured is written); 130 after Ctrl-C, with nothing written.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from benchmarks.peers import PeerUnavailable
from benchmarks.rows import Row, Sense, to_json
from benchmarks.timing import Estimate
from cascade.errors import CascadeError
from cascade.files import write_whole

SubjectT = TypeVar("SubjectT")


@dataclass(frozen=True, slots=True)
class Run:
    """What all groups of a run share.

    Arguments:
        quick: small n, and no peer that has to be built.
        hardware: for the rows.
    """

    quick: bool
    hardware: str

    def say(self, text: str) -> None:
        """Progress, on standard error."""
        print(f"  … {text}", file=sys.stderr, flush=True)

    def row(
        self,
        figure: str,
        estimate: Estimate | None,
        unit: str,
        how: str,
        *,
        reach: float | None = None,
        sense: Sense = "<=",
        peer: str | None = None,
    ) -> Row:
        """A row of this run; without an estimate ``how`` says why there is none."""
        return Row(
            figure=figure,
            value=estimate.value if estimate else None,
            unit=unit,
            reach=reach,
            sense=sense,
            peer=peer,
            n=estimate.n if estimate else 0,
            ci=estimate.ci if estimate else None,
            quick=self.quick,
            hardware=self.hardware,
            how=how,
        )


def main(
    name: str,
    arguments: Sequence[str] | None,
    *,
    groups: Mapping[str, Callable[[SubjectT, Run], Iterator[Row]]],
    subject: Callable[[Run], SubjectT],
    hardware: Callable[[], str],
) -> int:
    """Parse, measure, write; the exit code.

    Arguments:
        groups: what can be measured, by name, in this order.
        subject: what is measured, made once; given to every group.
    """
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{name}")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows there")
    parser.add_argument("--quick", action="store_true", help="small n; no peers that need a build")
    parser.add_argument("--only", action="append", choices=list(groups), help="may be repeated")
    args = parser.parse_args(arguments)
    run = Run(quick=args.quick, hardware=hardware())
    rows: list[Row] = []
    failed = written = False
    started = time.perf_counter()
    try:
        made = subject(run)
        for group in args.only or groups:
            print(f"{group} · {time.perf_counter() - started:.0f} s", file=sys.stderr, flush=True)
            try:
                for row in groups[group](made, run):
                    rows.append(row)
                    print(line(row), flush=True)
            except (CascadeError, PeerUnavailable) as problem:  # other groups may still be measured
                print(f"{name}, {group}: {problem}", file=sys.stderr)
                failed = True
            if args.json:  # a long run that is broken off keeps the groups that it has ended
                write_whole(args.json, to_json(rows))
                written = True
        print(f"done · {time.perf_counter() - started:.0f} s", file=sys.stderr, flush=True)
    except KeyboardInterrupt:
        kept = f"what had ended before is in {args.json}" if written else "nothing was written"
        print(f"\ninterrupted; {kept}", file=sys.stderr)
        return 130
    except (CascadeError, PeerUnavailable) as problem:
        print(f"{name}: {problem}", file=sys.stderr)
        return 1
    if failed:
        return 1
    missing = [row.figure for row in rows if row.value is None]
    if missing and not args.quick:
        print(f"without a value: {', '.join(missing)}", file=sys.stderr)
        return 1
    return 0


def line(row: Row) -> str:
    """A row for the terminal."""
    mark = {True: "reached", False: "MISSED", None: ""}[row.reached]
    reach = "" if row.reach is None else f"{row.sense} {row.reach:g}"
    ci = "" if row.ci is None else f"[{row.ci[0]:.4g}, {row.ci[1]:.4g}]"
    value = "–" if row.value is None else f"{row.value:.4g}"
    text = f"{row.figure:<62} {value:>9} {row.unit:<8} {reach:<9} {mark:<7} {ci}".rstrip()
    return text if row.value is not None else f"{text}  ({row.how})"
