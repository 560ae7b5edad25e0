"""``cascade record``: ask tiers about a whole data set and keep every outcome."""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from cascade import home
from cascade.cli.interrupt import loading, terminable
from cascade.cli.progress import ProgressLine
from cascade.cli.records import print_summary
from cascade.cli.request import (
    add_answering_options,
    add_data_class,
    add_length,
    client_profile,
)
from cascade.errors import InvalidInput, NotFound, RemoteError
from cascade.events import DEVICE
from cascade.graders import SPECS, Grader, grader
from cascade.policy import PolicyStore
from cascade.records.ask import CloudTier, DeviceTier, Tier
from cascade.records.dataset import Dataset, Item, read_dataset
from cascade.records.file import suffix
from cascade.records.journal import Journal
from cascade.records.record import Header, Record, check_tier_name
from cascade.records.record_set import RecordSet
from cascade.records.run import Plan
from cascade.records.run import run as run_plan
from cascade.records.summary import summarise
from cascade.request import DataClass, check_options
from cascade.signals import ScoreMode
from cascade.signing import TrustStore
from cascade.task import Task, generic
from cascade.wire import GrpcRemote

if TYPE_CHECKING:
    from edge import OnnxModel

_MOST_PROBLEMS = 3
_SELF_CHECKS = {"verification": "self_verification", "agreement": "agreement"}


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    parser.add_argument(
        "dataset", type=Path, metavar="DATASET", help=".csv or .jsonl with a column prompt"
    )
    parser.add_argument(
        "--tiers",
        required=True,
        metavar="NAME,…",
        help="who is asked, from the lowest: device, and names of the cluster's tiers",
    )
    parser.add_argument(
        "--out", type=Path, required=True, metavar="FILE", help=".jsonl or .parquet"
    )
    parser.add_argument(
        "--options",
        metavar="A,B,…",
        help="the closed set of answers (default: the rows' column options, else free text)",
    )
    parser.add_argument("--task", default="", metavar="ID", help="task id, e.g. sentiment")
    parser.add_argument(
        "--wording",
        type=Path,
        metavar="FILE",
        help="how to ask: a task as JSON (default: the installed policy's, else a generic one)",
    )
    parser.add_argument(
        "--grader",
        metavar="SPEC",
        help=f"{SPECS} or none (default: choice for closed sets)",
    )
    parser.add_argument(
        "--group", action="append", default=[], metavar="COLUMN", help="keep it as a group"
    )
    parser.add_argument(
        "--feature", action="append", default=[], metavar="COLUMN", help="keep it as a number"
    )
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N rows")
    parser.add_argument("--description", default="", metavar="TEXT", help="what the data is")
    parser.add_argument("--licence", default="", metavar="TEXT", help="licence of the data")
    add_run_options(parser)
    parser.set_defaults(run=run)


def add_run_options(parser: argparse.ArgumentParser) -> None:
    """Options of how tiers are asked and what is kept, whatever the data."""
    parser.add_argument(
        "--jobs", type=int, default=4, metavar="N", help="rows under way at one time (default 4)"
    )
    parser.add_argument(
        "--text",
        choices=("keep", "drop"),
        default="drop",
        help="drop: keep hashes of prompts and free answers alone (default)",
    )
    parser.add_argument(
        "--signals",
        choices=("tokens", "summary"),
        default="tokens",
        help="keep the device's signals of each token (default), or of the whole answer alone",
    )
    parser.add_argument(
        "--self-check",
        metavar="NAME,…",
        help="ask the device about each answer of its own: verification, agreement (of free "
        "answers; five more of them); off by default",
    )
    add_length(parser)
    parser.add_argument(
        "--mode", choices=get_args(ScoreMode), help="how the device scores a closed set"
    )
    parser.add_argument(
        "--retry-errors", action="store_true", help="ask tiers again that failed in an earlier run"
    )
    parser.add_argument(
        "--price",
        action="append",
        default=[],
        metavar="TIER=IN,OUT",
        help="dollars per million tokens, in place of what the cluster charges",
    )
    add_answering_options(parser)
    sent = [value for value in DataClass if value is not DataClass.NEVER_LEAVE]
    add_data_class(parser, sent, "how sensitive the inputs are")
    parser.add_argument("--json", action="store_true", help="print the summary as JSON")


def run(args: argparse.Namespace) -> int:
    """Ask, keep and sum up."""
    suffix(args.out)
    data = read_dataset(args.dataset, groups=args.group, features=args.feature)
    if data.unused:
        print(f"record: columns not used: {', '.join(data.unused)}", file=sys.stderr)
    print_summary(summarise(record(args, data)), as_json=args.json)
    return 0


def record(args: argparse.Namespace, data: Dataset) -> RecordSet:
    """The records of a data set, by the verb's arguments; those of ``args.out``, too."""
    _check_counts(args)
    names = _names(args.tiers)
    items = data.items[: args.limit]
    grades = _grader(args, data.items)
    remote = _remote(args, names, grades)
    model = _model(args) if DEVICE in names else None
    task = _task(args, model)
    plan = Plan(
        tiers=_tiers(args, names, model, remote),
        task=task,
        grader=grades,
        judge=_cloud_tier(args, remote, grades.judge) if grades and grades.judge else None,
        max_tokens=args.max_tokens,
        keep_text=args.text == "keep",
        retry=args.retry_errors,
    )
    _check_items(plan, items)
    if "agreement" in _self_checks(args) and any(map(plan.options, data.items)):
        raise InvalidInput("self-check", "agreement is of free answers, and there are options")
    header = Header(
        tiers=tuple(tier.info for tier in plan.tiers),
        task_id=args.task or (task.task_id if task else ""),
        options=task.options if task else (),
        wording=task,
        # Of every row, so that a run with another --limit has the same header.
        max_tokens=None if all(map(plan.options, data.items)) else args.max_tokens,
        grader=grades.spec if grades else "",
        self_checks=_self_checks(args) if model is not None else (),
        data_sha256=data.sha256,
        description=args.description,
        licence=args.licence,
    )
    with Journal(args.out, header) as journal:
        return _record(plan, items, journal, remote=remote, jobs=args.jobs)


def _record(
    plan: Plan, items: Sequence[Item], journal: Journal, *, remote: GrpcRemote | None, jobs: int
) -> RecordSet:
    """Ask about what is not done, and write the file however this ends."""
    line = ProgressLine("record", len(items), "rows")
    before, failed = len(journal.done), 0
    if before:
        print(f"record: {before} rows are there already", file=sys.stderr)

    for tier in plan.tiers:
        if isinstance(tier, CloudTier):
            tier.expect(journal.models.get(tier.info.name, ""))

    def keep(record: Record) -> None:
        nonlocal failed
        journal.know({tier.info.name: tier.info.model for tier in plan.tiers})
        journal.append(record)
        failed += any(outcome.failed for outcome in record.outcomes.values())
        line.update(len(journal.done), f"{failed} with a failure" if failed else "")

    complete = False
    try:
        asyncio.run(_ask(plan, items, journal.done, remote=remote, jobs=jobs, keep=keep))
        complete = True
    finally:
        if not complete:
            line.abandon()
        models = {tier.info.name: tier.info.model for tier in plan.tiers}
        written = journal.finish([item.id for item in items], models)
        if not complete and written is not None:
            print(
                f"record: {len(journal.done)} of {len(items)} rows are in {journal.path}; the same "
                "command goes on from there",
                file=sys.stderr,
            )
        _tell_problems(plan.tiers)
    if written is None:
        raise AssertionError("a run ended without a record")
    line.done(f"{len(items)} rows")
    return written


async def _ask(
    plan: Plan,
    items: Sequence[Item],
    done: Mapping[str, Record],
    *,
    remote: GrpcRemote | None,
    jobs: int,
    keep: Callable[[Record], None],
) -> None:
    with terminable():
        try:
            asked = [*plan.tiers, *([plan.judge] if plan.judge else [])]
            for tier in asked:
                if remote is not None and tier.info.kind == "cloud":
                    await _check_tier(remote, tier.info.name)
            await run_plan(plan, items, done=done, jobs=jobs, on_record=keep)
        finally:
            if remote is not None:
                await remote.close()


async def _check_tier(remote: GrpcRemote, name: str) -> None:
    """Raise where there is no such tier, before a thousand rows say so."""
    try:
        await remote.health(f"tier/{name}")
    except RemoteError as problem:
        if problem.status != "NOT_FOUND":
            raise
        raise NotFound(
            f"the cluster has no tier {name}; `cascade cluster status` lists them"
        ) from None


def _tell_problems(tiers: Sequence[Tier]) -> None:
    for tier in tiers:
        for problem, count in tier.problems.most_common(_MOST_PROBLEMS):
            print(f"record: {tier.info.name}: {count} × {problem}", file=sys.stderr)


def _check_counts(args: argparse.Namespace) -> None:
    for name in ("jobs", "max_tokens", "limit"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise InvalidInput(name, f"{value} is below 1")
    if not 0 < args.deadline < math.inf:
        raise InvalidInput("deadline", f"{args.deadline} is not a positive number of seconds")


def _names(text: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(","))
    for name in names:
        check_tier_name("tiers", name)
        if names.count(name) > 1:
            raise InvalidInput("tiers", f"names {name} twice")
    return names


def _grader(args: argparse.Namespace, items: Sequence[Item]) -> Grader | None:
    if args.grader == "none":
        return None
    if args.grader is not None:
        return grader(args.grader)
    if all(item.reference is None for item in items):
        return None
    if args.options or args.wording or all(item.options for item in items):
        return grader("choice")
    raise InvalidInput(
        "grader", "is missing, and there are references; give exact, numeric, … or none"
    )


def _check_items(plan: Plan, items: Sequence[Item]) -> None:
    for item in items:
        if item.options and plan.task is not None:
            raise InvalidInput(
                f"{item.where}: options", "are given for all rows; leave this column out"
            )
        plan.check(item)


def _remote(
    args: argparse.Namespace, names: Sequence[str], grades: Grader | None
) -> GrpcRemote | None:
    if all(name == DEVICE for name in names) and not (grades and grades.judge):
        return None
    if args.cloud is None and args.profile is None:
        raise InvalidInput("cloud", "is missing, and tiers of a cluster are asked; give --cloud")
    profile = client_profile(args)
    return None if profile is None else GrpcRemote(profile)


def _model(args: argparse.Namespace) -> OnnxModel:
    with loading():
        from edge import Bundle, OnnxModel, bundle_path
        from edge.profile import recommended_threads
    bundle = Bundle.open(bundle_path(args.bundle), TrustStore(home.trust_dir()))
    threads = args.threads
    if threads is None:
        threads = recommended_threads(bundle.manifest.name)
    return OnnxModel(bundle, threads=threads)


def _task(args: argparse.Namespace, model: OnnxModel | None) -> Task | None:
    """How a closed set is asked for: by the file, the task's policy, or a generic wording."""
    options = tuple(option.strip() for option in args.options.split(",")) if args.options else ()
    if options:
        check_options(options)
    if args.wording is not None:
        task = _read_task(args.wording)
        if options and set(options) != set(task.options):
            raise InvalidInput("options", f"are not those of {args.wording.name}")
        return dataclasses.replace(task, task_id=args.task) if args.task else task
    if args.task and model is not None:
        trust = TrustStore(home.trust_dir())
        policy = PolicyStore(home.policies_dir(), trust).find(args.task, model.info)
        if policy is not None and (not options or policy.covers(options, model.info)):
            return policy.task
    return dataclasses.replace(generic(options), task_id=args.task) if options else None


def _read_task(path: Path) -> Task:
    try:
        return Task.from_json(json.loads(path.read_text(encoding="utf-8")), where=path.name)
    except FileNotFoundError:
        raise NotFound(f"there is no file {path}") from None
    except InvalidInput:
        raise
    except (OSError, ValueError):
        raise InvalidInput("wording", f"{path} is no JSON text") from None


def _tiers(
    args: argparse.Namespace,
    names: Sequence[str],
    model: OnnxModel | None,
    remote: GrpcRemote | None,
) -> list[Tier]:
    return [
        DeviceTier(
            model,
            mode=args.mode,
            signals=args.signals == "tokens",
            self_checks=_self_checks(args),
        )
        if model is not None and name == DEVICE
        else _cloud_tier(args, remote, name)
        for name in names
    ]


def _self_checks(args: argparse.Namespace) -> tuple[str, ...]:
    """The features that ``--self-check`` asks for."""
    names = tuple(name.strip() for name in (args.self_check or "").split(",") if name.strip())
    for name in names:
        if name not in _SELF_CHECKS:
            raise InvalidInput("self-check", f"{name!r} is not one of {', '.join(_SELF_CHECKS)}")
    return tuple(_SELF_CHECKS[name] for name in names)


def _cloud_tier(args: argparse.Namespace, remote: GrpcRemote | None, name: str) -> Tier:
    if remote is None or name == DEVICE:
        raise InvalidInput("grader", f"{name} cannot judge; name a tier of the cluster")
    return CloudTier(
        remote,
        name,
        deadline_s=args.deadline,
        data_class=DataClass(args.data_class),
        prices=_prices(args.price).get(name),
    )


def _prices(texts: Sequence[str]) -> dict[str, tuple[float, float]]:
    prices: dict[str, tuple[float, float]] = {}
    for text in texts:
        name, _, amounts = text.partition("=")
        prompt, _, completion = amounts.partition(",")
        try:
            price = float(prompt), float(completion)
        except ValueError:
            price = -1.0, -1.0
        if not all(0 <= amount < math.inf for amount in price):
            raise InvalidInput("price", f"{text!r} is not TIER=IN,OUT, e.g. tier1=0.15,0.60")
        prices[name] = price
    return prices
