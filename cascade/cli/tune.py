"""``cascade tune``: records and targets in, a signed policy with its certificate out."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cascade.cli import tune_arguments, tune_compare, tune_ladder
from cascade.cli.tune_arguments import aims_of, default_split, may_leak, modelling_of
from cascade.cli.tune_files import (
    PARTS,
    STOP,
    install,
    part_pair,
    read_parts,
    refuse_existing,
    sign,
)
from cascade.cli.tune_print import Result, result_lines, result_object
from cascade.draft import Drafting
from cascade.errors import InfeasibleTarget, InvalidInput
from cascade.pair import Pair
from cascade.policy import check_task_id
from cascade.records import RecordSet
from cascade.task import Task, free
from cascade.tune import Aim, Modelling, Tested, Tuned, examine, group_tasks, tune, tune_groups


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    tune_arguments.configure(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Tune, print, write; 6 where a target could not be certified, after all else is done."""
    if args.ladder is not None:
        return tune_ladder.run(args)
    if args.objective is not None:
        raise InvalidInput("objective", "is for ladders; give --ladder device,tier1,tier2 too")
    if args.compare:
        return tune_compare.run(args)
    if args.early_stop and args.group is not None:
        raise InvalidInput("early-stop", "is for one policy of all rows; leave out --group")
    leaky, aims, modelling = may_leak(args), aims_of(args), modelling_of(args)
    drafting = None if args.drafting is None else Drafting.parse(args.drafting, "drafting")
    if args.group is None:
        refuse_existing(args.out, force=args.force)
    wanted = (*PARTS, STOP) if args.early_stop else PARTS
    parts = read_parts(
        args.records,
        args.split or default_split(args),
        args.seed,
        allow_leak=args.allow_leak,
        parts=wanted,
        needed=tuple(name for name in wanted if name != "test"),
    )
    stop = parts.pop(STOP, None)
    # Where nothing above is asked for, a cluster that failed costs no label; the test part shows
    # the whole cascade.
    local = {"certify"} if modelling.gain else {"develop", "certify"}
    alone = local if all(aim.alone for aim in aims) else set()
    rows = {name: part_pair(name, part, args, alone=name in alone) for name, part in parts.items()}
    if args.group is not None and args.out is not None:
        for value in sorted({*rows["certify"].records.group(args.group)}):
            refuse_existing(_group_file(args.out, value), force=args.force)
    task = _task(args.task, rows["develop"])
    if drafting is not None and task.options:
        raise InvalidInput("drafting", "is for free text, not for a closed set; leave it out")
    how = Settings(args.delta, task, modelling, drafting)
    policies = _tuned(rows, aims, how, args.group, stop)
    results = [
        Result(tuned, _tested(rows.get("test"), aims, tuned, args.group), *_written(args, tuned))
        for tuned in policies
    ]
    sizes = {name: len(part) for name, part in rows.items()}
    if stop is not None:
        sizes[STOP] = len(stop)
    if args.json:
        print(json.dumps(result_object(rows, results, args.delta, sizes=sizes, leaky=leaky)))
    else:
        for line in result_lines(rows, results, args.delta, sizes=sizes, leaky=leaky):
            print(line)
    return InfeasibleTarget.exit_code if any(r.tuned.refusal for r in results) else 0


@dataclass(frozen=True, slots=True)
class Settings:
    """What all policies of one run have in common; see ``cascade.tune.tune``, and ``Policy`` for
    ``drafting``, of which nothing is certified."""

    delta: float
    task: Task
    modelling: Modelling
    drafting: Drafting | None


def _tuned(
    rows: dict[str, Pair],
    aims: Sequence[Aim],
    how: Settings,
    group: str | None,
    stop: RecordSet | None,
) -> tuple[Tuned, ...]:
    develop, fresh = rows["develop"], rows["certify"]
    delta, task, modelling = how.delta, how.task, how.modelling
    found = (
        (tune(develop, fresh, aims, delta=delta, task=task, modelling=modelling, stop=stop),)
        if group is None
        else tune_groups(develop, fresh, aims, group, delta=delta, task=task, modelling=modelling)
    )
    return tuple(
        dataclasses.replace(each, policy=dataclasses.replace(each.policy, drafting=how.drafting))
        for each in found
    )


def _task(task_id: str | None, develop: Pair) -> Task:
    """The wording that the policy is for.

    Raises:
        InvalidInput: the records do not say what a policy must be bound to.
    """
    header = develop.records.header
    (tier,) = (tier for tier in header.tiers if tier.name == develop.local)
    if header.options and header.wording is None:
        raise InvalidInput(
            "records",
            "have options but no wording of them, and a policy is for one; record --options",
        )
    if not tier.base_digest:
        raise InvalidInput("records", f"do not say which model {tier.name} was (base_digest)")
    wording = header.wording or free("")
    name = task_id or header.task_id or wording.task_id
    if not name:
        raise InvalidInput("task", "is not named by the records; give --task ID")
    check_task_id(name)
    return dataclasses.replace(wording, task_id=name)


def _tested(
    rows: Pair | None, aims: Sequence[Aim], tuned: Tuned, group: str | None
) -> Tested | None:
    if rows is None:
        return None
    if group is not None:
        mine = np.flatnonzero(np.asarray(rows.records.group(group)) == tuned.group)
        if not len(mine):
            return None
        rows = rows.take(mine)
    return examine(rows, aims, tuned.policy)


def _written(args: argparse.Namespace, tuned: Tuned) -> tuple[Path | None, str | None, Path | None]:
    """The policy's file, who signed it, and where it is installed."""
    file, signed_by, installed = None, None, None
    if args.out is not None:
        file = args.out
        if tuned.group is not None:
            file = _group_file(file, tuned.group)
        signed_by = sign(tuned.policy.to_bytes(), file, args.key)
    if args.install:
        installed = install(tuned.policy, args.key)
    return file, signed_by, installed


def _group_file(out: Path, value: str) -> Path:
    """Where the policy of one value of a group goes; values may hold what no file's name should."""
    name = group_tasks("task", [value])[value].removeprefix("task.")
    return out.with_name(f"{out.stem}-{name}{out.suffix}")
