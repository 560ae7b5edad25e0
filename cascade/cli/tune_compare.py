"""``cascade tune --compare``: which confidence suits this task, seen on the develop part alone."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Sequence

from cascade.cli.progress import ProgressLine
from cascade.cli.tune_arguments import default_split, modelling_of
from cascade.cli.tune_files import PARTS, STOP, part_pair, read_parts
from cascade.compare import Compared, candidates, compare
from cascade.errors import InvalidInput
from cascade.replay import Interval

_HEAD = (
    f"{'':<34} {'AUROC':>6} {'against the default':>22} {'ECE':>6} {'deferral':>8} "
    f"{'against the default':>22}"
)


def run(args: argparse.Namespace) -> int:
    """Compare and print; nothing is tuned, certified or written."""
    for option in ("target", "group", "out", "drafting"):
        if getattr(args, option) is not None:
            raise InvalidInput(option, "does not go with --compare, which only looks")
    for option in ("install", "allow_leak"):
        if getattr(args, option):
            raise InvalidInput(
                option.replace("_", "-"), "does not go with --compare, which only looks"
            )
    chosen = modelling_of(args)
    develop = read_parts(
        args.records,
        args.split or default_split(args),
        args.seed,
        allow_leak=False,
        parts=(*PARTS, STOP),
        needed=("develop",),
    )["develop"]
    rows = part_pair("develop", develop, args, alone=False)
    wanted = candidates(rows, chosen)
    line = ProgressLine("compare", 2 * len(wanted), "steps")
    try:
        found = compare(rows, wanted, on_progress=line.update)
    finally:
        line.abandon()
    if args.json:
        print(json.dumps(_json(found, len(rows))))
        return 0
    print(f"develop     {len(rows)} rows · {found[0].rows} of them compared, cross-validated")
    for why, number in rows.left_out.items():
        print(f"left out    {number} rows, {why}")
    print("\n".join(["", _HEAD, *map(_line, found)]))
    print(
        "\nEvery row is judged by fits that had not seen its document. Differences whose interval "
        "holds 0 are noise.\nDeferral: area under accuracy against the share escalated, 0 is "
        "chance and 1 the oracle."
    )
    return 0


def _json(found: Sequence[Compared], rows: int) -> dict[str, object]:
    return {
        "develop": rows,
        "compared": [dataclasses.asdict(each) for each in found],
    }


def _line(each: Compared) -> str:
    if each.problem is not None:
        return f"{each.name:<34} cannot be fitted: {each.problem}"
    columns = [
        _value(each.auroc),
        _lead(each.auroc_lead),
        _value(each.ece),
        f"{_value(each.deferral):>8}",
        _lead(each.deferral_lead),
    ]
    return " ".join([f"{each.name:<34}", *columns])


def _value(found: Interval | None) -> str:
    return f"{'–':>6}" if found is None else f"{found.value:6.3f}"


def _lead(found: Interval | None) -> str:
    if found is None or found.low is None or found.high is None:
        return f"{'':>22}"
    return f"{found.value:+.3f} [{found.low:+.3f}, {found.high:+.3f}]".rjust(22)
